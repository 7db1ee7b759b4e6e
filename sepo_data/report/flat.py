"""All tokens of one side of many rows as flat arrays, including ends of turns."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..annotated.annotations import scored_texts
from ..schema import Side
from .kinds import END, Kinds, token_kinds

ScalarT = TypeVar("ScalarT", bound=np.generic)

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FlatSide:
    """Concatenated tokens of rows; if the end of the turn was reached, it is the last token of its row.

    Attributes:
        rewards: Rewards in nats, ``(T,)``.
        mask: Whether each token is selected, ``(T,)``.
        kinds: Indices into `KINDS`, ``(T,)``.
        texts: Their texts, ``(T,)``; empty for the end of the turn.
        sizes: Number of tokens in each row, ``(rows,)``, at least 1.
    """

    rewards: Numbers
    mask: Mask
    kinds: Kinds
    texts: list[str]
    sizes: Counts

    @property
    def firsts(self) -> Counts:
        """Index of the first token of each row, ``(rows,)``."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def rows(self) -> Counts:
        """Row of each token, counted from 0, ``(T,)``."""
        return np.repeat(np.arange(self.sizes.size), self.sizes)

    @property
    def positions(self) -> Counts:
        """Position of each token in its response, ``(T,)``."""
        return np.arange(self.rewards.size) - np.repeat(self.firsts, self.sizes)


def flat_side(table: pa.Table, side: Side) -> FlatSide:
    """The tokens of one side of a table in the schema of an annotated dataset."""
    column = {name: table[f"{side}_token_{name}"] for name in ("rewards", "mask")}
    rewards, mask = (pc.list_flatten(column[name]).to_numpy() for name in ("rewards", "mask"))
    lengths = np.asarray(pc.list_value_length(column["mask"]).to_numpy(), dtype=np.int64)
    ended = table[f"{side}_eos_reward"].is_valid().to_numpy()
    sizes = lengths + ended
    is_end = np.zeros(sizes.sum(), dtype=bool)
    is_end[(np.cumsum(sizes) - 1)[ended]] = True
    wholes = list(scored_texts(table, side))
    token_texts = np.full(is_end.size, "", dtype=object)
    token_texts[~is_end] = [
        whole.text[start:end]
        for whole in wholes
        for start, end in zip(whole.start.tolist(), whole.end.tolist(), strict=True)
    ]
    kinds = np.full(is_end.size, END, dtype=np.uint8)
    kinds[~is_end] = token_kinds(wholes)
    return FlatSide(
        rewards=_with_ends(rewards.astype(np.float64), table[f"{side}_eos_reward"], is_end),
        mask=_with_ends(mask, table[f"{side}_eos_mask"], is_end),
        kinds=kinds,
        texts=token_texts.tolist(),
        sizes=sizes,
    )


def _with_ends(values: npt.NDArray[ScalarT], ends: pa.ChunkedArray, is_end: Mask) -> npt.NDArray[ScalarT]:
    found = np.empty(is_end.size, dtype=values.dtype)
    found[~is_end] = values
    found[is_end] = ends.drop_null().to_numpy()
    return found
