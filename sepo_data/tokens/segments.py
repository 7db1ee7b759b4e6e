"""Rendered text that distinguishes control tokens typed in a message from those of the template."""

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

Typed = tuple[tuple[int, int], ...]


class Segment(NamedTuple):
    """A piece of a rendered conversation.

    Attributes:
        text: Its text.
        typed: Half-open spans that look like control tokens but were typed in a message.
    """

    text: str
    typed: Typed = ()

    def then(self, other: "Segment") -> "Segment":
        """This segment followed by another."""
        moved = ((start + len(self.text), end + len(self.text)) for start, end in other.typed)
        return Segment(self.text + other.text, (*self.typed, *moved))

    def cut(self, at: int) -> tuple["Segment", "Segment"]:
        """The segments before and after a position, which must not be inside a span."""
        before = tuple(span for span in self.typed if span[1] <= at)
        after = tuple((start - at, end - at) for start, end in self.typed if start >= at)
        return Segment(self.text[:at], before), Segment(self.text[at:], after)


def spoken(text: str, control: re.Pattern[str]) -> Segment:
    """A segment that was typed as a whole."""
    return Segment(text, tuple(found.span() for found in control.finditer(text)))


def choose_marks(rendered: Sequence[object]) -> tuple[str, str]:
    """Two noncharacters that occur in none of the texts to render."""
    content = json.dumps(rendered, ensure_ascii=False, default=str)
    first, second = islice((chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in content), 2)
    return first, second


def mark_typed(value: Any, control: re.Pattern[str], marks: tuple[str, str]) -> Any:
    """Messages with marks around control tokens in their contents, arguments and other texts."""
    if isinstance(value, str):
        return control.sub(lambda found: marks[0] + found[0] + marks[1], value)
    if isinstance(value, dict):
        return {key: mark_typed(item, control, marks) for key, item in value.items()}
    return [mark_typed(item, control, marks) for item in value] if isinstance(value, list) else value


def unmark(text: str, marks: tuple[str, str]) -> Segment:
    """The text without marks, and the spans that were between a pair of them."""
    plain, spans, opened = "", [], None
    for piece in re.split(f"([{marks[0]}{marks[1]}])", text):
        if piece == marks[0]:
            opened = len(plain)
        elif piece != marks[1]:
            plain += piece
        elif opened is not None:  # a template that cuts a message may have dropped the other mark
            spans.append((opened, len(plain)))
            opened = None
    return Segment(plain, tuple(spans))
