"""Token log-probs of sequences under a causal language model: the only place that shifts logits to labels.

The logits at position p - 1 predict the token at p. Only the hidden states that are
needed reach the model's head, so no logits of shape (T, V) are made; the head itself,
with its scales, biases and soft caps, stays the model's own. A batch is packed; for a
model that cannot be packed, its rows are padded on the right, without an attention
mask: a causal token never sees what is right of it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ModelError
from .batching import batch_size, grouped, halves, row_padding, smaller_budget
from .packing import Packed, TokenSequence, bare_model, is_packed, pack, within

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Logps = npt.NDArray[np.float32]

HEAD_ELEMENTS = 2**26  # logits at a time; 256 MiB in float32
SOFTMAX_ELEMENTS = 2**24  # logits that the log-softmax copies at a time, in float32


def token_logps(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    *,
    batch_tokens: int,
    on_batch: Callable[[int], None] = lambda tokens: None,
) -> list[Logps]:
    """Take the log-probs of tokens, each given all tokens before it.

    The log-softmax is float32, whatever dtype the model computes in. When memory runs out,
    the budget is halved for the rest of the call, and the batch is retried.

    Args:
        model: A causal language model in eval mode, with or without adapters.
        sequences: Sequences to score, in any order; batches group similar lengths.
        batch_tokens: Maximum number of tokens in a forward pass, including padding; a
            longer sequence gets its own.
        on_batch: Called after each batch with the number of the sequences' tokens in it.

    Returns:
        Log-probs in nats, ``(n,)`` for each sequence, in the order given.

    Raises:
        ScoringError: If one sequence alone does not fit into memory.
        ModelError: If a token id is unknown to the model, or its head cannot be found.
    """
    assert not model.training, "dropout would change the log-probs"
    _check_ids(model, sequences)
    waiting = grouped(model, sequences, batch_tokens)
    found: dict[int, Logps] = {}
    last: tuple[list[int], Tensor] | None = None

    def keep(indices: list[int], logps: Tensor) -> None:
        ends = np.cumsum([sequences[i].positions.size for i in indices])[:-1]
        found.update(zip(indices, np.split(logps.cpu().numpy(), ends), strict=True))
        on_batch(sum(sequences[i].input_ids.size for i in indices))

    while waiting:
        size = batch_size(model, sequences, waiting, batch_tokens)
        batch = waiting[:size]
        logps = _score_if_it_fits(model, [[sequences[i] for i in group] for group in batch])
        if logps is None:
            batch_tokens = smaller_budget(model, sequences, batch)
            waiting[:1] = halves(batch[0]) if size == 1 else [batch[0]]
            continue
        if last is not None:
            keep(*last)  # the device already has its next batch
        last = [i for group in batch for i in group], logps
        del waiting[:size]
    if last is not None:
        keep(*last)
    return [found[i] for i in range(len(sequences))]


def _check_ids(model: "PreTrainedModel", sequences: Sequence[TokenSequence]) -> None:
    """Refuse ids without an embedding: an IndexError on the CPU, but on CUDA they abort the process."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    largest = max((int(sequence.input_ids.max()) for sequence in sequences), default=0)
    if largest >= vocabulary:
        raise ModelError(
            f"{type(model).__name__}: token id {largest} is not among the model's {vocabulary:,} tokens. "
            "Use the tokenizer that the model was trained with."
        )


def _score_if_it_fits(model: "PreTrainedModel", groups: Sequence[Sequence[TokenSequence]]) -> Tensor | None:
    """Log-probs of a batch, on the device; None if memory ran out."""
    try:
        return _score(model, groups)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # outside the handler: the error's traceback would keep the batch's tensors alive
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


@torch.inference_mode()
def _score(model: "PreTrainedModel", groups: Sequence[Sequence[TokenSequence]]) -> Tensor:
    packed = pack(groups, padding=row_padding(model))
    if model.device.type == "cuda":
        packed = packed.pin_memory()
    return batch_logps(model, packed.to(model.device, non_blocking=True))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(
        words in str(error) for words in ("not enough memory", "DefaultCPUAllocator", "MPS backend out")
    )


