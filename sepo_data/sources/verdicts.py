"""Columns that say which of two responses is better: scores, words, indices, signed strengths.

A column with a known name is used, or the dataset is refused naming it: ignoring a verdict would yield
reversed pairs and keep ties.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import PreferenceError
from ..reasons import Reason, Unusable
from ..schema import Row, is_text
from .column_kinds import is_list, sampled, sampled_rows
from .column_names import ANSWERS, LOOSE_VERDICTS, MARGINS, SCORE_COLUMNS, TIES, VERDICTS, Tags, is_ordered
from .opening import Source
from .scores import Scores, find_scores, holds_two, is_missing, number, shown

_SIGNED = ("overall_preference", "preference_strength")  # HelpSteer: from -3, the first is better, to 3
_OF_TOPICS = ("label", "labels", "choice", "preference")  # next to chosen and rejected, perhaps a topic
_OURS = "chosen_token_rewards"  # an annotated dataset's chosen_reward is no verdict
_ARTICLE = re.compile(  # "is a better answer", unlike "response a is" and "a is better"
    r"(?<=\w)(?<!model)(?<!response)(?<!answer)(?<!completion)(?<!assistant)(?<!output)(?<!option) a (?=\w)"
)
_TURNS_ROUND = {  # what names the other one: "not A", "B is worse", "better than B"
    "not", "worse", "worst", "lose", "loses", "lost", "loser", "losing", "rejected", "bad", "than", "over",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The columns that say which of a row's two responses is better.

    Attributes:
        tags: The words in which the names of the two differ: ``a`` and ``b``, ``chosen`` and ``rejected``.
        column: Column with the answer as a word, an index or a signed number.
        how: How ``column`` is read, a key of ``_READERS``.
        scores: Where the scores of the two are.
        models: Columns with the models' names, one per response, if ``column`` holds the name of one.
        min_margin: Minimum difference in score.
        decides: Whether it decides which is chosen, or only confirms what the names say.
    """

    tags: Tags
    column: str | None = None
    how: str | None = None
    scores: Scores | None = None
    models: tuple[str, str] | None = None
    min_margin: float | None = None
    decides: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """All of its columns."""
        scores = self.scores.columns if self.scores else ()
        return (*((self.column,) if self.column else ()), *scores, *(self.models or ()))

    @property
    def words(self) -> str:
        """Its name in messages."""
        return self.column or (self.scores.words if self.scores else "")

    def margin(self, row: Row) -> float | None:
        """How much better the first response is, negative if the second is better; None if unknown."""
        by_score = self.scores.difference(row) if self.scores else None
        if self.column is None:
            return by_score
        verdict = self.says(row)
        return verdict * abs(by_score) if verdict and by_score else verdict

    def says(self, row: Row) -> float | None:
        """What the column of the verdict says alone."""
        value = row[str(self.column)]
        names = [row[name] for name in self.models or ()]
        if value in names:
            return None if names[0] == names[1] else 1.0 if value == names[0] else -1.0
        return None if self.how is None else _READERS[self.how](value, self.tags)

    def judge(self, margin: float | None) -> Unusable | None:
        """Why a pair with this margin is dropped; None if it is kept."""
        if margin is None:
            return Unusable(Reason.NO_VERDICT) if self.decides else None
        if margin == 0:
            return Unusable(Reason.TIE)
        if margin < 0 and not self.decides:
            return Unusable(Reason.VERDICT_DISAGREES)
        return Unusable(Reason.SMALL_MARGIN) if abs(margin) < (self.min_margin or 0) else None


