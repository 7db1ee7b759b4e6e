"""Conversations → the assistant's tokens of every turn, which is what supervised fine-tuning learns.

Formats are told apart by their column types: a list of ``messages``; a ``prompt`` and a ``completion``, texts
or messages; or one side of a preference dataset. Rendering and encoding are those of annotation, so the
reference learns the very tokens that are scored later, the token that ends each turn included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PreferenceError, SettingsError
from ..schema import SIDES, Message
from .opening import open_rows
from .preferences import (
    CONTENT_NOT_TEXT,
    EMPTY_RESPONSE,
    PROMPT_MISSING,
    ROLE_MISSING,
    SAID_BESIDE,
    PairColumns,
    kind_of,
    open_source,
    read_pair,
)

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


MESSAGES = ("messages",)
COMPLETION = ("prompt", "completion")

# why a row is dropped, in the words of the report
NO_ASSISTANT = "no assistant message"
NOT_TEXT_ALONE = "assistant message is not text alone"  # its tool calls or reasoning would go untrained


@dataclass(frozen=True)
class ChatSource:
    """An opened dataset of conversations: its rows, which stay on disk, and where they come from.

    The fields are those of `preferences.Source`, and ``side``: the side of a preference
    dataset that ends the conversation. Without one, ``columns`` is `MESSAGES` or `COMPLETION`.
    """

    rows: "datasets.Dataset"
    name: str
    config: str | None
    split: str
    revision: str
    columns: PairColumns | tuple[str, ...]
    side: str | None
    card: dict[str, Any]
    restricted: bool
    repairs: dict[str, int]


@dataclass(frozen=True)
class Chat:
    """A conversation up to its last response.

    Attributes:
        prompt: Everything before that response: a text, or messages.
        response: Its text.
        shortened: Whether messages behind it were left out.
    """

    prompt: str | list[Message]
    response: str
    shortened: bool = False


def open_chats(
    dataset: str,
    *,
    side: str | None = None,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
) -> ChatSource:
    """Open a dataset and find the conversations in its columns.

    Args:
        dataset: As for `preferences.open_source`.
        side: "chosen" or "rejected": it is a preference dataset, and this side's response ends
            the conversation. None: it has ``messages``, or else ``prompt`` and ``completion``.
        config: Which configuration, of a dataset that has several.
        split: Which split; a single file is all "train".
        revision: Branch, tag or commit on the Hub.
        prompt_column: Of a preference dataset, as for `preferences.open_source`.
        chosen_column: As above.
        rejected_column: As above.

    Raises:
        PreferenceError: If it cannot be found or read, or its columns hold no conversations.
        HubError: If the Hub refuses, or cannot be reached.
        SettingsError: If ``side`` is unknown, or missing beside the names of a pair's columns.
    """
    if side is None:
        named = {"prompt": prompt_column, "chosen": chosen_column, "rejected": rejected_column}
        for role, name in named.items():
            if name is not None:
                problem = f"--{role}-column {name} is for preference datasets"
                raise SettingsError(f"{problem}. Add --side chosen, or leave it out.")
        opened = open_rows(dataset, config, split, revision)
        columns = _find_columns(dataset, opened.rows.features.arrow_schema)
        return ChatSource(config=config, split=split, columns=columns, side=None, **vars(opened))
    if side not in SIDES:
        raise SettingsError(f'side must be one of {", ".join(SIDES)}, got "{side}".')
    pairs = open_source(
        dataset,
        config=config,
        split=split,
        revision=revision,
        prompt_column=prompt_column,
        chosen_column=chosen_column,
        rejected_column=rejected_column,
    )
    return ChatSource(side=side, **vars(pairs))


def read_chat(row: Mapping[str, Any], source: ChatSource) -> Chat | str:
    """Bring a row into one form.

    Args:
        row: A row of ``source.rows``.
        source: Says which columns to read.

    Returns:
        The conversation, or the reason why the row gives none.
    """
    if isinstance(source.columns, PairColumns):
        pair = read_pair(row, source.columns)
        if isinstance(pair, str):
            return pair
        prompt, completion = pair.prompt, pair.rejected if source.side == "rejected" else pair.chosen
    elif source.columns == MESSAGES:
        return _read_messages(row["messages"] or [])
    else:
        prompt, completion = row["prompt"], row["completion"]
    if not completion:
        return EMPTY_RESPONSE
    if not prompt:
        return PROMPT_MISSING
    if isinstance(completion, str):
        return Chat(prompt, completion)
    return _read_messages([*prompt, *completion])


def _read_messages(messages: Sequence[Message | None]) -> Chat | str:
    answers = [i for i, message in enumerate(messages) if message and message["role"] == "assistant"]
    if not answers:
        return NO_ASSISTANT
    turns: list[Message] = []
    for message in messages[: answers[-1] + 1]:
        if not message or not message["role"]:
            return ROLE_MISSING
        if message["role"] == "assistant":
            if any(message.get(key) for key in SAID_BESIDE):
                return NOT_TEXT_ALONE
            if not message["content"]:
                return EMPTY_RESPONSE
        if not isinstance(message["content"], str):
            return CONTENT_NOT_TEXT
        turns.append(message)
    return Chat(turns[:-1], turns[-1]["content"], shortened=len(turns) < len(messages))


def _find_columns(dataset: str, schema: "pa.Schema") -> tuple[str, ...]:
    """The columns of the conversation, by their names and types."""
    kinds = {column.name: kind_of(column.type) for column in schema}
    if kinds.get("messages") == "messages":
        return MESSAGES
    named = [name for name in (*MESSAGES, *COMPLETION) if name in kinds]
    if set(COMPLETION) <= kinds.keys() and kinds["prompt"] == kinds["completion"] is not None:
        return COMPLETION
    if "messages" in kinds or set(COMPLETION) <= kinds.keys():
        types = ", ".join(f'"{name}" is {schema.field(name).type}' for name in named)
        advice = "Make messages a list of objects, each with a role and a content that are text"
        raise PreferenceError(
            f"{dataset}: {types}. {advice}, or prompt and completion both text or both such lists."
        )
    advice = "Rename them to messages, or to prompt and completion"
    if "chosen" in kinds:
        advice = "To train on the chosen responses of a preference dataset add --side chosen"
    raise PreferenceError(f"{dataset}: no conversations in its columns {', '.join(schema.names)}. {advice}.")
