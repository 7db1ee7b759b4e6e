"""Kinds of tokens: word, number, punctuation, blank, newline, and the end of the turn."""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from ..pieces import OneText

# A token has the highest kind among its characters, so " 3" is a number and "don't" a word.
KINDS = ("end of turn", "blank", "newline", "punctuation", "number", "word")
END = KINDS.index("end of turn")
_LINE_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # those of str.splitlines

Kinds = npt.NDArray[np.uint8]


def token_kinds(responses: Sequence[OneText]) -> Kinds:
    r"""The kinds of the tokens of several responses, concatenated.

    Returns:
        Indices into `KINDS`, ``(sum of T,)``.

    Example:
        >>> from sepo_data.pieces import one_text
        >>> whole = one_text("a 12\n!", [0, 1, 4, 5], [1, 4, 5, 6], None, None)
        >>> [KINDS[kind] for kind in token_kinds([whole])]
        ['word', 'number', 'newline', 'punctuation']
    """
    texts = [*(whole.text for whole in responses), "\0"]
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    begins = np.cumsum([0, *map(len, texts)])
    bounds = [
        np.stack([whole.start, whole.end], axis=1).ravel() + begin
        for whole, begin in zip(responses, begins, strict=False)
    ]
    # reduceat reduces between neighbouring bounds, so every other result belongs to a token
    return np.maximum.reduceat(_kind_of_character()[codes], np.concatenate(bounds))[::2]


@cache
def _kind_of_character() -> Kinds:
    """The kind of every code point."""
    of_category = {"L": "word", "M": "word", "N": "number", "Z": "blank"}
    found = np.array(
        [
            KINDS.index(of_category.get(unicodedata.category(chr(code))[0], "punctuation"))
            for code in range(0x110000)
        ],
        dtype=np.uint8,
    )
    found[ord("\t")] = KINDS.index("blank")
    found[[ord(character) for character in _LINE_BREAKS]] = KINDS.index("newline")
    return found
