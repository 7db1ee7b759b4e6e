"""Axolotl: the tokenised chosen responses, with labels for their key tokens only.

Source: axolotl 0.19.0, ``utils/data/wrappers.py``: a dataset with these three columns is taken as tokenised.
"""

import pyarrow as pa

from ..projected.pairs import ProjectedPair
from .target import IDS, MASK, Record, Target, sequence

SCHEMA = pa.schema([("input_ids", IDS), ("attention_mask", MASK), ("labels", IDS)])
RECIPE = """
    # sepo.yaml; run it with: axolotl train sepo.yaml
    base_model: $MODEL
    datasets:
      - path: $DATA
        ds_type: parquet
        type:
    sequence_len: $LENGTH
    learning_rate: 5.0e-6
    num_epochs: 1
    micro_batch_size: 2
    gradient_accumulation_steps: 16
    optimizer: adamw_torch
    lr_scheduler: cosine
    output_dir: out
"""


def records(pair: ProjectedPair) -> list[Record]:
    """One row per pair: its chosen response."""
    return [sequence(pair.chosen)]


TARGET = Target(records, "data/train.parquet", SCHEMA, weighted=False, recipe=RECIPE)