def find_verdict(
    dataset: str, source: Source, names: Sequence[str], sides: tuple[str, str], tags: Tags, *, decides: bool
) -> Verdict | None:
    """Find the columns that say which response is better.

    Args:
        dataset: Its name in messages.
        source: Its rows.
        names: Columns to consider, besides those of the responses.
        sides: The columns of the two responses.
        tags: The words in which the names of the two responses differ.
        decides: Whether the verdict has to decide which response is chosen.

    Raises:
        PreferenceError: If a column with a known name cannot be read, or two of them contradict each other.
    """
    if _OURS in names:
        return None
    scores, unread = find_scores(source, names, sides, tags)
    found: list[Verdict] = []
    for name in VERDICTS:
        values = _values(source, name) if name in names else []
        if not values or (name == "status" and not any(_word(value) == "tie" for value in values)):
            continue
        if decides and name in (*TIES, *MARGINS):
            continue  # they do not say which
        models = _model_columns(source, name, tags)
        how = "words" if models else _how(source, name, values, tags, scores, decides=decides)
        if how is not None:
            found.append(Verdict(tags, name, how, scores, models))
        elif _stops(name, values, decides=decides, decided=bool(found)):
            odd = [value for value in values if _by_word(value, tags) is None] or values
            known = "true or false" if name in TIES else f"{tags[0]}, {tags[1]} or tie"
            _refuse(dataset, f'column "{name}"', (name,), odd, known)
    if unread is not None and not (decides and found):
        places, odd = unread
        _refuse(dataset, f"each of {places.words}", places.columns, odd, "a number")
    if not decides:
        _check_owned(dataset, source, names)
    if len(found) > 1:
        _check_agree(dataset, source, found)
    return found[0] if found else (Verdict(tags, scores=scores) if scores else None)


def _refuse(dataset: str, what: str, names: Sequence[str], values: list[object], known: str) -> None:
    problem = f"{what} may say which response is better, and its values are {shown(values)}"
    ignore = f"`ignore_columns={','.join(names)}`"
    raise PreferenceError(f"{dataset}: {problem}. Make it {known}, or pass {ignore} to ignore it.")


def _check_owned(dataset: str, source: Source, names: Sequence[str]) -> None:
    """Refuse lists of two scores next to chosen and rejected, unless they are those of a list of answers."""
    kinds = {name: source.schema.field(name).type for name in names}
    texts = {name for name, kind in kinds.items() if is_list(kind) and is_text(kind.value_type)}
    if any(holds_two(source, name) for name in texts.union(ANSWERS).intersection(names)):
        return
    for name in names:
        if name in SCORE_COLUMNS and holds_two(source, name):
            problem = f'column "{name}" holds two scores, and nothing says whose each is'
            advice = "Put them into columns chosen_score and rejected_score"
            raise PreferenceError(f"{dataset}: {problem}. {advice}, or pass `ignore_columns={name}`.")


def _values(source: Source, name: str) -> list[object]:
    return [value for value in sampled(source.rows, name) if not is_missing(value)]


def _how(
    source: Source,
    name: str,
    values: list[object],
    tags: Tags,
    scores: Scores | None,
    *,
    decides: bool,
) -> str | None:
    """The reader that understands all values; None if there is none."""
    if name in TIES:
        return "tie" if _are_flags(values) else None
    if name in MARGINS:
        return "number" if all(number(value) is not None for value in values) else None
    if name in _SIGNED and decides and all(number(value) is not None for value in values):
        return "signed"
    if name in ("labels", "label") and _are_flags(values):
        return _label_means(source, name, tags, scores) if decides else None
    return "words" if all(_by_word(value, tags) is not None for value in values) else None


def _label_means(source: Source, name: str, tags: Tags, scores: Scores | None) -> str | None:
    """Whether a label of 1 means the first or the second response, inferred from the scores of the row."""
    if scores is None:
        return "index" if set(tags) == {"0", "1"} else None
    rows = sampled_rows(source.rows.select_columns([name, *scores.columns]))
    gaps = [(row[name], scores.difference(row)) for row in rows if row[name] is not None]
    for how in ("one is a", "index"):
        margins = [(_READERS[how](label, tags), gap) for label, gap in gaps if gap]
        if margins and all((verdict or 0) * gap > 0 for verdict, gap in margins):
            return how
    return None


def _check_agree(dataset: str, source: Source, found: Sequence[Verdict]) -> None:
    names = [verdict.words for verdict in found]
    read = sorted({name for verdict in found for name in verdict.columns})
    for table in source.rows.select_columns(read).with_format("arrow").iter(batch_size=10_000):
        for row in table.to_pylist():
            if len({one.says(row) for one in found}) > 1:
                problem = f"{' and '.join(names)} contradict each other on which response is better"
                raise PreferenceError(
                    f"{dataset}: {problem}. Leave all but one out, for instance `ignore_columns={names[-1]}`."
                )


