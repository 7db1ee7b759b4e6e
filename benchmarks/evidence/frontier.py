"""Gold at a given KL: between near checkpoints a line in the square root of the KL, as gold grows at first."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

WIDEST = 5  # times: near the reference gold grows faster than the root, and a line over a wide gap flatters

Numbers = npt.NDArray[np.float64]


def at_kl(
    checkpoints: Sequence[dict[str, Any]], measure: Callable[[dict[str, Any]], Any], target: float
) -> Numbers | None:
    """A measure at a KL, of the shape that it has of a checkpoint.

    None where the run did not get there, or passed it between the reference and its first checkpoint, or
    between two checkpoints of which the KL of one is more than `WIDEST` times that of the other.

    Args:
        checkpoints: Of one run, the first of them the reference itself, at KL 0.
        measure: What to read of a checkpoint.
        target: Nats a continuation.
    """
    for before, after in itertools.pairwise(checkpoints):
        if before["kl"] <= target <= after["kl"] <= WIDEST * before["kl"]:
            low, high = np.sqrt(before["kl"]), np.sqrt(after["kl"])
            share = (np.sqrt(target) - low) / (high - low)
            found: Numbers = (1 - share) * np.array(measure(before)) + share * np.array(measure(after))
            return found
    return None


def gold_at_kl(checkpoints: Sequence[dict[str, Any]], gold: str, target: float) -> Numbers | None:
    """Gold of every prompt at a KL, ``(P,)``; else as `at_kl`."""
    return at_kl(checkpoints, lambda checkpoint: checkpoint["golds"][gold], target)


def score(checkpoints: Sequence[dict[str, Any]], gold: str, targets: Sequence[float]) -> tuple[int, float]:
    """How many of the KLs a run reached, and its mean gold there: what rates are compared by."""
    reached = (gold_at_kl(checkpoints, gold, target) for target in targets)
    found = [values.mean() for values in reached if values is not None]
    return len(found), float(np.mean(found)) if found else -np.inf
