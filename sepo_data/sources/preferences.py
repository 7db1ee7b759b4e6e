"""Any preference dataset → pairs of one prompt and two responses, or the reason why a row has none.

Formats are detected from the column types: the prompt in a separate column or part of ``chosen`` and
``rejected``; text or lists of messages; and the hybrid of UltraFeedback and Tulu, a text prompt with whole
conversations. No tokens, no models, and no character of a text is changed.
"""

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..dataset_spec import DEFAULT_SPEC, DatasetSpec
from ..errors import PreferenceError
from ..pieces import TOOL_CALLS, as_given, compact
from ..reasons import Reason, Unusable
from ..schema import PAIR_COLUMNS, Message, Row, Sides, json_messages
from .arrow_cache import merged_type
from .column_kinds import kind_of
from .context import (
    NO_COLUMNS,
    NO_CONTEXT,
    Context,
    ContextColumns,
    annotated_context,
    context_columns,
)
from .endings import NOWHERE, UNCUT, EndColumns, end_columns
from .finding import HUMAN, find_pair, with_pairs
from .marks import check_texts_alone, training_marks
from .mending import mended, reason_of, with_usual_names
from .messages import SAYS, invalid_reason, is_blank, says, unsaid_reason
from .opening import Source
from .reading import check_readable
from .remote import check_roles, open_remote, with_all_rows
from .scores import grade
from .shapes import holds_dumps
from .splits import open_source
from .verdicts import Verdict

if TYPE_CHECKING:
    import pyarrow as pa


_ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class Pair:
    """A preference pair in explicit form: three texts, or three lists of messages.

    Attributes:
        prompt: Text or messages.
        chosen: Text, or the messages after the prompt, the first and last of them by the assistant.
        rejected: As ``chosen``.
        context: What the chat template receives in addition.
        cut: Whether each response was cut during generation, so that no end of turn follows it.
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


@dataclass(frozen=True)
class PairColumns:
    """Where a source keeps its pair; without a prompt column the prompt is part of the other two."""

    prompt: str | None
    chosen: str
    rejected: str
    context: ContextColumns = NO_COLUMNS
    ends: EndColumns = NOWHERE
    verdict: Verdict | None = None
    marks: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the pair that exist."""
        return tuple(name for name in (self.prompt, self.chosen, self.rejected) if name is not None)

    def read(self, row: Row) -> Pair | Unusable:
        """Bring a row into explicit form.

        Args:
            row: A row of the source.

        Returns:
            The pair, or why the row has none.

        Example:
            >>> hi = {"role": "user", "content": "Hi"}
            >>> answer = {"role": "assistant", "content": "Hello!"}
            >>> PairColumns(None, "chosen", "rejected").read({"chosen": [hi, answer], "rejected": [hi, hi]})
            Unusable(reason=<Reason.LAST_NOT_ASSISTANT: "last message is not the assistant's">, detail='')
        """
        if unusable := reason_of(row):
            return unusable
        if any(grade(row[name]) == 0 for name in self.marks):
            return Unusable(Reason.NOT_FOR_TRAINING)
        if self.verdict is not None and (unusable := self.verdict.judge(self.verdict.margin(row))):
            return unusable
        chosen, rejected = as_given(row[self.chosen]), as_given(row[self.rejected])
        prompt = as_given(row[self.prompt]) if self.prompt else None
        if is_blank(chosen) or is_blank(rejected):
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
        if is_blank(pair.chosen) or is_blank(pair.rejected):
            return Unusable(Reason.EMPTY_RESPONSE)
        if pair.chosen == pair.rejected:
            return Unusable(Reason.SAME_RESPONSE)
        if holds_dumps((pair.prompt, *pair.sides)):
            return Unusable(Reason.DUMPED)
        context = self.context.read(row)
        if isinstance(context, Unusable):
            return context
        return replace(pair, context=context, cut=self.ends.cut(row))


