"""The contract of an annotated dataset: its columns, their types, and what must hold in every row.

An annotated dataset is a preference dataset in explicit form (``prompt``, ``chosen``,
``rejected``) with token rewards and masks of both responses, addressed by code
points of the response's texts. `docs/dataset_format.md` documents it. The
contract is fixed within a major schema version.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .errors import SchemaError
from .pieces import BLOCK_END, one_text, piece_text

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")
U = TypeVar("U")

Message = dict[str, Any]  # {"role": ..., "content": ..., possibly further keys}
Row = Mapping[str, Any]  # of a dataset: values have the types of its columns
Side = Literal["chosen", "rejected"]

SCHEMA_VERSION = "1.1"
MANIFEST_NAME = "sepo_manifest.json"
SIDES: tuple[Side, ...] = ("chosen", "rejected")
PAIR_COLUMNS = ("prompt", "chosen", "rejected")

SPLIT_NAME = re.compile(r"\w+(\.\w+)*")  # what `datasets` reads; it names files


@dataclass(frozen=True)
class Sides(Generic[T]):
    """One value for each response of a pair."""

    chosen: T
    rejected: T

    def __getitem__(self, side: Side) -> T:
        """The value of a side, by its name."""
        return self.chosen if side == "chosen" else self.rejected

    def __iter__(self) -> Iterator[T]:
        """The chosen one, then the rejected one."""
        return iter((self.chosen, self.rejected))

    def items(self) -> tuple[tuple[Side, T], ...]:
        """Both with the names of their sides."""
        return (("chosen", self.chosen), ("rejected", self.rejected))

    @staticmethod
    def of(make: Callable[[Side], U]) -> "Sides[U]":
        """Apply a function to the name of each side."""
        return Sides(make("chosen"), make("rejected"))

    def map(self, change: Callable[[T], U]) -> "Sides[U]":
        """The same for both."""
        return Sides(change(self.chosen), change(self.rejected))


@dataclass(frozen=True)
class _Side:
    """One side of a batch of rows: its flat token columns, and what finds a token's row."""

    name: str
    first_row: int
    lengths: npt.NDArray[np.int64]
    columns: dict[str, npt.NDArray[Any]]

    @cached_property
    def firsts(self) -> npt.NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    def rows_with(self, tokens: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        row_of = np.repeat(np.arange(self.lengths.size), self.lengths)
        return np.bincount(row_of[tokens], minlength=self.lengths.size) > 0

    def steps(self, before: str, after: str) -> npt.NDArray[np.int64]:
        """``after`` of a token minus ``before`` of its predecessor in the row; 0 for a first token."""
        steps = np.diff(self.columns[after], prepend=0).astype(np.int64)
        steps[1:] = self.columns[after][1:] - self.columns[before][:-1]
        steps[self.firsts] = 0
        return steps

    def refuse(self, rows: npt.NDArray[np.bool_], column: str, problem: str) -> None:
        if rows.any():
            row = self.first_row + int(np.flatnonzero(rows)[0])
            raise SchemaError(f'row {row}, column "{self.name}_{column}": {problem}.')


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type contains texts."""
    return bool(kind in (pa.string(), pa.large_string(), pa.string_view()))


def json_messages() -> pa.DataType:
    """Messages that share no Arrow type, each as JSON: `datasets` gives them back as objects."""
    return pa.list_(pa.json_())


def column_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as Arrow has them in a column of this type; messages as JSON if it is `json_messages`."""
    if kind != json_messages():
        return pa.array(values, kind)
    texts = [one and [json.dumps(item, ensure_ascii=False) for item in one] for one in values]
    return pa.array(texts, pa.list_(pa.string())).cast(kind)


def scalar_fields(side: str) -> list[pa.Field]:
    """One value per response: its reward, and the token that ends the turn."""
    return [
        pa.field(f"{side}_reward", pa.float32()),
        pa.field(f"{side}_eos_reward", pa.float32()),
        pa.field(f"{side}_eos_mask", pa.bool_()),
    ]


def token_fields(side: str) -> list[pa.Field]:
    """One value per token."""
    return [
        pa.field(f"{side}_token_start", pa.list_(pa.int32())),
        pa.field(f"{side}_token_end", pa.list_(pa.int32())),
        pa.field(f"{side}_token_rewards", pa.list_(pa.float32())),
        pa.field(f"{side}_token_mask", pa.list_(pa.bool_())),
    ]


def piece_fields(side: str) -> list[pa.Field]:
    """Which text each token is in, if there is more than the content of the last message; else null."""
    return [
        pa.field(f"{side}_token_message", pa.list_(pa.int16())),
        pa.field(f"{side}_token_field", pa.list_(pa.string())),
    ]


def logp_fields(side: str) -> list[pa.Field]:
    """The two terms of each reward, kept on request; the end of the turn has its own."""
    return [
        pa.field(f"{side}_token_oracle_logps", pa.list_(pa.float32())),
        pa.field(f"{side}_token_ref_logps", pa.list_(pa.float32())),
    ]


def annotation_columns() -> set[str]:
    """Every column name that an annotation may write."""
    kinds = (scalar_fields, token_fields, piece_fields, logp_fields)
    return {field.name for side in SIDES for kind in kinds for field in kind(side)}


def annotated_schema(
    source: pa.Schema, pair_types: dict[str, pa.DataType], *, store_logps: bool
) -> pa.Schema:
    """The Arrow schema of an annotated dataset, scalars first so that viewers show them.

    Args:
        source: Columns that pass through, without the pair's.
        pair_types: Types of ``prompt``, ``chosen`` and ``rejected``.
        store_logps: Whether to store the log-probs of oracle and reference.
    """
    rewards = [field for side in SIDES for field in scalar_fields(side)]
    pair = [pa.field(name, pair_types[name]) for name in PAIR_COLUMNS]
    has_messages = pa.types.is_nested(pair_types["chosen"])
    kinds = (token_fields, piece_fields) if has_messages else (token_fields,)
    tokens = [field for side in SIDES for kind in kinds for field in kind(side)]
    logps = [field for side in SIDES for field in logp_fields(side)] if store_logps else []
    kept = [pa.field(field.name, field.type) for field in source]
    flat = [field for field in kept if not pa.types.is_nested(field.type)]
    nested = [field for field in kept if pa.types.is_nested(field.type)]
    return pa.schema([*rewards, *flat, *pair, *nested, *tokens, *logps])


def check_version(version: object) -> None:
    """Refuse a dataset whose schema this sepo cannot read.

    Raises:
        SchemaError: If the major version is unknown.
    """
    major = str(version).split(".")[0]
    if major != SCHEMA_VERSION.split(".")[0]:
        raise SchemaError(
            f"the dataset has schema version {version}, this sepo reads {SCHEMA_VERSION}. "
            "Upgrade sepo (pip install -U sepo), or annotate the dataset again."
        )


def validate(dataset: "datasets.Dataset | datasets.DatasetDict | pa.Table") -> None:
    """Check the contract of a dataset, row by row.

    Args:
        dataset: An annotated dataset, all its splits, or an Arrow table of it.

    Raises:
        SchemaError: Naming the first row and column that violate it.
    """
    if isinstance(dataset, dict):
        for part in dataset.values():
            validate(part)
        return
    _check_types(dataset.schema if isinstance(dataset, pa.Table) else dataset.features.arrow_schema)
    first_row = 0
    for table in _tables(dataset):
        if table["prompt"].null_count:
            raise SchemaError(f'column "prompt": holds nulls, rows {first_row} and on.')
        for side in SIDES:
            _check_side(table, side, first_row)
        first_row += table.num_rows


def _tables(dataset: "datasets.Dataset | pa.Table", rows: int = 1000) -> Iterator[pa.Table]:
    if isinstance(dataset, pa.Table):
        yield from (dataset.slice(i, rows) for i in range(0, dataset.num_rows, rows))
    else:
        yield from dataset.with_format("arrow").iter(rows)


def _check_types(schema: pa.Schema) -> None:
    for name in PAIR_COLUMNS:
        if name not in schema.names:
            raise SchemaError(f'column "{name}" is missing. This is not an annotated dataset of sepo.')
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_nested(kind)):
            raise SchemaError(f'column "{name}" is {kind}, it must be text or a list of messages.')
    optional = [
        f for side in SIDES for f in (*piece_fields(side), *logp_fields(side)) if f.name in schema.names
    ]
    for field in (*(f for side in SIDES for f in [*scalar_fields(side), *token_fields(side)]), *optional):
        if field.name not in schema.names:
            raise SchemaError(f'column "{field.name}" is missing. Annotate the dataset with sepo-annotate.')
        found = schema.field(field.name).type
        if _element(found) != _element(field.type):
            raise SchemaError(f'column "{field.name}" is {found}, it must be {field.type}.')


