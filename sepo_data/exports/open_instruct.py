"""Open-instruct: tokenised preferences for its SimPO, which with gamma 0 and beta 1 is SePO's loss.

Source: open_instruct 008fc86, ``dataset_transformation.py`` (``TOKENIZED_PREFERENCE_DATASET_KEYS``,
``preference_tulu_filter_v1``) and ``dpo_utils.py``.
"""

from ..projected.pairs import ProjectedPair
from .target import Record, Target, sequence

RECIPE = """
    python open_instruct/dpo_tune_cache.py \\
        --model_name_or_path $MODEL \\
        --mixer_list $DATA 1.0 \\
        --transform_fn preference_tulu_filter_v1 \\
        --loss_type simpo --beta 1.0 --gamma_beta_ratio 0.0 \\
        --per_device_train_batch_size 2 --gradient_accumulation_steps 64 \\
        --learning_rate 5e-7 --num_epochs 1 --output_dir out
"""


def records(pair: ProjectedPair) -> list[Record]:
    """One row per pair."""
    sides = (("chosen", pair.chosen), ("rejected", pair.rejected))
    return [{f"{name}_{key}": value for name, side in sides for key, value in sequence(side).items()}]


TARGET = Target(records, "train.jsonl", None, weighted=False, recipe=RECIPE)
