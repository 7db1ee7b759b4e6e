"""Find the text around a response: the rendered prompt before it, the end of the turn after it.

Chat templates trim content, and render a prompt alone differently from a whole
conversation, so searching for the response in the rendered text fails. Instead the
conversation is rendered twice with a probe in place of each text of the response
(see `turns`); what both renderings share before, between and after the probes is
the text around it. The response never passes through the template. Annotation and
all training stages render with this one procedure.
"""

import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import TokenizerError
from ..reasons import Reason, Unusable
from ..schema import Message
from ..settings import Reasoning
from ..sources.context import Context
from ..sources.shapes import OF_A_TEMPLATE
from .probing import Conversation, written
from .rendered import Part, RenderedChat
from .turns import slots_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# how prompts end in plain-text templates (Alpaca, Vicuna)
_ASKS_IN_TEXT = re.compile(r"(^|\n)\s*(###\s*\w+( \w+)?|ASSISTANT|Assistant|Answer|Response):?\s*\Z")
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")


def render(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str | list[Message],
    response: str | list[Message],
    control: re.Pattern[str],
    *,
    chat_template: bool,
    every_turn: bool,
    reasoning: Reasoning,
    context: Context,
) -> RenderedChat | Unusable:
    """Render a prompt and its response into the response's texts and the text around them.

    A text prompt becomes one user turn, and Anthropic's "Human: … Assistant: …" transcript becomes
    the turns it holds. Without a chat template the text before the response is the prompt itself, and
    none follows it.

    Args:
        tokenizer: Tokenizer with the template.
        prompt: Text or messages.
        response: The assistant's text, or messages of which the first is the assistant's.
        control: The tokenizer's control tokens, see `encoder.control_tokens`.
        chat_template: Whether to use the template.
        every_turn: Whether the prompt's assistant turns are responses too, including the markup between
            their texts.
        reasoning: Whether the assistant's reasoning is part of the response, context, or refused.
        context: What the template receives besides the messages.

    Returns:
        The rendering, or why the row cannot be used.

    Raises:
        TokenizerError: If no template is used, but the prompt is messages or has a context.
    """
    if not chat_template:
        return _as_it_stands(tokenizer, prompt, response, context, reasoning)
    if isinstance(prompt, str) and (control.match(prompt.lstrip()) or OF_A_TEMPLATE.match(prompt)):
        return Unusable(Reason.ALREADY_RENDERED)
    turns = _turns(prompt) if isinstance(prompt, str) else prompt
    if context.system is not None:
        if turns[0]["role"] != "system":
            turns = [{"role": "system", "content": context.system}, *turns]
        elif turns[0]["content"] != context.system:
            return Unusable(Reason.SYSTEM_DISAGREES)
    answers = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    first = 0 if every_turn else len(turns)
    given = Conversation(tokenizer, [*turns, *answers], first, control, context)
    conversation = given.with_system()
    chat = written(conversation, reasoning, whole_turns=every_turn)
    return chat if isinstance(chat, Unusable) else replace(chat, as_system=conversation is not given)


def asks_in_text(prompt: str | list[Message]) -> bool:
    """Whether a text prompt ends like a plain-text template, in ``### Response:`` for instance."""
    if not isinstance(prompt, str) or _TRANSCRIPT_TURN.match(prompt):
        return False
    return _ASKS_IN_TEXT.search(prompt[-40:]) is not None


def _as_it_stands(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str | list[Message],
    response: str | list[Message],
    context: Context,
    reasoning: Reasoning,
) -> RenderedChat | Unusable:
    if context:
        raise TokenizerError(
            "the dataset has a column system, tools or chat_template_kwargs, which needs a chat "
            "template, and none is used. Take a model whose tokenizer has one, or pass `ignore_columns` "
            "with the column's name."
        )
    if isinstance(prompt, str) and isinstance(response, str):
        slots = slots_of(0, {"content": response}, reasoning, takes_apart=False)
        if isinstance(slots, Unusable):
            return slots
        lo = slots[-1].lo if reasoning == "skip" and slots else 0
        part = Part("content", response, begins=lo).followed_by(response[lo:], len(response), spoken=True)
        return RenderedChat((prompt + response[:lo], ""), (part,), ((), ()))
    raise TokenizerError(
        "the dataset holds messages, which need a chat template, and "
        + (
            "the tokenizer has none. Pass `chat_template=FILE`, or take a model that has one."
            if tokenizer.chat_template is None
            else "`chat_template=False` was given. Leave it out, or turn the messages into texts."
        )
    )


def _turns(prompt: str) -> list[Message]:
    """The turns of a transcript that ends by asking for the assistant's; otherwise one user turn."""
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
