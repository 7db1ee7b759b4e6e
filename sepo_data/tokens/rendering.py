"""What stands around a response: the rendered prompt before it, the end of the turn behind it.

Chat templates trim content and render a prompt alone differently from a whole
conversation, so a response cannot be looked up in the rendered text. Instead the
conversation is rendered twice with a probe in place of the response; what both
renderings share before and behind the probe is the prefix and the suffix. The
response itself never passes through the template. Of a whole conversation every
assistant turn is a response, each with a probe of its own. Annotation and all
training stages render with this one procedure.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any

from ..errors import TokenizerError, first_line
from ..reasons import Reason, Unusable
from ..schema import Message
from ..sources.context import NO_CONTEXT, Context, compact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Templates that print today's date (Llama 3, SmolLM3, gpt-oss) would make the numbers depend on the day.
_DATE = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday"}
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{directive}', '{value}')" for directive, value in _DATE.items())
    + " }}{%- endmacro -%}"
)
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text: its ``n`` responses, and the ``n + 1`` segments around them.

    Attributes:
        segments: The text before each response, and the text behind the last one,
            which is empty without a chat template.
        responses: The assistant's contents, verbatim.
        typed: For each segment, half-open spans that read like control tokens but were
            typed by somebody inside a message: text, not control tokens.
    """

    segments: tuple[str, ...]
    responses: tuple[str, ...]
    typed: tuple[tuple[tuple[int, int], ...], ...]

    def ending_in(self, response: str) -> "RenderedChat":
        """The same conversation with another last response."""
        return replace(self, responses=(*self.responses[:-1], response))

    @property
    def text(self) -> str:
        """The whole conversation."""
        return "".join(chain(*zip(self.segments, (*self.responses, ""), strict=True)))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Half-open span of each response in ``text``."""
        spans, end = [], 0
        for segment, response in zip(self.segments[:-1], self.responses, strict=True):
            start = end + len(segment)
            end = start + len(response)
            spans.append((start, end))
        return spans


def render(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str | list[Message],
    response: str,
    control: re.Pattern[str],
    *,
    chat_template: bool,
    every_turn: bool,
    context: Context = NO_CONTEXT,
) -> RenderedChat | Unusable:
    """Render a prompt and its response into responses and the text around them.

    A text prompt becomes one user turn, and Anthropic's "Human: … Assistant: …" transcript becomes
    the turns it holds. Without a chat template the text before the response is the prompt itself, and
    none is behind it.

    Args:
        tokenizer: Carries the chat template.
        prompt: Text, or messages.
        response: The response that follows it.
        control: The tokenizer's control tokens, see `encoder.control_tokens`.
        chat_template: Whether to use the template.
        every_turn: Whether the contents of the prompt's assistant turns are responses as well. Of
            their messages the template sees role and probe then: what it would cut out of an
            earlier turn (Qwen3: the thoughts) stays in.
        context: What the template is given beside the messages.

    Returns:
        The rendering, or why the row cannot be used.

    Raises:
        TokenizerError: If no template is to be used, and the prompt is messages or has a context.
    """
    if not chat_template:
        if context:
            raise TokenizerError(
                "the dataset has a column system, tools or chat_template_kwargs, which needs a chat "
                "template, and none is used. Take a model whose tokenizer has one, or pass --ignore-columns "
                "with the column's name."
            )
        if isinstance(prompt, str):
            return RenderedChat((prompt, ""), (response,), ((), ()))
        raise TokenizerError(
            "the dataset holds messages, which need a chat template, and "
            + (
                "the tokenizer has none. Pass --chat-template FILE, or take a model that has one."
                if tokenizer.chat_template is None
                else "--no-chat-template was given. Leave it out, or turn the messages into texts."
            )
        )
    if isinstance(prompt, str) and control.match(prompt.lstrip()):
        return Unusable(Reason.ALREADY_RENDERED)
    turns = _turns(prompt) if isinstance(prompt, str) else prompt
    if context.system is not None:
        if turns[0]["role"] != "system":
            turns = [{"role": "system", "content": context.system}, *turns]
        elif turns[0]["content"] != context.system:
            return Unusable(Reason.SYSTEM_DISAGREES)
    own = [i for i, turn in enumerate(turns) if every_turn and turn["role"] == "assistant"]
    responses = (*(turns[i]["content"] for i in own), response)
    others = [None if i in own else turn for i, turn in enumerate(turns)]
    marks = _marks([others, context.tools, context.template_kwargs])
    # Arrow gives every message all keys of its column: templates test for keys, and print nulls
    marked = [*compact(_mark_typed(others, control, marks)), None]
    # a probe and its twin share neither first nor last character, and have nothing that a template would trim
    probes = [(f"Xprobe{2 * i + 1}x", f"Yprobe{2 * i + 2}y") for i in range(len(responses))]
    try:
        marked_context = replace(context, tools=_mark_typed(context.tools, control, marks))
        first, second = _apply(tokenizer, marked, list(zip(*probes, strict=True)), marked_context)
    except Exception as error:  # a template is a program of its author's: it raises what it likes
        return Unusable(Reason.TEMPLATE_REFUSES, first_line(error))
    segments = _split(first, second, probes)
    if segments is None:
        return Unusable(Reason.TEMPLATE_REFUSES)
    plain = [_unmark(segment, marks) for segment in segments]
    return RenderedChat(tuple(text for text, _ in plain), responses, tuple(typed for _, typed in plain))


def _split(first: str, second: str, probes: Sequence[tuple[str, str]]) -> list[str] | None:
    """What two renderings share before, between and behind their probes; None if more than probes differ."""
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
    """How many characters two texts have in common from their beginning; comparing slices is fast."""
    longest = min(len(first), len(second))
    return bisect_left(range(longest), True, key=lambda i: first[: i + 1] != second[: i + 1])


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[Message | None],
    responses: Sequence[Sequence[str]],
    context: Context,
) -> list[str]:
    """The conversation with one after the other of the lists of responses, in order, where a turn is None."""
    conversations = []
    for contents in responses:
        answers = iter(contents)
        conversations.append(
            [{"role": "assistant", "content": next(answers)} if turn is None else turn for turn in turns]
        )
    template = tokenizer.get_chat_template(tools=context.tools)
    clock = _FIXED_CLOCK if "strftime_now" in template else ""
    rendered = tokenizer.apply_chat_template(
        conversations,
        tools=context.tools,
        chat_template=clock + template,
        tokenize=False,
        **context.template_kwargs,
    )
    return list(rendered)


def _turns(prompt: str) -> list[Message]:
    """The turns of a transcript that asks for the assistant's next one; else one user turn."""
    markers = list(_TRANSCRIPT_TURN.finditer(prompt))
    if not (markers and markers[0].start() == 0 and markers[-1][1] == "Assistant"):
        return [{"role": "user", "content": prompt}]
    if markers[-1].end() != len(prompt):
        return [{"role": "user", "content": prompt}]
    return [
        {
            "role": "user" if marker[1] == "Human" else "assistant",
            "content": prompt[marker.end() : following.start()],
        }
        for marker, following in pairwise(markers)
    ]


def _marks(rendered: Sequence[Any]) -> tuple[str, str]:
    """Two noncharacters that nothing of what is rendered contains."""
    content = json.dumps(rendered, ensure_ascii=False, default=str)
    first, second = islice((chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in content), 2)
    return first, second


def _mark_typed(value: Any, control: re.Pattern[str], marks: tuple[str, str]) -> Any:
    """Messages with marks around the control tokens in their contents, arguments and other texts."""
    if isinstance(value, str):
        return control.sub(lambda found: marks[0] + found[0] + marks[1], value)
    if isinstance(value, dict):
        return {key: _mark_typed(item, control, marks) for key, item in value.items()}
    return [_mark_typed(item, control, marks) for item in value] if isinstance(value, list) else value


def _unmark(text: str, marks: tuple[str, str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text without marks, and the spans that stood between a pair of them."""
    plain, spans, opened = "", [], None
    for piece in re.split(f"([{marks[0]}{marks[1]}])", text):
        if piece == marks[0]:
            opened = len(plain)
        elif piece != marks[1]:
            plain += piece
        elif opened is not None:  # a template that cuts messages up may have left the other mark out
            spans.append((opened, len(plain)))
            opened = None
    return plain, tuple(spans)
