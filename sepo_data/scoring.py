"""Encoded pairs to log-probs under oracle and reference; repeated responses are scored once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .encoding import EncodedResponse
from .errors import ScoringError
from .rows import EncodedPair
from .schema import SIDES

if TYPE_CHECKING:
    from .models import ModelPair

Logps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScoredSide:
    """The log-probs of the chosen or the rejected responses, in nats.

    Attributes:
        oracle_logps: Under the oracle; a response of ``T`` tokens has ``(T,)`` or,
            where the end of the turn was reached, ``(T + 1,)``.
        ref_logps: Under the reference, as above.
    """

    oracle_logps: list[Logps]
    ref_logps: list[Logps]


def score_rows(
    models: "ModelPair",
    pairs: Sequence[EncodedPair],
    batch_tokens: int | None,
    on_share: Callable[[float], None] = lambda share: None,
) -> dict[str, ScoredSide]:
    """Take the log-probs of both responses of every pair under both models.

    Args:
        models: Oracle and reference.
        pairs: The encoded pairs.
        batch_tokens: Most tokens in a forward pass; None: what suits the device.
        on_share: Told each share of the work that was done; the shares add up to 1.

    Returns:
        Log-probs by side, in the order of the pairs.

    Raises:
        ScoringError: If a log-prob is not finite, naming row, side and model.
    """
    distinct: dict[bytes, EncodedResponse] = {}
    for pair in pairs:
        for side in SIDES:
            distinct.setdefault(_key(getattr(pair, side)), getattr(pair, side))
    sequences = list(distinct.values())
    work = 2 * sum(sequence.input_ids.size for sequence in sequences)

    def on_tokens(tokens: int) -> None:
        on_share(tokens / work)

    by_model = [
        dict(zip(distinct, score(sequences, batch_tokens, on_tokens), strict=True))
        for score in (models.oracle_logps, models.ref_logps)
    ]
    scored = {}
    for side in SIDES:
        keys = [_key(getattr(pair, side)) for pair in pairs]
        oracle_logps, ref_logps = ([logps[key] for key in keys] for logps in by_model)
        _check_finite(pairs, side, "oracle", oracle_logps)
        _check_finite(pairs, side, "reference", ref_logps)
        scored[side] = ScoredSide(oracle_logps, ref_logps)
    return scored


def _key(response: EncodedResponse) -> bytes:
    return response.positions.tobytes() + response.input_ids.tobytes()


def _check_finite(pairs: Sequence[EncodedPair], side: str, model: str, logps: list[Logps]) -> None:
    for pair, values in zip(pairs, logps, strict=True):
        if not np.isfinite(values).all():
            raise ScoringError(
                f"row {pair.row}: a log-probability of the {side} response under the {model} is not a finite "
                f"number. Use --dtype float32; if it is used already, the {model}'s weights are broken."
            )
