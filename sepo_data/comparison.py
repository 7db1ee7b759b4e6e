"""Compare two annotations of the same pairs: do they rank and select the same tokens?

Oracles, precisions and tokenizers may differ: rewards of the second are projected onto the
tokens of the first. Pairs are matched by their
texts, since each may have dropped different ones.
"""

import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .annotated.annotations import Annotation, read_annotations
from .errors import SchemaError
from .files import text_sha256
from .pieces import parsed_json
from .projection import overlaps, project
from .schema import PAIR_COLUMNS, SIDES, Message, Sides

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


ROWS_AT_ONCE = 500
ROUNDING = 0.01  # nats, as in `verification`
RANKED = 3  # tokens of a response below which its ranks are meaningless


@dataclass(frozen=True)
class SideComparison:
    """Figures of the chosen or the rejected responses.

    Attributes:
        rank_correlation: Spearman's, of the token rewards of a response: the mean over all
            responses of three tokens or more. NaN if there are none.
        mask_overlap: Characters selected by both over characters selected by either.
        same_tokens: Share of the responses whose tokens have the same spans in both.
        largest_difference: Of a token's reward in nats, where spans are the same; NaN if nowhere.
    """

    rank_correlation: float
    mask_overlap: float
    same_tokens: float
    largest_difference: float


@dataclass(frozen=True)
class Comparison:
    """Metrics of two annotations.

    Attributes:
        pairs: Pairs in both.
        only_first: Pairs that the second does not have.
        only_second: Pairs that the first does not have.
        accuracies: Share of the common pairs that each orders like the labels.
        agreement: Share of the common pairs that both order the same way.
        chosen: Figures of the chosen responses.
        rejected: Figures of the rejected ones.
    """

    pairs: int
    only_first: int
    only_second: int
    accuracies: tuple[float, float]
    agreement: float
    chosen: SideComparison
    rejected: SideComparison

    @property
    def same(self) -> bool:
        """Whether pairs, tokens and masks are the same, and rewards up to rounding."""
        sides = (self.chosen, self.rejected)
        return not self.only_first + self.only_second and all(
            side.same_tokens == 1
            and math.isclose(side.mask_overlap, 1)
            and side.largest_difference <= ROUNDING
            for side in sides
        )


@dataclass
class _SideSums:
    correlations: list[float] = field(default_factory=list)
    common: int = 0
    either: int = 0
    same: int = 0
    largest: float = float("nan")

    def add(self, first: Annotation, second: Annotation) -> None:
        other = project(second.token_rewards, second.bounds, first.bounds)
        known = ~np.isnan(other)
        if known.sum() >= RANKED:
            self.correlations.append(_spearman(first.token_rewards[known], other[known]))
        shared = overlaps(first.bounds, second.bounds)
        masks = first.token_mask[shared.source], second.token_mask[shared.target]
        self.common += int(shared.ticks[masks[0] & masks[1]].sum())
        self.either += int(shared.ticks[masks[0] | masks[1]].sum())
        if np.array_equal(first.bounds, second.bounds):
            self.same += 1
            difference = np.abs(first.token_rewards - second.token_rewards).max()
            self.largest = float(np.fmax(self.largest, difference))

    def figures(self, pairs: int) -> SideComparison:
        """Correlations of constant rewards are NaN and left out."""
        correlations = np.array(self.correlations)
        known = correlations[~np.isnan(correlations)]
        return SideComparison(
            rank_correlation=float(known.mean()) if known.size else float("nan"),
            mask_overlap=self.common / self.either if self.either else float("nan"),
            same_tokens=self.same / pairs,
            largest_difference=self.largest,
        )


def compare_annotations(first: "datasets.Dataset", second: "datasets.Dataset") -> Comparison:
    """Compare two annotations of the same pairs.

    Args:
        first: An annotated dataset; rewards are compared at its tokens.
        second: Another.

    Raises:
        SchemaError: If they have no pair in common.
    """
    places = pair_places(second)
    sums = Sides(_SideSums(), _SideSums())
    margins: list[tuple[float, float]] = []
    for table in first.with_format("arrow").iter(ROWS_AT_ONCE):
        rows = [(row, places[key].popleft()) for row, key in enumerate(pair_keys(table)) if places.get(key)]
        if not rows:
            continue
        ours = table.take([row for row, _ in rows])
        theirs: pa.Table = second.with_format("arrow")[[place for _, place in rows]]
        for one, other in zip(read_annotations(ours), read_annotations(theirs), strict=True):
            for side in SIDES:
                sums[side].add(one[side], other[side])
        margins += zip(_margins(ours), _margins(theirs), strict=True)
    if not margins:
        raise SchemaError("the two datasets have no pair in common. Give annotations of the same pairs.")
    ordered = np.sign(np.array(margins))  # (pairs, 2)
    return Comparison(
        pairs=len(margins),
        only_first=len(first) - len(margins),
        only_second=len(second) - len(margins),
        accuracies=(float((ordered[:, 0] > 0).mean()), float((ordered[:, 1] > 0).mean())),
        agreement=float((ordered[:, 0] == ordered[:, 1]).mean()),
        chosen=sums["chosen"].figures(len(margins)),
        rejected=sums["rejected"].figures(len(margins)),
    )


def pair_places(rows: "datasets.Dataset") -> dict[str, deque[int]]:
    """The position of each pair; repeated pairs are matched in order."""
    found: dict[str, deque[int]] = {}
    place = 0
    for table in rows.with_format("arrow").iter(ROWS_AT_ONCE):
        for key in pair_keys(table):
            found.setdefault(key, deque()).append(place)
            place += 1
    return found


def pair_keys(table: "pa.Table") -> Iterator[str]:
    """Hashes of the pairs' texts."""
    for row in table.select([*PAIR_COLUMNS]).to_pylist():
        yield text_sha256(json.dumps([_texts(row[name]) for name in PAIR_COLUMNS], ensure_ascii=True))


def _texts(value: str | list[Message]) -> str | list[list[object]]:
    """A text, or the role and content of each message: other keys depend on the reader."""
    if isinstance(value, str):
        return value
    return [[message["role"], message["content"]] for message in map(parsed_json, value)]


def _margins(table: "pa.Table") -> npt.NDArray[np.float64]:
    chosen, rejected = (np.asarray(table[f"{side}_reward"].to_numpy(), np.float64) for side in SIDES)
    return chosen - rejected


def _spearman(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Pearson's correlation of the ranks; NaN where one side is constant."""
    ranks = np.stack([_ranks(first), _ranks(second)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=1).prod())
    return float(centred[0] @ centred[1] / spread) if spread else float("nan")


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: npt.NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return means[places]
