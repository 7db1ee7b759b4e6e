"""Rows of JSON files: one object per line, an array, objects over several lines, or one object of all."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any, TypeGuard

from ..errors import PreferenceError
from .column_names import is_usual
from .compressed import DataFile, begins_with, numbered_lines, pieces
from .shapes import MESSAGE_KEYS

_HOLDS_ROWS = ("data", "rows", "examples", "instances", "records", "items", "results")
_SPLITS = re.compile(r"(train|test|dev|val|valid|validation|eval)(_\w+)?")
_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\r\n]*")


def json_rows(file: DataFile, split: str | None = None) -> Iterator[dict[str, object]]:
    """The rows of a file; a file that is a single object is read whole.

    Args:
        file: The file.
        split: One of `splits_in` it, if it holds several.

    Raises:
        PreferenceError: Naming the file and the line that cannot be read.
    """
    values = _values(file)
    first = next(values, None)
    second = next(values, None)
    if first is not None and second is None:
        place, value = first
        splits = _splits(value)
        if split not in splits and len(splits) > 1:
            problem = f"holds the splits {', '.join(splits)}"
            raise PreferenceError(f"{file.label}: {problem}. Give this file alone, and choose with `split`.")
        rows = value[split or splits[0]] if splits and isinstance(value, dict) else _rows_in(value)
        values = iter([first]) if rows is None else ((f"item {i}", row) for i, row in enumerate(rows, 1))
    else:
        values = chain(filter(None, (first, second)), values)
    for place, row in values:
        if not isinstance(row, dict):
            problem = "not a JSON object. Every row must be one"
            raise PreferenceError(
                f'{file.label}, {place}: {problem}, like {{"prompt": …, "chosen": …, "rejected": …}}.'
            )
        yield row


def splits_in(file: DataFile) -> list[str]:
    """The splits of a file that is a single object with a list of rows for each; none in other files."""
    values = _values(file)
    first = next(values, None)
    return [] if first is None or next(values, None) is not None else _splits(first[1])


def _splits(value: object) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [name for name, rows in value.items() if _SPLITS.fullmatch(name) and _are_rows(rows)]


def _are_rows(value: object) -> TypeGuard[list[dict[str, object]]]:
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        return False
    return not _is_conversation(value)


def _values(file: DataFile) -> Iterator[tuple[str, object]]:
    """The JSON values of a file, and where each starts."""
    if begins_with(file, b"["):
        yield from _items(file)
        return
    lines = numbered_lines(file)
    for number, line in lines:
        if not line or line.isspace():
            continue
        if line.rstrip().endswith(("{", "[", ",")) and not _is_whole(line):  # it continues on the next lines
            for text in _objects(chain([line], (line for _, line in lines))):
                for value in _parsed(text.rstrip(), file, number):
                    yield f"line {number}", value
                number += text.count("\n")
        else:
            for value in _parsed(line.rstrip("\r\n"), file, number):
                yield f"line {number}", value


def _items(file: DataFile) -> Iterator[tuple[str, object]]:
    """The items of an array; memory holds a piece of its text."""
    rest = pieces(file)
    text, lines, number, wanted = next(rest).removeprefix("\ufeff"), 1, 0, 1
    while _blank(text, _blank(text, 0) + 1) >= len(text) and (more := next(rest, "")):
        text += more
    at = _blank(text, 0) + 1
    ends = text.startswith("]", _blank(text, at))
    at = _blank(text, at) + 1 if ends else at
    while not ends:
        try:
            value, after, ends = _item(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            more = "".join(islice(rest, wanted))
            if not more:
                raise _corrupt(file, lines, error) from error
            lines += text.count("\n", 0, at)
            text, at, wanted = text[at:] + more, 0, 2 * wanted
            continue
        at, number, wanted = after, number + 1, 1
        yield f"item {number}", value
    if text[_blank(text, at) :] or any(not piece.isspace() for piece in rest):
        lines += text.count("\n", 0, _blank(text, at))
        raise _corrupt(file, lines, json.JSONDecodeError("Extra data", "", 0))


def _item(text: str, at: int) -> tuple[object, int, bool]:
    """An item of an array, where the one after it begins, and whether there is none."""
    value, end = _DECODER.raw_decode(text, _blank(text, at))
    end = _blank(text, end)
    if not text.startswith((",", "]"), end):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
    return value, end + 1, text[end] == "]"


def _blank(text: str, at: int) -> int:
    """Where the blanks that begin there end."""
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _objects(lines: Iterator[str]) -> Iterator[str]:
    """The texts of objects that open and close in the first column of a line."""
    held: list[str] = []
    for line in lines:
        ended, begun = _between(line)
        held.append(ended)
        if line.startswith("}"):
            yield "".join(held)
            held = [begun] if begun else []
    if "".join(held).strip():
        yield "".join(held)


def _is_whole(line: str) -> bool:
    """Whether a line is an object with a comma behind it."""
    try:
        return isinstance(json.loads(line.rstrip().removesuffix(",")), dict)
    except (ValueError, RecursionError):
        return False


def _between(line: str) -> tuple[str, str]:
    """A line in two if an object ends and the next begins in it."""
    found = re.match(r"\},?[ \t]*(?=\{\s*$)", line)
    return (line[: found.end()], line[found.end() :]) if found else (line, "")


def _rows_in(value: object) -> Iterable[object] | None:
    """The rows in a file's only object; None if that object is a row itself.

    Example:
        >>> list(_rows_in({"prompt": ["a", "b"], "chosen": ["c", "d"]}))
        [{'prompt': 'a', 'chosen': 'c'}, {'prompt': 'b', 'chosen': 'd'}]
    """
    if not isinstance(value, dict) or not value:
        return None
    lists = [items for items in value.values() if isinstance(items, list)]
    if {"columns", "data"} <= value.keys() and len(lists) >= 2:  # pandas, orient="split"
        return (dict(zip(value["columns"], row, strict=False)) for row in value["data"])
    held = [rows for name in _HOLDS_ROWS if _are_rows(rows := value.get(name))]
    if len(held) == 1:
        return held[0]
    if _are_by_id(value):
        return list(value.values())
    if all(isinstance(items, dict) and "0" in items for items in value.values()):  # pandas' own
        value = {name: list(items.values()) for name, items in value.items()}
    elif len(lists) != len(value) or any(_is_conversation(items) for items in lists):
        return None
    if len(value) < 2 or len({len(items) for items in value.values()}) != 1:
        return None
    return (dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True))


def _are_by_id(value: dict[str, object]) -> bool:
    """Whether an object's values are rows, under a name for each that is no column's."""
    rows = [row for row in value.values() if isinstance(row, dict)]
    alike = len(rows) == len(value) and all(row.keys() & rows[0].keys() for row in rows)
    return alike and not any(map(is_usual, value)) and any(map(is_usual, rows[0]))


def _is_conversation(items: list[Any]) -> bool:
    return any(isinstance(item, dict) and any(keys <= item.keys() for keys in MESSAGE_KEYS) for item in items)


def _parsed(text: str, file: DataFile, first_line: int) -> list[object]:
    """The value in a text; several, if they follow one another with a comma, a blank or nothing between."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError) as error:
        with suppress(ValueError, RecursionError):
            return list(_objects_in(text))
        raise _corrupt(file, first_line, error) from error


def _objects_in(text: str) -> Iterator[dict[str, object]]:
    """Objects that follow one another.

    Raises:
        ValueError: If the text holds anything else.
    """
    at = _blank(text, 0)
    while at < len(text):
        value, end = _DECODER.raw_decode(text, at)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        yield value
        end = _blank(text, end)
        at = _blank(text, end + 1) if text.startswith(",", end) else end


def _corrupt(file: DataFile, first_line: int, error: Exception) -> PreferenceError:
    """What to say of a text that begins in a line."""
    line = first_line + (error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0)
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    problem = f"corrupt or truncated JSON ({reason})"
    return PreferenceError(f"{file.label}, line {line}: {problem}. Repair or remove that line.")
