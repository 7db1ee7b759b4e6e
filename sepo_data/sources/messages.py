"""What a message must hold to be read and scored."""

from collections.abc import Sequence

from ..pieces import REASONING_FIELDS, TOOL_CALLS, compact
from ..reasons import Reason
from ..schema import Message

SAYS = ("content", *REASONING_FIELDS, TOOL_CALLS)


def is_blank(value: object) -> bool:
    """Whether a text, a list or an object is empty; white space alone is no response."""
    return not (value.strip() if isinstance(value, str) else value)


def says(message: Message) -> bool:
    """Whether an assistant message has any content, tool calls included."""
    return not all(is_blank(message.get(key)) for key in (*SAYS, "function_call"))


def invalid_reason(message: Message | None) -> Reason | None:
    """Why a message is unusable; None if it is usable."""
    if not message or not message["role"]:
        return Reason.ROLE_MISSING
    if message["content"] is None and message["role"] == "assistant" and len(compact(message)) > 1:
        return None  # a turn that only calls tools
    return None if isinstance(message["content"], str) else Reason.CONTENT_NOT_TEXT


def unsaid_reason(messages: Sequence[Message]) -> Reason | None:
    """Why the assistant's messages cannot be scored; None if they can."""
    for message in messages:
        if message["role"] == "assistant":
            if message.get("function_call"):
                return Reason.FUNCTION_CALL
            if not says(message):
                return Reason.EMPTY_RESPONSE
            if not all(isinstance(message.get(key) or "", str) for key in REASONING_FIELDS):
                return Reason.CONTENT_NOT_TEXT
    return None