def _element(kind: pa.DataType) -> tuple[bool, pa.DataType]:
    """Large and small lists, and names of list elements, are treated alike."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list, kind.value_type if is_list else kind


def _check_side(table: pa.Table, name: str, first_row: int) -> None:
    fields = [*token_fields(name), *(f for f in logp_fields(name) if f.name in table.column_names)]
    lists = {field.name.removeprefix(f"{name}_"): table[field.name] for field in fields}
    lengths = _list_lengths(lists["token_start"])
    for column, values in {**lists, "": table[name]}.items():
        if values.null_count or (column and pc.list_flatten(values).null_count):
            raise SchemaError(
                f'column "{f"{name}_{column}".rstrip("_")}": holds nulls, rows {first_row} and on.'
            )
    side = _Side(name, first_row, lengths, {column: _flat(values) for column, values in lists.items()})
    for column, values in lists.items():
        side.refuse(_list_lengths(values) != lengths, column, "is not as long as token_start")
    side.refuse(lengths == 0, "token_start", "holds no token")
    _check_spans(*_as_one_text(side, table), table)
    _check_rewards(side, table)


def _as_one_text(side: _Side, table: pa.Table) -> tuple[_Side, npt.NDArray[np.int64]]:
    """The side with spans in the scored texts as one, and how long those are, ``(rows,)``."""
    start, end = side.columns["token_start"].copy(), side.columns["token_end"].copy()
    names = [field.name for field in piece_fields(side.name) if field.name in table.column_names]
    places = (
        [table[name].to_pylist() for name in names] if len(names) == 2 else [[None] * side.lengths.size] * 2
    )
    sizes = np.zeros(side.lengths.size, np.int64)
    for row, (response, *place) in enumerate(zip(table[side.name].to_pylist(), *places, strict=True)):
        mine, this = (
            slice(side.firsts[row], side.firsts[row] + side.lengths[row]),
            np.arange(sizes.size) == row,
        )
        try:
            whole = one_text(response, start[mine], end[mine], *place)
        except (KeyError, IndexError, TypeError, ValueError):
            side.refuse(this, "token_field", "does not say, with token_message, where the tokens are")
            raise
        heads = (piece_text(response, piece)[: piece.begins] for piece in whole.pieces if piece.begins)
        side.refuse(this & any(BLOCK_END not in head for head in heads), "token_start", "does not begin at 0")
        start[mine], end[mine], sizes[row] = whole.start, whole.end, len(whole.text)
    return replace(side, columns={**side.columns, "token_start": start, "token_end": end}), sizes


def _check_spans(side: _Side, sizes: npt.NDArray[np.int64], table: pa.Table) -> None:
    start, end = side.columns["token_start"], side.columns["token_end"]
    side.refuse(side.rows_with(side.steps("token_start", "token_start") < 0), "token_start", "goes backwards")
    side.refuse(side.rows_with(side.steps("token_end", "token_end") < 0), "token_end", "goes backwards")
    side.refuse(side.rows_with(side.steps("token_end", "token_start") > 0), "token_start", "leaves a gap")
    side.refuse(side.rows_with(end <= start), "token_end", "is not after token_start")
    last_end = end[side.firsts + side.lengths - 1]
    side.refuse(last_end > sizes, "token_end", "lies after the response's end")
    ended = table[f"{side.name}_eos_reward"].is_valid().to_numpy()
    side.refuse(ended & (last_end < sizes), "token_end", "stops before the response's end")


def _check_rewards(side: _Side, table: pa.Table) -> None:
    eos_reward, eos_mask = table[f"{side.name}_eos_reward"], table[f"{side.name}_eos_mask"]
    one_is_null = eos_reward.is_valid().to_numpy() != eos_mask.is_valid().to_numpy()
    side.refuse(one_is_null, "eos_mask", "must be null where eos_reward is, and only there")
    eos = pc.fill_null(eos_reward, 0.0).to_numpy().astype(np.float64)
    selected = pc.fill_null(eos_mask, False).to_numpy() | side.rows_with(side.columns["token_mask"])
    side.refuse(~selected, "token_mask", "selects nothing")
    rewards = side.columns["token_rewards"].astype(np.float64)
    side.refuse(side.rows_with(~np.isfinite(rewards)), "token_rewards", "is not finite")
    side.refuse(~np.isfinite(eos), "eos_reward", "is not finite")
    if "token_oracle_logps" in side.columns:
        ratio = side.columns["token_oracle_logps"] - side.columns["token_ref_logps"].astype(np.float64)
        side.refuse(
            side.rows_with(np.abs(ratio - rewards) > 1e-4), "token_rewards", "is not oracle minus ref"
        )
    total = np.add.reduceat(rewards, side.firsts) + eos
    size = np.add.reduceat(np.abs(rewards), side.firsts) + np.abs(eos)
    stated = pc.fill_null(table[f"{side.name}_reward"], np.nan).to_numpy()
    side.refuse(~(np.abs(stated - total) <= 1e-5 * (1 + size)), "reward", "is not the sum of the rewards")


def _list_lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), dtype=np.int64)


def _flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    return np.asarray(pc.list_flatten(column).to_numpy())
