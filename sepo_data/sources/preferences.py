"""Any preference dataset → pairs of one prompt and two responses, or a clear reason why a row gives none.

Formats are told apart by their column types: the prompt in a column of its own or inside ``chosen`` and
``rejected``; text or lists of messages; and the hybrid of UltraFeedback and Tulu, a text prompt beside whole
conversations. No tokens here, no models, and not a character of a text is changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PreferenceError
from ..schema import Message, response_text
from .opening import Opened, open_rows
from .text_files import merged_type

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


# why a row is dropped, in the words of the report
EMPTY_RESPONSE = "empty response"
PROMPT_MISSING = "prompt is missing"
NO_COMMON_PROMPT = "no common prompt"
PROMPT_DISAGREES = "prompt column disagrees with the conversations"
SAME_RESPONSE = "chosen equals rejected"
LAST_NOT_ASSISTANT = "last message is not the assistant's"
CONTENT_NOT_TEXT = "message content is not text"
ROLE_MISSING = "message has no role"
NOT_TEXT_ALONE = "last message is not text alone"  # its tool calls or reasoning would go unscored

SAID_BESIDE = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_HUMAN = "\n\nHuman:"
_ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class Pair:
    """A preference pair in explicit form: three texts, or three lists of messages."""

    prompt: str | list[Message]
    chosen: str | list[Message]  # messages: exactly one, the assistant's
    rejected: str | list[Message]

    @property
    def chosen_response(self) -> str:
        """The text that gets tokens and rewards: the string itself, or the last message's content."""
        return response_text(self.chosen)

    @property
    def rejected_response(self) -> str:
        """As ``chosen_response``."""
        return response_text(self.rejected)


@dataclass(frozen=True)
class PairColumns:
    """Where a source keeps its pair; no prompt column means that the prompt is inside the other two."""

    prompt: str | None
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Source:
    """An opened preference dataset: its rows, which stay on disk, and where they come from."""

    rows: "datasets.Dataset"
    name: str  # Hub id, or the name of the file or folder without its parents
    config: str | None
    split: str
    revision: str  # commit on the Hub, or "sha256:…" of the local content
    columns: PairColumns
    card: dict[str, Any]  # YAML of the source's card
    restricted: bool  # private or gated on the Hub
    repairs: dict[str, int]  # what was changed in the texts and how often: {"lone surrogates replaced": 3}


def open_source(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    limit: int | None = None,
) -> Source:
    """Open a preference dataset and find the pair in its columns.

    Args:
        dataset: A .parquet, .jsonl, .json or .csv file, a folder of them, a folder written by
            ``save_to_disk``, or a Hub id.
        config: Which configuration, of a dataset that has several.
        split: Which split; a single file is all "train".
        revision: Branch, tag or commit on the Hub.
        prompt_column: Default: ``prompt`` if there is such a column, else the prompt is inside the other two.
        chosen_column: Default: ``chosen``.
        rejected_column: Default: ``rejected``.
        limit: Use the first rows only.

    Raises:
        PreferenceError: If it cannot be found or read, or its columns hold no pair.
        HubError: If the Hub refuses, or cannot be reached.
    """
    opened = open_rows(dataset, config, split, revision)
    columns = _find_columns(dataset, opened, (prompt_column, chosen_column, rejected_column))
    _check_types(dataset, opened.rows.features.arrow_schema, columns)
    rows = opened.rows if limit is None else opened.rows.select(range(min(limit, len(opened.rows))))
    return Source(
        rows=rows,
        name=opened.name,
        config=config,
        split=split,
        revision=opened.revision,
        columns=columns,
        card=opened.card,
        restricted=opened.restricted,
        repairs=opened.repairs,
    )


def pair_types(source: Source) -> dict[str, "pa.DataType"]:
    """Arrow types of ``prompt``, ``chosen`` and ``rejected`` in explicit form; messages keep all fields."""
    import pyarrow as pa

    schema, columns = source.rows.features.arrow_schema, source.columns
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


def read_pair(row: Mapping[str, Any], columns: PairColumns) -> Pair | str:
    """Bring a row into explicit form.

    Args:
        row: A row of ``Source.rows``.
        columns: ``Source.columns``.

    Returns:
        The pair, or the reason why the row gives none: one of this module's constants.

    Example:
        >>> hi = {"role": "user", "content": "Hi"}
        >>> answer = {"role": "assistant", "content": "Hello!"}
        >>> read_pair({"chosen": [hi, answer], "rejected": [hi, hi]}, PairColumns(None, "chosen", "rejected"))
        "last message is not the assistant's"
    """
    chosen, rejected = row[columns.chosen], row[columns.rejected]
    prompt = row[columns.prompt] if columns.prompt else None
    if not chosen or not rejected:
        return EMPTY_RESPONSE
    if columns.prompt and not prompt:
        return PROMPT_MISSING
    if not isinstance(chosen, str):
        pair = _split_conversations(prompt, chosen, rejected)
    elif prompt is not None:
        pair = Pair(prompt, chosen, rejected)
    else:
        pair = _split_transcripts(chosen, rejected)
    if isinstance(pair, str):
        return pair
    if not pair.prompt:
        return PROMPT_MISSING
    if not pair.chosen_response or not pair.rejected_response:
        return EMPTY_RESPONSE
    return SAME_RESPONSE if pair.chosen_response == pair.rejected_response else pair


