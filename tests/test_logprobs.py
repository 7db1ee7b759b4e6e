"""Tests of token log-probs against one plain float32 forward pass per sequence."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_models import FAMILIES, VOCABULARY, tiny_model
from transformers import PreTrainedModel

from sepo_data.errors import ModelError, ScoringError
from sepo_data.models import batching, logprobs
from sepo_data.models.logprobs import Logps, token_logps


@dataclass(frozen=True)
class Tokens:
    """A sequence to score."""

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


def test_a_sequence_may_have_gaps_between_its_scored_tokens() -> None:
    model = tiny_model()
    (tokens,) = some_tokens(20)
    apart = Tokens(tokens.input_ids, np.array([1, 4, 9]))
    (logps,) = token_logps(model, [apart], batch_tokens=1000)
    np.testing.assert_allclose(logps, plain_logps(model, apart), atol=1e-4)


def test_only_hidden_states_that_are_read_reach_the_head() -> None:
    # 3 sequences score 2 + 5 + 1 tokens: the head makes 8 rows of logits, not 3 x 11
    model = tiny_model()
    rows = []
    model.lm_head.register_forward_hook(lambda module, args, logits: rows.append(logits[..., 0].numel()))
    sequences = [
        Tokens(ids.input_ids, np.arange(12 - n, 12))
        for ids, n in zip(some_tokens(12, 12, 12), (2, 5, 1), strict=True)
    ]
    token_logps(model, sequences, batch_tokens=1000)
    assert rows == [8]


def test_no_batch_makes_more_logits_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    # room for 5 rows of logits; the sequences score, longest first, 4 | 3 + 2 | 2 + 1 tokens
    monkeypatch.setattr(batching, "LOGITS_BYTES_CPU", 5 * VOCABULARY * 4)
    model, rows = tiny_model(), []
    model.lm_head.register_forward_hook(lambda module, args, logits: rows.append(logits[..., 0].numel()))
    token_logps(model, some_tokens(2, 8, 4, 6, 3), batch_tokens=1000)
    assert rows == [4, 5, 3]


def test_the_log_softmax_does_not_depend_on_how_its_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = tiny_model(), some_tokens(30, 20)
    whole = token_logps(model, sequences, batch_tokens=1000)
    monkeypatch.setattr(logprobs, "SOFTMAX_ELEMENTS", 4 * VOCABULARY)
    for ours, theirs in zip(token_logps(model, sequences, batch_tokens=1000), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_bfloat16_logits_get_a_float32_log_softmax() -> None:
    # 300 equal logits of 100: log(1/300) = -5.703782; bfloat16 would say 0 or -5.6875
    logits = torch.full((2, 300), 100.0, dtype=torch.bfloat16)
    logps = logprobs._label_logps(logits, torch.tensor([3, 299]))
    torch.testing.assert_close(logps, torch.tensor([-5.703782, -5.703782]), atol=2e-5, rtol=0)


def test_no_sequences_give_no_log_probs() -> None:
    assert token_logps(tiny_model(), [], batch_tokens=10) == []


def test_progress_counts_every_token_of_every_sequence_once() -> None:
    told: list[int] = []
    token_logps(tiny_model(), some_tokens(7, 30, 2, 13), batch_tokens=30, on_batch=told.append)
    assert told == [30, 13 + 7, 2]  # the third would make the second batch 3 x 12 tokens


class LittleMemory(torch.nn.Module):
    """Embeddings that fail like an allocator for more than this many tokens."""

    def __init__(self, inner: torch.nn.Module, max_tokens: int, error: RuntimeError) -> None:
        super().__init__()
        self.inner, self.max_tokens, self.error = inner, max_tokens, error
        self.seen: list[int] = []

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed the tokens, or fail."""
        self.seen.append(input_ids.numel())
        if input_ids.numel() > self.max_tokens:
            raise self.error
        out: torch.Tensor = self.inner(input_ids)
        return out


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("not enough memory: you tried to allocate 4294967296 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "windows"])
def test_out_of_memory_halves_the_batch_and_changes_no_number(error: RuntimeError) -> None:
    # 8 sequences of 10 read tokens: 80 do not fit, 40 do not fit, 20 do; and later batches start with 20
    model, sequences = tiny_model(), some_tokens(*[11] * 8)
    plenty = token_logps(model, sequences, batch_tokens=1000)
    little = LittleMemory(model.get_input_embeddings(), 20, error)
    model.set_input_embeddings(little)
    told: list[int] = []
    scored = token_logps(model, sequences, batch_tokens=1000, on_batch=told.append)
    assert little.seen == [80, 40, 20, 20, 20, 20]
    assert told == [22, 22, 22, 22]
    for ours, theirs in zip(scored, plenty, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_sequence_that_alone_does_not_fit_is_an_error_that_says_what_to_lower() -> None:
    model = tiny_model()
    model.set_input_embeddings(LittleMemory(model.get_input_embeddings(), 20, OUT_OF_MEMORY[0]))
    with pytest.raises(ScoringError, match=r"a sequence of 29 tokens .* lower `max_length`"):
        token_logps(model, some_tokens(30, 5), batch_tokens=1000)


def test_another_error_of_the_model_is_not_taken_for_a_lack_of_memory() -> None:
    model = tiny_model()
    model.set_input_embeddings(LittleMemory(model.get_input_embeddings(), 0, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        token_logps(model, some_tokens(9), batch_tokens=1000)


def test_a_token_that_the_model_does_not_know_is_an_error_not_a_crash() -> None:
    stranger = Tokens(np.array([5, VOCABULARY, 7]), np.array([1, 2]))
    with pytest.raises(ModelError, match="token id 300 is not among the model's 300 tokens"):
        token_logps(tiny_model(), [stranger], batch_tokens=10)


def test_a_model_without_a_head_is_an_error() -> None:
    with pytest.raises(ModelError, match="LlamaModel: has no output embeddings"):
        token_logps(tiny_model().model.eval(), some_tokens(9), batch_tokens=10)


def test_a_model_that_goes_around_its_head_is_an_error() -> None:
    model = tiny_model()
    model.get_output_embeddings = lambda: torch.nn.Identity()  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="do not come from its output embeddings"):
        token_logps(model, some_tokens(9), batch_tokens=10)
