"""Tests of the sweep over architectures: popular ones are right, and a wrong one is detected."""

import pytest
import torch

from benchmarks import architectures
from benchmarks.architectures import POPULAR, TOLERANCE, try_architecture
from sepo_data.models.logprobs import batch_logps


@pytest.mark.slow
@pytest.mark.parametrize("name", POPULAR)
def test_a_popular_architecture_scores_and_trains_as_plain_forwards_do(name: str) -> None:
    found = try_architecture(name)
    assert found.kind in ("packed", "padded"), found
    assert max(found.off, found.gradient_off) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blt", "padded"),
        ("gemma3n", "packed"),
        ("musicgen", "refused"),
        ("reformer", "refused"),
        ("xlstm", "padded"),
    ],
)
def test_what_default_configs_do_not_make_small_is_tried_too(name: str, kind: str) -> None:
    found = try_architecture(name)
    assert found.kind == kind, found
    assert kind == "refused" or max(found.off, found.gradient_off) <= TOLERANCE


@pytest.mark.parametrize(("name", "kind"), [("llama", "packed"), ("bloom", "padded"), ("bert", "refused")])
def test_the_table_says_how_rows_are_batched(name: str, kind: str) -> None:
    assert try_architecture(name).kind == kind


def test_a_gradient_that_is_off_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    given = batch_logps

    def halved(*args: object) -> torch.Tensor:
        found = given(*args)  # type: ignore[arg-type]
        return found + (found.detach() - found) / 2

    monkeypatch.setattr(architectures, "batch_logps", halved)
    found = try_architecture("llama")
    assert found.kind == "wrong"
    assert found.gradient_off == pytest.approx(0.5, abs=1e-3)
