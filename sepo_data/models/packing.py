"""Batches without padding: every token is computed once, a prompt once for all of its responses.

Linear layers see a single row of tokens. For attention, ordinary causal rows of prompt and
response are gathered from it and scattered back, so the usual kernels compute it, forward
and backward, on every device. It is registered with transformers' attention interface, and the rows with
its mask interface: every layer passes on its mask. `packing_check.prepare` decides whether a model can
use it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Ids = npt.NDArray[np.integer]

PACKED_ATTENTION = "sepo_packed"
_KNOWN = ("s_aux", "position_ids")  # tensors that a layer may pass to its attention
_LAYOUT: ContextVar["Layout | None"] = ContextVar("_LAYOUT", default=None)


class TokenSequence(Protocol):
    """Tokens in their context; `encoding.EncodedResponse` is one."""

    @property
    def input_ids(self) -> Ids:
        """All token ids, ``(S,)``."""

    @property
    def positions(self) -> Ids:
        """Positions of the tokens to score, ``(n,)``, n >= 1, increasing, all at least 1."""


@dataclass(frozen=True)
class Layout:
    """The causal rows in which packed tokens attend to each other.

    Attributes:
        rows: Indices of packed tokens, grouped by similar length, ``(B, L)`` each, padded on
            the right with any token.
        back: Index of each packed token in the flattened and concatenated rows, ``(T,)``.
    """

    rows: tuple[Tensor, ...]
    back: Tensor


@dataclass(frozen=True)
class Packed:
    """A batch in which T tokens are computed and N log-probs are read.

    Attributes:
        input_ids: ``(T,)``.
        position_ids: ``(T,)``; they restart with every group, and after a shared prompt for each response.
        layout: The rows for attention.
        predicting: Indices of the packed tokens whose logits are read, ``(N,)``, sequence by sequence.
        labels: The ids that they predict, ``(N,)``.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    predicting: Tensor
    labels: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Packed":
        """Copy to a device; accelerate's data loaders call it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Packed":
        """Copy to pinned memory; torch's data loaders call it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Packed":
        rows = tuple(change(rows) for rows in self.layout.rows)
        return Packed(
            change(self.input_ids),
            change(self.position_ids),
            Layout(rows, change(self.layout.back)),
            change(self.predicting),
            change(self.labels),
        )


def tokens_to_read(sequence: TokenSequence) -> int:
    """The number of tokens before the last scored one, which is only predicted."""
    return int(sequence.positions[-1])


def pack(groups: Sequence[Sequence[TokenSequence]], *, padding: float) -> Packed:
    """Pack sequences; those of a group share their common prefix.

    Args:
        groups: Groups of sequences. The last scored token of each is not computed.
        padding: By what share the longest row of a padded batch may exceed the shortest: 0 pads
            nothing, infinity makes one padded batch of all rows.
    """
    ids: list[Ids] = []
    position_ids: list[Ids] = []
    rows: list[Ids] = []
    predicting: list[Ids] = []
    labels: list[Ids] = []
    size = 0
    for group in groups:
        seen = [sequence.input_ids[: tokens_to_read(sequence)] for sequence in group]
        shared = _common_prefix(seen) if len(group) > 1 else 0
        prompt = np.arange(size, size + shared)
        ids.append(seen[0][:shared])
        position_ids.append(np.arange(shared))
        size += shared
        for sequence, tokens in zip(group, seen, strict=True):
            ids.append(tokens[shared:])
            position_ids.append(np.arange(shared, tokens.size))
            rows.append(np.concatenate([prompt, np.arange(size, size + tokens.size - shared)]))
            size += tokens.size - shared
            predicting.append(rows[-1][sequence.positions - 1])
            labels.append(sequence.input_ids[sequence.positions])
    return Packed(
        _tensor(np.concatenate(ids)),
        _tensor(np.concatenate(position_ids)),
        _layout(rows, size, padding),
        _tensor(np.concatenate(predicting)),
        _tensor(np.concatenate(labels)),
    )


def _common_prefix(sequences: Sequence[Ids]) -> int:
    """Length of the common prefix of all sequences."""
    size = min(tokens.size for tokens in sequences)
    differs = np.zeros(size, dtype=bool)
    for tokens in sequences[1:]:
        differs |= tokens[:size] != sequences[0][:size]
    return int(differs.argmax()) if differs.any() else size


