"""Gold at a KL, interpolated between near checkpoints linearly in its square root, as gold grows at first."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

WIDEST = 5  # times: gold grows faster than the root near the reference, so a line over a wide gap flatters

Numbers = npt.NDArray[np.float64]


def at_kl(
    checkpoints: Sequence[dict[str, Any]], measure: Callable[[dict[str, Any]], Any], target: float
) -> Numbers | None:
    """Interpolate a measure at a KL.

    None if the run did not reach it, or passed it before its first checkpoint or between two checkpoints
    whose KLs differ by more than a factor of `WIDEST`.

    Args:
        checkpoints: Checkpoints of one run; the first is the reference itself, at KL 0.
        measure: Reads the measure, a number or an array, from a checkpoint.
        target: KL in nats per continuation.
    """
    for before, after in itertools.pairwise(checkpoints):
        if before["kl"] <= target <= after["kl"] <= WIDEST * before["kl"]:
            low, high = np.sqrt(before["kl"]), np.sqrt(after["kl"])
            share = (np.sqrt(target) - low) / (high - low)
            found: Numbers = (1 - share) * np.array(measure(before)) + share * np.array(measure(after))
            return found
    return None


def gold_at_kl(checkpoints: Sequence[dict[str, Any]], gold: str, target: float) -> Numbers | None:
    """Gold of every prompt at a KL, ``(P,)``, interpolated by `at_kl`."""
    return at_kl(checkpoints, lambda checkpoint: checkpoint["golds"][gold], target)


def score(checkpoints: Sequence[dict[str, Any]], gold: str, targets: Sequence[float]) -> tuple[int, float]:
    """The number of KLs that a run reached and its mean gold there; learning rates are compared by this."""
    reached = (gold_at_kl(checkpoints, gold, target) for target in targets)
    found = [values.mean() for values in reached if values is not None]
    return len(found), float(np.mean(found)) if found else -np.inf
