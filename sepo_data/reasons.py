"""Why a row cannot be used: the reasons that reports and manifests count."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why a row is dropped, in the words of the report; `docs/dataset_format.md` explains each."""

    EMPTY_RESPONSE = "empty response"
    PROMPT_MISSING = "prompt is missing"
    NO_COMMON_PROMPT = "no common prompt"
    PROMPT_DISAGREES = "prompt column disagrees with the conversations"
    SAME_RESPONSE = "chosen equals rejected"
    TIE = "tie: neither response is better"
    ONE_ANSWER = "fewer than two answers with scores"
    NO_VERDICT = "nothing says which response is better"
    SMALL_MARGIN = "margin smaller than the smallest one allowed"
    VERDICT_DISAGREES = "verdict or scores prefer the rejected response"
    LAST_NOT_ASSISTANT = "last message is not the assistant's"
    CONTENT_NOT_TEXT = "message content is not text"
    NOT_TEXT_PART = "message holds an image, a sound or another part that is not text"
    NOT_A_CONVERSATION = "text is not the conversation that the column's others are"
    TOOLS_INSIDE = "tools stand inside the conversation's object, not in a column"
    DUMPED = "text is a conversation, or a content in parts, stored as text"
    ROLE_MISSING = "message has no role"
    FUNCTION_CALL = "function_call, which chat templates do not write"
    HAS_REASONING = "reasoning, which was to be refused"
    ODD_REASONING = "several blocks of reasoning, or text before one"
    NOT_FOR_TRAINING = "marked as not to be trained on"
    NO_ASSISTANT = "no assistant message"
    CONTEXT_NOT_JSON = "tools or chat_template_kwargs are not the JSON of a list and an object"
    RESERVED_KEYWORD = "chat_template_kwargs sets what sepo sets itself"
    SYSTEM_DISAGREES = "system column disagrees with the conversation"
    ALREADY_RENDERED = "prompt already holds control tokens"
    LEFT_OUT = "chat template leaves the whole response out"
    TEMPLATE_REFUSES = "chat template refuses the conversation"
    PROMPT_TOO_LONG = "prompt longer than the maximum length"
    NO_TOKENS = "response without tokens"
    NO_CONTEXT = "nothing in front of the response"
    WRITTEN_CONTROL = "control token written out, which this tokenizer cannot read as text"
    SEVERAL_TEXTS = "response of several texts, which this target does not hold"
    NOTHING_SELECTED = "no token selected on a side"


class Unusable(NamedTuple):
    """Replaces the pair or conversation of an unusable row.

    Attributes:
        reason: Why.
        detail: The template's message, if it refused the row.
    """

    reason: Reason
    detail: str = ""


class Drops(dict[str, list[int]]):
    """Numbers of the rows that cannot be used, by reason.

    Attributes:
        details: The template's first message by reason, if it refused rows.
    """

    def __init__(self, rows: Iterable[tuple[str, list[int]]] = ()) -> None:
        super().__init__(rows)
        self.details: dict[str, str] = {}

    def add(self, unusable: Unusable, row: int) -> None:
        """Count a row."""
        self.setdefault(unusable.reason, []).append(row)
        if unusable.detail:
            self.details.setdefault(unusable.reason, unusable.detail)

    def extend(self, others: Mapping[str, list[int]]) -> None:
        """Count the rows of another range."""
        for reason, rows in others.items():
            self.setdefault(reason, []).extend(rows)
        if isinstance(others, Drops):
            self.details = others.details | self.details

    @property
    def counts(self) -> dict[str, int]:
        """How many rows, by reason."""
        return {reason: len(rows) for reason, rows in self.items()}
