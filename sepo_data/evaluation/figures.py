"""The figures of an evaluation, and the arithmetic that makes them: no models here.

DPO's implicit reward of a response is the log-ratio of policy and reference (arXiv 2305.18290), SimPO's
is the policy's log-prob per token (arXiv 2405.14734). Both are checked for ordering pairs like the labels.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

NGRAM = 4
REPEATED = 0.5  # of the n-grams of an answer
Z95 = 1.959964


Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WinRate:
    """A win rate with Wilson's 95% interval.

    Attributes:
        rate: Wins and half of the ties, over all.
        low: Lower end of the interval.
        high: Upper end.
        number: Of comparisons.
    """

    rate: float
    low: float
    high: float
    number: int


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs ordered like the labels; a tie counts half.

    Attributes:
        pairs: How many there are.
        log_ratio: By the sum of log policy - log reference: DPO's reward.
        log_prob: By the policy's mean log-prob per token.
        ref_log_prob: By the reference's.
    """

    pairs: int
    log_ratio: float
    log_prob: float
    ref_log_prob: float


@dataclass(frozen=True)
class Sampled:
    """Figures of sampled answers.

    Attributes:
        prompts: How many prompts were answered, by policy and reference alike.
        kl: Mean of log policy - log reference of the policy's answers, nats per answer: an estimate of the
            KL divergence from the reference, where answers are sampled at temperature 1.
        kl_per_token: The same per token.
        length: Mean number of tokens of the policy's answers.
        ref_length: Of the reference's.
        cut: Share of the policy's answers that did not end within the most tokens.
        degenerate: Share that is empty or repeats itself.
        ref_degenerate: Of the reference's.
        oracle_wins: How often the oracle's reward of the policy's answer is above that of the reference's.
    """

    prompts: int
    kl: float
    kl_per_token: float
    length: float
    ref_length: float
    cut: float
    degenerate: float
    ref_degenerate: float
    oracle_wins: WinRate | None


@dataclass(frozen=True)
class Evaluation:
    """Figures of a policy.

    Attributes:
        accuracy: Over all pairs.
        shift: Mean of policy minus reference log-prob, nats per token, of chosen and of rejected responses.
        dropped: Rows that could not be used, by reason.
        self_check: The largest difference between a log-prob and that of a plain forward of its row alone, in
            nats, over a few rows of all that every model scored.
        groups: Accuracies by the value of a column.
        sampled: Of its answers; None without samples.
    """

    accuracy: Accuracy
    shift: dict[str, float]
    dropped: dict[str, int]
    self_check: float
    groups: dict[str, Accuracy] = field(default_factory=dict)
    sampled: Sampled | None = None

    def as_dict(self) -> dict[str, object]:
        """Plain JSON."""
        return asdict(self)


def share_ordered(values: Numbers) -> float:
    """Share of the rows ``(chosen, rejected)`` whose first is the larger; ties count half."""
    return float((np.sign(values[:, 0] - values[:, 1]) / 2 + 0.5).mean())


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> WinRate:
    """Compare numbers pair by pair; at least one pair.

    Example:
        >>> found = win_rate([2.0, 1.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0])
        >>> found.rate, round(found.low, 3), round(found.high, 3)
        (0.625, 0.219, 0.908)
    """
    wins = (np.sign(np.subtract(ours, theirs)) + 1) / 2
    number, rate = wins.size, float(wins.mean())
    spread = Z95 * math.sqrt(rate * (1 - rate) / number + Z95**2 / (4 * number**2))
    middle, scale = rate + Z95**2 / (2 * number), 1 + Z95**2 / number
    return WinRate(rate, (middle - spread) / scale, (middle + spread) / scale, number)


def is_degenerate(token_ids: npt.NDArray[np.integer]) -> bool:
    """Whether an answer is empty or repeats itself.

    Args:
        token_ids: Of the answer, ``(T,)``.

    Returns:
        True without tokens, or if more than half of its 4-grams are repetitions.

    Example:
        >>> is_degenerate(np.array([5, 6] * 10)), is_degenerate(np.arange(20))
        (True, False)
    """
    grams = [tuple(token_ids[i : i + NGRAM].tolist()) for i in range(token_ids.size - NGRAM + 1)]
    return token_ids.size == 0 or (bool(grams) and 1 - len(set(grams)) / len(grams) > REPEATED)
