"""TRL's SFTTrainer: the chosen responses, with labels for their key tokens only.

Selective SFT, as Rho-1 (arXiv 2404.07965) and Token Cleaning (arXiv 2502.01968) do it. Source: trl 1.16.0,
``trainer/sft_trainer.py``: a ``labels`` column is used as it is.
"""

import pyarrow as pa

from ..projected.pairs import ProjectedPair
from .target import IDS, Record, Target, labels

SCHEMA = pa.schema([("input_ids", IDS), ("labels", IDS)])
RECIPE = """
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    train_dataset = load_dataset("parquet", data_files="$DATA", split="train")
    args = SFTConfig("out", max_length=None, learning_rate=5e-6)  # the data is cut at $LENGTH tokens
    SFTTrainer("$MODEL", args=args, train_dataset=train_dataset).train()
"""


def records(pair: ProjectedPair) -> list[Record]:
    """One row per pair: its chosen response."""
    return [{"input_ids": pair.chosen.input_ids.tolist(), "labels": labels(pair.chosen)}]


TARGET = Target(records, "data/train.parquet", SCHEMA, weighted=False, recipe=RECIPE)
