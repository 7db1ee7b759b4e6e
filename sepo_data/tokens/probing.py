"""Render a conversation with its template, split at the texts that are scored.

It is rendered twice, each text replaced first by a probe and then by the probe's twin. A turn that only calls
tools has no probe: it starts where its content would be, and stops before the token that ends the turn.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING

from ..errors import first_line
from ..pieces import BLOCK_END, BLOCK_START, REASONING_FIELDS, TOOL_CALLS, calls_text
from ..reasons import Reason, Unusable
from ..schema import Message
from ..settings import Reasoning
from ..sources.context import Context
from ..sources.shapes import is_trained
from .rendered import Part, RenderedChat
from .segments import Segment, choose_marks, mark_typed, spoken, unmark
from .turns import Slot, part_of_calls, slots_of, with_probes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Templates that print today's date (Llama 3, SmolLM3, gpt-oss) would make the numbers depend on the day.
_DATE = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday"}
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{directive}', '{value}')" for directive, value in _DATE.items())
    + " }}{%- endmacro -%}"
)
_WOULD_SAY = "Zprobe0z"


@dataclass(frozen=True)
class Conversation:
    """A conversation to render.

    Attributes:
        tokenizer: Tokenizer with the template.
        turns: All messages.
        first: Index of the first message whose texts may be scored.
        control: Pattern of the tokenizer's control tokens.
        context: What the template receives besides the messages.
    """

    tokenizer: "PreTrainedTokenizerBase"
    turns: list[Message]
    first: int
    control: re.Pattern[str]
    context: Context

    def asks_for(self, index: int, turn: Message) -> bool:
        """Whether the texts of a message may be scored."""
        return index >= self.first and turn["role"] == "assistant" and is_trained(turn)

    def slots(self, reasoning: Reasoning) -> list[Slot] | Unusable:
        """The texts of the assistant's messages, or why the conversation cannot be used."""
        takes_apart = BLOCK_END in self.tokenizer.get_chat_template(tools=self.context.tools)
        slots: list[Slot] = []
        for i, turn in enumerate(self.turns):
            if self.asks_for(i, turn):
                found = slots_of(i, turn, reasoning, takes_apart=takes_apart)
                if isinstance(found, Unusable):
                    return found
                slots += found
        return slots

    def rendered(self, versions: list[list[Message]], *, asks: bool = False) -> list[str]:
        """Render versions of the messages; ``asks`` adds the generation prompt.

        Raises:
            RefusedError: With the template's message.
        """
        try:
            template = self.tokenizer.get_chat_template(tools=self.context.tools)
            clock = _FIXED_CLOCK if "strftime_now" in template else ""
            rendered = self.tokenizer.apply_chat_template(
                versions,
                tools=self.context.tools,
                chat_template=clock + template,
                tokenize=False,
                add_generation_prompt=asks,
                **self.context.template_kwargs,
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise RefusedError(first_line(error)) from error
        return list(rendered)

    def with_system(self) -> "Conversation":
        """With developer turns as system turns, if the template refuses or omits the former."""
        if not any(turn["role"] == "developer" for turn in self.turns):
            return self
        asked = [{"role": "developer", "content": _WOULD_SAY}, {"role": "user", "content": "Hi"}]
        try:
            if _WOULD_SAY in self.rendered([asked])[0]:
                return self
        except RefusedError:
            pass
        turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in self.turns]
        return replace(self, turns=turns)


class RefusedError(Exception):
    """The template refuses the conversation."""


@dataclass(frozen=True)
class _Cut:
    """The position of a slot's probe in a rendering."""

    lo: int
    hi: int
    slot: Slot


@dataclass(frozen=True)
class _Piece:
    """A slot, its text in the rendering, and the text after it."""

    slot: Slot
    content: Segment
    suffix: Segment


