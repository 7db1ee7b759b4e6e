"""Gold at a given KL: between checkpoints a line in the square root of the KL, as gold grows at first."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


def at_kl(checkpoints: Sequence[dict[str, Any]], gold: str, target: float) -> Numbers | None:
    """Gold of every prompt at a KL, ``(P,)``; None where the run did not get there.

    Args:
        checkpoints: Of one run, the first of them the reference itself, at KL 0.
        gold: Which.
        target: Nats a continuation.
    """
    for before, after in itertools.pairwise(checkpoints):
        if before["kl"] <= target <= after["kl"]:
            low, high = np.sqrt(before["kl"]), np.sqrt(after["kl"])
            share = (np.sqrt(target) - low) / (high - low)
            return (1 - share) * np.array(before["golds"][gold]) + share * np.array(after["golds"][gold])
    return None


def score(checkpoints: Sequence[dict[str, Any]], gold: str, targets: Sequence[float]) -> tuple[int, float]:
    """How many of the KLs a run reached, and its mean gold there: what rates are compared by."""
    found = [values.mean() for target in targets if (values := at_kl(checkpoints, gold, target)) is not None]
    return len(found), float(np.mean(found)) if found else -np.inf
