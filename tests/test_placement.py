"""Tests of where weights are placed when memory is short, with faked amounts of memory."""

import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_packing import MIXED, sequences
from tiny_models import save_tiny, save_tiny_adapter, tiny_model
from tiny_pair import pairs, save_pair, write_jsonl
from transformers import AutoModelForCausalLM

from sepo_data import AnnotateSettings, ModelError, annotate
from sepo_data.models import loading as models
from sepo_data.models import placement, scoring
from sepo_data.models.description import PairFacts, describe_pair
from sepo_data.models.loading import Loading, Role, scorers
from sepo_data.models.logprobs import token_logps
from sepo_data.models.packing_check import prepare
from sepo_data.models.placement import device_map, load_sequentially, weight_bytes
from sepo_data.models.weights import load_base
from sepo_data.runs import chunks

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> PairFacts:
    folder = tmp_path_factory.mktemp("models")
    return describe_pair(str(save_tiny(folder / "1", seed=1)), str(save_tiny(folder / "2", seed=2)))


def with_memory(monkeypatch: pytest.MonkeyPatch, *free: float, gpus: int = 1) -> None:
    """Pretend that this many bytes are free, on one device or on each GPU."""
    amounts = list(free) * gpus
    monkeypatch.setattr(placement, "free_bytes", lambda device: int(amounts[device.index or 0]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def test_weights_are_counted_without_reading_them(facts: PairFacts) -> None:
    size = sum(weights.numel() for weights in tiny_model().parameters())
    assert weight_bytes(facts.checkpoints[0], "float32") == 4 * size
    assert weight_bytes(facts.checkpoints[0], "bfloat16") == 2 * size


@pytest.mark.parametrize(
    ("device", "gpus", "times", "in_turn"),
    [
        (CPU, 1, 3.0, False),  # 80% of three models' memory holds two
        (CPU, 1, 2.0, True),
        (CUDA, 1, 2.0, True),
        (CUDA, 4, 2.0, True),  # one GPU holds one of them
        (CUDA, 4, 0.7, False),  # none does: each is spread over all, which hold both
        (CUDA, 2, 0.7, True),
    ],
)
def test_models_go_in_turn_where_memory_does_not_hold_both(
    facts: PairFacts,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    gpus: int,
    times: float,
    in_turn: bool,
) -> None:
    size = weight_bytes(facts.checkpoints[0], "float32")
    with_memory(monkeypatch, times * size, gpus=gpus)
    assert load_sequentially(facts, "float32", device) == in_turn


def test_a_base_that_both_have_is_never_loaded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "base")
    facts = describe_pair(str(save_tiny_adapter(tmp_path / "oracle", base)), str(base))
    with_memory(monkeypatch, 1)
    assert not load_sequentially(facts, "float32", CPU)


def test_a_model_larger_than_a_gpu_is_spread_over_all(
    facts: PairFacts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = weight_bytes(facts.checkpoints[0], "float32")
    with_memory(monkeypatch, 2 * size, gpus=2)
    assert device_map(facts.checkpoints[0], "float32", CUDA) == {"": CUDA}
    with_memory(monkeypatch, size, gpus=2)
    with caplog.at_level(logging.INFO, "sepo"):
        assert device_map(facts.checkpoints[0], "float32", CUDA) == "auto"
    assert "does not fit on cuda:0" in caplog.text
    assert "spread over 2 GPUs" in caplog.text
    assert device_map(facts.checkpoints[0], "float32", CPU) == {"": CPU}


def test_one_model_is_dropped_before_the_next_is_loaded(
    facts: PairFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    load = load_base

    def watched(*args: Any, **options: Any) -> Any:
        assert not [model for model in alive if model() is not None]
        model = load(*args, **options)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "load_base", watched)
    for _role, scorer in scorers(facts, Loading(), in_turn=True):
        scorer.logps(sequences(*MIXED))
        del scorer
    assert len(alive) == 3  # the reference once more, to see that it is not the oracle


def test_in_turn_the_same_model_twice_is_refused_before_anything_is_scored(
    tmp_path: Path, facts: PairFacts
) -> None:
    twins = [save_tiny(tmp_path / name, seed=1) for name in ("1", "2")]
    (tmp_path / "2" / "config.json").write_text((tmp_path / "2" / "config.json").read_text() + "\n")
    same = describe_pair(*map(str, twins))
    with pytest.raises(ModelError, match="are the same model"):
        next(scorers(same, Loading(), in_turn=True))


@pytest.mark.parametrize("rows", [40, 600])
def test_in_turn_gives_the_bytes_of_both_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    data, tiny = write_jsonl(tmp_path / "prefs.jsonl", pairs(rows)), save_pair(tmp_path / "models")
    annotate(data, *tiny, AnnotateSettings(tmp_path / "together"))
    with_memory(monkeypatch, 10)
    annotate(data, *tiny, AnnotateSettings(tmp_path / "in turn"))
    for path in sorted((tmp_path / "together").rglob("*.*")):
        assert (
            path.read_bytes() == (tmp_path / "in turn" / path.relative_to(tmp_path / "together")).read_bytes()
        )


def test_a_stopped_sequential_run_resumes_where_it_was(tmp_path: Path) -> None:
    data, tiny = write_jsonl(tmp_path / "prefs.jsonl", pairs(600)), save_pair(tmp_path / "models")
    annotate(data, *tiny, AnnotateSettings(tmp_path / "together"))
    settings = AnnotateSettings(tmp_path / "in turn", sequential=True)
    work = tmp_path / "in turn" / "_work"
    seen = []
    for _ in range(20):
        report = annotate(data, *tiny, settings, stop=lambda: True)
        if not report.stopped:
            break
        seen.append((len(list(work.glob("*.oracle"))), len(list(work.glob("*.rows")))))
    # the oracle over one chunk, two, three; then the reference
    assert seen == [(1, 0), (2, 0), (3, 0), (2, 1), (1, 2)]
    manifests = [(tmp_path / name / "sepo_manifest.json").read_bytes() for name in ("together", "in turn")]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_model_in_pieces_scores_like_a_whole_one(tmp_path: Path, family: str) -> None:
    # accelerate's hooks bring the layers from the disk one by one, as between GPUs
    folder = save_tiny(tmp_path / "model", family)
    whole = tiny_model(family)
    layers = [name for name, _ in whole.named_modules() if name.rsplit(".", 1)[-1].isdecimal()]
    places = dict.fromkeys(layers, "disk")
    for name in whole.state_dict():
        if not name.startswith(tuple(f"{layer}." for layer in layers)):
            places[name.rsplit(".", 1)[0]] = "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=str(tmp_path / "offloaded"), dtype=torch.float32
    )
    assert prepare(model, 64)
    tokens = sequences(*MIXED)
    for ours, theirs in zip(
        token_logps(model, tokens, batch_tokens=1000),
        token_logps(whole, tokens, batch_tokens=1000),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_in_turn_what_the_oracle_was_off_by_outlives_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, tiny = write_jsonl(tmp_path / "prefs.jsonl", pairs(300)), save_pair(tmp_path / "models")
    role_logps = scoring.role_logps

    def off(role: Role, *args: Any) -> Any:
        logps, check = role_logps(role, *args), args[-1]
        if check is not None and role == "oracle":
            check.largest = 5e-4
        return logps

    monkeypatch.setattr(chunks, "role_logps", off)
    settings = AnnotateSettings(tmp_path / "out", sequential=True)
    while (report := annotate(data, *tiny, settings, stop=lambda: True)).stopped:
        pass
    assert report.manifest is not None
    assert report.manifest.self_check == 5e-4
