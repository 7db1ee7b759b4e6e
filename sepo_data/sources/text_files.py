"""Read JSON and CSV into a memory-mapped Arrow file, changing nothing but lone surrogates.

The readers of ``datasets`` are not used. In CSV they turn "007" into 7.0 and "None" into null. In JSON they
do not name the line of an error, refuse lone surrogates, infer a column's type from the first ten megabytes,
and store messages as untyped JSON if one of them lacks a key. A CSV file has no types, so here all of its
columns are text, and an empty cell is null. Memory stays flat, except for a file that is one JSON object: it
is read whole.
"""

import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

from ..errors import PreferenceError
from ..files import file_sha256, text_sha256
from .arrow_cache import CachedRows, cached_rows
from .compressed import DataFile, numbered_lines, plain_name, without_ending
from .json_rows import json_rows, splits_in

LONE_SURROGATES = "lone surrogates replaced"
SUFFIXES = (
    ".jsonl",
    ".jsonlines",
    ".ndjson",
    ".json",
    ".csv",
    ".tsv",
)  # each also compressed, or in capitals

_READER_VERSION = 6  # raise it when the readers give other rows for the same file: cache files carry it
_BATCH_ROWS = 1000


def is_text_file(name: str) -> bool:
    """Whether ``read_text_files`` reads a file with this name."""
    return suffix_of(without_ending(name)) in SUFFIXES or suffix_of(name) == ".zip"


def suffix_of(name: str) -> str:
    """The last suffix of a file's name, in small letters."""
    return Path(name).suffix.lower()


def digest_of(files: Sequence[DataFile]) -> str:
    """The SHA-256 of a single file; of several, that of the sorted output of ``sha256sum``."""
    if len(files) == 1:
        return file_sha256(files[0].path)
    lines = (f"{file_sha256(path)}  {label}\n" for label, path in sorted(files))
    return text_sha256("".join(lines))


def read_text_files(files: Sequence[DataFile], split: str | None = None) -> CachedRows:
    """Convert the files to Arrow once; the cache is that of ``datasets``, by the files' digest.

    Args:
        files: The files.
        split: One of the splits in a file of JSON, see `json_rows.splits_in`.

    Raises:
        PreferenceError: Naming the file and the line or column that cannot be read.
    """
    kind = suffix_of(plain_name(files[0]))[1:]
    name = f"{kind}-{_READER_VERSION}-{digest_of(files)}{f'-{split}' if split else ''}"
    return cached_rows(name, files[0].label, partial(_batches, files, split))


def splits_of(file: DataFile) -> list[str]:
    """The splits in a file of JSON that holds several; none in others."""
    return [] if _is_table(file) else splits_in(file)


def _batches(
    files: Sequence[DataFile], split: str | None, repairs: dict[str, int]
) -> Iterator[list[dict[str, object]]]:
    """Batches of rows; repairs are counted in ``repairs``."""
    apart = _apart(files)
    if apart:
        what = f"files left out, one object without a column of the others: {', '.join(sorted(apart))}"
        repairs[what] = len(apart)
    for file in files:
        if Path(file.label).name in apart:
            continue
        rows = _rows(file, split)
        while batch := [_repaired_row(row, repairs) for row in islice(rows, _BATCH_ROWS)]:
            yield batch


def _rows(file: DataFile, split: str | None = None) -> Iterator[Mapping[str, object]]:
    return _csv_rows(file) if _is_table(file) else json_rows(file, split)


def _is_table(file: DataFile) -> bool:
    return suffix_of(plain_name(file)) in (".csv", ".tsv")


def _apart(files: Sequence[DataFile]) -> set[str]:
    """Names of files that are not data but are next to it, such as a ``stats.json``."""
    if len(files) == 1 or all(suffix_of(file.label) != ".json" for file in files):
        return set()
    starts = {file: list(islice(_rows(file), 2)) for file in files}
    lone = {file for file, rows in starts.items() if len(rows) == 1 and suffix_of(file.label) == ".json"}
    names = {name for file, rows in starts.items() if file not in lone for row in rows for name in row}
    return {Path(file.label).name for file in lone if names and names.isdisjoint(starts[file][0])}


def _repaired_row(row: Mapping[str, object], repairs: dict[str, int]) -> dict[str, object]:
    return {_repaired_text(key, repairs): _repaired(item, repairs) for key, item in row.items()}


def _repaired(value: object, repairs: dict[str, int]) -> object:
    if isinstance(value, str):
        return _repaired_text(value, repairs)
    if isinstance(value, dict):
        return _repaired_row(value, repairs)
    return [_repaired(item, repairs) for item in value] if isinstance(value, list) else value


def _repaired_text(text: str, repairs: dict[str, int]) -> str:
    """Join surrogate pairs and replace lone surrogates, which tokenizers and parquet refuse, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        repaired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        lone = repaired.count("\ufffd") - text.count("\ufffd")
        repairs[LONE_SURROGATES] = repairs.get(LONE_SURROGATES, 0) + lone
        return repaired
    return text


def _csv_rows(file: DataFile) -> Iterator[dict[str, str | None]]:
    csv.field_size_limit(sys.maxsize)  # some responses are longer than the default of 131,072 characters
    lines = (line for _, line in numbered_lines(file))
    first = next(lines, "")
    told = re.fullmatch(r"\ufeff?sep=(.)\s*", first)  # Excel's own line
    first = next(lines, "") if told else first
    delimiter = told[1] if told else _delimiter(first)
    spaced = 0 < first.count(delimiter) == first.count(f"{delimiter} ")  # blanks after commas are no text
    reader = csv.reader(chain([first], lines), delimiter=delimiter, skipinitialspace=spaced, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise csv.Error("two columns with the same name")
            elif cells and len(cells) != len(header):
                raise csv.Error(f"{len(cells)} cells where the header has {len(header)}")
            elif cells:
                yield {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        place = f"{file.label}, line {reader.line_num}"
        raise PreferenceError(f"{place}: corrupt or truncated CSV ({error}). Repair that line.") from error


def _delimiter(header: str) -> str:
    """The delimiter that splits the first line into the most names; a comma if none does."""
    line = header.split("\r")[0]
    return max(",;\t|", key=lambda delimiter: len(next(csv.reader([line], delimiter=delimiter), [])))
