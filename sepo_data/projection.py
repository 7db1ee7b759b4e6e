"""Project values from one tokenization of a text onto another.

Offsets from a tokenizer overlap (several byte tokens of one character),
leave gaps (trimmed whitespace, characters that a normaliser dropped) and can be
empty. `clean_spans` repairs them once, so that the spans of an annotated dataset
cover the response, in order. `partition` cuts the text between the tokens, `project`
distributes every token's reward over the overlapping tokens of the other side: by the
chain rule the log-ratio of a span is the sum of those of its tokens, so whole tokens
are exact and every sum is conserved. All positions are integers. Projection is sepo's
extension of SePO (arXiv 2408.13518). Pure numpy: no models, no tokenizers here.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Spans = npt.NDArray[np.int32]
Bounds = npt.NDArray[np.int64]

TICKS = 720_720  # a code point, in the unit of bounds: divisible by 1, 2, … 16 tokens that share it


class Overlaps(NamedTuple):
    """Where the tokens of two tokenizations overlap, in the order of the text, ``(K,)`` each.

    Attributes:
        source: Index of the source token.
        target: Index of the target token.
        ticks: How much they share.
    """

    source: npt.NDArray[np.intp]
    target: npt.NDArray[np.intp]
    ticks: npt.NDArray[np.int64]


def clean_spans(text: str, token_start: npt.ArrayLike, token_end: npt.ArrayLike) -> tuple[Spans, Spans]:
    r"""Give every character of a text an owner among its tokens.

    Starts and ends are made non-decreasing and clipped to the text. A gap between
    two tokens is split: its trailing whitespace goes to the token after it (causal
    vocabularies write a space in front of a word), the rest, a combining mark or a
    NUL, to the token before it. An uncovered head goes to the first token, an
    uncovered tail to the last. Empty spans are widened to one code point. Tokens
    that share a character keep sharing it.

    Args:
        text: The text that the spans point into; for a truncated response only the
            part that was tokenised.
        token_start: First code point of each token, ``(T,)``.
        token_end: One past the last code point of each token, ``(T,)``.

    Returns:
        Starts and ends, int32, ``(T,)`` each. For ``T >= 1`` and a non-empty text:
        both non-decreasing, ``end > start``, first start 0, last end ``len(text)``,
        no gap between neighbours. Clean spans come back unchanged.

    Example:
        >>> clean_spans("a  b", [0, 3], [1, 4])
        (array([0, 1], dtype=int32), array([1, 4], dtype=int32))
    """
    length = len(text)
    start = np.maximum(np.asarray(token_start, dtype=np.int32), 0)
    start = np.minimum(np.maximum.accumulate(start), length)
    end = np.maximum(np.asarray(token_end, dtype=np.int32), start)
    end = np.minimum(np.maximum.accumulate(end), length)
    if start.size == 0 or length == 0:
        return start, end
    for i in np.flatnonzero(start[1:] > end[:-1]) + 1:
        gap = text[end[i - 1] : start[i]]
        start[i] = end[i - 1] = end[i - 1] + len(gap.rstrip())
    start[0], end[-1] = 0, length
    start = np.minimum(start, length - 1)
    return start, np.maximum(end, start + 1)


def partition(token_start: npt.ArrayLike, token_end: npt.ArrayLike) -> Bounds:
    """Cut a text between its tokens.

    The character that a token begins in is split evenly, in their order, among all
    tokens that cover it.

    Args:
        token_start: First code point of each token, ``(T,)``, from `clean_spans`.
        token_end: One past the last code point of each token, ``(T,)``.

    Returns:
        Bounds in ticks, int64, ``(T + 1,)``, strictly increasing: token ``t`` owns
        ``[bounds[t], bounds[t + 1])``.

    Example:
        >>> partition([0, 1, 1], [1, 2, 2]) / TICKS
        array([0. , 1. , 1.5, 2. ])
    """
    start = np.asarray(token_start, dtype=np.int64)
    end = np.asarray(token_end, dtype=np.int64)
    if start.size == 0:
        return np.zeros(1, dtype=np.int64)
    first = end.searchsorted(start, side="right")  # of the tokens that cover a token's first character
    sharing = start.searchsorted(start, side="right") - first
    rank = np.arange(start.size) - first
    return np.append(start * TICKS + rank * TICKS // sharing, end[-1] * TICKS)


def overlaps(source: Bounds, target: Bounds) -> Overlaps:
    """Find the overlapping tokens of two partitions, at most ``S + T - 1``.

    Args:
        source: Bounds of ``S`` tokens, from `partition`.
        target: Bounds of ``T`` tokens of the same text; either may end earlier.
    """
    cuts = np.concatenate((source, target))
    cuts.sort(kind="stable")  # two sorted runs: one merge
    cuts = cuts[: cuts.searchsorted(min(source[-1], target[-1]), side="right")]
    ticks = np.diff(cuts)
    real = np.flatnonzero(ticks)  # a bound of both sides is in the cuts twice
    left = cuts[real]
    return Overlaps(
        source.searchsorted(left, side="right") - 1,
        target.searchsorted(left, side="right") - 1,
        ticks[real],
    )


def project(token_rewards: npt.ArrayLike, source: Bounds, target: Bounds) -> npt.NDArray[np.float64]:
    """Project rewards onto another tokenization of the same text.

    A target token gets from each source token the share of it that it overlaps.
    What lies after the last target token is dropped, not added to it.

    Args:
        token_rewards: Rewards of the source's tokens, in nats, ``(S,)``.
        source: Their bounds, ``(S + 1,)``, from `partition`.
        target: Bounds of the other tokens, ``(T + 1,)``.

    Returns:
        Rewards of the target's tokens, ``(T,)``; NaN for those that lie wholly
        after the last source token, where nothing is known.

    Example:
        >>> project([1.0, 3.0], partition([0, 1], [1, 3]), partition([0, 2], [2, 3]))
        array([2.5, 1.5])
    """
    shared = overlaps(source, target)
    share = shared.ticks / np.diff(source)[shared.source]
    return _summed(np.asarray(token_rewards, dtype=np.float64)[shared.source] * share, shared, target)


def project_mask(token_mask: npt.ArrayLike, source: Bounds, target: Bounds) -> npt.NDArray[np.float64]:
    """How much of each target token the selected source tokens own.

    Args:
        token_mask: The selected ones of the source's tokens, ``(S,)``.
        source: Their bounds, ``(S + 1,)``, from `partition`.
        target: Bounds of the other tokens, ``(T + 1,)``.

    Returns:
        Shares in ``[0, 1]``, ``(T,)``: at least 0.5 is the majority. NaN as in `project`.
    """
    shared = overlaps(source, target)
    selected = np.asarray(token_mask, dtype=bool)[shared.source]
    return _summed(shared.ticks * selected, shared, target) / np.diff(target)


def _summed(values: npt.NDArray[np.generic], shared: Overlaps, target: Bounds) -> npt.NDArray[np.float64]:
    """Sums of the overlaps' values by target token; NaN where there is none."""
    weights = values.astype(np.float64)
    sums: npt.NDArray[np.float64] = np.bincount(shared.target, weights, target.size - 1).astype(np.float64)
    known = int(shared.target[-1]) + 1 if shared.target.size else 0
    sums[known:] = np.nan
    return sums
