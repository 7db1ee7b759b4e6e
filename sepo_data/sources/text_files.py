"""Read JSON lines, JSON arrays and CSV into a memory-mapped Arrow file, changing nothing but lone surrogates.

The readers of ``datasets`` are not used. From CSV they make 7.0 of "007" and nothing of "None". For JSON they
name no line, refuse lone surrogates, take a column's type from the first ten megabytes, and store messages as
untyped JSON if one of them lacks a key. A CSV file has no types, so all its columns are text here, and an
empty cell is null. Memory stays flat, save for a file that is one JSON array: it is read whole.
"""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from ..errors import PreferenceError
from ..files import file_sha256, text_sha256

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


LONE_SURROGATES = "lone surrogates replaced"
KEPT_AS_JSON = "columns without a common type kept as JSON text"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv")  # each also with .gz behind it

_READER_VERSION = 2  # raise it when the readers give other rows for the same file: cache files carry it
_BATCH_ROWS = 1000


class DataFile(NamedTuple):
    """A file to read: what messages call it, and where it is on this machine."""

    label: str
    path: Path


def is_text_file(name: str) -> bool:
    """Whether the file is one for ``read_text_files``, by its name."""
    return _suffix(name) in SUFFIXES


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix


def digest_of(files: Sequence[DataFile]) -> str:
    """A lone file's SHA-256; of several, the SHA-256 of what ``sha256sum`` prints for them, sorted."""
    if len(files) == 1:
        return file_sha256(files[0].path)
    lines = (f"{file_sha256(path)}  {label}\n" for label, path in sorted(files))
    return text_sha256("".join(lines))


class TextRows(NamedTuple):
    """What came of reading text files.

    Attributes:
        rows: The rows.
        repairs: How many repairs were made, by kind.
        json_columns: Columns whose values no Arrow type holds together: text, the JSON of each value.
    """

    rows: "datasets.Dataset"
    repairs: dict[str, int]
    json_columns: frozenset[str]


def read_text_files(files: Sequence[DataFile]) -> TextRows:
    """Convert the files to Arrow, once: the cache of ``datasets`` keeps it under the digest of their content.

    Raises:
        PreferenceError: Naming the file, and its line or column, that cannot be read.
    """
    import datasets
    import pyarrow as pa

    name = f"{_suffix(files[0].label)[1:]}-{_READER_VERSION}-{digest_of(files)}.arrow"
    target = Path(datasets.config.HF_DATASETS_CACHE) / "sepo" / name
    as_json: set[str] = set()
    while not target.exists():
        try:
            _write_arrow(files, _learn_schema(files, as_json), target)
        except (
            _NoCommonTypeError
        ) as error:  # 2**53 + 1 among floats: the types agree, and the value does not fit
            as_json.add(str(error))
    with pa.memory_map(str(target)) as stream:
        learned = json.loads(pa.ipc.open_stream(stream).schema.metadata[b"sepo"])
    rows = datasets.Dataset.from_file(str(target))
    return TextRows(rows, learned["repairs"], frozenset(learned["json"]))