def written(
    conversation: Conversation, reasoning: Reasoning, *, whole_turns: bool
) -> RenderedChat | Unusable:
    """Render a conversation with its template.

    Args:
        conversation: Its messages.
        reasoning: What to do with the assistant's reasoning.
        whole_turns: Whether markup that the template writes before reasoning in a separate field is scored.

    Returns:
        The rendering, or why the row cannot be used.
    """
    slots = conversation.slots(reasoning)
    if isinstance(slots, Unusable):
        return slots
    given = [conversation.turns, conversation.context.tools, conversation.context.template_kwargs]
    marks = choose_marks(given)
    turns = _without_nulls(mark_typed(conversation.turns, conversation.control, marks))
    tools = mark_typed(conversation.context.tools, conversation.control, marks)
    context = replace(conversation.context, tools=tools)
    marked = replace(conversation, turns=turns, context=context)
    try:
        found = _found(marked, slots)
        if found is None:
            return Unusable(Reason.TEMPLATE_REFUSES)
        head, pieces = _pieces(conversation, *found, marks)
        opening = _opening(marked) if whole_turns and any(_beside(piece.slot) for piece in pieces) else ""
    except RefusedError as error:
        return Unusable(Reason.TEMPLATE_REFUSES, str(error))
    chat = _folded(conversation.first, head, pieces, opening)
    if not chat.parts:
        return Unusable(Reason.LEFT_OUT)
    seen = sum(piece.slot.optional for piece in pieces)
    return replace(chat, left_out=sum(slot.optional for slot in slots) - seen)


def _without_nulls(turns: list[Message]) -> list[Message]:
    """Arrow gives every message all keys of its column, and templates test for keys."""
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def _found(marked: Conversation, slots: list[Slot]) -> tuple[str, list[_Cut]] | None:
    """The text with probes, and the positions of probes and tool calls; None if more than probes differ."""
    # a probe and its twin share neither first nor last character, and nothing in them would be trimmed
    probes = [(f"Xprobe{2 * i + 1}x", f"Yprobe{2 * i + 2}y") for i in range(len(slots))]
    with_x, with_y = (with_probes(marked.turns, slots, [pair[twin] for pair in probes]) for twin in (0, 1))
    first, second = marked.rendered([with_x, with_y])
    there = [first.count(x) > second.count(x) for x, _ in probes]
    if any(not (seen or slot.optional) for seen, slot in zip(there, slots, strict=True)):
        return None
    kept = [pair for pair, seen in zip(probes, there, strict=True) if seen]
    segments = _split(first, second, kept)
    if segments is None:
        return None
    cuts, end = list[_Cut](), 0
    for segment, (probe, _), slot in zip(segments, kept, compress(slots, there), strict=False):
        lo, end = end + len(segment), end + len(segment) + len(probe)
        cuts.append(_Cut(lo, end, slot))
    for i, turn in enumerate(with_x):
        if marked.asks_for(i, turn) and turn.get(TOOL_CALLS):
            ends = [cut.hi for cut in cuts if cut.slot.turn == i]
            at = ends[-1] if ends else _begins_at(marked, with_x, i, first)
            if at is not None:
                cuts.append(_Cut(at, at, Slot(i, TOOL_CALLS, "", 0, 0, 0, 0)))
    return first, sorted(cuts, key=lambda cut: (cut.lo, cut.slot.turn))


def _begins_at(marked: Conversation, turns: list[Message], at: int, text: str) -> int | None:
    """Where a turn that only calls tools starts in the text: where its content would be."""
    says, begins = {**turns[at], "content": _WOULD_SAY}, 0
    for version in ([*turns[:at], says, *turns[at + 1 :]], [*turns[:at], {**says, TOOL_CALLS: None}]):
        try:
            (saying,) = marked.rendered([_without_nulls(version)])
        except RefusedError:
            continue
        begins = _shared_length(text, saying)
        if saying.startswith(_WOULD_SAY, begins):
            return begins
    opening = _opening(marked)  # gpt-oss writes another header before a call
    asked = text.rfind(opening, 0, begins)
    return asked + len(opening) if opening and asked >= 0 else None


def _pieces(
    conversation: Conversation, text: str, cuts: list[_Cut], marks: tuple[str, str]
) -> tuple[Segment, list[_Piece]]:
    """The text before the first slot, and the slots; tool calls extend to the end of their turn."""
    edges = [0, *(edge for cut in cuts for edge in (cut.lo, cut.hi)), len(text)]
    head, *suffixes = (unmark(text[lo:hi], marks) for lo, hi in zip(edges[::2], edges[1::2], strict=True))
    end = _end_of_turn(conversation) if any(cut.slot.field == TOOL_CALLS for cut in cuts) else ""
    pieces: list[_Piece] = []
    for i, (cut, following) in enumerate(zip(cuts, suffixes, strict=True)):
        if cut.slot.field != TOOL_CALLS:
            pieces.append(_Piece(cut.slot, spoken(cut.slot.probed, conversation.control), following))
            continue
        at = _ends_at(following, conversation.control, end, last=i == len(cuts) - 1)
        if at is not None and following.text[:at].strip():
            text = calls_text(conversation.turns[cut.slot.turn][TOOL_CALLS])
            pieces.append(_Piece(replace(cut.slot, text=text), *following.cut(at)))
        elif pieces:  # a call that is omitted, or has an unusual end, is context
            pieces[-1] = replace(pieces[-1], suffix=pieces[-1].suffix.then(following))
        else:
            head = head.then(following)
    return head, pieces