def _layout(rows: Sequence[Ids], num_tokens: int, padding: float) -> Layout:
    waiting = sorted(rows, key=len, reverse=True)
    back = np.empty(num_tokens, dtype=np.int64)
    padded: list[Tensor] = []
    before = 0
    while waiting:
        longest = waiting[0].size
        similar = list(takewhile(lambda row: longest <= (1 + padding) * row.size, waiting))  # noqa: B023
        together = np.zeros((len(similar), longest), dtype=np.int64)
        for i, row in enumerate(similar):
            together[i, : row.size] = row
            back[row] = before + i * longest + np.arange(row.size)
        padded.append(torch.from_numpy(together))
        before += together.size
        del waiting[: len(similar)]
    return Layout(tuple(padded), torch.from_numpy(back))


def _tensor(values: Ids) -> Tensor:
    return torch.from_numpy(values.astype(np.int64, copy=False))


def bare_model(model: "PreTrainedModel") -> "PreTrainedModel":
    """The causal language model inside a PEFT model, or the model itself."""
    base: Callable[[], PreTrainedModel] | None = getattr(model, "get_base_model", None)
    return model if base is None else base()


def is_packed(model: "PreTrainedModel") -> bool:
    """Whether a model's attention is `packed_attention`."""
    return bool(model.config.get_text_config()._attn_implementation == PACKED_ATTENTION)


@contextmanager
def within(layout: Layout) -> Iterator[None]:
    """Let the models that are called meanwhile attend within these rows, in a later backward pass too."""
    before = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(before)


def _mask(*_: object, **__: object) -> Layout | None:
    """The mask that a model gives its layers, which keep it for gradient checkpointing."""
    return _LAYOUT.get()


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Layout | Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention within the rows of a packed batch, for transformers' attention interface.

    Args:
        module: The attention layer.
        query: ``(1, H, T, D)``.
        key: ``(1, H_kv, T, D)``.
        value: As key.
        attention_mask: The rows.
        scaling: Factor of the scores.
        dropout: Dropout probability of the attention weights.
        sliding_window: The number of tokens that a token attends to, itself included.
        **kwargs: The layer's other arguments; soft caps (``softcap``) and sinks (``s_aux``) need the
            layer's eager attention.

    Returns:
        ``(1, T, H, D)``, and no weights.

    Raises:
        TypeError: If the layer passes no rows, or an unknown tensor, which might be a mask.
    """
    if not isinstance(attention_mask, Layout):
        raise TypeError("a layer passes on no mask, or one of its own")
    tensors = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
    if unknown := [name for name in tensors if name not in _KNOWN]:
        raise TypeError(f"packed attention does not know {unknown[0]}")
    attended = []
    for rows in attention_mask.rows:
        row_query, row_key, row_value = (_gathered(states, rows) for states in (query, key, value))
        banded = sliding_window is not None and sliding_window < rows.shape[1]
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            bias = _bias(rows.shape[1], sliding_window, query)
            eager = sys.modules[type(module).__module__].eager_attention_forward
            out, _ = eager(
                module, row_query, row_key, row_value, bias, scaling=scaling, dropout=dropout, **kwargs
            )  # (B, L, H, D)
        else:
            mask = _causal_mask(rows.shape[1], sliding_window, query.device) if banded else None
            out = _kernel_attention(row_query, row_key, row_value, mask, scaling, dropout)
        attended.append(out.flatten(0, 1))  # (B * L, H, D)
    return torch.cat(attended)[attention_mask.back.to(query.device)][None], None


def _bias(length: int, window: int | None, query: Tensor) -> Tensor:
    """The additive mask, ``(1, 1, L, L)``."""
    seen = _causal_mask(length, window, query.device)
    zeros = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
    return zeros.masked_fill(~seen, torch.finfo(query.dtype).min)[None, None]


def _kernel_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    """Attention with torch's own kernels, ``(B, L, H, D)``; causal if there is no mask."""
    native_gqa = mask is None and (query.device.type == "cpu" or _is_half_on_cuda(query))
    if not native_gqa:  # elsewhere only the kernel with quadratic memory supports GQA
        key, value = _repeated(key, query), _repeated(value, query)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=native_gqa,
    ).transpose(1, 2)


def _gathered(states: Tensor, rows: Tensor) -> Tensor:
    """``(1, H, T, D)`` to rows ``(B, H, L, D)``."""
    tokens = states[0].transpose(0, 1)  # (T, H, D)
    return (
        tokens.index_select(0, rows.flatten().to(tokens.device))
        .view(*rows.shape, *tokens.shape[1:])
        .transpose(1, 2)
    )


def _is_half_on_cuda(states: Tensor) -> bool:
    return states.is_cuda and states.dtype in (torch.float16, torch.bfloat16)


def _repeated(states: Tensor, query: Tensor) -> Tensor:
    """Keys or values repeated for every query head."""
    groups = query.shape[1] // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _causal_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """The boolean causal mask of a row, ``(L, L)``, within a window if there is one."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _mask)
