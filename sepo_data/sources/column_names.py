"""What people call the columns of a pair or a conversation, beside prompt, chosen, rejected and messages."""

import re
from collections.abc import Iterator, Sequence

Tags = tuple[str, str]  # what tells the names of two responses apart

SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_messages", "rejected_messages"),
    ("accepted", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("preferred_output", "non_preferred_output"),  # OpenAI's DPO files
    ("response_j", "response_k"),  # stack-exchange-paired: j is the better one
    ("messages", "rejected_messages"),  # ms-swift: the conversation itself is the preferred one
    ("messages", "rejected_response"),
)
PROMPTS = (
    "question", "instruction", "query", "problem", "input", "context", "history", "trajectory", "messages",
    "conversations", "conversation",
)  # fmt: skip
COMPLETIONS = ("completion", "response", "output", "answer")
ANSWERS = (
    "completions",
    "answers",
    "responses",
    "generations",
    "candidates",
    "outputs",
    "samples",
)  # of one prompt
CHATS = ("messages", "conversations", "conversation")

_RESPONSES = {
    "response", "answer", "completion", "output", "conversation", "human_ref", "text", "generation", "reply",
    "summary", "candidate", "assistant", "message",
}  # fmt: skip
_TAGS: tuple[Tags, ...] = (("a", "b"), ("0", "1"), ("1", "2"))


def tags_of(first: str, second: str) -> Tags | None:
    """What tells two names apart, if nothing else does.

    Example:
        >>> tags_of("response_B", "response_A")
        ('b', 'a')
    """
    one, two = _words(first), _words(second)
    if len(one) != len(two):
        return None
    apart = [pair for pair in zip(one, two, strict=True) if pair[0] != pair[1]]
    return apart[0] if len(apart) == 1 and tuple(sorted(apart[0])) in _TAGS else None


def response_pairs(names: Sequence[str]) -> Iterator[tuple[str, str, Tags]]:
    """Two columns of responses, neither called the better one: ``response_a`` and ``response_b``."""
    for first in names:
        for second in names:
            tags = tags_of(first, second)
            if tags is not None and tags in _TAGS and _stem(first, tags[0]) in _RESPONSES:
                yield first, second, tags


def sides_by_name(names: Sequence[str]) -> tuple[str, str] | None:
    """Two columns that are called chosen and rejected, or what means the same."""
    return next((pair for pair in SIDES if set(pair) <= set(names)), None)


def _stem(name: str, tag: str) -> str:
    return "_".join(word for word in _words(name) if word != tag).removesuffix("s")


def _words(name: str) -> list[str]:
    return re.split(r"[_\-. ]|(?<=[a-z])(?=[0-9])", name.lower())
