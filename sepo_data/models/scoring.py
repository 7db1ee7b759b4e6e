"""Score encoded pairs under oracle and reference; repeated responses are scored once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ScoringError
from ..schema import Sides
from ..tokens.encoding import EncodedResponse
from ..tokens.pairs import EncodedPair

if TYPE_CHECKING:
    from .description import PairFacts
    from .loading import Loading, ModelPair, Role, Scorer


Logps = npt.NDArray[np.float32]
SideLogps = Sides[list[Logps]]  # of one model


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

    @property
    def rewards(self) -> list[Logps]:
        """The differences, in nats."""
        return [oracle - ref for oracle, ref in zip(self.oracle_logps, self.ref_logps, strict=True)]


Scores = Sides[ScoredSide]


@dataclass
class Check:
    """A comparison with plain forward passes.

    Attributes:
        first: Whether nothing was scored before, so batches may still be made in another way.
        largest: Result: the largest difference, in nats.
    """

    first: bool
    largest: float = 0.0


def score_rows(
    models: "ModelPair",
    pairs: Sequence[EncodedPair],
    batch_tokens: int | None,
    on_share: Callable[[float], None] = lambda share: None,
    check: "Check | None" = None,
) -> Scores:
    """Take the log-probs of both responses of every pair under both models.

    Args:
        models: Oracle and reference.
        pairs: The encoded pairs.
        batch_tokens: Maximum number of tokens in a forward pass; None: a default for the device.
        on_share: Called with each completed share of the work; the shares add up to 1.
        check: Compare a few of the log-probs with those of plain forward passes, see `self_check`.

    Returns:
        Log-probs by side, in the order of the pairs.

    Raises:
        ScoringError: If a log-prob is not finite, naming row, side and model.
    """

    def on_half(share: float) -> None:
        on_share(share / 2)

    return scored_sides(
        role_logps("oracle", models.oracle, pairs, batch_tokens, on_half, check),
        role_logps("ref", models.ref, pairs, batch_tokens, on_half, check),
    )


def score_once(
    facts: "PairFacts",
    how: "Loading",
    pairs: Sequence[EncodedPair],
    batch_tokens: int | None,
    *,
    in_turn: bool,
) -> Scores:
    """Load the models, score some pairs as `score_rows`, and drop the models again.

    Raises:
        ModelError: See `loading.scorers`.
        ScoringError: See `score_rows`.
    """
    from .loading import scorers  # loads torch

    found: dict[Role, SideLogps] = {}
    for role, scorer in scorers(facts, how, in_turn=in_turn):
        found[role] = role_logps(role, scorer, pairs, batch_tokens)
        del scorer  # before the next one is loaded
    return scored_sides(found["oracle"], found["ref"])


def role_logps(
    role: "Role",
    scorer: "Scorer",
    pairs: Sequence[EncodedPair],
    batch_tokens: int | None,
    on_share: Callable[[float], None] = lambda share: None,
    check: "Check | None" = None,
) -> SideLogps:
    """Take the log-probs of both responses of every pair under one model, see `score_rows`."""
    distinct: dict[bytes, EncodedResponse] = {}
    for pair in pairs:
        for response in pair:
            distinct.setdefault(_key(response), response)
    sequences = list(distinct.values())
    work = sum(sequence.input_ids.size for sequence in sequences)
    found = scorer.logps(sequences, batch_tokens, lambda tokens: on_share(tokens / work))
    if check is not None and sequences and all(np.isfinite(one).all() for one in found):
        from .self_check import checked_logps  # loads torch

        again = partial(scorer.logps, sequences, batch_tokens)
        found, off = checked_logps(scorer, sequences, found, again, first=check.first)
        check.largest = max(check.largest, off)
    by_key = dict(zip(distinct, found, strict=True))
    logps = Sides.of(lambda side: [by_key[_key(pair[side])] for pair in pairs])
    for side, of_side in logps.items():
        _check_finite(pairs, side, "reference" if role == "ref" else role, of_side)
    return logps


def scored_sides(oracle: SideLogps, ref: SideLogps) -> Scores:
    """Log-probs by side, of both models."""
    return Sides.of(lambda side: ScoredSide(oracle[side], ref[side]))


def _key(response: EncodedResponse) -> bytes:
    return response.positions.tobytes() + response.input_ids.tobytes()


def _check_finite(pairs: Sequence[EncodedPair], side: str, model: str, logps: list[Logps]) -> None:
    for pair, values in zip(pairs, logps, strict=True):
        if not np.isfinite(values).all():
            raise ScoringError(
                f"row {pair.row}: a log-probability of the {side} response under the {model} is not a finite "
                f"number. Use `dtype=float32`; if it is used already, the {model}'s weights are broken."
            )
