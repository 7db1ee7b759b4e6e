"""Rows of JSON files: one object per line, an array, objects over several lines, or one object of columns."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..errors import PreferenceError
from .compressed import DataFile, numbered_lines

_HOLDS_ROWS = ("data", "rows", "train", "examples", "instances", "records", "items")
_MESSAGE = ({"role", "content"}, {"from", "value"})


def json_rows(file: DataFile) -> Iterator[dict[str, object]]:
    """The rows of a file; a file that is a single array or object is read whole.

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
    lines = numbered_lines(file)
    for number, line in lines:
        if not line or line.isspace():
            continue
        if line.lstrip().startswith("["):
            text = "".join(chain([line], (line for _, line in lines)))
            yield from ((f"item {i}", row) for i, row in enumerate(_parsed(text, file, number), 1))
        elif line.rstrip().endswith(("{", "[", ",")):  # the object continues on the next lines
            for text in _objects(chain([line], (line for _, line in lines))):
                yield f"line {number}", _parsed(text.rstrip(), file, number)
                number += text.count("\n")
        else:
            yield f"line {number}", _parsed(line.rstrip("\r\n"), file, number)


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


def _rows_in(value: object) -> list[object] | None:
    """The rows in a file's only object; None if that object is a row itself.

    Example:
        >>> _rows_in({"prompt": ["a", "b"], "chosen": ["c", "d"]})
        [{'prompt': 'a', 'chosen': 'c'}, {'prompt': 'b', 'chosen': 'd'}]
    """
    if not isinstance(value, dict) or not value:
        return None
    lists = [items for items in value.values() if isinstance(items, list)]
    if {"columns", "data"} <= value.keys() and len(lists) >= 2:  # pandas, orient="split"
        return [dict(zip(value["columns"], row, strict=False)) for row in value["data"]]
    for name in _HOLDS_ROWS:
        if isinstance(rows := value.get(name), list) and rows and all(isinstance(row, dict) for row in rows):
            return rows
    if all(isinstance(items, dict) and "0" in items for items in value.values()):  # pandas' own
        value = {name: list(items.values()) for name, items in value.items()}
    elif len(lists) != len(value) or any(_is_conversation(items) for items in lists):
        return None
    if len(value) < 2 or len({len(items) for items in value.values()}) != 1:
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _is_conversation(items: list[object]) -> bool:
    return any(isinstance(item, dict) and any(keys <= item.keys() for keys in _MESSAGE) for item in items)


def _parsed(text: str, file: DataFile, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = first_line + (error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0)
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        problem = f"corrupt or truncated JSON ({reason})"
        raise PreferenceError(f"{file.label}, line {line}: {problem}. Repair or remove that line.") from error
