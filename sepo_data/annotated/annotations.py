"""An annotated dataset's rows as arrays: bounds, rewards and masks of the oracle's tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SettingsError
from ..pieces import OneText, Piece, one_text
from ..projection import TICKS, Bounds, partition
from ..rules.groups import RatioBy
from ..schema import PAIR_COLUMNS, SIDES, Side, Sides, annotation_columns, piece_fields, token_fields
from ..selection import Mask, SelectionRule

if TYPE_CHECKING:
    import datasets

ROWS_AT_ONCE = 1000

Numbers = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Annotation:
    """What the dataset stores for one response, see `schema`: ``S`` tokens of the oracle, and the end.

    Attributes:
        pieces: The texts that its tokens are in.
        bounds: Where its tokens begin and end in their concatenation, ``(S + 1,)``, from
            `projection.partition`.
        token_rewards: ``(S,)``, nats.
        token_mask: ``(S,)``.
        eos_reward: None if the oracle never saw the end of the turn.
        eos_mask: The same.
    """

    pieces: tuple[Piece, ...]
    bounds: Bounds
    token_rewards: npt.NDArray[np.float64]
    token_mask: Mask
    eos_reward: float | None
    eos_mask: bool | None

    def over(self, pieces: Sequence[Piece]) -> "Annotation":
        """The same rewards on another selection of the response's texts, concatenated.

        Rewards in none of them are left out; texts without rewards become one token whose reward is NaN.
        """
        if all(mine[:3] == other[:3] for mine, other in zip(self.pieces, pieces, strict=False)):
            return self  # one of the two was cut earlier, if they differ
        found = [self._in_piece(piece, offset) for piece, offset in zip(pieces, _starts(pieces), strict=True)]
        bounds = np.concatenate([np.zeros(1, np.int64), *(ends for ends, _, _ in found)])
        rewards, masks = (np.concatenate([part[i] for part in found]) for i in (1, 2))
        return replace(self, pieces=tuple(pieces), bounds=bounds, token_rewards=rewards, token_mask=masks)

    def _in_piece(self, piece: Piece, offset: int) -> tuple[Bounds, npt.NDArray[np.float64], Mask]:
        """Upper bounds, rewards and masks of the tokens in a piece, and of the parts without tokens."""
        lo, hi = offset * TICKS, (offset + piece.size) * TICKS
        nothing = np.array([hi]), np.array([np.nan]), np.zeros(1, dtype=bool)
        places = [mine[:2] for mine in self.pieces]
        if piece[:2] not in places:
            return nothing
        at = places.index(piece[:2])
        mine, start = self.pieces[at], _starts(self.pieces)[at] * TICKS
        here = (self.bounds[:-1] >= start) & (self.bounds[:-1] < start + mine.size * TICKS)
        moved = lo - start + (mine.begins - piece.begins) * TICKS
        lower, upper = (
            np.clip(bounds[here] + moved, lo, hi) for bounds in (self.bounds[:-1], self.bounds[1:])
        )
        kept = upper > lower
        if not kept.any():
            return nothing
        share = (upper - lower) / (self.bounds[1:] - self.bounds[:-1])[here]
        ends, rewards, mask = (
            upper[kept],
            (self.token_rewards[here] * share)[kept],
            self.token_mask[here][kept],
        )
        if lower[kept][0] > lo:
            ends = np.append(lower[kept][0], ends)
            rewards, mask = np.append(np.nan, rewards), np.append(False, mask)
        if ends[-1] < hi:
            ends, rewards, mask = np.append(ends, hi), np.append(rewards, np.nan), np.append(mask, False)
        return ends, rewards, mask


def _starts(pieces: Sequence[Piece]) -> list[int]:
    """Where each begins when they are concatenated."""
    return [0, *accumulate(piece.size for piece in pieces)][:-1]


def read_annotations(table: pa.Table) -> list[Sides[Annotation]]:
    """The annotations of an Arrow table in the schema of an annotated dataset, row by row."""
    chosen, rejected = (_read_side(table, side) for side in SIDES)
    return [Sides(*both) for both in zip(chosen, rejected, strict=True)]


def _read_side(table: pa.Table, side: Side) -> list[Annotation]:
    columns = []
    for field in token_fields(side):
        lists = table[field.name].combine_chunks()
        ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))
        columns.append(np.split(lists.flatten().to_numpy(zero_copy_only=False), ends)[:-1])
    of_end = [table[f"{side}_eos_{name}"].to_pylist() for name in ("reward", "mask")]
    return [
        Annotation(pieces, partition(start, end), rewards.astype(np.float64), mask, eos_reward, eos_mask)
        for (pieces, start, end), rewards, mask, eos_reward, eos_mask in zip(
            spans_as_one(table, side, columns[0], columns[1]), *columns[2:], *of_end, strict=True
        )
    ]


def spans_as_one(
    table: pa.Table, side: Side, starts: Sequence[Numbers], ends: Sequence[Numbers]
) -> Iterator[tuple[tuple[Piece, ...], Numbers, Numbers]]:
    """Each row's pieces, and its tokens' spans in their concatenation.

    Args:
        table: Rows of an annotated dataset.
        side: Which responses.
        starts: First code point of each token in its own text, ``(T,)`` a row.
        ends: One past the last one.
    """
    names = [field.name for field in piece_fields(side) if field.name in table.column_names]
    places = [table[name].to_pylist() for name in names] or [[None] * table.num_rows] * 2
    messages = pa.types.is_nested(table[side].type)
    counts = pc.list_value_length(table[side]).to_pylist() if messages else [1] * table.num_rows
    for row, (start, end, *place) in enumerate(zip(starts, ends, *places, strict=True)):
        if place == [None, None]:
            begins = int(start[0])
            yield (
                (Piece(counts[row] - 1, "content", begins, int(end[-1]) - begins),),
                start - begins,
                end - begins,
            )
        else:
            whole = one_text(table[side][row].as_py(), start, end, *place)
            yield whole.pieces, whole.start, whole.end


def scored_texts(table: pa.Table, side: Side) -> Iterator[OneText]:
    """Each row's scored texts, concatenated, and its tokens' spans in them."""
    names = [field.name for field in piece_fields(side) if field.name in table.column_names]
    places = [table[name].to_pylist() for name in names] or [[None] * table.num_rows] * 2
    columns = [table[name].to_pylist() for name in (side, f"{side}_token_start", f"{side}_token_end")]
    for row in zip(*columns, *places, strict=True):
        yield one_text(*row)


def group_values(table: pa.Table, selection: SelectionRule) -> list[object]:
    """Each row's value in the column that decides its ratio; None if no column does."""
    if selection.ratio_by is None:
        return [None] * table.num_rows
    values: list[object] = table[selection.ratio_by.column].to_pylist()
    return values


def other_columns(names: Sequence[str]) -> list[str]:
    """The columns of an annotated dataset that are neither the pair nor its annotation."""
    return [name for name in names if name not in annotation_columns().union(PAIR_COLUMNS)]


def check_groups(rows: "datasets.Dataset", ratio_by: RatioBy, name: str) -> None:
    """Check that the column exists and every group occurs; ``name`` is the dataset's name in messages.

    Raises:
        SettingsError: Naming what does not.
    """
    if ratio_by.column not in rows.column_names:
        columns = ", ".join(other_columns(rows.column_names)) or "none"
        raise SettingsError(
            f"{name}: no column {ratio_by.column}. Correct `ratio_by`; the source has {columns}."
        )
    values: set[object] = set()
    for table in rows.select_columns([ratio_by.column]).with_format("arrow").iter(ROWS_AT_ONCE):
        values.update(table[ratio_by.column].unique().to_pylist())
    ratio_by.check_groups(values, name)
