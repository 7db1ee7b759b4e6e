"""A small annotated table that keeps the contract, made by hand."""

from typing import Any

import numpy as np
import pyarrow as pa

from sepo_data import SelectionRule
from sepo_data.annotated.health import HealthMeter
from sepo_data.annotated.manifest import (
    Counts,
    Manifest,
    ModelFacts,
    ModelRevision,
    RunRecord,
    ScoredRows,
    Scoring,
    SourceRecord,
    completed,
)
from sepo_data.schema import SCHEMA_VERSION, SIDES, annotated_schema

TEXT = {"prompt": pa.string(), "chosen": pa.string(), "rejected": pa.string()}


def with_rule(**settings: Any) -> dict[str, Any]:
    """Settings with a `SelectionRule` instead of ``rule``, ratios and ``seed``."""
    names = ("rule", "chosen_ratio", "rejected_ratio", "seed")
    rule = {name: settings.pop(name) for name in names if name in settings}
    return {**settings, "selection": SelectionRule(**rule)}


def side_values(text: str, *, ended: bool = True, reward: float = 0.5) -> dict[str, Any]:
    """One token per character, equal rewards, the first token selected."""
    count = len(text)
    return {
        "reward": reward * (count + ended),
        "eos_reward": reward if ended else None,
        "eos_mask": False if ended else None,
        "token_start": list(range(count)),
        "token_end": list(range(1, count + 1)),
        "token_rewards": [reward] * count,
        "token_mask": [True] + [False] * (count - 1),
    }


def annotated_table(rows: int = 4, **changes: Any) -> pa.Table:
    """Rows of "ab" against "xyz"; ``changes`` replaces values in the second row."""
    content = []
    for row in range(rows):
        values: dict[str, Any] = {"id": row, "prompt": "p", "chosen": "ab", "rejected": "xyz"}
        for side, reward in zip(SIDES, (0.5, -0.25), strict=True):
            found = side_values(values[side], reward=reward)
            values |= {f"{side}_{name}": value for name, value in found.items()}
        content.append(values | changes if row == 1 else values)
    schema = annotated_schema(pa.schema({"id": pa.int64()}), TEXT, store_logps=False)
    return pa.Table.from_pylist(content, schema=schema)


def run_record(rows: int = 600, *, selection: SelectionRule | None = None, **scoring: Any) -> RunRecord:
    """The record of a run over this many rows; ``scoring`` changes facts that affect its numbers."""
    columns: dict[str, str | None] = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    model = ModelRevision("sha256:0", None)
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "source": ScoredRows("sha256:abc", None, "train", rows, columns),
        "oracle": model,
        "ref": model,
        "tokenizer_sha256": "0",
        "chat_template_sha256": None,
        "dtype": "float32",
        "max_length": 64,
        "reasoning": "score",
        "store_logps": False,
    }
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        sepo_version="0.1.0",
        scoring=Scoring(**facts | scoring),
        selection=selection or SelectionRule(),
        source=SourceRecord("d", None, False, {}, False, {}),
        oracle=ModelFacts("m", "sha256:0", None),
        ref=ModelFacts("m", "sha256:0", None),
    )


def manifest(rows: int = 4) -> Manifest:
    """A manifest without shards, so that it fits any data files."""
    meter = HealthMeter()
    meter.add(annotated_table(rows))
    counts = Counts(rows, rows, {}, {})
    return completed(
        run_record(rows), fingerprint="0", counts=counts, dropped_rows={}, health=meter.health(), shards=[]
    )


def random_table(rng: np.random.Generator, rows: int) -> pa.Table:
    """Rows of random rewards, lengths and ends."""
    content = []
    for row in range(rows):
        values: dict[str, Any] = {"id": row, "prompt": "p"}
        for side in SIDES:
            text = "x" * int(rng.integers(1, 20))
            found = side_values(text, ended=bool(rng.integers(0, 2)))
            rewards = rng.normal(size=len(text)).astype(np.float32)
            found["token_rewards"] = rewards.tolist()
            found["reward"] = float(rewards.sum(dtype=np.float64)) + (found["eos_reward"] or 0.0)
            values |= {side: text, **{f"{side}_{name}": value for name, value in found.items()}}
        content.append(values)
    schema = annotated_schema(pa.schema({"id": pa.int64()}), TEXT, store_logps=False)
    return pa.Table.from_pylist(content, schema=schema)
