"""Scores of two responses: how they are written, and in which columns, objects or lists they are."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..schema import Row
from .column_kinds import is_list, sampled
from .column_names import RESPONSE_SCORES, SCORE_COLUMNS, Tags, counterpart, is_ordered, score_of
from .opening import Source

_LOWER_IS_BETTER = "rank"
_FLAGS = {"true": 1, "false": 0}
_GRADES = {  # KTO's labels of one answer
    "desirable": 1.0, "good": 1.0, "chosen": 1.0, "accepted": 1.0, "thumbs up": 1.0, "like": 1.0, "👍": 1.0,
    "undesirable": 0.0, "bad": 0.0, "rejected": 0.0, "thumbs down": 0.0, "dislike": 0.0, "👎": 0.0,
}  # fmt: skip
_MISSING = {"", "-", "n/a", "na", "nan", "nil", "none", "null"}
GRADES_IN_WORDS = "numbers, true and false, or words like good and bad"


class Place(NamedTuple):
    """Where a row has the score of a response: a column, or a key or place in one."""

    column: str
    key: str | int | None = None

    @property
    def words(self) -> str:
        """Its name in messages."""
        return self.column if self.key is None else f"{self.column}.{self.key}"

    def of(self, row: Row) -> object:
        """The value there; None if there is none."""
        value = row[self.column]
        if self.key is None or value is None:
            return value
        if isinstance(self.key, str):
            return value.get(self.key)
        return value[self.key] if len(value) == 2 else None


class Scores(NamedTuple):
    """Where a row has the scores of its two responses."""

    first: Place
    second: Place

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read, each once."""
        return tuple(dict.fromkeys((self.first.column, self.second.column)))

    @property
    def words(self) -> str:
        """Their names in messages."""
        return f"{self.first.words} and {self.second.words}"

    def difference(self, row: Row) -> float | None:
        """How much better the first response is; None if a score is missing."""
        first, second = grade(self.first.of(row)), grade(self.second.of(row))
        if first is None or second is None:
            return None
        return second - first if _LOWER_IS_BETTER in self.first.words.lower() else first - second


class FoundScores(NamedTuple):
    """The scores that can be read, if any, and else known ones that cannot, with some of their values."""

    read: Scores | None
    unread: tuple[Scores, list[object]] | None


def find_scores(source: Source, names: Sequence[str], sides: tuple[str, str], tags: Tags) -> FoundScores:
    """Find the scores of the two responses.

    Args:
        source: The rows.
        names: Columns to consider, besides those of the responses.
        sides: The columns of the two responses.
        tags: The words in which the names of the two differ.
    """
    unread = None
    for scores in _candidates(source, names, sides, tags):
        values = [value for place in scores for value in _values(source, place)]
        odd = [value for value in values if grade(value) is None]
        if values and not odd:
            return FoundScores(scores, None)
        if odd and unread is None:
            unread = scores, odd
    return FoundScores(None, unread)


def _values(source: Source, place: Place) -> list[object]:
    values = (place.of({place.column: value}) for value in sampled(source.rows, place.column))
    return [value for value in values if not is_missing(value)]


def _candidates(source: Source, names: Sequence[str], sides: tuple[str, str], tags: Tags) -> Iterable[Scores]:
    """Where scores may be, by the names of columns and fields, in order of precedence."""
    fields = {name: _fields(source, name) for name in (*names, *sides)}
    pairs = ((name, counterpart(name, tags, names)) for name in names)
    by_name = {score_of(name, tags[0]): (name, other) for name, other in pairs if other is not None}
    for score in RESPONSE_SCORES:
        if score in by_name:
            yield Scores(*map(Place, by_name[score]))
        if score in fields[sides[0]] and score in fields[sides[1]]:
            yield Scores(Place(sides[0], score), Place(sides[1], score))
    for name in names:
        if name in SCORE_COLUMNS and set(tags) <= set(fields[name]):
            yield Scores(Place(name, tags[0]), Place(name, tags[1]))
        elif name in SCORE_COLUMNS and is_ordered(tags) and holds_two(source, name):
            yield Scores(Place(name, int(tags[0] > tags[1])), Place(name, int(tags[0] < tags[1])))


def _fields(source: Source, name: str) -> list[str]:
    """Names of a column's fields; none if it holds no objects."""
    import pyarrow as pa

    kind = source.schema.field(name).type
    return [field.name for field in kind] if pa.types.is_struct(kind) else []


def holds_two(source: Source, name: str) -> bool:
    """Whether a column holds lists of two."""
    if not is_list(source.schema.field(name).type):
        return False
    values = [value for value in sampled(source.rows, name) if value]
    return bool(values) and all(isinstance(value, list) and len(value) == 2 for value in values)


def is_missing(value: object) -> bool:
    """Whether a value, perhaps a text, says nothing: null, NaN, ``N/A``."""
    if isinstance(value, str):
        return _bare(value) in _MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _bare(text: str) -> str:
    """A text in small letters, without the quotes of JSON and blanks."""
    return text.strip(" \"'\n").lower()


def number(value: object) -> float | None:
    """A value as a number, true and false as 1 and 0, also where it is text; None if it is none."""
    if isinstance(value, str):
        text = _bare(value)
        try:
            value = _FLAGS[text] if text in _FLAGS else float(text)
        except ValueError:
            return None
    found = float(value) if isinstance(value, int | float) else math.nan
    return found if math.isfinite(found) else None


def grade(value: object) -> float | None:
    """A score or label of a single answer: as `number`, and words like desirable as 1 or 0."""
    word = _bare(value).replace("_", " ") if isinstance(value, str) else ""
    return _GRADES[word] if word in _GRADES else number(value)


def shown(values: Iterable[object]) -> str:
    """Some of a column's values, for a message."""
    return ", ".join(sorted({repr(value) for value in values})[:3])
