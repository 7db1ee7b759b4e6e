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
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import PreferenceError
from ..files import file_sha256, text_sha256
from .arrow_cache import CachedRows, cached_rows

LONE_SURROGATES = "lone surrogates replaced"
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


def read_text_files(files: Sequence[DataFile]) -> CachedRows:
    """Convert the files to Arrow, once: the cache of ``datasets`` keeps it under the digest of their content.

    Raises:
        PreferenceError: Naming the file, and its line or column, that cannot be read.
    """
    name = f"{_suffix(files[0].label)[1:]}-{_READER_VERSION}-{digest_of(files)}"
    return cached_rows(name, files[0].label, partial(_batches, files))


def _batches(files: Sequence[DataFile], repairs: dict[str, int]) -> Iterator[list[dict[str, Any]]]:
    """Rows; ``repairs`` is counted up."""
    for file in files:
        rows = (_csv_rows if _suffix(file.label) == ".csv" else _json_rows)(file)
        while batch := [_repaired(row, repairs) for row in islice(rows, _BATCH_ROWS)]:
            yield batch


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
