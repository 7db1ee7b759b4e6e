"""Character spans of tokens, made clean.

What a tokenizer reports as offsets overlaps (several byte tokens of one character),
leaves gaps (trimmed whitespace, characters that a normaliser dropped) and can be
empty. `clean_spans` repairs that once, so that the spans of an annotated dataset
cover the response, in order. Pure numpy: no models, no tokenizers here.
"""

import numpy as np
import numpy.typing as npt

Spans = npt.NDArray[np.int32]


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
    start = np.clip(np.maximum.accumulate(np.asarray(token_start, dtype=np.int32)), 0, length)
    end = np.asarray(token_end, dtype=np.int32)
    end = np.clip(np.maximum.accumulate(np.maximum(end, start)), 0, length)
    if start.size == 0 or length == 0:
        return start, end
    for i in np.flatnonzero(start[1:] > end[:-1]) + 1:
        gap = text[end[i - 1] : start[i]]
        start[i] = end[i - 1] = end[i - 1] + len(gap.rstrip())
    start[0], end[-1] = 0, length
    start = np.minimum(start, length - 1)
    return start, np.maximum(end, start + 1)
