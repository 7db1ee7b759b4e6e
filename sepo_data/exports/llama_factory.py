"""LLaMA-Factory: a tokenised dataset for its SimPO, which with gamma 0 and beta 1 is SePO's loss.

Source: llamafactory 0.9.5, ``data/loader.py`` (``tokenized_path``) and ``PairwiseDataCollatorWithPadding``.
"""

import pyarrow as pa

from ..projected.pairs import ProjectedPair
from ..schema import SIDES
from .target import IDS, MASK, Record, Target, sequence

MEDIA = ("images", "videos", "audios")  # its collator asks for them in every row
SCHEMA = pa.schema(
    [
        *(
            (f"{side}_{name}", kind)
            for side in SIDES
            for name, kind in (("input_ids", IDS), ("attention_mask", MASK), ("labels", IDS))
        ),
        *((name, pa.list_(pa.string())) for name in MEDIA),
    ]
)
RECIPE = """
    # sepo.yaml; run it with: llamafactory-cli train sepo.yaml
    model_name_or_path: $MODEL
    stage: dpo
    do_train: true
    finetuning_type: full
    pref_loss: simpo
    pref_beta: 1.0
    simpo_gamma: 0.0
    tokenized_path: $DATA
    dataset: none                # required but not read: the data is already tokenised
    template: default            # likewise
    output_dir: out
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 64
    learning_rate: 5.0e-7
    num_train_epochs: 1.0
"""


def records(pair: ProjectedPair) -> list[Record]:
    """One row per pair."""
    sides = (("chosen", pair.chosen), ("rejected", pair.rejected))
    columns = {f"{name}_{key}": value for name, side in sides for key, value in sequence(side).items()}
    return [{**columns, **dict.fromkeys(MEDIA)}]


TARGET = Target(records, "tokenized", SCHEMA, weighted=False, recipe=RECIPE)
