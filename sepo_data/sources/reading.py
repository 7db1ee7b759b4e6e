"""Tell the user how a dataset was read: the meaning of columns, changes, and unreadable rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..errors import PreferenceError
from ..pieces import parsed_json
from ..reasons import Reason, Unusable
from ..schema import Message, Row
from .column_kinds import sampled_rows
from .context import ContextColumns
from .mending import UNUSABLE
from .opening import Source
from .shapes import OF_A_TEMPLATE

SHOWN_ROWS = 3
_SHOWN_CHARACTERS = 60
_KNOWN = "system, developer, user, assistant and tool"
_ADVICE = {  # where more than the names of columns is wrong
    Reason.NOT_TEXT_PART: "Only texts are read: take the other parts out of the messages",
    Reason.CONTENT_NOT_TEXT: "Give each message a content that is text",
    Reason.LAST_NOT_ASSISTANT: "Give the messages the roles user and assistant, the last one assistant",
    Reason.NO_ASSISTANT: "Give the answers the role assistant",
    Reason.NO_COMMON_PROMPT: (
        "Name the prompt's column with `prompt_column`; in transcripts, begin turns with \\n\\nHuman: and "
        "\\n\\nAssistant:"
    ),
}

# problems of the columns rather than of a single row
_OF_COLUMNS = {
    Reason.PROMPT_MISSING, Reason.NO_COMMON_PROMPT, Reason.PROMPT_DISAGREES, Reason.LAST_NOT_ASSISTANT,
    Reason.CONTENT_NOT_TEXT, Reason.NOT_TEXT_PART, Reason.NOT_A_CONVERSATION, Reason.TOOLS_INSIDE,
    Reason.ROLE_MISSING, Reason.NO_ASSISTANT, Reason.NO_VERDICT, Reason.DUMPED,
}  # fmt: skip


class Columns(Protocol):
    """`PairColumns` or `ChatColumns`."""

    @property
    def context(self) -> ContextColumns:
        """Columns that the chat template gets besides the messages."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the pair, or of the conversation."""

    def read(self, row: Row) -> object:
        """A pair or a conversation, or why there is none."""


def check_readable(dataset: str, source: Source, columns: Columns) -> None:
    """Refuse a dataset at once if none of its sampled rows can be read: its columns were misinterpreted.

    Args:
        dataset: Its name in messages.
        source: Its rows.
        columns: `PairColumns` or `ChatColumns`.

    Raises:
        PreferenceError: With the reasons, the columns and the roles found.
    """
    reasons: Counter[Reason] = Counter()
    roles: set[str] = set()
    rendered = False
    for row in sampled_rows(source.rows):
        found = columns.read(row)
        if not isinstance(found, Unusable):
            return
        reasons[found.reason] += 1
        contents = [row.get(name) for name in columns.names]
        roles |= {role for content in contents for role in _roles(content)}
        rendered |= any(isinstance(content, str) and OF_A_TEMPLATE.match(content) for content in contents)
    # a conversion that reads no row at all makes no columns
    if not reasons.keys() <= _OF_COLUMNS and set(columns.names) <= set(source.schema.names):
        return
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    seen = f" Its roles are {', '.join(sorted(roles))}; known roles are {_KNOWN}." if roles else ""
    given = dict.fromkeys(filter(None, (*source.origins.values(), *source.schema.names)))
    names = ", ".join(name for name in given if name != UNUSABLE)
    taken = f"It was read as {_taken_for(source, columns)}; its columns are {names}"
    advice = "Name the columns of the pair: `prompt_column`, `chosen_column`, `rejected_column`"
    most = reasons.most_common(1)[0][0]
    advice = advice if most is Reason.NO_COMMON_PROMPT and roles else _ADVICE.get(most, advice)
    if rendered:
        advice = (
            "Its texts are rendered with a chat template: give lists of messages, or the prompt in a "
            "separate column and the responses without it"
        )
    raise PreferenceError(
        f"{dataset}: none of {reasons.total():,} rows can be read: {why}. {taken}.{seen} {advice}."
    )


def describe_reading(source: Source, columns: Columns) -> list[str]:
    """Describe the meaning of columns, changes, columns that are only copied, and the first rows."""
    lines = [f"{source.name}: {_taken_for(source, columns)}"]
    lines += [f"changed: {count:,} {what}" for what, count in source.repairs.items()]
    used = {*columns.names, UNUSABLE, *(column for _, column in columns.context.items())}
    if others := [name for name in source.schema.names if name not in used]:
        lines.append(f"other columns, copied unchanged: {', '.join(others)}")
    for number, row in enumerate(source.rows.select(range(min(SHOWN_ROWS, len(source.rows))))):
        pair = columns.read(row)
        if isinstance(pair, Unusable):
            lines.append(f"row {number}: dropped, {pair.reason}")
            continue
        texts = (f"{name} {_shown(getattr(pair, name))}" for name in ("prompt", "chosen", "rejected"))
        lines.append(f"row {number}: {', '.join(texts)}")
    return lines


def _taken_for(source: Source, columns: Columns) -> str:
    """Where prompt, chosen and rejected, or the messages, were found."""
    if not hasattr(columns, "chosen"):
        return f"conversations from {' and '.join(columns.names)}"
    roles = {name: getattr(columns, name) for name in ("prompt", "chosen", "rejected")} | source.origins
    places = [f"{role} from {name or 'the responses'}" for role, name in roles.items()]
    pairs = f"; pairs are {source.pairs_from}" if source.pairs_from else ""
    return f"{', '.join(places)}{pairs}"


def _roles(value: object) -> set[str]:
    messages = map(parsed_json, value) if isinstance(value, list) else []
    return {str(message.get("role")) for message in messages if isinstance(message, Mapping)}


def _shown(content: str | Sequence[Message]) -> str:
    """A text, or the roles and texts of messages, shortened to one line."""
    if isinstance(content, str):
        shown = repr(content)
    else:
        shown = " ".join(f"[{message['role']}] {message.get('content') or '…'!r}" for message in content)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 1]}…"
