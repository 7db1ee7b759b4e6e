"""ms-swift: the chosen responses as token ids with a loss scale for every token.

Source: ms-swift 4.6.0, ``loss_scale/base.py``: a message whose content is ``token_ids`` and ``loss_scale``
is encoded as it is (from 4.2 on). The prompt is a part of it, with scale 0: swift's template adds nothing
but the tokenizer's own BOS.
"""

from ..projected.pairs import ProjectedPair
from .target import Record, Target, token_weights

RECIPE = """
    swift sft --model $MODEL --dataset $DATA --remove_unused_columns false \\
        --template dummy --use_chat_template false \\
        --loss_scale default --is_binary_loss_scale false --tuner_type full --max_length $LENGTH \\
        --learning_rate 5e-6 --per_device_train_batch_size 2 --gradient_accumulation_steps 64 \\
        --num_train_epochs 1 --output_dir out
"""


def records(pair: ProjectedPair) -> list[Record]:
    """One row per pair: its chosen response."""
    content = {
        "token_ids": pair.chosen.input_ids.tolist(),
        "loss_scale": token_weights(pair.chosen).tolist(),
    }
    return [{"messages": [{"role": "assistant", "content": content}], "add_eos": False}]


TARGET = Target(records, "train.jsonl", None, weighted=True, recipe=RECIPE, adds_bos=True)
