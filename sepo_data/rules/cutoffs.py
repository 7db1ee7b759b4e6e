"""The reward that a share of all tokens reaches, found in one pass and in constant memory.

Rewards are float32, whose bits, read as whole numbers, have the order of the values. So they are
counted by their leading 22 bits: sign, exponent and 13 bits of the mantissa, a bin of 2**-13 of its value.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import SelectionError
from .shares import tokens_in_share

_BITS = 22
_SIGN = np.uint32(1 << 31)


@dataclass
class RewardCounts:
    """How often each reward occurs, by bin; 32 MiB at most, however many are added."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << _BITS, np.int64))

    def add(self, token_rewards: npt.ArrayLike) -> None:
        """Count rewards in nats, not NaN."""
        bins, counts = np.unique(_bins(np.asarray(token_rewards, np.float32)), return_counts=True)
        self.counts[bins] += counts

    def cutoff(self, ratio: float) -> float:
        """The lower end of the bin that completes the share of the highest rewards.

        Args:
            ratio: Share of everything added, in ``(0, 1]``.

        Returns:
            A reward in nats. ``max(1, floor(ratio * n + 1e-9))`` of the ``n`` rewards reach it, and at most
            as many more as lie in its bin.

        Raises:
            SelectionError: If nothing was added.

        Example:
            >>> counts = RewardCounts()
            >>> counts.add([0.5, -1.0, 2.0, 0.25])
            >>> counts.cutoff(0.5)
            0.5
        """
        from_top = np.cumsum(self.counts[::-1])
        if not from_top[-1]:
            raise SelectionError("no token may be selected. Exclude fewer tokens.")
        wanted = tokens_in_share(ratio, from_top[-1])
        return _lower_end(self.counts.size - 1 - int(np.searchsorted(from_top, wanted)))

    def histogram(self, edges: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """How many rewards lie from each edge, in nats and rising, up to the next, to the precision of a bin.

        Example:
            >>> counts = RewardCounts()
            >>> counts.add([0.5, -1.0, 2.0, 0.25])
            >>> counts.histogram([-1.0, 0.0, 1.0]).tolist()
            [1, 2]
        """
        below = np.concatenate([[0], np.cumsum(self.counts)])
        return np.diff(below[_bins(np.asarray(edges, np.float32))])


@dataclass(frozen=True)
class Cutoffs:
    """The least reward of a selected chosen token, and the largest of a selected rejected one, in nats."""

    chosen: float
    rejected: float


def _bins(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0: they are one reward
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ordered >> np.uint32(32 - _BITS)


def _lower_end(number: int) -> float:
    ordered = np.uint32(number << (32 - _BITS))
    bits = ordered ^ _SIGN if ordered & _SIGN else ~ordered
    return float(bits.view(np.float32))
