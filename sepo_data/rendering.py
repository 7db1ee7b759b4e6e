"""What stands around a response: the rendered prompt before it, the end of the turn behind it.

Chat templates trim content and render a prompt alone differently from a whole
conversation, so a response cannot be looked up in the rendered text. Instead the
conversation is rendered twice with a probe in place of the response; what both
renderings share before and behind the probe is the prefix and the suffix. The
response itself never passes through the template. Annotation and all training
stages render with this one function.
"""

import json
import logging
import os.path
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .errors import TokenizerError
from .preferences import Message, compact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("sepo")

# why a row is dropped, in the user's words
ALREADY_RENDERED = "prompt already holds control tokens"
TEMPLATE_REFUSES = "chat template refuses the conversation"

# Templates that print today's date (Llama 3, SmolLM3, gpt-oss) would make the numbers depend on the day.
_DATE = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday"}
_FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{directive}', '{value}')" for directive, value in _DATE.items())
    + " }}{%- endmacro -%}"
)
_PROBES = ("Xprobe1x", "Yprobe2y")  # no first or last character in common, nothing a template would trim
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")


@dataclass(frozen=True)
class Rendering:
    """The text around a response.

    Attributes:
        prefix: Everything before the response's first character.
        suffix: Everything behind its last one; empty without a chat template.
        typed: Half-open spans of ``prefix`` that read like control tokens but were
            typed by somebody inside a message: text, not control tokens.
    """

    prefix: str
    suffix: str
    typed: tuple[tuple[int, int], ...] = ()


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """The pattern of the tokenizer's control tokens (BOS, end of turn, …), longest first."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted(special - {tokenizer.unk_token}, key=lambda content: (-len(content), content))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing


def render(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str | list[Message],
    control: re.Pattern[str],
    *,
    chat_template: bool,
) -> Rendering | str:
    """Render a prompt into the text before and behind its response.

    A text prompt becomes one user turn, and Anthropic's "Human: … Assistant: …"
    transcript becomes the turns it holds. Without a chat template the prefix is
    the text itself and the suffix is empty.

    Args:
        tokenizer: Carries the chat template.
        prompt: Text, or messages.
        control: The tokenizer's control tokens, see `control_tokens`.
        chat_template: Whether to use the template.

    Returns:
        The rendering, or the reason why the row cannot be used.

    Raises:
        TokenizerError: If the prompt is messages and no template is to be used.
    """
    if not chat_template:
        if isinstance(prompt, str):
            return Rendering(prompt, "")
        raise TokenizerError(
            "the dataset holds messages, which need a chat template, and none is used. Take an oracle whose "
            "tokenizer has one, leave out --no-chat-template, or turn the messages into texts."
        )
    if isinstance(prompt, str) and control.match(prompt.lstrip()):
        return ALREADY_RENDERED
    turns = _turns(prompt) if isinstance(prompt, str) else prompt
    marks = _marks(turns)
    marked = _mark_typed(turns, control, marks)
    try:
        rendered = [_apply(tokenizer, marked, probe) for probe in _PROBES]
    except Exception as error:  # a template is a program of its author's: it raises what it likes
        log.debug("the chat template refuses a conversation: %s", error)
        return TEMPLATE_REFUSES
    prefix = _common_prefix(*rendered)
    suffix = _common_prefix(*(text[::-1] for text in rendered))[::-1]
    if any(text != prefix + probe + suffix for text, probe in zip(rendered, _PROBES, strict=True)):
        return TEMPLATE_REFUSES
    prefix, typed = _unmark(prefix, marks)
    return Rendering(prefix, _unmark(suffix, marks)[0], typed)


def _common_prefix(first: str, second: str) -> str:
    return os.path.commonprefix([first, second])  # noqa: RUF071, character by character is what is wanted


def _apply(tokenizer: "PreTrainedTokenizerBase", turns: list[Message], response: str) -> str:
    # Arrow gives every message all keys of its column: templates test for keys, and print nulls
    conversation = [*compact(turns), {"role": "assistant", "content": response}]
    template = tokenizer.get_chat_template()
    clock = _FIXED_CLOCK if "strftime_now" in template else ""
    return str(tokenizer.apply_chat_template(conversation, chat_template=clock + template, tokenize=False))


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


def _marks(turns: list[Message]) -> tuple[str, str]:
    """Two noncharacters that no message contains."""
    content = json.dumps(turns, ensure_ascii=False, default=str)
    first, second, *_ = (chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in content)
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
