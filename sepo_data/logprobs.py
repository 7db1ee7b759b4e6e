"""Token log-probs of sequences under a causal language model: the one place where logits meet labels.

The logits at position p - 1 predict the token at p. Only hidden states that are
read reach the model's head, so no logits of shape (T, V) are made; the head itself,
with its scales, biases and soft caps, stays the model's own. Batches are padded on
the right and have no attention mask: a causal token never sees what is right of it.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from .errors import ModelError, ScoringError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = npt.NDArray[np.integer[Any]]
Logps = npt.NDArray[np.float32]

LOGITS_BYTES_CPU = 2**30
LOGITS_BYTES_ACCELERATOR = 2**32
SOFTMAX_ELEMENTS = 2**24  # logits that the log-softmax holds a second time, in float32


class TokenSequence(Protocol):
    """Tokens in their context; `encoding.EncodedResponse` is one."""

    @property
    def input_ids(self) -> Ids:
        """All token ids, ``(S,)``."""

    @property
    def positions(self) -> Ids:
        """Where the tokens to score stand, ``(n,)``, n >= 1, increasing, all at least 1."""


def token_logps(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    *,
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda tokens: None,
) -> list[Logps]:
    """Take the log-probs of tokens, each given all tokens before it.

    The log-softmax is float32, whatever the model computes in. When memory runs out
    the budget is halved, for the rest of the call, and the batch retried.

    Args:
        model: A causal language model in eval mode; a PEFT model will do.
        sequences: What to score, in any order; batches are made of similar lengths.
        batch_tokens: Most tokens in a forward pass, padding included; a longer
            sequence goes alone.
        on_batch: Told after each batch how many of all the sequences' tokens it did.

    Returns:
        Log-probs in nats, ``(n,)`` for each sequence, in the order given.

    Raises:
        ScoringError: If one sequence alone does not fit into memory.
        ModelError: If a token id is unknown to the model, or its head cannot be found.
    """
    assert not model.training, "dropout would change the log-probs"
    _check_ids(model, sequences)
    # longest first: too little memory shows in the first batch
    waiting = sorted(range(len(sequences)), key=lambda i: -_reach(sequences[i]))
    found: dict[int, Logps] = {}
    while waiting:
        size = _batch_size(model, [sequences[i] for i in waiting[:batch_tokens]], batch_tokens)
        batch = [sequences[i] for i in waiting[:size]]
        logps = _score_if_it_fits(model, batch)
        if logps is None:
            batch_tokens = _smaller_budget(batch)
            continue
        found.update(zip(waiting[:size], logps, strict=True))
        on_batch(sum(sequence.input_ids.size for sequence in batch))
        del waiting[:size]
    return [found[i] for i in range(len(sequences))]


def _reach(sequence: TokenSequence) -> int:
    """How many tokens the model has to read: all before the last scored one."""
    return int(sequence.positions[-1])


def _check_ids(model: "PreTrainedModel", sequences: Sequence[TokenSequence]) -> None:
    """An id without an embedding would be an IndexError on CPU, and on CUDA the end of the process."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    largest = max((int(sequence.input_ids.max()) for sequence in sequences), default=0)
    if largest >= vocabulary:
        raise ModelError(
            f"{type(model).__name__}: token id {largest} is not among the model's {vocabulary:,} tokens. "
            "Use the tokenizer that the model was trained with."
        )


