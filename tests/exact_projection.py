"""Projection in exact fractions, as the definition reads: every token against every other, no numpy.

Positions are code points. It is slow, and shares no line with ``sepo_data.projection``.
"""

from collections.abc import Sequence
from fractions import Fraction

Spans = Sequence[tuple[int, int]]


def exact_bounds(spans: Spans) -> list[Fraction]:
    """Where each token begins, and the end of the text: a shared character is split evenly, in order."""
    bounds = []
    for token, (start, _) in enumerate(spans):
        covering = [other for other, (s, e) in enumerate(spans) if s <= start < e]
        bounds.append(start + Fraction(covering.index(token), len(covering)))
    return [*bounds, Fraction(max((end for _, end in spans), default=0))]


def overlap(source: Sequence[Fraction], i: int, target: Sequence[Fraction], j: int) -> Fraction:
    """The overlap of token ``i`` of the source and token ``j`` of the target."""
    return max(Fraction(0), min(source[i + 1], target[j + 1]) - max(source[i], target[j]))


def exact_project(
    rewards: Sequence[float], source: Sequence[Fraction], target: Sequence[Fraction]
) -> list[Fraction | None]:
    """Sum of r_i times the share of token i in token j; None where the source has ended before j."""
    return [
        sum(
            (
                Fraction(reward) * overlap(source, i, target, j) / (source[i + 1] - source[i])
                for i, reward in enumerate(rewards)
            ),
            Fraction(0),
        )
        if target[j] < source[-1]
        else None
        for j in range(len(target) - 1)
    ]


def exact_project_mask(
    mask: Sequence[bool], source: Sequence[Fraction], target: Sequence[Fraction]
) -> list[Fraction | None]:
    """Share of token j that the selected source tokens own; None where the source has ended before j."""
    return [
        sum((overlap(source, i, target, j) for i, marked in enumerate(mask) if marked), Fraction(0))
        / (target[j + 1] - target[j])
        if target[j] < source[-1]
        else None
        for j in range(len(target) - 1)
    ]


def exact_dropped(rewards: Sequence[float], source: Sequence[Fraction], end: Fraction) -> Fraction:
    """Sum of r_i times the share of token i that lies after ``end``."""
    return sum(
        (
            Fraction(reward) * max(Fraction(0), right - max(left, end)) / (right - left)
            for reward, left, right in zip(rewards, source[:-1], source[1:], strict=True)
        ),
        Fraction(0),
    )
