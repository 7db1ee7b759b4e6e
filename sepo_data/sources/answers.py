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

from ..errors import PreferenceError
from ..files import text_sha256
from ..reasons import Reason, Unusable
from ..schema import Row
from .answer_layouts import AnswerLayout, value_of
from .column_kinds import ANSWER_KEYS
from .mending import UNUSABLE, made_anew
from .opening import Source
from .scores import grade

if TYPE_CHECKING:
    import datasets

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


def _parsed(row: dict[str, object], columns: frozenset[str]) -> dict[str, object]:
    return {**row, **{name: value_of(row[name]) for name in columns.intersection(row)}}


def paired(dataset: str, source: Source, layout: AnswerLayout) -> Source:
    """The source with a pair in every row, as ``chosen`` and ``rejected``; the answer columns are dropped.

    Raises:
        PreferenceError: If no prompt has two answers that differ, or the cache cannot be written.
    """
    made = made_anew(source, partial(_batches, source, layout), repr(layout))
    if not made.rows.data.column(UNUSABLE).null_count:
        problem = f"no prompt has two answers in {layout.answers} that differ in {layout.score}"
        advice = "Take a dataset with pairs"
        if layout.min_margin:
            problem, advice = (
                f"{problem} by {layout.min_margin:g}",
                "Lower `min_margin`, or take one with pairs",
            )
        raise PreferenceError(f"{dataset}: {problem}, so its rows make no pairs. {advice}.")
    return replace(made, pairs_from=layout.words)


def _batches(
    source: Source, layout: AnswerLayout, repairs: dict[str, int]
) -> Iterator[list[dict[str, object]]]:
    for groups in _groups(source.rows, layout):
        batch: list[dict[str, object]] = []
        for texts in groups:
            group = [_parsed(row, source.json_columns | layout.from_text) for row in texts]
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