def merged_type(first: "pa.DataType", second: "pa.DataType") -> "pa.DataType":
    """The type that holds values of both: null gives way, integers widen, structs take each other's fields.

    Raises:
        pyarrow.ArrowTypeError: If there is none, as for text and numbers.
    """
    import pyarrow as pa

    schemas = [pa.schema({"": kind}) for kind in (first, second)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("").type


class _NoCommonTypeError(Exception):
    """The name of a column."""


def _learn_schema(files: Sequence[DataFile], as_json: set[str]) -> "pa.Schema":
    """Read everything once before writing: a column may be null for a million rows and then show its type."""
    import pyarrow as pa

    types: dict[str, pa.DataType] = {}
    repairs: dict[str, int] = {}
    as_json = set(as_json)
    for _, rows in _batches(files, repairs):
        for name in dict.fromkeys(chain.from_iterable(rows)):
            if name in as_json:
                continue
            try:
                found = pa.array([row.get(name) for row in rows]).type
                types[name] = merged_type(types.get(name, pa.null()), found)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                as_json.add(name)
    as_json |= {name for name, kind in types.items() if "struct<>" in str(kind)}  # parquet cannot store it
    types |= dict.fromkeys(as_json, pa.string())
    if as_json:
        repairs[KEPT_AS_JSON] = len(as_json)
    for name, kind in types.items():
        if "\0" in f"{name}{kind}":
            problem = f'column "{name}" has a NUL character in its name or in that of a field'
            raise PreferenceError(f"{files[0].label}: {problem}, where Arrow ends a name. Rename it.")
    return pa.schema(types, metadata={"sepo": json.dumps({"repairs": repairs, "json": sorted(as_json)})})


def _write_arrow(files: Sequence[DataFile], schema: "pa.Schema", target: Path) -> None:
    import pyarrow as pa

    as_json = set(json.loads(schema.metadata[b"sepo"])["json"])
    unfinished = target.with_suffix(f".{uuid4().hex}.tmp")  # another node may share the folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for _, rows in _batches(files, {}):
                columns = []
                for column in schema:
                    values = (row.get(column.name) for row in rows)
                    if column.name in as_json:
                        values = (None if value is None else _as_json(value) for value in values)
                    try:
                        columns.append(pa.array(list(values), column.type))
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


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _batches(
    files: Sequence[DataFile], repairs: dict[str, int]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows with the label of their file; ``repairs`` is counted up."""
    for file in files:
        rows = (_csv_rows if _suffix(file.label) == ".csv" else _json_rows)(file)
        while batch := [_repaired(row, repairs) for row in islice(rows, _BATCH_ROWS)]:
            yield file.label, batch


def _repaired(value: Any, repairs: dict[str, int]) -> Any:
    """Join surrogate pairs and put U+FFFD for lone surrogates, which tokenizers and parquet refuse."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            repaired = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            lone = repaired.count("\ufffd") - value.count("\ufffd")
            repairs[LONE_SURROGATES] = repairs.get(LONE_SURROGATES, 0) + lone
            return repaired
    elif isinstance(value, dict):
        return {_repaired(key, repairs): _repaired(item, repairs) for key, item in value.items()}
    elif isinstance(value, list):
        return [_repaired(item, repairs) for item in value]
    return value


def _json_rows(file: DataFile) -> Iterator[dict[str, Any]]:
    lines = _lines(file)
    for number, line in lines:
        if not line or line.isspace():
            continue
        if line.lstrip().startswith("["):
            text = "".join(chain([line], (line for _, line in lines)))
            rows = _parsed(text, file, number)
            yield from (_checked(row, file, f"item {i}") for i, row in enumerate(rows, 1))
        else:
            yield _checked(_parsed(line.rstrip("\r\n"), file, number), file, f"line {number}")


def _parsed(text: str, file: DataFile, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = first_line + (error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0)
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        problem = f"corrupt or truncated JSON ({reason})"
        raise PreferenceError(f"{file.label}, line {line}: {problem}. Repair or remove that line.") from error


def _checked(row: Any, file: DataFile, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        problem = "not a JSON object. Every row must be one"
        raise PreferenceError(
            f'{file.label}, {place}: {problem}, like {{"prompt": …, "chosen": …, "rejected": …}}.'
        )
    return row


def _csv_rows(file: DataFile) -> Iterator[dict[str, str | None]]:
    csv.field_size_limit(sys.maxsize)  # the default, 131,072 characters, is less than some responses
    reader = csv.reader((line for _, line in _lines(file)), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise csv.Error("two columns of one name")
            elif cells and len(cells) != len(header):
                raise csv.Error(f"{len(cells)} cells where the header has {len(header)}")
            elif cells:
                yield {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        place = f"{file.label}, line {reader.line_num}"
        raise PreferenceError(f"{place}: corrupt or truncated CSV ({error}). Repair that line.") from error


def _lines(file: DataFile) -> Iterator[tuple[int, str]]:
    r"""Numbered lines with their ends, split at "\n" only: U+2028 and a lone "\r" are text."""
    number = 0
    with _opened(file.path) as stream:
        try:
            for number, line in enumerate(stream, 1):
                text = line.decode("utf-8", "surrogatepass")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 ({error.reason}). Save the file as UTF-8"
            raise PreferenceError(f"{file.label}, line {number}: {problem}.") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problem = f"corrupt or truncated gzip ({error}). Copy or download the file again"
            raise PreferenceError(f"{file.label}, line {number + 1}: {problem}.") from error


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    """Told by the content: a downloaded file may have lost its .gz."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")