def batch_logps(
    model: "PreTrainedModel | nn.Module", packed: Packed, *, head_elements: int = HEAD_ELEMENTS
) -> Tensor:
    """Take the log-probs of some tokens of a batch, with gradients if they are enabled.

    Args:
        model: A causal language model; it may be wrapped for training (DDP, DeepSpeed, FSDP).
        packed: Made by `packing.pack` with the padding from `row_padding`, on the model's device.
        head_elements: Maximum number of logits that exist at once, for a packed batch.

    Returns:
        Log-probs in nats, float32, ``(N,)``, sequence by sequence.

    Raises:
        ModelError: If the model's head cannot be found.
    """
    bare = extract_model_from_parallel(model, keep_torch_compile=False)
    layout = packed.layout
    if not is_packed(bare):
        (rows,) = layout.rows
        places = layout.back[packed.predicting]  # (N,)
        inputs: dict[str, object] = {"input_ids": packed.input_ids[rows]}
        return _label_logps(logits_at(model, bare, inputs, places), packed.labels)
    inputs = {"input_ids": packed.input_ids[None], "position_ids": packed.position_ids[None]}
    head_rows = max(1, head_elements // int(bare.config.get_text_config().vocab_size))
    with within(layout):
        if packed.labels.numel() <= head_rows:
            return _label_logps(logits_at(model, bare, inputs, packed.predicting), packed.labels)
        return _logps_in_parts(model, bare, inputs, packed, head_rows)


def logits_at(model: nn.Module, bare: "PreTrainedModel", inputs: dict[str, object], places: Tensor) -> Tensor:
    """The logits at some positions of a batch, ``(N, V)``; no others are computed."""

    def keep_read(_: object, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, *rest = hidden
        if states.dim() != 3:
            shape = f"hidden states of shape {list(states.shape)}"
            raise ModelError(
                f"{type(bare).__name__}: its head is given {shape}, not one per token. Use another model."
            )
        read = states.flatten(0, 1)[places.to(states.device)][None]  # (B, T, H) -> (1, N, H)
        return read, *rest

    head = bare.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(bare).__name__}: has no output embeddings, so it is no language model.")
    hook = head.register_forward_pre_hook(keep_read)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    if logits.shape[:2] != (1, places.numel()):
        raise ModelError(f"{type(bare).__name__}: its logits do not come from its output embeddings alone.")
    return logits[0]


def _logps_in_parts(
    model: nn.Module, bare: "PreTrainedModel", inputs: dict[str, object], packed: Packed, head_rows: int
) -> Tensor:
    """Log-probs whose logits are computed in parts, and recomputed in the backward pass.

    The model's own forward pass computes them, with its layers replaced by the hidden states
    that they returned: so scales and soft caps after the head are kept.
    """
    causal = bare_model(bare)
    layers: nn.Module = causal.get_decoder()
    if layers is causal or isinstance(
        layers, nn.Linear
    ):  # Llama 4, and ModernBERT, whose head is its decoder
        layers = causal.model
    outputs: list[Any] = []
    hook = layers.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        logits_at(model, bare, inputs, packed.predicting[:1])
    finally:
        hook.remove()
    last_hidden = outputs[0].last_hidden_state[0]  # (T, H); a large model's may be on another device
    hidden = last_hidden.index_select(0, packed.predicting.to(last_hidden.device))  # (N, H)

    def part_logps(part: Tensor, labels: Tensor) -> Tensor:
        replayed = copy.copy(outputs[0])
        replayed.last_hidden_state = part[None]
        places = torch.arange(part.shape[0], device=part.device)
        with _replaced_forward(layers, lambda *args, **kwargs: replayed):
            return _label_logps(logits_at(causal, causal, {"input_ids": labels[None]}, places), labels)

    parts = zip(torch.split(hidden, head_rows), torch.split(packed.labels, head_rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([part_logps(part, labels) for part, labels in parts])
    return torch.cat([checkpoint(part_logps, part, labels, use_reentrant=False) for part, labels in parts])


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    own = module.__dict__.get("forward")  # a hook of accelerate's
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _label_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """float32 log-softmax of ``(N, V)`` logits at the ``(N,)`` labels, without a copy of all logits."""
    rows = max(1, SOFTMAX_ELEMENTS // logits.shape[-1])
    parts = []
    labels = labels.to(logits.device)
    for part, part_labels in zip(torch.split(logits, rows), torch.split(labels, rows), strict=True):
        wide = part.float()
        parts.append(wide.gather(-1, part_labels[:, None])[:, 0] - wide.logsumexp(-1))
    return torch.cat(parts)
