"""The two gold rewards: known functions of a text, so that no judge is needed.

``valence`` is the sum of VADER's valences over whole words; everything is tuned for it. ``brevity`` is the
number of complete sentences of three words or more; nothing is tuned for it. Texts are truncated at a
number of tokens, so the last word counts only if something follows it.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files

WORD = re.compile(r"[A-Za-z']+")
SENTENCE = re.compile(r"[^.!?]*[.!?]")


@cache
def valences() -> dict[str, float]:
    """VADER's lexicon (Hutto and Gilbert 2014; MIT), restricted to entries that are words."""
    lines = (files("vaderSentiment") / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split("\t")[:2] for line in lines if line)
    return {word: float(valence) for word, valence in entries if WORD.fullmatch(word)}


def valued_words(text: str) -> list[tuple[int, int, float]]:
    """Start, end and valence of the words that have one, without a last word that may be truncated."""
    found = ((match, valences().get(match[0].lower())) for match in WORD.finditer(text))
    return [
        (match.start(), match.end(), valence)
        for match, valence in found
        if valence is not None and match.end() < len(text)
    ]


def valence(text: str) -> float:
    """Sum of the valences of the words of a text."""
    return sum(value for _, _, value in valued_words(text))


def brevity(text: str) -> float:
    """Number of complete sentences of at least three words."""
    return float(sum(len(WORD.findall(sentence)) >= 3 for sentence in SENTENCE.findall(text)))


GOLDS: dict[str, Callable[[str], float]] = {"valence": valence, "brevity": brevity}
