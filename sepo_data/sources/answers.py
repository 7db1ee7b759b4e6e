"""Build pairs from several scored or ranked answers to a prompt: a list in one row, or one answer per row.

With a list, each row yields its own pairs; with one answer per row, the rows that share a prompt do. Fields
of an answer, above all its score, are kept under their names with ``chosen_`` or ``rejected_`` prepended.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..dataset_spec import DatasetSpec, PairsOf
from ..errors import PreferenceError
from ..files import text_sha256
from ..pieces import parsed_json
from ..reasons import Reason, Unusable
from ..schema import Row
from .column_kinds import ANSWER_KEYS, sampled
from .column_names import ANSWER_SCORES, ANSWERS, BEST_ANSWERS, COMPLETIONS, CONTEXT, PROMPTS
from .mending import UNUSABLE, made_anew
from .opening import Source
from .verdicts import grade, number

if TYPE_CHECKING:
    import datasets

_ORDERS = ("ranking", "rankings")  # the rank of each answer, or the numbers of the answers from best to worst
TIES = "pairs of answers with equal scores, left out"
SMALL = "pairs of answers with a margin below the smallest one allowed, left out"
_BATCH_ROWS = 1000


@dataclass(frozen=True)
class Answer:
    """One of several answers.

    Attributes:
        content: Its text or messages.
        score: Higher is better.
        about: Its other fields: the score as stored, the model, …
    """

    content: object
    score: float
    about: dict[str, object]


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
        best_from: If ``score`` holds the index of the best answer: where indices start, 0 or 1.
    """

    answers: str
    score: str
    inside: bool
    prompts: tuple[str, ...]
    pairs: PairsOf
    min_margin: float | None
    best_from: int | None = None

    @property
    def words(self) -> str:
        """Description for the manifest."""
        of = f"{self.answers} of one prompt" if self.prompts else self.answers
        least = "" if self.min_margin is None else f", from a margin of {self.min_margin:g}"
        return f"{self.pairs} of {of}, by {self.score}{least}"


def find_answers(source: Source, spec: DatasetSpec, names: Sequence[str]) -> AnswerLayout | None:
    """Find several scored answers by column names and values; None if there are none."""
    lists = [name for name in ANSWERS if name in names]
    for name in lists:
        values = [value for value in _sampled(source, name) if value]
        lists_in = [value for value in values if isinstance(value, list)]
        if not values or len(lists_in) < len(values):
            continue
        items = [item for value in lists_in for item in value if item]
        for score in ANSWER_SCORES:
            inside = [item.get(score) for item in items if isinstance(item, Mapping)]
            if len(inside) == len(items) and any(one is not None for one in inside) and _are_scores(inside):
                return AnswerLayout(name, score, True, (), spec.pairs, spec.min_margin)
        for score in ANSWER_SCORES:
            if score in names and _are_score_lists(score, _sampled(source, score)):
                return AnswerLayout(name, score, False, (), spec.pairs, spec.min_margin)
        for best in BEST_ANSWERS:
            indices = sampled(source.rows, best) if best in names else []
            start = _first_index(indices, _sampled(source, name)) if indices else None
            if start is not None:
                return AnswerLayout(name, best, False, (), spec.pairs, spec.min_margin, start)
    prompts = _shared_columns(spec, names)
    for name in COMPLETIONS:
        if name in names and prompts:
            for score in ANSWER_SCORES:
                values = sampled(source.rows, score) if score in names else []
                if any(value is not None for value in values) and _are_scores(values):
                    return AnswerLayout(name, score, False, prompts, spec.pairs, spec.min_margin)
    return None


def _sampled(source: Source, name: str) -> list[object]:
    """Values of a column, parsed where they share no type."""
    values = sampled(source.rows, name)
    return [parsed_json(value) for value in values] if name in source.json_columns else list(values)


def _parsed(row: dict[str, object], json_columns: frozenset[str]) -> dict[str, object]:
    return {**row, **{name: parsed_json(row[name]) for name in json_columns.intersection(row)}}


