"""Tests of a run's check of its own rows, with planted faults."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from test_logprobs import Tokens, plain_logps
from test_packing import MIXED, attention, neighbours_seen, sequences, window_ignored, window_too_wide
from tiny_models import tiny_model
from tiny_pair import pairs, save_pair, write_jsonl
from transformers import PreTrainedModel

from sepo_data import AnnotateSettings, ScoringError, annotate
from sepo_data.annotated.manifest import read_manifest
from sepo_data.models import packing_check
from sepo_data.models.batching import rope_switches
from sepo_data.models.loading import Scorer
from sepo_data.models.logprobs import Logps
from sepo_data.models.packing import is_packed, packed_attention
from sepo_data.models.packing_check import prepare
from sepo_data.models.self_check import checked_logps


def check(scorer: Scorer, tokens: list[Tokens], *, first: bool = True) -> tuple[list[Logps], float]:
    return checked_logps(scorer, tokens, scorer.logps(tokens), partial(scorer.logps, tokens), first=first)


def assert_plain(found: list[Logps], model: PreTrainedModel, tokens: list[Tokens]) -> None:
    for logps, item in zip(found, tokens, strict=True):
        np.testing.assert_allclose(logps, plain_logps(model, item), atol=1e-4, rtol=0)


@contextmanager
def leaking(model: PreTrainedModel, leak: float) -> Iterator[None]:
    """A model whose output depends on the number of tokens."""

    def mix(module: Any, args: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * (1 + leak * hidden.shape[0] * hidden.shape[1])

    hook = model.model.embed_tokens.register_forward_hook(mix)
    try:
        yield
    finally:
        hook.remove()


def test_right_batches_are_kept_and_the_difference_is_reported() -> None:
    model, tokens = tiny_model(), sequences(*MIXED)
    assert prepare(model, 64)
    found, off = check(Scorer(model, nullcontext, 100), tokens)
    assert 0 < off < 1e-4
    assert is_packed(model)
    assert_plain(found, tiny_model(), tokens)


@pytest.mark.parametrize(
    ("wrong", "family"),
    [(neighbours_seen, "llama"), (window_too_wide, "mistral"), (window_ignored, "gemma3_text")],
)
def test_attention_that_goes_wrong_on_the_run_s_rows_is_replaced(
    wrong: Any, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokens = tiny_model(family), sequences(*MIXED)
    assert prepare(model, 64)  # what is made up does not show it
    with attention(wrong), caplog.at_level(logging.WARNING, "sepo"):
        found, off = check(Scorer(model, nullcontext, 1000), tokens)
    assert off < 1e-4
    assert not is_packed(model)
    assert "batches are padded, because log-probs of a row were" in caplog.text
    assert_plain(found, tiny_model(family), tokens)


def test_numbers_that_depend_on_the_batch_are_made_one_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    model, tokens = tiny_model(), sequences(*MIXED)
    model.eval()
    scorer = Scorer(model, nullcontext, 1000)
    with leaking(model, 0.5), caplog.at_level(logging.WARNING, "sepo"):
        assert not prepare(model, 64)  # a plain path that is as far off excuses nothing
        found, off = check(scorer, tokens)
        for logps, item in zip(found, tokens, strict=True):
            alone = Tokens(item.input_ids[: item.positions[-1] + 1], item.positions)
            np.testing.assert_allclose(logps, scorer.logps([alone])[0], atol=1e-5, rtol=0)
    assert off < 1e-4
    assert scorer.alone
    assert "one at a time" in caplog.text


def test_random_numbers_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    model.model.norm.register_forward_hook(lambda module, args, hidden: hidden + torch.randn_like(hidden))
    said = r"two forward passes of the same text differ by [\d.]+ nats\. Turn off what is random"
    with pytest.raises(ScoringError, match=said):
        check(Scorer(model, nullcontext, 1000), sequences(*MIXED))
    assert not caplog.messages  # other batches would not help


def test_a_model_that_looks_ahead_in_long_rows_is_refused() -> None:
    model, tokens = tiny_model(), sequences(*MIXED)
    longest = max(int(one.positions[-1]) for one in tokens)

    def ahead(module: Any, args: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + hidden[:, -3:].mean(1, keepdim=True) if hidden.shape[1] == longest else hidden

    model.model.embed_tokens.register_forward_hook(ahead)
    scorer = Scorer(model, nullcontext, 1)
    with pytest.raises(ScoringError, match=rf"in a row of {longest} tokens .* not causal there"):
        check(scorer, tokens)


def test_what_shows_late_ends_the_run() -> None:
    model = tiny_model()
    assert prepare(model, 64)
    with attention(neighbours_seen), pytest.raises(ScoringError, match=r"a late row .*another `output`"):
        check(Scorer(model, nullcontext, 1000), sequences(*MIXED), first=False)


def test_a_tensor_that_packing_does_not_know_is_not_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    def with_blocks(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return packed_attention(*args, **kwargs, block_indices=torch.zeros(1))

    with attention(with_blocks), caplog.at_level(logging.INFO, "sepo"):
        assert not prepare(tiny_model(), 64)
    assert "TypeError: packed attention does not know block_indices" in caplog.text


@pytest.mark.parametrize("name", ["index_topk_blocks", "floor_scale", "sliding_window_size"])
def test_the_sequences_tried_are_longer_than_what_a_config_bounds(name: str) -> None:
    model = tiny_model()
    setattr(model.config, name, 40)
    longest = max(one.input_ids.size for group in packing_check._groups(model, 64) for one in group)
    assert longest > 40
    setattr(model.config, name, 100)  # of no concern to rows of 64 tokens
    longest = max(one.input_ids.size for group in packing_check._groups(model, 64) for one in group)
    assert longest <= 64


def test_switches_of_every_layer_type_are_known() -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 16}
    model = tiny_model()
    model.config.rope_parameters = {
        "full_attention": rope,
        "sliding_attention": {**rope, "original_max_position_embeddings": 8},
        "other": {"rope_type": "default"},
    }
    assert rope_switches(model.config) == [8, 16]
    assert rope_switches(tiny_model("phi3").config) == [16]
    assert rope_switches(tiny_model().config) == []


def annotated(folder: Path, models: tuple[str, str], **settings: Any) -> tuple[list[Any], float | None]:
    data = write_jsonl(folder / "prefs.jsonl", pairs(12))
    annotate(data, *models, AnnotateSettings(folder / "out", **settings))
    rows = datasets.load_dataset("parquet", data_files=str(folder / "out/data/*"), split="train")
    manifest = read_manifest(folder / "out", "it")
    assert "| self-check: rows scored again one at a time" in (folder / "out" / "README.md").read_text()
    return [row["chosen_token_rewards"] for row in rows], manifest.self_check


@pytest.mark.parametrize("sequential", [False, True])
def test_a_run_with_a_planted_fault_gives_the_right_numbers(tmp_path: Path, sequential: bool) -> None:
    models = save_pair(tmp_path)
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    right, usual = annotated(tmp_path / "right", models, sequential=sequential)
    with pytest.MonkeyPatch.context() as patch, attention(neighbours_seen):
        patch.setattr(packing_check, "_furthest", lambda *_: 0.0)  # the probe sees nothing
        found, off = annotated(tmp_path / "wrong", models, sequential=sequential)
    assert usual is not None
    assert off is not None
    assert max(usual, off) < 1e-4
    for one, other in zip(right, found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
