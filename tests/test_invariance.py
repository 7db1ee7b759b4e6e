"""Rewards and masks do not depend on how they were made: batches, shards, processes, order, neighbours."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from tiny_pair import pairs, save_pair, write_jsonl

from sepo_data import AnnotateSettings, annotate
from sepo_data.runs import folder as shards
from sepo_data.schema import SIDES

ROOT = Path(__file__).parent.parent
ROWS = 90
TOLERANCE = 1e-5  # nats


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Sequences, some with common prompts and responses, some much longer than others."""
    found = pairs(ROWS, seed=3)
    for row in range(0, ROWS, 6):
        found[row]["prompt"] = found[row + 1]["prompt"]
        found[row]["chosen"] = found[row + 1]["rejected"]
        found[row]["rejected"] = [{"role": "assistant", "content": "A dog jumps. " * (row + 1)}]
    return found


@pytest.fixture
def data(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    return write_jsonl(tmp_path / "prefs.jsonl", rows)


@pytest.fixture(scope="module")
def usual(
    tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str], rows: list[dict[str, Any]]
) -> Path:
    folder = tmp_path_factory.mktemp("usual")
    annotate(write_jsonl(folder / "prefs.jsonl", rows), *models, AnnotateSettings(output=folder / "out"))
    return folder / "out"


def read(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "data").iterdir()
    found = sorted(pq.read_table(path).to_pylist(), key=lambda row: int(row["id"]))
    assert [row["id"] for row in found] == list(range(ROWS))
    return found


def with_end(row: dict[str, Any], side: str, tokens: str, end: str) -> npt.NDArray[Any]:
    return np.array([*row[f"{side}_{tokens}"], row[f"{side}_{end}"]])


def largest_difference(found: Path, usual: Path) -> float:
    """Smallest difference of two rewards, in nats; masks may differ only between rewards this close."""
    largest, swapped = 0.0, [0.0]
    for ours, theirs in zip(read(found), read(usual), strict=True):
        for side in SIDES:
            rewards, expected = (with_end(row, side, "token_rewards", "eos_reward") for row in (ours, theirs))
            mask, expected_mask = (with_end(row, side, "token_mask", "eos_mask") for row in (ours, theirs))
            largest = max(largest, float(np.abs(rewards - expected).max()))
            assert mask.sum() == expected_mask.sum()
            gained, lost = expected[mask & ~expected_mask], expected[expected_mask & ~mask]
            swapped.extend(np.abs(gained - lost).tolist())
    assert max(swapped) <= 2 * largest
    return largest


@pytest.mark.parametrize("batch_tokens", [1, 100, 1000, 100_000])
def test_batches_of_any_size(
    tmp_path: Path, models: tuple[str, str], data: str, usual: Path, batch_tokens: int
) -> None:
    annotate(data, *models, AnnotateSettings(output=tmp_path / "out", batch_tokens=batch_tokens))
    largest = largest_difference(tmp_path / "out", usual)
    assert largest <= TOLERANCE
    assert largest > 0 or batch_tokens > 1  # batches of one pair round otherwise, or nothing was varied


@pytest.mark.parametrize("chunk_rows", [1, 7, 32])
def test_chunks_and_shards_of_any_number(
    tmp_path: Path,
    models: tuple[str, str],
    data: str,
    usual: Path,
    chunk_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "CHUNK_ROWS", chunk_rows)
    for shard in ((2, 3), (0, 3), (1, 3)):
        annotate(data, *models, AnnotateSettings(output=tmp_path / "out", shard=shard))
    assert largest_difference(tmp_path / "out", usual) <= TOLERANCE


def test_rows_in_any_order(
    tmp_path: Path, models: tuple[str, str], rows: list[dict[str, Any]], usual: Path
) -> None:
    mixed = rows.copy()
    random.Random(0).shuffle(mixed)
    data = write_jsonl(tmp_path / "prefs.jsonl", mixed)
    annotate(data, *models, AnnotateSettings(output=tmp_path / "out", batch_tokens=500))
    assert largest_difference(tmp_path / "out", usual) <= TOLERANCE


def test_one_model_after_the_other(tmp_path: Path, models: tuple[str, str], data: str, usual: Path) -> None:
    annotate(data, *models, AnnotateSettings(output=tmp_path / "out", sequential=True))
    assert largest_difference(tmp_path / "out", usual) <= TOLERANCE


@pytest.mark.slow
def test_processes_side_by_side(tmp_path: Path, models: tuple[str, str], data: str, usual: Path) -> None:
    script = "from sepo_data.runs import folder; folder.CHUNK_ROWS = 8; from cli.annotate import main; main()"
    command = [sys.executable, "-c", script, "--oracle", models[0], "--ref", models[1], "--dataset", data]
    command += ["--output", str(tmp_path / "out"), "--shard"]
    processes = [subprocess.Popen([*command, f"{shard}/3"], cwd=ROOT) for shard in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert largest_difference(tmp_path / "out", usual) <= TOLERANCE
