"""Dataclasses from untrusted JSON, checked against their type annotations.

A field may be text, a flag, a number, a dataclass, ``None``, a list or a mapping of these, a choice of
literals, or ``Annotated`` with a `Check`. A field with a default may be missing or null; unknown keys
are ignored, so that a newer minor version can be read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..errors import SepoError

T = TypeVar("T")


class NotAsItMustBeError(Exception):
    """The message in one line: the place in the JSON, the value found, the expected one."""


@dataclass(frozen=True)
class Check:
    """A condition on a value.

    Attributes:
        words: The condition, for the message.
        holds: Whether a value, of any type, meets it.
    """

    words: str
    holds: Callable[[object], bool]


def matching(words: str, pattern: re.Pattern[str]) -> Check:
    """A text that fully matches a pattern."""
    return Check(words, lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None)


# every JSON reader keeps integers up to 2**53
Count = Annotated[int, Check("a whole number", lambda value: type(value) is int and 0 <= value < 2**53)]


def from_json(kind: type[T], value: object, place: str = "") -> T:
    """Make a dataclass from a JSON object.

    Args:
        kind: The dataclass.
        value: What `json.loads` returned.
        place: Its place in a larger object, for the message.

    Raises:
        NotAsItMustBeError: Naming the first invalid value.
    """
    if not isinstance(value, Mapping):
        raise NotAsItMustBeError(f"{place or 'it'} is {_shown(value)}, it must be an object")
    found, hints = {}, _hints(kind)  # type: ignore[arg-type]
    for field in fields(kind):  # type: ignore[arg-type]
        at = f"{place}.{field.name}" if place else field.name
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if optional and value.get(field.name) is None:
            continue
        if field.name not in value:
            raise NotAsItMustBeError(f"{at} is missing")
        found[field.name] = _checked(hints[field.name], value[field.name], at)
    try:
        return kind(**found)
    except SepoError as error:
        raise NotAsItMustBeError(f"{place}: {error}") from error


@cache
def _hints(kind: type[object]) -> dict[str, object]:
    return get_type_hints(kind, include_extras=True)


def _checked(hint: object, value: object, place: str) -> object:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value, place)
    if origin is UnionType and NoneType in arguments:
        (other,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _checked(other, value, place)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise NotAsItMustBeError(f"{place} is {_shown(value)}, it must be a list")
        return origin(_checked(arguments[0], item, f"{place}[{number}]") for number, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise NotAsItMustBeError(f"{place} is {_shown(value)}, it must be an object")
        return {key: _checked(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    check = _check(hint)
    if not check.holds(value):
        raise NotAsItMustBeError(f"{place} is {_shown(value)}, it must be {check.words}")
    return value


def _check(hint: Any) -> Check:
    if get_origin(hint) is Annotated:
        return next(item for item in hint.__metadata__ if isinstance(item, Check))
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return Check(f"one of {', '.join(choices)}", lambda value: value in choices)
    return _PLAIN[hint]


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 2**53  # type: ignore[arg-type]


_PLAIN: dict[object, Check] = {
    str: Check("text", lambda value: isinstance(value, str)),
    bool: Check("true or false", lambda value: isinstance(value, bool)),
    int: Check("a whole number", lambda value: type(value) is int and abs(value) < 2**53),
    float: Check("a finite number", _is_number),
    object: Check("anything", lambda value: True),
}


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
