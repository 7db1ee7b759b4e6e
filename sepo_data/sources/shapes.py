"""Conversations in the shapes found in the wild → messages with a role and a text.

ShareGPT's ``from``/``value``; roles named human, gpt or model; contents in parts; a single message;
parallel lists of roles and contents (``datasets`` before 4); pairs of a question and an answer; an object
around the list; any of these stored as text, as JSON or as Python prints it. This module converts single
values; `column_kinds` decides for a column.
"""

import ast
import json
import re
import tokenize
import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TypeGuard

from ..reasons import Reason, Unusable
from ..schema import Message

ROLES = {
    "user": "user", "human": "user", "prompter": "user", "client": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant",
    "chatgpt": "assistant", "chatbot": "assistant",
    "tool": "tool", "observation": "tool", "tool_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
    "system": "system", "developer": "developer",
}  # fmt: skip
_CALLING = ("function_call", "tool_call")
_KEYS = {"from": "role", "speaker": "role", "value": "content", "text": "content"}
MESSAGE_KEYS = (
    {"role", "content"}, {"role", "tool_calls"}, {"from", "value"}, {"role", "text"}, {"speaker", "text"},
)  # fmt: skip
_KEYS_OF_DUMPS = (("role", "content"), ("from", "value"), ("type", "text"))
_EXCHANGES = (("input", "output"), ("user", "assistant"), ("human", "assistant"), ("prompt", "response"))
_DUMPED = re.compile(r"""\s*(array\(|["'])?\s*[\[{]""")
_ARRAY = re.compile(r"array\((.*),\s*dtype=object\)", re.DOTALL)  # NumPy's
_ADJACENT = re.compile(r"""["']\s+["']""")  # Python would read two texts as one
_WRAPPERS = ("messages", "conversations", "conversation")

# repairs, as reported to the user
RENAMED = "conversations whose roles were renamed (human, gpt, model, … to user and assistant)"
SHAREGPT = "conversations in ShareGPT's from and value, read as role and content"
SPOKEN = "conversations with a text or a speaker in each message, read as content and role"
RESULTS = "conversations with results of tools given as objects, read as their JSON"
JOINED = "conversations with contents in parts, joined to texts"
PARSED = "conversations read from text"
CALLED = "conversations with tool calls in turns of their own, read as the assistant's"
ARGUMENTS = "conversations with arguments of tool calls given as text, read as objects"


