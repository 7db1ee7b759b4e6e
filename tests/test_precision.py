"""Tests of what a run in lower precision than float32 reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_pair import pairs, save_pair, write_jsonl

from cli.reports import describe_precision, describe_report
from sepo_data import AnnotateSettings, annotate, load_annotated
from sepo_data.annotated.precision import Precision
from sepo_data.models import placement
from sepo_data.models.description import describe_pair
from sepo_data.models.placement import weight_bytes
from sepo_data.models.scoring import ScoredSide
from sepo_data.runs.rounding import PAIRS, compare
from sepo_data.schema import Sides
from sepo_data.selection import SelectionRule
from sepo_data.tokens.pairs import EncodedPair


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


def side(*rewards: list[float]) -> ScoredSide:
    return ScoredSide(
        [np.array(values, np.float32) for values in rewards], [np.zeros(len(v), np.float32) for v in rewards]
    )


def test_noise_and_overlap_by_hand() -> None:
    # chosen: float32 selects tokens 0 and 1, the run 0 and 2; rejected: both select token 0
    exact = Sides(side([3.0, 2.0, 1.0, 0.0]), side([-1.0, 1.0]))
    scored = Sides(side([3.0, 1.0, 2.0, 0.0], [9.0]), side([-1.0, 1.0], [9.0]))
    nothing: Any = None
    both = [EncodedPair(nothing, nothing, row=row, pair=nothing) for row in (0, 1)]
    found = compare(both, exact, scored, SelectionRule("ratio", 0.5, 0.5))
    # six rewards, of which two differ by 1; their mean is 1, squares 4 + 1 + 0 + 1 + 4 + 0
    assert (found.pairs, found.tokens) == (1, 6)
    assert found.overlap == pytest.approx(2 / 3)
    assert found.noise == pytest.approx((2 / 6) ** 0.5)
    assert found.reward_spread == pytest.approx((10 / 6) ** 0.5)


def test_a_poor_overlap_is_warned_of() -> None:
    poor = Precision(pairs=32, tokens=900, reward_spread=0.02, noise=0.045, overlap=0.47)
    lines = describe_precision(poor, "bfloat16")
    assert lines == [
        "bfloat16 against float32, on 32 pairs: 47.0% of the selected tokens are the same; rewards differ "
        "by 0.0450 nats (root mean square), and have a standard deviation of 0.0200",
        "warning: bfloat16 selects different tokens than float32: 47.0% are the same, since the rounding "
        "of a reward (0.0450 nats) is large compared with the rewards (0.0200 nats). Pass `dtype=float32`, "
        "or train the oracle longer.",
    ]
    assert "NVIDIA_TF32_OVERRIDE=0" in describe_precision(poor, "float32")[1]
    fine = Precision(pairs=32, tokens=900, reward_spread=0.2, noise=0.001, overlap=0.99)
    assert len(describe_precision(fine, "float32")) == 1


def run(tmp_path: Path, tiny: tuple[str, str], rows: int, **settings: Any) -> Path:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(rows))
    name = "-".join(map(str, settings.values())) or "float32"
    report = annotate(data, *tiny, AnnotateSettings(tmp_path / name, **settings))
    assert "bfloat16" not in settings.values() or "bfloat16 against float32" in "\n".join(
        describe_report(report)
    )
    return tmp_path / name


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "sepo_manifest.json").read_text()))


def test_a_run_in_bfloat16_says_how_far_it_is_from_float32(tmp_path: Path, tiny: tuple[str, str]) -> None:
    exact, rounded = (run(tmp_path, tiny, 40, **settings) for settings in ({}, {"dtype": "bfloat16"}))
    assert manifest_of(exact)["precision"] is None
    found = manifest_of(rounded)["precision"]
    assert found["pairs"] == PAIRS
    selected = both = 0
    differences = []
    datasets = (load_annotated(str(folder))["train"] for folder in (exact, rounded))
    for row, other in zip(*datasets, strict=True):
        if row["id"] >= PAIRS:
            break
        for name in ("chosen", "rejected"):
            masks = [np.array([*r[f"{name}_token_mask"], r[f"{name}_eos_mask"]]) for r in (row, other)]
            rewards = [np.array([*r[f"{name}_token_rewards"], r[f"{name}_eos_reward"]]) for r in (row, other)]
            selected += masks[0].sum()
            both += (masks[0] & masks[1]).sum()
            differences.append(rewards[1] - rewards[0])
    assert found["overlap"] == pytest.approx(both / selected)
    noise = np.sqrt(np.square(np.concatenate(differences)).mean())
    assert found["noise"] == pytest.approx(noise, rel=1e-3)
    assert noise > 1e-3
    assert (
        f"{found['overlap']:.1%} of the selected tokens are the same" in (rounded / "README.md").read_text()
    )


def test_a_resumed_run_says_the_same(tmp_path: Path, tiny: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(300))
    settings = [AnnotateSettings(tmp_path / name, dtype="bfloat16") for name in ("once", "twice")]
    annotate(data, *tiny, settings[0])
    assert annotate(data, *tiny, settings[1], stop=lambda: True).stopped
    annotate(data, *tiny, settings[1])
    assert manifest_of(tmp_path / "twice") == manifest_of(tmp_path / "once")


def test_a_run_whose_models_do_not_fit_in_float32_continues(
    tmp_path: Path, tiny: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = weight_bytes(describe_pair(*tiny).checkpoints[0], "float32")
    monkeypatch.setattr(placement, "free_bytes", lambda device: size)
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(3))
    settings = AnnotateSettings(tmp_path / "out", dtype="bfloat16", sequential=True)
    manifest = annotate(data, *tiny, settings).manifest
    assert manifest is not None
    assert manifest.precision is None
    assert "what bfloat16 changes is not measured: in float32, oracle takes 0.0 GiB" in caplog.text