def _model_columns(source: Source, name: str, tags: Tags) -> tuple[str, str] | None:
    """Columns of the two models' names, if the verdict is one of them, or a tie, in every row."""
    lower = {column.lower(): column for column in source.schema.names}
    for one, two in _names_of(tags):
        both = lower.get(f"model_{one}"), lower.get(f"model_{two}")
        if both[0] is None or both[1] is None:
            continue
        rows = sampled_rows(source.rows.select_columns([name, *both]))
        rated = [row for row in rows if row[name] is not None and _word(row[name]) != "tie"]
        if rated and all(row[name] in (row[both[0]], row[both[1]]) for row in rated):
            return both[0], both[1]
    return None


def _stops(name: str, values: Sequence[object], *, decides: bool, decided: bool) -> bool:
    """Whether a verdict that cannot be read stops the run."""
    if name in LOOSE_VERDICTS:
        return (decides and not decided) or (name in TIES and not decides)
    return decides or name not in _OF_TOPICS or (_are_flags(values) and 0 in map(number, values))


def _are_flags(values: Sequence[object]) -> bool:
    """Whether all are true or false, 0 or 1, or a text of these."""
    return all(number(value) in (0, 1) for value in values)


def _word(value: object) -> str | None:
    """``tie`` for any way to say so, else the value in lower case."""
    text = str(value).strip(" \"'").lower().replace("_", " ")
    tie = text.startswith(("tie", "both", "equal", "draw", "same", "neither", "neutral", "no preference"))
    return "tie" if tie or "both" in text.split() or re.search(r"\ban? (tie|draw)$", text) else text


def _by_word(value: object, tags: Tags) -> float | None:
    """1 for the first, -1 for the second, 0 for neither; None if the value says none of these."""
    if isinstance(value, bool) or is_missing(value):
        return None
    text = _word(int(value) if isinstance(value, float) and value.is_integer() else value)
    if text == "tie":
        return 0.0
    if text in ("unchanged", "swapped"):  # distilabel's status: either way, chosen is the better response
        return 1.0
    order = re.search(r"([a-z0-9])\s*(>+|<+|=+)\s*([a-z0-9])", text or "")
    if order and {order[1], order[3]} == set(tags):
        return {">": 1.0, "<": -1.0, "=": 0.0}[order[2][0]] * (1 if order[1] == tags[0] else -1)
    parts = re.findall(r"[a-z0-9]+", _ARTICLE.sub(" ", text or ""))
    if _TURNS_ROUND.difference(tags).intersection(parts) or re.match(r"-\d", text or ""):
        return None
    hits = [[name in parts for name in names] for names in _names_of(tags)]
    first, second = (any(one) for one in zip(*hits, strict=True))
    return None if first == second else 1.0 if first else -1.0


def _names_of(tags: Tags) -> tuple[Tags, ...]:
    """What the two are called: response_1 is model_a's."""
    names = [("a", "b"), ("first", "second")] if tags[0].isdecimal() else [("first", "second")]
    if not is_ordered(tags):
        return (tags,)
    return (tags, *(pair if tags[0] < tags[1] else (pair[1], pair[0]) for pair in names))


def _signed(value: object, tags: Tags) -> float | None:
    strength = number(value)
    return None if strength is None else strength * (1 if tags[0] > tags[1] else -1)


def _one_is_a(value: object, tags: Tags) -> float | None:
    flag = number(value)
    return None if flag not in (0, 1) else (1.0 if (flag == 1) == (tags[0] < tags[1]) else -1.0)


def _index(value: object, tags: Tags) -> float | None:
    verdict = _one_is_a(value, tags)
    return None if verdict is None else -verdict


def _no_tie(value: object, tags: Tags) -> float | None:
    flag = number(value)
    return None if flag is None else 0.0 if flag else 1.0


_READERS: dict[str, Callable[[object, Tags], float | None]] = {
    "signed": _signed,
    "words": _by_word,
    "one is a": _one_is_a,
    "index": _index,
    "tie": _no_tie,
    "number": lambda value, tags: number(value),
}
