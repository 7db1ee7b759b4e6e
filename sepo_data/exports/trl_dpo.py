"""TRL's DPOTrainer: ids of prompt and responses, and a weight for every response token.

Source: trl 1.16.0, ``trainer/dpo_trainer.py`` (``DataCollatorForPreference``). DPOTrainer has no masked
loss, so ``docs/export.md`` has a subclass that reads the weights.
"""

import numpy as np
import pyarrow as pa

from ..projected.pairs import ProjectedPair
from .target import IDS, Record, Target, token_weights

WEIGHTS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("prompt_ids", IDS),
        ("chosen_ids", IDS),
        ("rejected_ids", IDS),
        ("chosen_mask", WEIGHTS),
        ("rejected_mask", WEIGHTS),
    ]
)
RECIPE = """
    from datasets import load_dataset
    from trl import DPOConfig

    train_dataset = load_dataset("parquet", data_files="$DATA", split="train")
    args = DPOConfig("out", learning_rate=5e-7, per_device_train_batch_size=2, gradient_accumulation_steps=64)
    SepoTrainer("$MODEL", args=args, train_dataset=train_dataset).train()

`SepoTrainer` is the subclass of `DPOTrainer` on sepo's page about exports.
"""


def records(pair: ProjectedPair) -> list[Record]:
    """One row per pair; the common beginning of both sequences, up to the responses, is the prompt."""
    length = min(int(pair.chosen.positions[0]), int(pair.rejected.positions[0]))
    differ = np.flatnonzero(pair.chosen.input_ids[:length] != pair.rejected.input_ids[:length])
    prompt = int(differ[0]) if differ.size else length
    record: Record = {"prompt_ids": pair.chosen.input_ids[:prompt].tolist()}
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        record[f"{name}_ids"] = side.input_ids[prompt:].tolist()
        record[f"{name}_mask"] = token_weights(side)[prompt:].tolist()
    return [record]


TARGET = Target(records, "data/train.parquet", SCHEMA, weighted=True, recipe=RECIPE)
