"""Rows of JSON files: one object per line, an array, objects over several lines, or one object of columns."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from ..errors import PreferenceError
from .compressed import DataFile, begins_with, numbered_lines, pieces

_HOLDS_ROWS = ("data", "rows", "train", "examples", "instances", "records", "items")
_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\r\n]*")
_MESSAGE = ({"role", "content"}, {"from", "value"})


def json_rows(file: DataFile) -> Iterator[dict[str, object]]:
    """The rows of a file; a file that is a single object is read whole.

    Raises:
        PreferenceError: Naming the file and the line that cannot be read.
    """
    values = _values(file)
    first = next(values, None)
    second = next(values, None)
    if first is not None and second is None:
        place, value = first
        rows = _rows_in(value)
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


def _values(file: DataFile) -> Iterator[tuple[str, object]]:
    """The JSON values of a file, and where each starts."""
    if begins_with(file, b"["):
        yield from _items(file)
        return
    lines = numbered_lines(file)
    for number, line in lines:
        if not line or line.isspace():
            continue
        if line.rstrip().endswith(("{", "[", ",")):  # the object continues on the next lines
            for text in _objects(chain([line], (line for _, line in lines))):
                yield f"line {number}", _parsed(text.rstrip(), file, number)
                number += text.count("\n")
        else:
            yield f"line {number}", _parsed(line.rstrip("\r\n"), file, number)


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
        held.append(line)
        if line.startswith("}"):
            yield "".join(held)
            held = []
    if "".join(held).strip():
        yield "".join(held)


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
    for name in _HOLDS_ROWS:
        if isinstance(rows := value.get(name), list) and rows and all(isinstance(row, dict) for row in rows):
            return rows
    if all(isinstance(items, dict) and "0" in items for items in value.values()):  # pandas' own
        value = {name: list(items.values()) for name, items in value.items()}
    elif len(lists) != len(value) or any(_is_conversation(items) for items in lists):
        return None
    if len(value) < 2 or len({len(items) for items in value.values()}) != 1:
        return None
    return (dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True))


def _is_conversation(items: list[object]) -> bool:
    return any(isinstance(item, dict) and any(keys <= item.keys() for keys in _MESSAGE) for item in items)


def _parsed(text: str, file: DataFile, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, first_line, error) from error


def _corrupt(file: DataFile, first_line: int, error: Exception) -> PreferenceError:
    """What to say of a text that begins in a line."""
    line = first_line + (error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0)
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    problem = f"corrupt or truncated JSON ({reason})"
    return PreferenceError(f"{file.label}, line {line}: {problem}. Repair or remove that line.")
