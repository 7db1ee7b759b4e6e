"""Where a dataset keeps several answers to a prompt, and what says how good each of them is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..dataset_spec import DatasetSpec, PairsOf
from ..errors import PreferenceError
from .column_kinds import sampled
from .column_names import ANSWER_SCORES, ANSWERS, BEST_ANSWERS, COMPLETIONS, CONTEXT, PROMPTS, response_pairs
from .opening import Source
from .scores import GRADES_IN_WORDS, grade, is_missing, number, shown
from .shapes import looks_dumped, parsed_or_none

_ORDERS = ("ranking", "rankings")  # the rank of each answer, or the numbers of the answers from best to worst
_STEPS = ("completions", "labels")


@dataclass(frozen=True)
class AnswerLayout:
    """Where a source keeps several answers to a prompt.

    Attributes:
        answers: Column with the list of answers, or with the one answer of a row.
        score: Column of the scores, or the key of the score in the objects of ``answers``.
        inside: Whether ``score`` is such a key.
        prompts: Columns that the rows of one prompt share; empty if each row has all of its answers.
        pairs: Which answers make pairs.
        min_margin: Minimum difference in score.
        from_text: Those of the two columns that hold their lists as text.
        best_from: If ``score`` holds the index of the best answer: where indices start, 0 or 1.
    """

    answers: str
    score: str
    inside: bool
    prompts: tuple[str, ...]
    pairs: PairsOf
    min_margin: float | None
    from_text: frozenset[str] = frozenset()
    best_from: int | None = None

    @property
    def words(self) -> str:
        """Description for the manifest."""
        of = f"{self.answers} of one prompt" if self.prompts else self.answers
        least = "" if self.min_margin is None else f", from a margin of {self.min_margin:g}"
        return f"{self.pairs} of {of}, by {self.score}{least}"


def find_answers(
    dataset: str, source: Source, spec: DatasetSpec, names: Sequence[str]
) -> AnswerLayout | None:
    """Find several scored answers by column names and values; None if there are none.

    Raises:
        PreferenceError: If a column with a known name scores the answers, but cannot be read.
    """
    for name in ANSWERS:
        values = [value for value in _sampled(source, name) if value] if name in names else []
        if values and all(isinstance(value, list) for value in values):
            layout = _of_lists(dataset, source, spec, names, name)
            if layout is not None:
                lists = (name,) if layout.inside else (name, layout.score)
                from_text = {one for one in lists if _is_listed_text(source, one)}
                return replace(layout, from_text=frozenset(from_text))
    prompts = _shared_columns(spec, names)
    unread = None
    for name in COMPLETIONS if prompts and not any(response_pairs(names)) else ():
        for score in (score for score in ANSWER_SCORES if name in names and score in names):
            values = sampled(source.rows, score)
            if any(not is_missing(value) for value in values) and _are_scores(values):
                return AnswerLayout(name, score, False, prompts, spec.pairs, spec.min_margin)
            unread = unread or (name, score, [value for value in values if not _is_score(value)])
    if unread is not None and unread[2]:
        _refuse_scores(dataset, *unread)
    return None


def _of_lists(
    dataset: str, source: Source, spec: DatasetSpec, names: Sequence[str], name: str
) -> AnswerLayout | None:
    """The scores of the answers in a column's lists: in each answer, in a list, or the best one's index."""
    lists = [value for value in _sampled(source, name) if value]
    items = [item for value in lists if isinstance(value, list) for item in value if item]
    for score in ANSWER_SCORES:
        inside = [item.get(score) for item in items if isinstance(item, Mapping)]
        filled = any(not is_missing(one) for one in inside)
        if len(inside) == len(items) and filled and _are_scores(inside):
            return AnswerLayout(name, score, True, (), spec.pairs, spec.min_margin)
    for score in ANSWER_SCORES:
        values = _sampled(source, score) if score in names else []
        if values and _are_score_lists(score, values):
            marks = {type(one) for value in values if isinstance(value, list) for one in value}
            if (name, score) == _STEPS and marks == {bool}:
                problem = f"{name} and {score} are the steps of one answer, as TRL has them"
                advice = "If they are answers, rename labels to scores"
                raise PreferenceError(f"{dataset}: {problem}, and which of them are right. {advice}.")
            return AnswerLayout(name, score, False, (), spec.pairs, spec.min_margin)
    for best in BEST_ANSWERS:
        indices = sampled(source.rows, best) if best in names else []
        start = _first_index(indices, _sampled(source, name)) if indices else None
        if start is not None:
            return AnswerLayout(name, best, False, (), spec.pairs, spec.min_margin, best_from=start)
    return None


def _refuse_scores(dataset: str, answers: str, score: str, values: Sequence[object]) -> None:
    problem = f'column "{score}" may say how good "{answers}" is, and its values are {shown(values)}'
    advice = f"Make them {GRADES_IN_WORDS}; or name the columns of a pair with `chosen_column` and"
    raise PreferenceError(f"{dataset}: {problem}. {advice} `rejected_column`.")


def _sampled(source: Source, name: str) -> list[object]:
    """Values of a column, parsed where they share no type or are lists written as text."""
    values = sampled(source.rows, name)
    parse = name in source.json_columns or _is_listed_text(source, name)
    return [value_of(value) for value in values] if parse else list(values)


def _is_listed_text(source: Source, name: str) -> bool:
    """Whether a column holds lists as text, as a table does."""
    values = [value for value in sampled(source.rows, name) if value]
    texts = [value for value in values if isinstance(value, str) and looks_dumped(value)]
    return len(texts) == len(values) and all(isinstance(parsed_or_none(text), list) for text in texts)


def value_of(text: object) -> object:
    """A value, parsed if it is text."""
    return parsed_or_none(text) if isinstance(text, str) else text


def _shared_columns(spec: DatasetSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Columns of the prompt, in which the rows of one prompt are equal; none without a prompt."""
    asked = ("prompt", *PROMPTS, spec.prompt_column)
    prompts = [name for name in names if name in asked and name not in COMPLETIONS]
    context = (*CONTEXT, spec.system_column, spec.tools_column)
    return (*prompts, *(name for name in names if name in context and name not in prompts)) if prompts else ()


def _first_index(indices: Sequence[object], answers: Sequence[object]) -> int | None:
    """Whether the indices of the best answer start at 0 or 1; None if neither fits, or both do."""
    both = [
        (index, texts) for index, texts in zip(indices, answers, strict=True) if index is not None and texts
    ]
    known = [(index, len(texts)) for index, texts in both if type(index) is int and isinstance(texts, list)]
    if not known or len(known) < len(both):
        return None
    fits = [all(start <= index < start + size for index, size in known) for start in (0, 1)]
    return fits.index(True) if sum(fits) == 1 else None


def _is_order(ranks: object) -> bool:
    """Whether a list means one thing as ranks and another as the numbers of answers in order."""
    known = [rank for rank in map(number, ranks if isinstance(ranks, list) else []) if rank is not None]
    order = [sorted(known).index(rank) for rank in known]
    return len(set(order)) == len(order) and any(order[place] != i for i, place in enumerate(order))


def _are_scores(values: Sequence[object]) -> bool:
    return all(map(_is_score, values))


def _is_score(value: object) -> bool:
    return is_missing(value) or grade(value) is not None


def _are_score_lists(name: str, values: Sequence[object]) -> bool:
    are_lists = all(value is None or (isinstance(value, list) and _are_scores(value)) for value in values)
    return are_lists and not (name in _ORDERS and any(map(_is_order, values)))
