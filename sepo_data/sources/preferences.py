"""Any preference dataset → pairs of one prompt and two responses, or a clear reason why a row gives none.

Formats are told apart by their column types: the prompt in a column of its own or inside ``chosen`` and
``rejected``; text or lists of messages; and the hybrid of UltraFeedback and Tulu, a text prompt beside whole
conversations. No tokens here, no models, and not a character of a text is changed.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..dataset_spec import DEFAULT_SPEC, DatasetSpec
from ..errors import PreferenceError
from ..reasons import Reason, Unusable
from ..schema import PAIR_COLUMNS, Message, Sides, is_text, response_text
from .context import (
    NO_COLUMNS,
    NO_CONTEXT,
    Context,
    ContextColumns,
    annotated_context,
    compact,
    context_columns,
)
from .endings import NOWHERE, UNCUT, EndColumns, end_columns
from .opening import Source, open_source
from .text_files import merged_type

if TYPE_CHECKING:
    import pyarrow as pa


SAID_BESIDE = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_HUMAN = "\n\nHuman:"
_ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class Pair:
    """A preference pair in explicit form: three texts, or three lists of messages.

    Attributes:
        prompt: Text, or messages.
        chosen: Text, or exactly one message, the assistant's.
        rejected: The same.
        context: What the chat template is given besides.
        cut: Whether the responses were cut where they were made, so that no end of turn follows them.
    """

    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]
    context: Context = NO_CONTEXT
    cut: Sides[bool] = UNCUT

    @property
    def sides(self) -> Sides[str | list[Message]]:
        """Chosen and rejected."""
        return Sides(self.chosen, self.rejected)

    @property
    def responses(self) -> Sides[str]:
        """The texts that get tokens and rewards: the string itself, or the last message's content."""
        return self.sides.map(response_text)


