"""What a column holds, judged by its type and values: text, conversations, or either in another shape.

Decided per column, never per row: an answer that happens to be JSON stays text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeGuard, TypeVar

from ..pieces import compact
from ..reasons import Reason, Unusable
from ..schema import Message, Row, is_text
from .opening import Source
from .shapes import conversation, is_conversation, looks_dumped, parsed_or_none, plain_role

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

T = TypeVar("T")

SAMPLE_ROWS = 512

Kind = Literal["text", "messages", "turns"]
Content = str | list[Message] | list[str] | None
ANSWER_KEYS = (
    "text", "content", "response", "answer", "completion", "value", "output", "generation", "full_text",
)  # fmt: skip
OBJECTS = "texts taken out of the objects that hold them"


@dataclass(frozen=True)
class Column:
    """A column of texts or conversations.

    Attributes:
        name: Its name.
        kind: What it yields: a text, a list of messages, or the texts of one side's turns.
        as_it_is: Whether its values need no conversion.
        from_text: Whether it stores lists of texts as text.
    """

    name: str
    kind: Kind
    as_it_is: bool = True
    from_text: bool = False

    def read(self, row: Row, repaired: set[str]) -> Content | Unusable:
        """The content of a row; changes are added to ``repaired``."""
        value = row[self.name]
        if self.as_it_is or not value:
            return value or None
        if self.kind == "messages":
            return conversation(compact(value), repaired)
        if self.kind == "turns":
            return _turns(value)
        if isinstance(value, Mapping):
            repaired.add(OBJECTS)
            return answer_text(value)
        return str(value)


def find_kind(source: Source, name: str) -> Column | None:
    """The column as texts or conversations; None if it holds neither."""
    import pyarrow as pa

    kind = source.schema.field(name).type
    if kind_of(kind) == "messages":
        calls = kind.value_type.get_field_index("tool_calls")
        dumped_calls = calls >= 0 and is_text(kind.value_type.field(calls).type)
        mixed = kind.value_type.get_field_index("from") >= 0 and kind.value_type.get_field_index("value") >= 0
        plain = not (mixed or dumped_calls) and _roles_are_plain(source.rows, name)
        return Column(name, "messages", as_it_is=plain)
    values = [value for value in sampled(source.rows, name) if value]
    if is_text(kind):
        texts = [str(value) for value in values]
        dumped = _mostly(texts, looks_dumped) and [parsed_or_none(text) for text in texts]
        if dumped and _mostly(dumped, is_conversation):
            return Column(name, "messages", as_it_is=False)
        if dumped and _mostly(dumped, _is_texts):
            return Column(name, "turns", as_it_is=False, from_text=True)
        return None if name in source.json_columns else Column(name, "text")
    if kind == pa.json_():  # as `datasets` writes a column whose values share no type
        values = [parsed_or_none(str(value)) for value in values]
        return Column(name, "messages", as_it_is=False) if _mostly(values, is_conversation) else None
    for of_kind, test in _SHAPES:
        if values and all(map(test, values)):
            return Column(name, of_kind, as_it_is=False)
    return None


def kind_of(column: "pa.DataType") -> str | None:
    """``text`` or ``messages``, by a column's type; None for anything else."""
    import pyarrow as pa

    if is_text(column):
        return "text"
    if not is_list(column) or not pa.types.is_struct(column.value_type):
        return None
    fields = {field.name: field.type for field in column.value_type}
    is_message = all(name in fields and is_text(fields[name]) for name in ("role", "content"))
    return "messages" if is_message and "extension<" not in str(column) else None


def is_list(column: "pa.DataType") -> bool:
    """Whether a column of this type holds lists."""
    import pyarrow as pa

    kinds = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(is_kind(column) for is_kind in kinds)


def sampled(rows: "datasets.Dataset", name: str) -> list[object]:
    """Values of a column, evenly spread over the dataset."""
    return [row[name] for row in sampled_rows(rows.select_columns([name]))]


def sampled_rows(rows: "datasets.Dataset") -> list[dict[str, object]]:
    """Rows, evenly spread over the dataset."""
    step = max(1, len(rows) // SAMPLE_ROWS)
    return list(rows.with_format("arrow")[list(range(0, len(rows), step))].to_pylist())


def answer_text(value: Mapping[str, object]) -> str | None:
    """The one text of an object like ``{"text": …, "score": …}``."""
    found = [text for key in ANSWER_KEYS if isinstance(text := value.get(key), str)]
    return found[0] if len(found) == 1 else None


def _roles_are_plain(rows: "datasets.Dataset", name: str) -> bool:
    """Checks every row, which is cheap: Arrow reads only the requested field of each message."""
    tables = rows.select_columns([name]).with_format("arrow").iter(batch_size=100_000)
    return all(odd_role(table.column(0)) is None for table in tables)


def odd_role(messages: "pa.ChunkedArray") -> str | None:
    """A role that chat templates know by another name; None if there is none."""
    import pyarrow.compute as pc

    for chunk in messages.chunks:
        roles = pc.unique(pc.struct_field(chunk.flatten(), "role")).to_pylist()
        if found := [role for role in roles if role and plain_role(role) != role]:
            return str(found[0])
    return None


def _turns(value: object) -> list[str] | Unusable:
    found = parsed_or_none(value) if isinstance(value, str) else value
    return found if _is_texts(found) else Unusable(Reason.NOT_A_CONVERSATION)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _is_answer(value: object) -> bool:
    return isinstance(value, Mapping) and answer_text(value) is not None


def _mostly(values: Sequence[T], test: Callable[[T], bool]) -> bool:
    return 2 * sum(map(test, values)) > len(values)


_SHAPES: tuple[tuple[Kind, Callable[[object], bool]], ...] = (
    ("messages", is_conversation),
    ("turns", _is_texts),
    ("text", _is_answer),
)
