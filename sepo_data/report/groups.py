"""Figures for each value of a column: do some rows need another ratio or another oracle?"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import SettingsError
from ..schema import Sides
from .flat import FlatSide

MOST_VALUES = 200

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Figures of the rows with one value of a column.

    Attributes:
        value: The value, as text.
        pairs: Number of rows.
        accuracy: Share of rows whose chosen response has the larger reward.
        margin: Mean of chosen reward minus rejected reward, nats.
        tokens: Mean number of tokens per response.
        carried: Share of the sum of |reward| on the selected tokens, for each side.
    """

    value: str
    pairs: int
    accuracy: float
    margin: float
    tokens: float
    carried: Sides[float]


@dataclass
class GroupMeter:
    """Sums up rows by the value of a column; does nothing without a column."""

    column: str | None
    sums: dict[str, Numbers] = field(default_factory=dict)

    def add(self, table: pa.Table, margins: Numbers, sides: Sides[FlatSide]) -> None:
        """Add the rows of a table, given their margins in nats, ``(rows,)``, and their tokens.

        Raises:
            SettingsError: If the column has more than `MOST_VALUES` values.
        """
        if self.column is None:
            return
        values = [str(value) for value in table[self.column].to_pylist()]
        figures = [np.ones_like(margins), margins > 0, margins]
        for side in sides:
            sizes = np.abs(side.rewards)
            figures += [
                side.sizes,
                *(np.add.reduceat(each, side.firsts) for each in (sizes, sizes * side.mask)),
            ]
        for value, row in zip(values, np.stack(figures, axis=1), strict=True):
            self.sums[value] = self.sums.get(value, 0.0) + row
        if len(self.sums) > MOST_VALUES:
            raise SettingsError(
                f"column {self.column} has more than {MOST_VALUES} values. Give `by` a column with few, "
                "such as a category."
            )

    def groups(self) -> list[Group]:
        """The groups, largest first."""
        found = []
        for value, (pairs, right, margin, *of_sides) in self.sums.items():
            tokens, sizes, carried = np.reshape(of_sides, (2, 3)).T
            found.append(
                Group(
                    value=value,
                    pairs=int(pairs),
                    accuracy=float(right / pairs),
                    margin=float(margin / pairs),
                    tokens=float(tokens.sum() / pairs / 2),
                    carried=Sides(*(carried / np.where(sizes, sizes, 1.0)).tolist()),
                )
            )
        return sorted(found, key=lambda group: (-group.pairs, group.value))
