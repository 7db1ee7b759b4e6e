"""A conversation as the chat template renders it: the texts that are scored, and the text around them."""

from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from .segments import Typed


class Stretch(NamedTuple):
    """A piece of a rendered text and the piece of the source that it represents.

    Attributes:
        lo: First character in the rendered text.
        hi: One past the last character.
        source_lo: First character in the source.
        source_hi: One past the last character.
        spoken: Whether it is the message's own text, verbatim, rather than markup.
    """

    lo: int
    hi: int
    source_lo: int
    source_hi: int
    spoken: bool


@dataclass(frozen=True)
class Part:
    """A text of a message as the template rendered it.

    Attributes:
        field: Its key in the message.
        source: The text that spans address, see `pieces.field_text`.
        message: Index of the message among those of the response.
        begins: First character of the source that is scored.
        rendered: Its text in the rendered conversation.
        stretches: Which piece of ``rendered`` represents which of ``source``, both in order, without gaps.
    """

    field: str
    source: str
    message: int = 0
    begins: int = 0
    rendered: str = ""
    stretches: tuple[Stretch, ...] = ()

    def followed_by(self, rendered: str, source_hi: int, *, spoken: bool) -> "Part":
        """With one more stretch, which represents the source up to ``source_hi``."""
        lo, source_lo = len(self.rendered), self.stretches[-1].source_hi if self.stretches else self.begins
        stretch = Stretch(lo, lo + len(rendered), source_lo, source_hi, spoken)
        return replace(self, rendered=self.rendered + rendered, stretches=(*self.stretches, stretch))


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text: its ``n`` scored parts, and the ``n + 1`` segments around them.

    Attributes:
        segments: The text before each part, and the text after the last one, which is
            empty without a chat template.
        parts: Texts of the assistant's messages.
        typed: For each segment, half-open spans that look like control tokens but come from
            the content of a message: text, not control tokens.
        left_out: Number of texts that the template omits: reasoning, or text next to a tool call.
        as_system: Whether developer turns were rendered as system turns.
    """

    segments: tuple[str, ...]
    parts: tuple[Part, ...]
    typed: tuple[Typed, ...]
    left_out: int = 0
    as_system: bool = False

    def ending_in(self, response: str) -> "RenderedChat":
        """The same conversation with another last text, the content of the last message."""
        part = Part("content", response, self.parts[-1].message)
        last = part.followed_by(response, len(response), spoken=True)
        return replace(self, parts=(*self.parts[:-1], last))

    @property
    def responses(self) -> tuple[str, ...]:
        """The parts as they appear in ``text``."""
        return tuple(part.rendered for part in self.parts)

    @property
    def text(self) -> str:
        """The whole conversation."""
        return "".join(chain(*zip(self.segments, (*self.responses, ""), strict=True)))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Half-open span of each part in ``text``."""
        spans, end = [], 0
        for segment, response in zip(self.segments[:-1], self.responses, strict=True):
            start = end + len(segment)
            end = start + len(response)
            spans.append((start, end))
        return spans