def annotated_columns(names: Container[str]) -> PairColumns:
    """The pair's columns in an annotated dataset."""
    return PairColumns(*PAIR_COLUMNS, annotated_context(names))


def open_pairs(
    dataset: str, spec: DatasetSpec = DEFAULT_SPEC, *, streaming: bool = False
) -> tuple[Source, PairColumns]:
    """Open a preference dataset and find the pair in its columns.

    Args:
        dataset: As for `opening.open_source`.
        spec: Which rows, and which columns if they are not named prompt, chosen and rejected. Without a
            column ``prompt`` the prompt is part of the other two.
        streaming: Read the rows from the Hub without downloading them, see `remote`.

    Raises:
        PreferenceError: If it cannot be found or read, or its columns hold no pair.
        HubError: If the Hub refuses, or cannot be reached.
    """
    given, everything = open_remote(dataset, spec) if streaming else (open_source(dataset, spec), None)
    source = with_usual_names(given, spec)
    check_texts_alone(dataset, source, spec)
    source = with_pairs(dataset, source, spec)
    layout, verdict = find_pair(dataset, source, spec)
    if everything is not None and not (source is given and layout.as_it_is):
        raise PreferenceError(
            f"{dataset}: prompt, chosen and rejected have to be converted from its columns, which "
            "`streaming` cannot do. Leave it out."
        )
    context = context_columns(dataset, source.schema, spec)
    ends = end_columns(dataset, source.schema, spec)
    prompt = layout.prompt.name if layout.prompt is not None else None
    marks = training_marks(dataset, source, spec, ("train", "weight"))
    columns = PairColumns(prompt, layout.chosen.name, layout.rejected.name, context, ends, verdict, marks)
    if not layout.as_it_is:
        origins = {"prompt": prompt, "chosen": columns.chosen, "rejected": columns.rejected}
        used = [column.name for column in layout.columns]
        read = [*used, *(layout.verdict.columns if layout.verdict is not None else ())]
        source = replace(
            mended(source, read, used, layout.make, repr(layout)),
            origins=origins,
            pairs_from=source.pairs_from or layout.decided_by,
        )
        prompt = "prompt" if "prompt" in source.schema.names else None
        columns = replace(columns, prompt=prompt, chosen="chosen", rejected="rejected")
    check_readable(dataset, source, columns)
    if everything is not None:
        everything.check = check_roles(columns.names)
        source = with_all_rows(source, everything)
    return source, columns


def pair_types(source: Source, columns: PairColumns) -> dict[str, "pa.DataType"]:
    """Arrow types of ``prompt``, ``chosen`` and ``rejected`` in explicit form; messages keep all fields."""
    import pyarrow as pa

    kinds = {name: source.schema.field(name).type for name in columns.names}
    chosen, rejected = kinds[columns.chosen], kinds[columns.rejected]
    if kind_of(chosen) == "text":
        return dict.fromkeys(PAIR_COLUMNS, pa.string())
    prompt = kinds[columns.prompt] if columns.prompt else chosen
    prompt = chosen if kind_of(prompt) == "text" else _common_type(prompt, chosen)
    types = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {name: pa.list_(kind.value_type) for name, kind in types.items()}


def _common_type(first: "pa.DataType", second: "pa.DataType") -> "pa.DataType":
    """The type of messages that holds those of both, and their tool calls as they are."""
    import pyarrow as pa

    items = first.value_type, second.value_type
    if json_messages().value_type in items:
        return json_messages()
    calls = {kind.field(TOOL_CALLS).type for kind in items if kind.get_field_index(TOOL_CALLS) >= 0}
    try:
        return pa.list_(merged_type(*items)) if len(calls - {pa.null()}) < 2 else json_messages()
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return json_messages()


