"""Tests of token log-probs against one plain float32 forward a sequence."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_models import FAMILIES, VOCABULARY, tiny_model
from transformers import PreTrainedModel

from sepo_data import logprobs
from sepo_data.errors import ModelError, ScoringError
from sepo_data.logprobs import Logps, token_logps


@dataclass(frozen=True)
class Tokens:
    input_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


def some_tokens(*lengths: int) -> list[Tokens]:
    """Random sequences; the second half of each is scored, the shortest from its second token on."""
    rng = np.random.default_rng(0)
    return [Tokens(rng.integers(0, VOCABULARY, n), np.arange(max(1, n // 2), n)) for n in lengths]


def plain_logps(model: PreTrainedModel, tokens: Tokens) -> Logps:
    """All logits of one sequence, all of the vocabulary, nothing left out."""
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens.input_ids)[None]).logits[0].float()
    logps = logits.log_softmax(-1).numpy()
    return np.array([logps[p - 1, tokens.input_ids[p]] for p in tokens.positions])


@pytest.mark.parametrize("batch_tokens", [1, 45, 1000], ids=["one by one", "small batches", "one batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_equal_those_of_a_plain_forward(family: str, batch_tokens: int) -> None:
    model = tiny_model(family)
    sequences = some_tokens(7, 30, 2, 13, 22, 21, 5, 40)
    scored = token_logps(model, sequences, batch_tokens=batch_tokens)
    for logps, tokens in zip(scored, sequences, strict=True):
        assert logps.dtype == np.float32
        np.testing.assert_allclose(logps, plain_logps(model, tokens), atol=1e-4, rtol=0)