def _end_of_turn(conversation: Conversation) -> str:
    """The control token that ends a turn without tool calls; empty if there is none."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _WOULD_SAY}]
    (text,) = conversation.rendered([turns])
    found = conversation.control.search(text, text.rfind(_WOULD_SAY))
    return found[0] if found else ""


def _ends_at(suffix: Segment, control: re.Pattern[str], end: str, *, last: bool) -> int | None:
    """Where a turn that calls tools ends: at the usual token or, if last, at its last control token."""
    typed = {lo for lo, _ in suffix.typed}
    found = [one for one in control.finditer(suffix.text) if one.start() not in typed]
    usual = next((one.start() for one in found if one[0] == end), None)
    if usual is not None or not last:
        return usual
    return found[-1].start() if found else len(suffix.text.rstrip())


def _opening(conversation: Conversation) -> str:
    """The generation prompt."""
    turns = [{"role": "user", "content": "Hi"}]
    (silent,), (asking,) = conversation.rendered([turns]), conversation.rendered([turns], asks=True)
    return asking[_shared_length(silent, asking) :]


def _beside(slot: Slot) -> bool:
    """Whether a slot is reasoning in a separate field."""
    return slot.field in REASONING_FIELDS


def _folded(first: int, head: Segment, pieces: Sequence[_Piece], opening: str) -> RenderedChat:
    """The parts and the segments around them; a reasoning block and the answer after it are one text."""
    segments, parts = [head], list[Part]()
    before: Slot | None = None
    for piece in pieces:
        slot, suffix = piece.slot, piece.suffix
        if not slot.scored:
            segments[-1] = segments[-1].then(piece.content).then(suffix)
        elif slot.field == TOOL_CALLS:
            parts.append(part_of_calls(slot.turn - first, slot.text, piece.content.text))
            segments.append(suffix)
        else:
            if before and before.scored and (before.turn, before.field) == (slot.turn, slot.field):
                part, markup = parts.pop(), segments.pop()
            else:
                part = Part(slot.field, slot.text, slot.turn - first, slot.begins)
                segments[-1], markup = segments[-1].cut(_markup_at(segments[-1].text, slot, opening))
            part = part.followed_by(markup.text, slot.lo, spoken=False)
            part = part.followed_by(slot.probed, slot.hi, spoken=True)
            if slot.ends > slot.hi:
                closing, suffix = suffix.cut(_closed_at(suffix.text, slot))
                part = part.followed_by(closing.text, slot.ends, spoken=False)
            parts.append(part)
            segments.append(suffix)
        before = slot
    texts, typed = zip(*segments, strict=True)
    return RenderedChat(texts, tuple(parts), typed)


def _markup_at(text: str, slot: Slot, opening: str) -> int:
    """Where the markup that opens a slot's reasoning starts in the text before it; by default at its end."""
    if slot.field == "content" and BLOCK_START in slot.text[slot.begins : slot.lo]:
        at = text.rfind(BLOCK_START)
        return at if at >= 0 else len(text)
    for size in range(len(opening) if _beside(slot) else 0, len(opening) // 2, -1):  # may ask for more
        at = text.rfind(opening[:size])
        if at >= 0:
            return at + size
    return len(text)


def _closed_at(text: str, slot: Slot) -> int:
    """Where the markup that closes a block without an answer ends in the text after it."""
    at = text.find(BLOCK_END) if BLOCK_END in slot.text[slot.hi :] else -1
    return at + len(BLOCK_END) if at >= 0 else 0


def _split(first: str, second: str, probes: Sequence[tuple[str, str]]) -> list[str] | None:
    """The text shared before, between and after the probes; None if the renderings differ elsewhere too."""
    segments = []
    for pair in probes:
        end = _shared_length(first, second)
        segments.append(first[:end])
        first, second = first[end:], second[end:]
        if not (first.startswith(pair[0]) and second.startswith(pair[1])):
            return None
        first, second = first[len(pair[0]) :], second[len(pair[1]) :]
    return [*segments, first] if first == second else None


def _shared_length(first: str, second: str) -> int:
    """The length of the common prefix, by bisection, since comparing slices is fast."""
    longest = min(len(first), len(second))
    return bisect_left(range(longest), True, key=lambda i: first[: i + 1] != second[: i + 1])
