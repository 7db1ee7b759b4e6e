"""Check batches: score some of a run's rows again, one at a time with the model's own attention.

The sequences of `packing_check` are random, so they cannot cover every switch of every model, and its
batches are small. If the run's own numbers differ, batches are padded from then on; if that does not
help, every sequence gets its own forward pass. Training checks this before its first step.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from ..errors import ScoringError
from .batching import rope_switches
from .logprobs import Logps, token_logps
from .packing import PACKED_ATTENTION, Ids, TokenSequence, bare_model, is_packed, tokens_to_read
from .packing_check import usual_attention

log = logging.getLogger("sepo")

SPREAD = 3  # sequences of lengths between the longest and the shortest


class Checked(Protocol):
    """Computes batches with a model; `loading.Scorer` is one.

    Attributes:
        model: The model, in eval mode.
        alone: Whether every sequence gets its own forward pass.
    """

    model: PreTrainedModel
    alone: bool

    def active(self) -> AbstractContextManager[object]:
        """Switch the adapters and set the precision for computing."""


def limit(model: PreTrainedModel) -> float:
    """How far rounding may move a log-prob, in nats: 1e-3 in float32, more in lower precision."""
    device, dtype = model.device.type, model.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype == torch.float32:
        tf32 = device == "cuda" and torch.get_float32_matmul_precision() != "highest"
        return 0.05 if tf32 else 1e-3
    return 0.2 if dtype == torch.float16 else 1.0


def checked_logps(
    scorer: Checked,
    sequences: Sequence[TokenSequence],
    found: list[Logps],
    again: Callable[[], list[Logps]],
    *,
    first: bool,
) -> tuple[list[Logps], float]:
    """Compare log-probs with those of plain forward passes, and score again if they differ.

    Args:
        scorer: Scored them; afterwards it uses padded batches, or batches of one sequence, if necessary.
        sequences: The scored sequences.
        found: Their log-probs, ``(n,)`` each.
        again: Scores them again with the changed scorer.
        first: Whether nothing was scored before, which could have the same error.

    Returns:
        Log-probs that agree, and their largest difference from those of plain forward passes, in nats.

    Raises:
        ScoringError: If plain forward passes are not reproducible or depend on later tokens, or if a
            difference shows only after other rows were scored.
    """
    few = spread(scorer.model, [tokens_to_read(sequence) for sequence in sequences])
    alone = [sequences[i] for i in few]
    right = _plain_logps(scorer, alone)
    with scorer.active():
        most = limit(scorer.model)
    while True:
        off = _furthest([found[i] for i in few], right)
        if off <= most:
            longest = max(few, key=lambda i: tokens_to_read(sequences[i]))
            _check_causal(scorer, sequences[longest], right[few.index(longest)], most)
            return found, off
        name = type(bare_model(scorer.model)).__name__
        noise = off if scorer.alone else _furthest(_plain_logps(scorer, alone), right)
        if not noise <= most:
            raise ScoringError(f"{name}: {not_reproducible(noise)}")
        if not first:
            raise ScoringError(
                f"{name}: log-probs of a late row were {off:.2g} nats off in its batch, though the first "
                "rows were right. Choose another `output`, and pass `batch_tokens=1`."
            )
        if is_packed(scorer.model):
            bare_model(scorer.model).set_attn_implementation(usual_attention(scorer.model))
            log.warning("%s: batches are padded, because log-probs of a row were %.2g nats off", name, off)
        else:
            scorer.alone = True
            log.warning(
                "%s: sequences are computed one at a time, because a row was %.2g nats off in a batch",
                name,
                off,
            )
        found = again()


def not_reproducible(off: float) -> str:
    """What to say of a model whose log-probs differ by so many nats each time."""
    return (
        f"two forward passes of the same text differ by {off:.2g} nats. Turn off what is random in the model "
        "(dropout, routing, hashing), or use another model."
    )


def _furthest(found: Sequence[Logps], right: Sequence[Logps]) -> float:
    """The largest difference."""
    return max(float(np.abs(one - other).max()) for one, other in zip(found, right, strict=True))


def spread(model: PreTrainedModel, lengths: Sequence[int]) -> list[int]:
    """Indices of the longest, the shortest, some in between, and the nearest on both sides of each switch."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    chosen = {order[int(place)] for place in np.linspace(0, len(order) - 1, 2 + SPREAD)}
    for switch in rope_switches(model.config.get_text_config()):
        below = [i for i in order if lengths[i] <= switch]
        above = order[len(below) :]
        chosen.update(below[-1:] + above[:1])
    return sorted(chosen)


def _plain_logps(scorer: Checked, sequences: Sequence[TokenSequence]) -> list[Logps]:
    """Score each sequence alone, with the model's own attention."""
    with scorer.active(), _unpacked(scorer.model):
        return [token_logps(scorer.model, [one], batch_tokens=1)[0] for one in sequences]


@dataclass(frozen=True)
class _Changed:
    """A sequence with some tokens replaced."""

    input_ids: Ids
    positions: Ids


def _check_causal(scorer: Checked, longest: TokenSequence, right: Logps, most: float) -> None:
    """Check that later tokens do not matter, in rows as long as the run's."""
    before = max(1, longest.positions.size // 2)
    middle = int(longest.positions[before - 1]) + 1
    ids = longest.input_ids.copy()
    ids[middle:] = ids[0]
    (changed,) = _plain_logps(scorer, [_Changed(ids, longest.positions)])
    off = float(np.abs(changed[:before] - right[:before]).max())
    if not off <= most:
        name = type(bare_model(scorer.model)).__name__
        raise ScoringError(
            f"{name}: in a row of {tokens_to_read(longest):,} tokens log-probs change by {off:.2g} nats with "
            "later tokens, so it is not causal there. Use another model, or pass a lower `max_length`."
        )


@contextmanager
def _unpacked(model: PreTrainedModel) -> Iterator[None]:
    packed = is_packed(model)
    if packed:
        bare_model(model).set_attn_implementation(usual_attention(model))
    try:
        yield
    finally:
        if packed:
            bare_model(model).set_attn_implementation(PACKED_ATTENTION)