def _shared_columns(spec: DatasetSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Columns of the prompt, in which the rows of one prompt are equal; none without a prompt."""
    asked = ("prompt", *PROMPTS, spec.prompt_column)
    prompts = [name for name in names if name in asked and name not in COMPLETIONS]
    context = (*CONTEXT, spec.system_column, spec.tools_column)
    return (*prompts, *(name for name in names if name in context and name not in prompts)) if prompts else ()


def paired(dataset: str, source: Source, layout: AnswerLayout) -> Source:
    """The source with a pair in every row, as ``chosen`` and ``rejected``; the answer columns are dropped.

    Raises:
        PreferenceError: If no prompt has two answers, or the cache cannot be written.
    """
    made = made_anew(source, partial(_batches, source, layout), repr(layout))
    if layout.prompts and not made.rows.data.column(UNUSABLE).null_count:
        problem = f"no prompt has two answers in {layout.answers} that differ in {layout.score}"
        raise PreferenceError(f"{dataset}: {problem}, so its rows make no pairs. Take a dataset with pairs.")
    return replace(made, pairs_from=layout.words)


def _batches(
    source: Source, layout: AnswerLayout, repairs: dict[str, int]
) -> Iterator[list[dict[str, object]]]:
    for groups in _groups(source.rows, layout):
        batch: list[dict[str, object]] = []
        for texts in groups:
            group = [_parsed(row, source.json_columns) for row in texts]
            answers = _answers(group, layout)
            others = _others(group[0], layout)
            pairs = [] if isinstance(answers, Unusable) else list(_pairs(answers, layout, repairs))
            batch += [
                {
                    **others,
                    "chosen": better.content,
                    "rejected": worse.content,
                    **{f"chosen_{key}": value for key, value in better.about.items()},
                    **{f"rejected_{key}": value for key, value in worse.about.items()},
                    UNUSABLE: None,
                }
                for better, worse in pairs
            ]
            if not pairs:
                reason = answers.reason if isinstance(answers, Unusable) else Reason.TIE
                batch.append({**others, UNUSABLE: str(reason)})
        yield batch


def _groups(rows: "datasets.Dataset", layout: AnswerLayout) -> Iterator[list[list[dict[str, object]]]]:
    """Groups of rows that yield pairs together, in batches, ordered by first row."""
    table = rows.with_format("arrow")
    if not layout.prompts:
        for batch in table.iter(batch_size=_BATCH_ROWS):
            yield [[row] for row in batch.to_pylist()]
        return
    hashes = np.concatenate(
        [
            np.array([int(text_sha256(repr(row))[:15], 16) for row in batch.to_pylist()], dtype=np.int64)
            for batch in rows.select_columns(list(layout.prompts)).with_format("arrow").iter(_BATCH_ROWS)
        ]
    )
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    by_first_row = np.argsort(order[starts])
    for some in np.array_split(by_first_row, -(-len(starts) // _BATCH_ROWS)):
        members = [order[starts[group] : ends[group]] for group in some]
        found = iter(table[np.concatenate(members).tolist()].to_pylist())
        yield [[next(found) for _ in group] for group in members]


def _answers(group: Sequence[Row], layout: AnswerLayout) -> list[Answer] | Unusable:
    """The answers in a row or in the rows of a prompt; those without text or score are skipped."""
    row = group[0]
    if layout.prompts:
        own = (layout.answers, *layout.prompts)
        given = [
            (one[layout.answers], one[layout.score], {k: v for k, v in one.items() if k not in own})
            for one in group
        ]
    elif layout.inside:
        given = [(item, item.get(layout.score), _scalars(item)) for item in row[layout.answers] or [] if item]
    else:
        scores = row[layout.score] or []
        if layout.best_from is None and len(scores) != len(row[layout.answers] or []):
            return Unusable(Reason.ONE_ANSWER)  # their owner is unknown
        if layout.best_from is not None:
            best = row[layout.score]
            scores = [place + layout.best_from == best for place, _ in enumerate(row[layout.answers] or [])]
        given = [
            (item, score, {layout.score.removesuffix("s"): score})
            for item, score in zip(row[layout.answers] or [], scores, strict=False)
        ]
    sign = -1 if layout.score.startswith("rank") else 1
    answers = [
        Answer(content, sign * value, about)
        for item, score, about in given
        if (content := _content(item)) and (value := grade(score)) is not None
    ]
    return answers if len(answers) > 1 else Unusable(Reason.ONE_ANSWER)


def _pairs(
    answers: Sequence[Answer], layout: AnswerLayout, repairs: dict[str, int]
) -> Iterator[tuple[Answer, Answer]]:
    """Pairs (better, worse) as the layout asks; of equal scores the earlier answer ranks first."""
    ranked = sorted(answers, key=lambda answer: -answer.score)
    found = {
        "best-worst": [(ranked[0], ranked[-1])],
        "adjacent": list(pairwise(ranked)),
        "all": list(combinations(ranked, 2)),
    }[layout.pairs]
    for better, worse in found:
        margin = better.score - worse.score
        left_out = TIES if margin == 0 else SMALL if margin < (layout.min_margin or 0) else None
        if left_out is None:
            yield better, worse
        else:
            repairs[left_out] = repairs.get(left_out, 0) + 1


def _content(item: object) -> object:
    """The text or messages of an answer."""
    if not isinstance(item, Mapping):
        return item
    return next((item[key] for key in ANSWER_KEYS if item.get(key)), None)


def _scalars(item: Mapping[str, object]) -> dict[str, object]:
    return {
        key: value
        for key, value in item.items()
        if key not in ANSWER_KEYS and not isinstance(value, list | dict)
    }


def _others(row: Mapping[str, object], layout: AnswerLayout) -> dict[str, object]:
    """The columns of a row other than its answers."""
    if layout.prompts:
        return {name: row[name] for name in layout.prompts}
    left_out = (layout.answers,) if layout.inside else (layout.answers, layout.score)
    return {name: value for name, value in row.items() if name not in left_out}


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
    return all(value is None or grade(value) is not None for value in values)


def _are_score_lists(name: str, values: Sequence[object]) -> bool:
    are_lists = all(value is None or (isinstance(value, list) and _are_scores(value)) for value in values)
    return are_lists and not (name in _ORDERS and any(map(_is_order, values)))