def _split_transcripts(chosen: str, rejected: str) -> Pair | Unusable:
    r"""Split Anthropic transcripts ("\n\nHuman: … \n\nAssistant: …") after the last turn that they share."""
    turn = chosen.rfind(_ASSISTANT)
    while turn >= 0 and not rejected.startswith(chosen[: turn + len(_ASSISTANT)]):
        turn = chosen.rfind(_ASSISTANT, 0, turn)
    if turn < 0:
        return Unusable(Reason.NO_COMMON_PROMPT)
    end = turn + len(_ASSISTANT)
    if chosen[end : end + 1] == rejected[end : end + 1] == " ":
        end += 1
    if any(marker in side[end:] for marker in (HUMAN, _ASSISTANT) for side in (chosen, rejected)):
        return Unusable(Reason.NO_COMMON_PROMPT)  # they differ before the last turn
    return Pair(chosen[:end], chosen[end:], rejected[end:])


def _split_conversations(
    prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> Pair | Unusable:
    """Split at the end of the shared messages: these are the prompt, the rest of each side its response."""
    explicit = _without_answer(prompt, chosen, rejected) if isinstance(prompt, list) else []
    answers = chosen[-1], rejected[-1]
    if any(answer and answer["role"] == "assistant" and not says(answer) for answer in answers):
        return Unusable(Reason.EMPTY_RESPONSE)
    for message in (*explicit, *chosen, *rejected):
        if reason := invalid_reason(message):
            return Unusable(reason)
    if any(answer["role"] != "assistant" for answer in answers):
        return Unusable(Reason.LAST_NOT_ASSISTANT)
    if _roles_and_texts(chosen) == _roles_and_texts(rejected):
        return Unusable(Reason.SAME_RESPONSE)
    shared = _shared(chosen, rejected)
    turns, sides = chosen[:shared], Sides(chosen[shared:], rejected[shared:])
    if not all(side and side[0]["role"] == "assistant" for side in sides):
        return Unusable(Reason.NO_COMMON_PROMPT)
    for side in sides:
        if reason := unsaid_reason(side):
            return Unusable(reason)
    if isinstance(prompt, str):
        if not turns:
            turns = [{"role": "user", "content": prompt}]
        elif not any(prompt.strip() in m["content"] for m in turns if m["role"] == "user"):
            return Unusable(Reason.PROMPT_DISAGREES)
    elif explicit:
        joined = _joined(explicit, turns)
        if joined is None:
            return Unusable(Reason.PROMPT_DISAGREES)
        turns = joined
    return Pair(turns, sides.chosen, sides.rejected)


def _without_answer(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """A prompt that is a whole conversation, without the answer in it, where that is one of the responses."""
    last = prompt[-1:]
    if not last or not last[0] or last[0]["role"] != "assistant":
        return prompt
    answers = [_roles_and_texts(side) for side in (chosen, rejected) if all(side)]
    return prompt[:-1] if _roles_and_texts(last) in answers else prompt


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """The number of messages at the start that both sides share."""
    first = min(len(chosen), len(rejected))
    differ = (i for i in range(first) if compact(chosen[i]) != compact(rejected[i]))
    return next(differ, first)


def _roles_and_texts(messages: list[Message]) -> list[Message]:
    """Messages reduced to role, texts and tool calls."""
    return [{key: value for key, value in compact(m).items() if key in ("role", *SAYS)} for m in messages]


def _joined(explicit: list[Message], turns: list[Message]) -> list[Message] | None:
    """The prompt and the turns before the response, what both have only once; None if they disagree."""
    first, second = _comparable(explicit), _comparable(turns)
    if second[-len(first) :] == first:  # the sides repeat the prompt, perhaps after a system turn
        return turns
    most = min(len(first), len(second))
    shared = next(n for n in range(most, -1, -1) if first[len(first) - n :] == second[:n])
    if not shared and turns and explicit[-1]["role"] == turns[0]["role"] == "user":
        return None
    return explicit + turns[shared:]


def _comparable(messages: list[Message]) -> list[Message]:
    return [{**compact(one), "content": (one["content"] or "").strip()} for one in messages]