def _batch_size(model: "PreTrainedModel", longest_first: Sequence[TokenSequence], batch_tokens: int) -> int:
    """How many of the sequences make the next batch, at least one."""
    config = model.config.get_text_config()
    logits_bytes = LOGITS_BYTES_CPU if model.device.type == "cpu" else LOGITS_BYTES_ACCELERATOR
    max_logits = logits_bytes // (4 * config.vocab_size)
    longest = _reach(longest_first[0])
    num_logits = np.cumsum([sequence.positions.size for sequence in longest_first])
    fits = num_logits <= max_logits
    fits[batch_tokens // longest :] = False
    switch = _rope_switch(config)
    fits &= [(_reach(sequence) > switch) == (longest > switch) for sequence in longest_first]
    return max(1, sum(1 for _ in takewhile(bool, fits)))


def _rope_switch(config: Any) -> int:
    """The length above which LongRoPE (Phi-3) turns all positions of a batch another way; 0 for the rest."""
    rope = getattr(config, "rope_parameters", None) or {}
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else 0


def _smaller_budget(batch: Sequence[TokenSequence]) -> int:
    if len(batch) == 1:
        raise ScoringError(
            f"a sequence of {_reach(batch[0]):,} tokens alone does not fit into memory. "
            "Pass a lower --max-length, or a --dtype of 16 bits."
        )
    return _reach(batch[0]) * len(batch) // 2


def _score_if_it_fits(model: "PreTrainedModel", batch: Sequence[TokenSequence]) -> list[Logps] | None:
    """Log-probs of a batch; None if memory ran out."""
    try:
        return _score(model, batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # outside the handler: the error's traceback would keep the batch's tensors alive
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, in the words of any device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(
        words in str(error) for words in ("not enough memory", "DefaultCPUAllocator", "MPS backend out")
    )


@torch.inference_mode()
def _score(model: "PreTrainedModel", batch: Sequence[TokenSequence]) -> list[Logps]:
    sizes = [sequence.positions.size for sequence in batch]
    input_ids = torch.zeros(len(batch), _reach(batch[0]) + 1, dtype=torch.long)  # (B, T)
    targets = torch.zeros_like(input_ids, dtype=torch.bool)  # (B, T)
    for row, sequence in enumerate(batch):
        seen = _reach(sequence) + 1
        input_ids[row, :seen] = torch.from_numpy(sequence.input_ids[:seen])
        targets[row, torch.from_numpy(sequence.positions).long()] = True
    logps = batch_logps(model, input_ids.to(model.device), targets.to(model.device)).cpu().numpy()
    return np.split(logps, np.cumsum(sizes)[:-1])


def batch_logps(model: "PreTrainedModel | nn.Module", input_ids: Tensor, targets: Tensor) -> Tensor:
    """Take the log-probs of some tokens of a padded batch; with gradients where they are enabled.

    Args:
        model: A causal language model; wrapped for training (DDP, DeepSpeed, FSDP) will do.
        input_ids: ``(B, T)``, padded on the right with any token.
        targets: The tokens to read, bool, ``(B, T)``; none in the first column.

    Returns:
        Log-probs in nats, float32, ``(N,)``, row by row.

    Raises:
        ModelError: If the model's head cannot be found.
    """
    logits = _logits(model, input_ids[:, :-1], targets[:, 1:])  # (N, V)
    return _label_logps(logits, input_ids[:, 1:][targets[:, 1:]])


def _logits(model: "PreTrainedModel | nn.Module", input_ids: Tensor, read: Tensor) -> Tensor:
    """The logits where ``read`` is True, ``(N, V)``, row by row."""

    def keep_read(_: object, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return hidden[0][read][None], *hidden[1:]  # (B, T, H) -> (1, N, H)

    bare = extract_model_from_parallel(model, keep_torch_compile=False)
    head = bare.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(bare).__name__}: has no output embeddings, so it is no language model.")
    hook = head.register_forward_pre_hook(keep_read)
    try:
        logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    finally:
        hook.remove()
    if logits.shape[:2] != (1, int(read.sum())):
        raise ModelError(f"{type(bare).__name__}: its logits do not come from its output embeddings alone.")
    return logits[0]


def _label_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """float32 log-softmax of ``(N, V)`` logits at the ``(N,)`` labels, without a copy of all logits."""
    rows = max(1, SOFTMAX_ELEMENTS // logits.shape[-1])
    parts = []
    for part, part_labels in zip(torch.split(logits, rows), torch.split(labels, rows), strict=True):
        wide = part.float()
        parts.append(wide.gather(-1, part_labels[:, None])[:, 0] - wide.logsumexp(-1))
    return torch.cat(parts)
