"""Whole runs on a CUDA device, against the CPU; skipped where there is none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_pair import pairs, save_pair, write_jsonl

from sepo_data import AnnotateSettings, annotate
from sepo_train import SepoSettings, train_sepo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ROWS = 60


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A dataset, an oracle, a reference."""
    folder = tmp_path_factory.mktemp("inputs")
    return write_jsonl(folder / "prefs.jsonl", pairs(ROWS)), *save_pair(folder)


def rewards(folder: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    (path,) = (folder / "data").iterdir()
    return np.concatenate([np.array(row) for row in pq.read_table(path)["chosen_token_rewards"].to_pylist()])


def precision(folder: Path) -> dict[str, float] | None:
    found: dict[str, float] | None = json.loads((folder / "sepo_manifest.json").read_text())["precision"]
    return found


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory, inputs: tuple[str, str, str]) -> Path:
    output = tmp_path_factory.mktemp("cpu") / "out"
    annotate(*inputs, AnnotateSettings(output, device="cpu"))
    assert precision(output) is None
    return output


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_agrees_with_the_cpu_and_says_what_its_precision_changed(
    tmp_path: Path, inputs: tuple[str, str, str], on_cpu: Path, dtype: Any, sequential: bool
) -> None:
    annotate(*inputs, AnnotateSettings(tmp_path, device="cuda", dtype=dtype, sequential=sequential))
    found = precision(tmp_path)
    assert found is not None  # float32 is TF32 here
    assert 0 < found["noise"] < {"float32": 0.02, "bfloat16": 0.3, "float16": 0.05}[dtype]
    differences = rewards(tmp_path) - rewards(on_cpu)
    assert np.sqrt(np.square(differences).mean()) == pytest.approx(found["noise"], rel=0.5)


def test_a_policy_trains(tmp_path: Path, on_cpu: Path, inputs: tuple[str, str, str]) -> None:
    settings = SepoSettings(output_dir=tmp_path / "policy", batch_size=8, learning_rate=1e-3)
    report = train_sepo(inputs[2], str(on_cpu), settings)
    assert report.record is not None
    assert report.record["figures"]