@dataclass(frozen=True)
class PairColumns:
    """Where a source keeps its pair; no prompt column means that the prompt is inside the other two."""

    prompt: str | None
    chosen: str
    rejected: str
    context: ContextColumns = NO_COLUMNS
    ends: EndColumns = NOWHERE

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the pair that there are."""
        return tuple(name for name in (self.prompt, self.chosen, self.rejected) if name is not None)

    def read(self, row: Mapping[str, Any]) -> Pair | Unusable:
        """Bring a row into explicit form.

        Args:
            row: A row of the source.

        Returns:
            The pair, or why the row gives none.

        Example:
            >>> hi = {"role": "user", "content": "Hi"}
            >>> answer = {"role": "assistant", "content": "Hello!"}
            >>> PairColumns(None, "chosen", "rejected").read({"chosen": [hi, answer], "rejected": [hi, hi]})
            Unusable(reason=<Reason.LAST_NOT_ASSISTANT: "last message is not the assistant's">, detail='')
        """
        chosen, rejected = row[self.chosen], row[self.rejected]
        prompt = row[self.prompt] if self.prompt else None
        if not chosen or not rejected:
            return Unusable(Reason.EMPTY_RESPONSE)
        if self.prompt and not prompt:
            return Unusable(Reason.PROMPT_MISSING)
        if not isinstance(chosen, str):
            pair = _split_conversations(prompt, chosen, rejected)
        elif prompt is not None:
            pair = Pair(prompt, chosen, rejected)
        else:
            pair = _split_transcripts(chosen, rejected)
        if isinstance(pair, Unusable):
            return pair
        if not pair.prompt:
            return Unusable(Reason.PROMPT_MISSING)
        chosen, rejected = pair.responses
        if not chosen or not rejected:
            return Unusable(Reason.EMPTY_RESPONSE)
        if chosen == rejected:
            return Unusable(Reason.SAME_RESPONSE)
        context = self.context.read(row)
        if isinstance(context, Unusable):
            return context
        return replace(pair, context=context, cut=self.ends.cut(row))


def annotated_columns(names: Container[str]) -> PairColumns:
    """Where an annotated dataset with these columns keeps its pair."""
    return PairColumns(*PAIR_COLUMNS, annotated_context(names))


def open_pairs(dataset: str, spec: DatasetSpec = DEFAULT_SPEC) -> tuple[Source, PairColumns]:
    """Open a preference dataset and find the pair in its columns.

    Args:
        dataset: As for `opening.open_source`.
        spec: Which rows, and which columns if they are not called prompt, chosen and rejected. Without a
            column ``prompt`` the prompt is inside the other two.

    Raises:
        PreferenceError: If it cannot be found or read, or its columns hold no pair.
        HubError: If the Hub refuses, or cannot be reached.
    """
    source = open_source(dataset, spec)
    columns = _find_columns(dataset, source.schema, spec)
    if mixed := sorted(source.json_columns.intersection(columns.names)):
        problem = f'column "{mixed[0]}" mixes types or holds too large a number'
        raise PreferenceError(f"{dataset}: {problem}. Give it one type.")
    _check_types(dataset, source.schema, columns)
    return source, columns


def pair_types(source: Source, columns: PairColumns) -> dict[str, "pa.DataType"]:
    """Arrow types of ``prompt``, ``chosen`` and ``rejected`` in explicit form; messages keep all fields."""
    import pyarrow as pa

    schema = source.schema
    chosen, rejected = schema.field(columns.chosen).type, schema.field(columns.rejected).type
    if kind_of(chosen) == "text":
        return dict.fromkeys(("prompt", "chosen", "rejected"), pa.string())
    prompt = chosen.value_type
    if columns.prompt and kind_of(schema.field(columns.prompt).type) == "messages":
        try:
            prompt = merged_type(schema.field(columns.prompt).type.value_type, prompt)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise PreferenceError(
                f'{source.name}: messages in "{columns.prompt}" and "{columns.chosen}" have fields of one '
                f"name and different types ({error}). Give them one type."
            ) from error
    items = {"prompt": prompt, "chosen": chosen.value_type, "rejected": rejected.value_type}
    return {name: pa.list_(item) for name, item in items.items()}


def _split_transcripts(chosen: str, rejected: str) -> Pair | Unusable:
    r"""Split Anthropic transcripts ("\n\nHuman: … \n\nAssistant: …") behind the last turn that they share."""
    turn = chosen.rfind(_ASSISTANT)
    while turn >= 0 and not rejected.startswith(chosen[: turn + len(_ASSISTANT)]):
        turn = chosen.rfind(_ASSISTANT, 0, turn)
    if turn < 0:
        return Unusable(Reason.NO_COMMON_PROMPT)
    end = turn + len(_ASSISTANT)
    if chosen[end : end + 1] == rejected[end : end + 1] == " ":
        end += 1
    if any(marker in side[end:] for marker in (_HUMAN, _ASSISTANT) for side in (chosen, rejected)):
        return Unusable(Reason.NO_COMMON_PROMPT)  # they parted before the last turn
    return Pair(chosen[:end], chosen[end:], rejected[end:])


def _split_conversations(
    prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> Pair | Unusable:
    """Take the last message of each side as its response, and what is before it as the prompt."""
    explicit = prompt if isinstance(prompt, list) else []
    answers = chosen[-1], rejected[-1]
    if any(answer and answer["content"] is None for answer in answers):
        return Unusable(Reason.EMPTY_RESPONSE)
    for message in (*explicit, *chosen, *rejected):
        if reason := invalid_reason(message):
            return Unusable(reason)
    if any(answer["role"] != "assistant" for answer in answers):
        return Unusable(Reason.LAST_NOT_ASSISTANT)
    if any(answer.get(key) for answer in answers for key in SAID_BESIDE):
        return Unusable(Reason.NOT_TEXT_ALONE)
    turns = chosen[:-1]
    if compact(turns) != compact(rejected[:-1]):
        return Unusable(Reason.NO_COMMON_PROMPT)
    if isinstance(prompt, str):
        if not turns:
            turns = [{"role": "user", "content": prompt}]
        elif not any(prompt.strip() in m["content"] for m in turns if m["role"] == "user"):
            return Unusable(Reason.PROMPT_DISAGREES)
    elif compact(turns[: len(explicit)]) != compact(explicit):  # else the sides repeat the prompt
        turns = explicit + turns
    return Pair(turns, chosen[-1:], rejected[-1:])


def invalid_reason(message: Message | None) -> Reason | None:
    """Why a message cannot be used; None if it can."""
    if not message or not message["role"]:
        return Reason.ROLE_MISSING
    if message["content"] is None and message["role"] == "assistant" and len(compact(message)) > 1:
        return None  # a turn that only calls tools
    return None if isinstance(message["content"], str) else Reason.CONTENT_NOT_TEXT


def _find_columns(dataset: str, schema: "pa.Schema", spec: DatasetSpec) -> PairColumns:
    names = schema.names
    prompt = spec.prompt_column or ("prompt" if "prompt" in names else None)
    columns = PairColumns(prompt, spec.chosen_column or "chosen", spec.rejected_column or "rejected")
    used = dict(zip(PAIR_COLUMNS, (columns.prompt, columns.chosen, columns.rejected), strict=True))
    for role, name in used.items():
        if name is not None and name not in names:
            advice = f"Its columns are {', '.join(names)}; name the right one with --{role}-column"
            raise PreferenceError(f'{dataset}: no column "{name}". {advice}.')
        if role in names and name != role:
            problem = f'column "{role}" would be overwritten by "{name}"'
            raise PreferenceError(f"{dataset}: {problem}. Rename or remove it, or leave out --{role}-column.")
    columns = replace(
        columns,
        context=context_columns(dataset, schema, spec),
        ends=end_columns(dataset, schema, spec),
    )
    if len(set(used.values())) < len(used):
        raise PreferenceError(f"{dataset}: prompt, chosen and rejected must be three columns, not {used}.")
    return columns


def _check_types(dataset: str, schema: "pa.Schema", columns: PairColumns) -> None:
    """Refuse columns that hold neither texts nor messages, or a mixture that is no known format."""
    kinds = {name: kind_of(schema.field(name).type) for name in columns.names}
    for name, kind in kinds.items():
        if kind is None:
            problem = f'column "{name}" is {schema.field(name).type}'
            advice = "It must be text, or a list of messages, each with a role and a content that are text"
            raise PreferenceError(f"{dataset}: {problem}. {advice}.")
    if kinds[columns.chosen] != kinds[columns.rejected]:
        first, second = columns.chosen, columns.rejected
    elif columns.prompt and kinds[columns.prompt] == "messages" != kinds[columns.chosen]:
        first, second = columns.prompt, columns.chosen
    else:
        return
    words = {"text": "text", "messages": "a list of messages"}
    problem = f'"{first}" is {words[str(kinds[first])]} but "{second}" is {words[str(kinds[second])]}'
    advice = 'Make both text or both messages, for example [{"role": "assistant", "content": ...}]'
    raise PreferenceError(f"{dataset}: {problem}. {advice}.")


def kind_of(column: "pa.DataType") -> str | None:
    """``text`` or ``messages``, by a column's type; None for anything else."""
    import pyarrow as pa

    if is_text(column):
        return "text"
    is_list = (
        pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column)
    )
    if not is_list or not pa.types.is_struct(column.value_type):
        return None
    fields = {field.name: field.type for field in column.value_type}
    is_message = all(name in fields and is_text(fields[name]) for name in ("role", "content"))
    return "messages" if is_message and "extension<" not in str(column) else None