def _split_transcripts(chosen: str, rejected: str) -> Pair | str:
    r"""Split Anthropic transcripts ("\n\nHuman: … \n\nAssistant: …") behind the last turn that they share."""
    turn = chosen.rfind(_ASSISTANT)
    while turn >= 0 and not rejected.startswith(chosen[: turn + len(_ASSISTANT)]):
        turn = chosen.rfind(_ASSISTANT, 0, turn)
    if turn < 0:
        return NO_COMMON_PROMPT
    end = turn + len(_ASSISTANT)
    if chosen[end : end + 1] == rejected[end : end + 1] == " ":
        end += 1
    if any(marker in side[end:] for marker in (_HUMAN, _ASSISTANT) for side in (chosen, rejected)):
        return NO_COMMON_PROMPT  # they parted before the last turn
    return Pair(chosen[:end], chosen[end:], rejected[end:])


def _split_conversations(
    prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> Pair | str:
    """Take the last message of each side as its response, and what is before it as the prompt."""
    explicit = prompt if isinstance(prompt, list) else []
    answers = chosen[-1], rejected[-1]
    if any(answer and answer["content"] is None for answer in answers):
        return EMPTY_RESPONSE
    for message in (*explicit, *chosen, *rejected):
        if reason := flaw_of(message):
            return reason
    if any(answer["role"] != "assistant" for answer in answers):
        return LAST_NOT_ASSISTANT
    if any(answer.get(key) for answer in answers for key in SAID_BESIDE):
        return NOT_TEXT_ALONE
    turns = chosen[:-1]
    if compact(turns) != compact(rejected[:-1]):
        return NO_COMMON_PROMPT
    if isinstance(prompt, str):
        if not turns:
            turns = [{"role": "user", "content": prompt}]
        elif not any(prompt.strip() in m["content"] for m in turns if m["role"] == "user"):
            return PROMPT_DISAGREES
    elif compact(turns[: len(explicit)]) != compact(explicit):  # else the sides repeat the prompt
        turns = explicit + turns
    return Pair(turns, chosen[-1:], rejected[-1:])


def flaw_of(message: Message | None) -> str | None:
    """Why a message cannot be used; None if it can."""
    if not message or not message["role"]:
        return ROLE_MISSING
    if message["content"] is None and message["role"] == "assistant" and len(compact(message)) > 1:
        return None  # a turn that only calls tools
    return None if isinstance(message["content"], str) else CONTENT_NOT_TEXT


def compact(value: Any) -> Any:
    """Without nulls: Arrow gives a message all keys that any message of its column has."""
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items() if item is not None}
    return [compact(item) for item in value] if isinstance(value, list) else value


def _find_columns(
    dataset: str, opened: Opened, named: tuple[str | None, str | None, str | None]
) -> PairColumns:
    from ..schema import PAIR_COLUMNS

    names = opened.rows.column_names
    prompt, chosen, rejected = named
    if prompt is None and "prompt" in names:
        prompt = "prompt"
    columns = PairColumns(prompt, chosen or "chosen", rejected or "rejected")
    used = dict(zip(PAIR_COLUMNS, (columns.prompt, columns.chosen, columns.rejected), strict=True))
    for role, name in used.items():
        if name is not None and name not in names:
            advice = f"Its columns are {', '.join(names)}; name the right one with --{role}-column"
            raise PreferenceError(f'{dataset}: no column "{name}". {advice}.')
        if role in names and name != role:
            problem = f'column "{role}" would be overwritten by "{name}"'
            raise PreferenceError(f"{dataset}: {problem}. Rename or remove it, or leave out --{role}-column.")
    if len(set(used.values())) < len(used):
        raise PreferenceError(f"{dataset}: prompt, chosen and rejected must be three columns, not {used}.")
    return columns


def _check_types(dataset: str, schema: "pa.Schema", columns: PairColumns) -> None:
    """Refuse columns that hold neither texts nor messages, or a mixture that is no known format."""
    names = [name for name in (columns.prompt, columns.chosen, columns.rejected) if name is not None]
    kinds = {name: kind_of(schema.field(name).type) for name in names}
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

    if _is_text(column):
        return "text"
    is_list = (
        pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column)
    )
    if not is_list or not pa.types.is_struct(column.value_type):
        return None
    fields = {field.name: field.type for field in column.value_type}
    is_message = all(name in fields and _is_text(fields[name]) for name in ("role", "content"))
    return "messages" if is_message and "extension<" not in str(column) else None


def _is_text(column: "pa.DataType") -> bool:
    import pyarrow as pa

    return column in (pa.string(), pa.large_string(), pa.string_view())
