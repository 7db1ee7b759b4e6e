"""Conversations → the assistant tokens of every turn, on which supervised fine-tuning computes its loss.

Formats are detected from the column types: a list of ``messages``; a ``prompt`` and a ``completion``, as text
or messages; or one side of a preference dataset. Rendering and encoding are those of annotation, so the
reference is trained on exactly the tokens that are scored later, including the token that ends each turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..dataset_spec import DEFAULT_SPEC, DatasetSpec
from ..errors import SettingsError
from ..pieces import as_given
from ..reasons import Reason, Unusable
from ..schema import PAIR_COLUMNS, SIDES, Message, Row, Side
from .chat_layouts import find_chats
from .context import NO_COLUMNS, NO_CONTEXT, Context, ContextColumns, context_columns
from .endings import NOWHERE, EndColumns, end_columns
from .marks import check_texts_alone, training_marks
from .mending import mended, reason_of, with_usual_names
from .messages import invalid_reason, is_blank, unsaid_reason
from .opening import Source
from .preferences import PairColumns, open_pairs
from .reading import check_readable
from .scores import grade
from .shapes import holds_dumps, is_trained
from .splits import open_source


@dataclass(frozen=True)
class Chat:
    """A conversation up to its last response.

    Attributes:
        prompt: Everything before the response, as text or messages.
        response: The response, as text or as its message.
        shortened: Whether messages after the response were dropped.
        context: What the chat template receives in addition.
        cut: Whether generation stopped at its length limit, so that the response has no end.
    """

    prompt: str | list[Message]
    response: str | list[Message]
    shortened: bool = False
    context: Context = NO_CONTEXT
    cut: bool = False


@dataclass(frozen=True)
class ChatColumns:
    """Where a source keeps its conversations.

    Attributes:
        names: The messages column, the prompt and completion columns, or those of a pair.
        pair: The pair's columns, for a preference dataset.
        side: For a preference dataset, the side whose response ends the conversation.
        context: Columns that the chat template gets besides the messages.
        ends: Columns that say which responses were cut.
        marks: Columns that say whether to train on a row.
    """

    names: tuple[str, ...]
    pair: PairColumns | None = None
    side: Side = "chosen"
    context: ContextColumns = NO_COLUMNS
    ends: EndColumns = NOWHERE
    marks: tuple[str, ...] = ()

    def read(self, row: Row) -> Chat | Unusable:
        """The conversation of a row, or why it has none."""
        if any(grade(row[name]) == 0 for name in self.marks):
            return Unusable(Reason.NOT_FOR_TRAINING)
        chat = self._chat(row)
        context = self.context.read(row)
        if isinstance(chat, Unusable):
            return chat
        if holds_dumps((chat.prompt, chat.response)):
            return Unusable(Reason.DUMPED)
        if isinstance(context, Unusable):
            return context
        return replace(chat, context=context, cut=self.ends.cut(row)[self.side])

    def _chat(self, row: Row) -> Chat | Unusable:
        if self.pair is not None:
            pair = self.pair.read(row)
            if isinstance(pair, Unusable):
                return pair
            prompt, completion = pair.prompt, pair.sides[self.side]
        elif unusable := reason_of(row):
            return unusable
        elif len(self.names) == 1:
            return _read_messages(as_given(row[self.names[0]]) or [])
        else:
            prompt, completion = (as_given(row[name]) for name in self.names)
        if is_blank(completion):
            return Unusable(Reason.EMPTY_RESPONSE)
        if not prompt:
            return Unusable(Reason.PROMPT_MISSING)
        if isinstance(completion, str):
            return Chat(prompt, completion)
        return _read_messages([*prompt, *completion])


def open_chats(
    dataset: str, spec: DatasetSpec = DEFAULT_SPEC, side: Side | None = None
) -> tuple[Source, ChatColumns]:
    """Open a dataset and find the conversations in its columns.

    Args:
        dataset: As for `splits.open_source`.
        spec: Which rows and, of a preference dataset, which columns.
        side: For a preference dataset, the side whose response ends the conversation. None if it has
            ``messages``, or ``prompt`` and ``completion``.

    Raises:
        PreferenceError: If it cannot be found or read, or its columns hold no conversations.
        HubError: If the Hub refuses, or cannot be reached.
        SettingsError: If ``side`` is unknown, or missing although a pair's columns are named.
    """
    if side is None:
        for role in PAIR_COLUMNS:
            if (name := getattr(spec, f"{role}_column")) is not None:
                problem = f"`{role}_column={name}` is for preference datasets"
                raise SettingsError(f"{problem}. Add `side=chosen`, or leave it out.")
        source = with_usual_names(open_source(dataset, spec), spec)
        context = context_columns(dataset, source.schema, spec)
        ends = end_columns(dataset, source.schema, spec)
        marks = training_marks(dataset, source, spec)
        check_texts_alone(dataset, source, spec)
        layout = find_chats(dataset, source, spec)
        names = tuple(column.name for column in layout.columns)
        if not layout.as_it_is:
            used = [column.name for column in (*layout.columns, layout.input) if column is not None]
            source = mended(source, used, used, layout.make, repr(layout))
            names = layout.names
        columns = ChatColumns(names, context=context, ends=ends, marks=marks)
        check_readable(dataset, source, columns)
        return source, columns
    if side not in SIDES:
        raise SettingsError(f'side must be one of {", ".join(SIDES)}, got "{side}".')
    source, pair = open_pairs(dataset, spec)
    return source, ChatColumns(pair.names, pair, side, pair.context, pair.ends)


def _read_messages(messages: Sequence[Message | None]) -> Chat | Unusable:
    assistant = [i for i, message in enumerate(messages) if message and message["role"] == "assistant"]
    answers = [i for i in assistant if is_trained(messages[i])]
    if not answers:
        return Unusable(Reason.NOT_FOR_TRAINING if assistant else Reason.NO_ASSISTANT)
    turns = [message for message in messages[: answers[-1] + 1] if message]
    if len(turns) <= answers[-1]:
        return Unusable(Reason.ROLE_MISSING)
    reason = unsaid_reason(list(filter(is_trained, turns))) or next(
        filter(None, map(invalid_reason, turns)), None
    )
    if reason is not None:
        return Unusable(reason)
    return Chat(turns[:-1], turns[-1:], shortened=len(turns) < len(messages))
