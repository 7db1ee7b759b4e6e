"""Rows of Python values → a memory-mapped Arrow file, made once and kept in the cache of ``datasets``.

All rows are read before the first is written: a column may be null for a million rows before its type
shows. One batch is held in memory. What no type holds as it was given is kept as JSON.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from ..errors import PreferenceError
from ..schema import column_array

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


_PRINTED_FIELDS = ("tools", "tool_calls")
_PRINTED = re.compile(rf"\b({'|'.join(_PRINTED_FIELDS)}): list<")
KEPT_AS_JSON = "columns without a common type kept as JSON text"

Batches = Callable[[dict[str, int]], Iterator[list[dict[str, object]]]]


class CachedRows(NamedTuple):
    """Rows in the cache, and the changes made to them.

    Attributes:
        rows: The rows.
        repairs: Number of repairs by kind.
        json_columns: Columns whose values share no Arrow type; each value is stored as JSON text.
    """

    rows: "datasets.Dataset"
    repairs: dict[str, int]
    json_columns: frozenset[str]


def cached_rows(
    name: str, place: str, batches: Batches, json_type: "pa.DataType | None" = None
) -> CachedRows:
    """Write rows to the cache, or reuse them if they are there.

    Args:
        name: File name. It includes everything that determines the content, the reader's version too.
        place: Where the rows come from, for messages.
        batches: Yields the rows in batches and counts its repairs; called several times.
        json_type: Of columns whose values share no type: text by default, or `schema.json_messages`.

    Raises:
        PreferenceError: If the cache cannot be written, or a column's name cannot be stored.
    """
    import datasets
    import pyarrow as pa

    target = Path(datasets.config.HF_DATASETS_CACHE) / "sepo" / f"{name}.arrow"
    as_json: set[str] = set()
    while not target.exists():
        try:
            _write_arrow(batches, _learn_schema(place, batches, as_json, json_type or pa.string()), target)
        except _NoCommonTypeError as error:
            as_json.add(str(error))  # 2**53 + 1 among floats: the types agree, but hold another value
    with pa.memory_map(str(target)) as stream:
        learned = json.loads(pa.ipc.open_stream(stream).schema.metadata[b"sepo"])
    return CachedRows(datasets.Dataset.from_file(str(target)), learned["repairs"], frozenset(learned["json"]))


def merged_type(first: "pa.DataType", second: "pa.DataType") -> "pa.DataType":
    """The type that holds values of both: null yields, integers widen, structs take the union of fields.

    Raises:
        pyarrow.ArrowTypeError: If there is none, as for text and numbers.
    """
    import pyarrow as pa

    schemas = [pa.schema({"": kind}) for kind in (first, second)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("").type


class _NoCommonTypeError(Exception):
    """A column's values share no type; the message is its name."""


def _learn_schema(place: str, batches: Batches, as_json: set[str], json_type: "pa.DataType") -> "pa.Schema":
    import pyarrow as pa

    types: dict[str, pa.DataType] = {}
    repairs: dict[str, int] = {}
    as_json = set(as_json)
    for rows in batches(repairs):
        for name in dict.fromkeys(chain.from_iterable(rows)):
            if name in as_json:
                continue
            try:
                found = pa.array([row.get(name) for row in rows]).type
                types[name] = merged_type(types.get(name, pa.null()), found)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                as_json.add(name)
    as_json |= {name for name, kind in types.items() if "struct<>" in str(kind)}  # parquet cannot store it
    types |= dict.fromkeys(as_json, json_type)
    if as_json:
        repairs[KEPT_AS_JSON] = len(as_json)
    for name, kind in types.items():
        if "\0" in f"{name}{kind}":
            problem = f'column "{name}" has a NUL character in its name or in that of a field'
            raise PreferenceError(f"{place}: {problem}, where Arrow ends a name. Rename it.")
    return pa.schema(types, metadata={"sepo": json.dumps({"repairs": repairs, "json": sorted(as_json)})})


def _write_arrow(batches: Batches, schema: "pa.Schema", target: Path) -> None:
    import pyarrow as pa

    as_json = set(json.loads(schema.metadata[b"sepo"])["json"])
    exact = {column.name for column in schema if _PRINTED.search(str(column))} - as_json
    unfinished = target.with_suffix(f".{uuid4().hex}.tmp")  # nodes may share the folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for rows in batches({}):
                columns = []
                for column in schema:
                    values = [row.get(column.name) for row in rows]
                    if column.name in as_json and column.type == pa.string():
                        values = [None if value is None else _as_json(value) for value in values]
                    elif column.name in exact and not all(_is_kept(column, value) for value in values):
                        raise _NoCommonTypeError(column.name)
                    try:
                        columns.append(column_array(values, column.type))
                    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                        raise _NoCommonTypeError(column.name) from error
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        unfinished.replace(target)
    except OSError as error:
        problem = f"cannot write the cache of the dataset ({error.strerror or error})"
        raise PreferenceError(
            f"{target.parent}: {problem}. Set HF_DATASETS_CACHE to a folder with room."
        ) from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


def _is_kept(field: "pa.Field", value: object, *, exact: bool = False) -> bool:
    """Whether what a template prints as it stands keeps its keys' order, its nulls and its whole numbers."""
    import pyarrow as pa

    exact = exact or field.name in _PRINTED_FIELDS
    if isinstance(value, list):
        return all(_is_kept(field.type.value_field, item, exact=exact) for item in value)
    if isinstance(value, dict):
        there = [inside.name for inside in field.type if inside.name in value]
        kept = not exact or (there == list(value) and None not in value.values())
        return kept and all(_is_kept(field.type.field(key), item, exact=exact) for key, item in value.items())
    return not (exact and isinstance(value, int) and pa.types.is_floating(field.type))


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
