"""The texts of an assistant message, each of which gets a probe, and its tool calls.

A message has content, reasoning (in a separate field, or in a block ``<think>…</think>`` at the start of the
content), and tool calls. Templates remove such blocks, move them, or write an empty one if there is none, so
each text gets a probe and is found wherever the template puts it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..pieces import BLOCK_END, BLOCK_START, REASONING_FIELDS, TOOL_CALLS
from ..reasons import Reason, Unusable
from ..schema import Message
from ..settings import Reasoning
from .rendered import Part

# a count reported to the user
LEFT_OUT = "responses of which the chat template leaves out reasoning, or words next to a tool call"
_BLOCK = re.compile(r"(\s*<think>\s*)?(?P<thought>.*?)\s*</think>\s*(?P<answer>.*)", re.DOTALL)


@dataclass(frozen=True)
class Slot:
    """A text of a message that a probe replaces.

    Attributes:
        turn: Index of the message.
        field: Its key in the message.
        text: The whole text of the field.
        lo: First character that the probe replaces.
        hi: One past the last character that it replaces.
        begins: First character that is scored with it, which may be markup of a block.
        ends: One past the last character that is scored with it.
        scored: Whether it is part of the response rather than context.
        optional: Whether a template may omit it: reasoning, or text next to a tool call.
    """

    turn: int
    field: str
    text: str
    lo: int
    hi: int
    begins: int
    ends: int
    scored: bool = True
    optional: bool = False

    @property
    def probed(self) -> str:
        """The text that the probe replaces."""
        return self.text[self.lo : self.hi]


def slots_of(
    turn: int, message: Message, reasoning: Reasoning, *, takes_apart: bool
) -> list[Slot] | Unusable:
    """The texts of an assistant message.

    Args:
        turn: Its index.
        message: The message.
        reasoning: What to do with its reasoning.
        takes_apart: Whether the template looks for reasoning blocks in the content.

    Returns:
        Its texts in the order in which templates write them, none if it only calls tools; or why it
        cannot be used.
    """
    content = message.get("content") or ""
    slots = []
    field = next((name for name in REASONING_FIELDS if (message.get(name) or "").strip()), None)
    if field is not None:
        text = message[field]
        lo, hi = len(text) - len(text.lstrip()), len(text.rstrip())
        slots.append(Slot(turn, field, text, lo, hi, 0, len(text), reasoning == "score", optional=True))
    block = _BLOCK.fullmatch(content) if BLOCK_END in content else None
    if block and (BLOCK_START in block["thought"] or BLOCK_END in block["answer"]):
        if takes_apart:
            return Unusable(Reason.ODD_REASONING)
        block = None
    if block and not (block["thought"] or block["answer"]):
        block = None
    if (slots or block) and reasoning == "refuse":
        return Unusable(Reason.HAS_REASONING)
    if block and (takes_apart or reasoning == "skip"):
        slots += _of_block(turn, content, block, scored=reasoning == "score")
    elif content or not (slots or message.get(TOOL_CALLS)):
        slots.append(Slot(turn, "content", content, 0, len(content), 0, len(content)))
    return [replace(slot, optional=slot.optional or bool(message.get(TOOL_CALLS))) for slot in slots]


def plain_text(response: str | Sequence[Message]) -> str | None:
    """The text of a response with nothing else; None if it has reasoning, a call or another turn."""
    if isinstance(response, str):
        text = response
    elif len(response) > 1 or any(response[0].get(key) for key in (*REASONING_FIELDS, TOOL_CALLS)):
        return None
    else:
        text = response[0]["content"]
    return None if BLOCK_END in text else text


def _of_block(turn: int, content: str, block: re.Match[str], *, scored: bool) -> list[Slot]:
    """The reasoning and the answer in content that begins with a block."""
    (lo, hi), (answer, end) = block.span("thought"), block.span("answer")
    slots = []
    if lo < hi:
        ends = hi if answer < end else end
        slots.append(Slot(turn, "content", content, lo, hi, 0, ends, scored, optional=True))
    if answer < end:
        begins = 0 if lo == hi and scored else answer
        slots.append(Slot(turn, "content", content, answer, end, begins, end))
    return slots


def with_probes(turns: Sequence[Message], slots: Sequence[Slot], probes: Sequence[str]) -> list[Message]:
    """The messages with their texts replaced by probes."""
    shown = [dict(turn) for turn in turns]
    fields = {(slot.turn, slot.field): slot.text for slot in slots}
    for slot, probe in reversed(list(zip(slots, probes, strict=True))):  # earlier positions stay valid
        text = fields[slot.turn, slot.field]
        fields[slot.turn, slot.field] = text[: slot.lo] + probe + text[slot.hi :]
    for (turn, field), text in fields.items():
        shown[turn][field] = text
    return shown


def part_of_calls(message: int, source: str, rendered: str) -> Part:
    """Tool calls as the template writes them: names, keys and values are located in order."""
    part, at = Part(TOOL_CALLS, source, message), 0
    for leaf in _leaves(json.loads(source)):
        at = source.index(leaf, at)
        seen = len(part.rendered)
        place = rendered.find(leaf, seen)
        if place >= 0:
            part = part.followed_by(rendered[seen:place], at, spoken=False)
            part = part.followed_by(leaf, at + len(leaf), spoken=True)
        at += len(leaf)
    return part.followed_by(rendered[len(part.rendered) :], len(source), spoken=False)


def _leaves(value: object) -> Iterator[str]:
    """Keys, texts and numbers of calls in order, as written in JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield json.dumps(key, ensure_ascii=False)[1:-1]
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value not in ("", None) and not isinstance(value, bool):
        yield json.dumps(value, ensure_ascii=False).strip('"')
