"""An annotated dataset's rows as arrays: bounds, rewards and masks of the oracle's tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import SettingsError
from ..projection import Bounds, partition
from ..rules.groups import RatioBy
from ..schema import SIDES, Side, Sides, token_fields
from ..selection import Mask, SelectionRule

if TYPE_CHECKING:
    import datasets

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Annotation:
    """What the dataset stores of one response, see `schema`: ``S`` tokens of the oracle, and the end.

    Attributes:
        bounds: Where its tokens begin and end, ``(S + 1,)``, from `projection.partition`.
        token_rewards: ``(S,)``, nats.
        token_mask: ``(S,)``.
        eos_reward: None if the oracle never saw the end of the turn.
        eos_mask: The same.
    """

    bounds: Bounds
    token_rewards: npt.NDArray[np.float64]
    token_mask: Mask
    eos_reward: float | None
    eos_mask: bool | None


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
        Annotation(partition(start, end), rewards.astype(np.float64), mask, eos_reward, eos_mask)
        for start, end, rewards, mask, eos_reward, eos_mask in zip(*columns, *of_end, strict=True)
    ]


def group_values(table: pa.Table, selection: SelectionRule) -> list[object]:
    """What each row has in the column that decides on its ratio; None where none does."""
    if selection.ratio_by is None:
        return [None] * table.num_rows
    values: list[object] = table[selection.ratio_by.column].to_pylist()
    return values


def check_groups(rows: "datasets.Dataset", ratio_by: RatioBy, name: str) -> None:
    """Make sure that the column is there and every group occurs; ``name`` is what a message calls the rows.

    Raises:
        SettingsError: Naming what does not.
    """
    if ratio_by.column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise SettingsError(
            f"{name}: no column {ratio_by.column}. Correct --ratio-by; the columns are {columns}."
        )
    values: set[object] = set()
    for table in rows.select_columns([ratio_by.column]).with_format("arrow").iter(ROWS_AT_ONCE):
        values.update(table[ratio_by.column].unique().to_pylist())
    ratio_by.check_groups(values, name)