def parsed(text: str) -> object:
    """Parse a text that is JSON, or a list or dict as printed by Python or NumPy.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parsed("[{'role': 'user', 'content': 'Hi'}]")
        [{'role': 'user', 'content': 'Hi'}]
    """
    try:
        found = json.loads(text)
        return parsed(found) if isinstance(found, str) and looks_dumped(found) else found
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError:
        pass
    text = text.strip()
    if array := _ARRAY.fullmatch(text):
        text = array[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes that Python does not know
        for spelling in (_with_commas, str) if _ADJACENT.search(text) else (str, _with_commas):
            try:
                return ast.literal_eval(spelling(text))
            except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
                continue
    raise ValueError("neither JSON nor a Python literal")


def parsed_or_none(text: str) -> object:
    """As `parsed`; None if the text is none of these."""
    try:
        return parsed(text)
    except ValueError:
        return None


def looks_dumped(text: str) -> bool:
    """Whether a text begins like a list or an object, written as text once or twice."""
    return _DUMPED.match(text) is not None


# how texts begin that were rendered with a chat template
OF_A_TEMPLATE = re.compile(
    r"\s*(<s>\s*)?(<\|(im_start|user|system|begin_of_text|start_header_id|endoftext|prompter)\|>|<bos>"
    r"|\[INST\]|<start_of_turn>|<｜)"
)


def is_dumped_conversation(text: str) -> bool:
    """Whether a text is a conversation that was stored as text."""
    if not looks_dumped(text) or not any(one in text and two in text for one, two in _KEYS_OF_DUMPS):
        return False
    value = parsed_or_none(text)
    return is_conversation(value) or _are_parts(value)


def holds_dumps(contents: Iterable[str | list[Message]]) -> bool:
    """Whether a text, or one of a user's or an assistant's messages, is a conversation stored as text."""
    texts: list[object] = []
    for content in contents:
        if isinstance(content, str):
            texts.append(content)
        else:
            texts += [one["content"] for one in content if one["role"] != "tool"]
    return any(isinstance(text, str) and is_dumped_conversation(text) for text in texts)


def _are_parts(value: object) -> bool:
    """Whether a value is a content in parts."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, Mapping) and part.get("type") in ("text", "image_url") for part in value)
        and any(isinstance(part.get("text"), str) for part in value)
    )


def is_conversation(value: object) -> TypeGuard[Mapping[str, object] | list[object]]:
    """Whether a value, parsed if it is text, looks like a conversation."""
    if isinstance(value, Mapping):
        return any(isinstance(value.get(key), list) for key in _WRAPPERS) or is_message(value)
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def conversation(
    value: str | Mapping[str, object] | Iterable[object], repaired: set[str]
) -> list[Message] | Unusable:
    """The messages of a conversation in any of the shapes.

    Args:
        value: A list of messages, one message, lists of roles and contents, an object around any of these, or
            any of these as text.
        repaired: Receives the changes.

    Example:
        >>> conversation({"from": "human", "value": "Hi"}, set())
        [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(value, Mapping):
        inside = value.get("tools")
        return Unusable(Reason.TOOLS_INSIDE) if inside else conversation(_unwrapped(value), repaired)
    if isinstance(value, str):
        held = parsed_or_none(value)
        if not is_conversation(held):
            return Unusable(Reason.NOT_A_CONVERSATION)
        repaired.add(PARSED)
        return conversation(held, repaired)
    messages = []
    for item in chain.from_iterable(map(_turn, value)):
        message = _message(item, repaired)
        if isinstance(message, Unusable):
            return message
        messages.append(message)
    return messages


def _unwrapped(value: Mapping[str, object]) -> Iterable[object]:
    """A list of messages: from inside an object, from lists of roles and contents, or from one message."""
    for key in _WRAPPERS:
        if isinstance(found := value.get(key), list):
            return list(found)
    filled = {key: items for key, items in value.items() if items is not None}
    lists = [items for items in filled.values() if isinstance(items, list)]
    if filled and len(lists) == len(filled):
        return [dict(zip(filled, message, strict=False)) for message in zip(*lists, strict=False)]
    return [value]


def _turn(item: object) -> list[object]:
    """Two messages for a question with its answer, one for anything else."""
    exchange = _exchange(item)
    if exchange is None:
        return [item]
    return [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant"), exchange, strict=True)
    ]


def _exchange(item: object) -> tuple[object, object] | None:
    """The question and answer of an object that holds both; None if it does not."""
    if not isinstance(item, Mapping):
        return None
    return next(((item[one], item[other]) for one, other in _EXCHANGES if {one, other} <= item.keys()), None)


def is_message(value: object) -> bool:
    """Whether a value looks like a message, or like a question with its answer."""
    if isinstance(value, str) and looks_dumped(value):  # untyped JSON, as `datasets` stores it
        value = parsed_or_none(value)
    if _exchange(value) is not None:
        return True
    return isinstance(value, Mapping) and any(keys <= value.keys() for keys in MESSAGE_KEYS)


def _message(item: object, repaired: set[str]) -> Message | Unusable:
    if isinstance(item, str):
        item = parsed_or_none(item)
    if not isinstance(item, Mapping):
        return Unusable(Reason.ROLE_MISSING)
    message = _with_usual_keys(item, repaired)
    role = message.get("role")
    if not role or not isinstance(role, str):
        return Unusable(Reason.ROLE_MISSING)
    plain = plain_role(role)
    if plain != role:
        message["role"] = plain
        repaired.add(RENAMED)
    content = message.get("content")
    if plain == "tool" and isinstance(content, list | Mapping) and not _are_texts(content):
        content = json.dumps(content, ensure_ascii=False)
        repaired.add(RESULTS)
    elif isinstance(content, list | Mapping):
        text = _joined([content] if isinstance(content, Mapping) else content)
        if isinstance(text, Unusable):
            return text
        content = text
        repaired.add(JOINED)
    if role in _CALLING and (calls := _calls_in(content)):
        message["tool_calls"], content = calls, None
        repaired.add(CALLED)
    if given := message.get("tool_calls"):
        held = parsed_or_none(given) if isinstance(given, str) else given
        if not isinstance(held, list):
            return Unusable(Reason.NOT_A_CONVERSATION)
        message["tool_calls"] = [_call(call, repaired) for call in held]
    return {"role": message.pop("role"), **message, "content": content}


def _with_usual_keys(item: Mapping[str, object], repaired: set[str]) -> Message:
    """A message with role and content, under whatever names they are."""
    message = {key: found for key, found in item.items() if key not in _KEYS or found is not None}
    for usual in ("role", "content"):
        other = next((key for key in message if _KEYS.get(key) == usual), None)
        if message.get(usual) is None and other is not None and not message.get("tool_calls"):
            message[usual] = message.pop(other)
            repaired.add(SHAREGPT if other in ("from", "value") else SPOKEN)
    return message


def _are_texts(content: list[object] | Mapping[str, object]) -> bool:
    """Whether a content is parts that are texts and nothing else."""
    parts = [content] if isinstance(content, Mapping) else content
    keys = (part.keys() if isinstance(part, Mapping) else None for part in parts if not isinstance(part, str))
    return all(found is not None and {"text"} <= found <= {"type", "text"} for found in keys)


def _calls_in(content: object) -> list[object]:
    """The tool calls in the text of a turn, as LLaMA-Factory and ms-swift write them; none in other texts."""
    held = parsed_or_none(content) if isinstance(content, str) else None
    calls = held if isinstance(held, list) else [held]
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        return []
    return [{"type": "function", "function": call} for call in calls]


def _call(call: object, repaired: set[str]) -> object:
    """A tool call with its arguments as an object; as text (OpenAI), it would be encoded twice."""
    call = parsed_or_none(call) if isinstance(call, str) else call
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping | str):
        return {**call, "function": _call(call["function"], repaired)}
    arguments = call.get("arguments")
    found = parsed_or_none(arguments) if isinstance(arguments, str) else None
    if not isinstance(found, dict):
        return call
    repaired.add(ARGUMENTS)
    return {**call, "arguments": found}


def is_trained(message: Message | None) -> bool:
    """Whether to train on a message; ``weight: 0`` and ``train: false`` exclude it."""
    return not message or not any(
        message.get(key) is not None and not message[key] for key in ("weight", "train", "loss", "training")
    )


def plain_role(role: str) -> str:
    """The role under the name that chat templates use."""
    return ROLES.get(role.strip().lower(), role)


def _joined(parts: Iterable[object]) -> str | Unusable | None:
    """The joined text of a content in parts; None if it has other parts than text."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            return Unusable(Reason.CONTENT_NOT_TEXT)
        elif part.get("type") not in (None, "text", "input_text", "output_text"):
            return Unusable(Reason.NOT_TEXT_PART, str(part["type"]))
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            return Unusable(Reason.CONTENT_NOT_TEXT)
    return "".join(texts) if texts else None


def _with_commas(text: str) -> str:
    """Add the commas that NumPy leaves out when it prints a list of objects or texts."""
    lines = text.splitlines(keepends=True)
    before = None
    places = []
    for token in tokenize.generate_tokens(iter([*lines, ""]).__next__):
        kind = "text" if token.type == tokenize.STRING else token.string
        if (before, kind) in (("}", "{"), ("text", "text")):
            places.append(token.start)
        if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT):
            before = kind
    for line, column in reversed(places):
        lines[line - 1] = lines[line - 1][:column] + "," + lines[line - 1][column:]
    return "".join(lines)
