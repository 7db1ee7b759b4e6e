"""Statistics of an annotated dataset, over all of its rows in one pass.

Memory does not grow with the number of tokens: only two numbers per row are kept (margin and length
difference), and tokens are only counted. The end of the turn counts as a token everywhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ..annotated.health import Health, HealthMeter
from ..rules.cutoffs import RewardCounts
from ..rules.shares import tokens_in_share
from ..schema import SIDES, Side, Sides
from .flat import Counts, FlatSide, Numbers, flat_side
from .groups import Group, GroupMeter
from .kinds import KINDS

RATIOS = (0.01, *(step / 20 for step in range(1, 21)))  # at which the share of |reward| carried is measured
POSITIONS = 20  # parts of a response, of equal length
BARS = 60  # bins of the histogram of rewards


@dataclass(frozen=True)
class TokenCount:
    """Tokens with the same text: their count, their mean reward in nats, how many are selected.

    The text is empty for the end of the turn.
    """

    text: str
    count: int
    reward: float
    selected: int


@dataclass(frozen=True)
class SideStatistics:
    """Statistics of all chosen or all rejected responses.

    Attributes:
        tokens: Number of tokens.
        selected: Number of selected tokens.
        histogram: Tokens by reward, ``(BARS,)``, between `Statistics.edges`.
        carried: Share of the sum of |reward| on the tokens that `select_tokens` selects at each of `RATIOS`.
        by_position: Mean reward by relative position, ``(POSITIONS,)``, nats; NaN where there is no token.
        kind_tokens: Tokens of each of `KINDS`.
        kind_selected: Selected tokens of each of `KINDS`.
        texts: Every token text, the most frequent first.
    """

    tokens: int
    selected: int
    histogram: Counts
    carried: Numbers
    by_position: Numbers
    kind_tokens: Counts
    kind_selected: Counts
    texts: list[TokenCount]


@dataclass(frozen=True)
class Statistics:
    """Statistics of a dataset.

    Attributes:
        health: Metrics of the oracle.
        margins: Chosen reward minus rejected reward of each row, ``(rows,)``, nats.
        longer: Tokens of the chosen response minus those of the rejected one, ``(rows,)``.
        edges: Bin edges of the histogram of token rewards, ``(BARS + 1,)``, nats; one token in a thousand
            lies beyond each end.
        scale: |reward| at which the heat map's colours saturate, in nats; one token in thirty exceeds it.
        sides: Statistics of each side.
        groups: Figures for each value of a column; empty if no column was named.
    """

    health: Health
    margins: Numbers
    longer: Counts
    edges: Numbers
    scale: float
    sides: Sides[SideStatistics]
    groups: list[Group]


def measure(tables: Iterable[pa.Table], *, by: str | None = None) -> Statistics:
    """Compute the statistics of rows given as tables.

    Args:
        tables: Tables in the schema of an annotated dataset, with at least one row in all.
        by: Column whose groups are compared.

    Raises:
        SettingsError: If that column has too many values.
    """
    health, groups, meters = HealthMeter(), GroupMeter(by), Sides.of(_SideMeter)
    margins, longer = list[Numbers](), list[Counts]()
    for table in tables:
        sides = Sides(flat_side(table, "chosen"), flat_side(table, "rejected"))
        for side in SIDES:
            meters[side].add(sides[side])
        chosen, rejected = (table[f"{side}_reward"].to_numpy().astype(np.float64) for side in SIDES)
        health.add(table)
        groups.add(table, chosen - rejected, sides)
        margins.append(chosen - rejected)
        longer.append(sides.chosen.sizes - sides.rejected.sizes)
    both = RewardCounts(meters.chosen.rewards.counts + meters.rejected.rewards.counts)
    low, high = both.cutoff(0.999), both.cutoff(0.001)
    edges = np.linspace(low, high if high > low else low + max(1.0, abs(low)), BARS + 1)
    return Statistics(
        health=health.health(),
        margins=np.concatenate(margins),
        longer=np.concatenate(longer),
        edges=edges,
        scale=max(abs(both.cutoff(0.975)), abs(both.cutoff(0.025))) or 1.0,
        sides=meters.map(lambda meter: meter.statistics(edges)),
        groups=groups.groups(),
    )


@dataclass
class _SideMeter:
    """Adds up the tokens of one side."""

    side: Side
    rewards: RewardCounts = field(default_factory=RewardCounts)
    carried: Numbers = field(default_factory=lambda: np.zeros(len(RATIOS)))
    size: float = 0.0
    positions: Numbers = field(default_factory=lambda: np.zeros((2, POSITIONS)))  # tokens, sum of rewards
    kinds: Counts = field(default_factory=lambda: np.zeros((2, len(KINDS)), np.int64))  # tokens, selected
    texts: dict[str, Numbers] = field(default_factory=dict)  # tokens, sum of rewards, selected

    def add(self, tokens: FlatSide) -> None:
        """Count the tokens of some rows."""
        self.rewards.add(tokens.rewards)
        self.size += float(np.abs(tokens.rewards).sum())
        self.carried += _carried(tokens, highest=self.side == "chosen")
        part = ((tokens.positions + 0.5) / np.repeat(tokens.sizes, tokens.sizes) * POSITIONS).astype(np.int64)
        self.positions += [np.bincount(part, values, POSITIONS) for values in (None, tokens.rewards)]
        self.kinds += [
            np.bincount(kinds, minlength=len(KINDS)) for kinds in (tokens.kinds, tokens.kinds[tokens.mask])
        ]
        encoded = pa.array(tokens.texts, pa.string()).dictionary_encode()
        which = encoded.indices.to_numpy()
        sums = [np.bincount(which, values) for values in (None, tokens.rewards, tokens.mask)]
        for text, row in zip(encoded.dictionary.to_pylist(), np.stack(sums, axis=1), strict=True):
            self.texts[text] = self.texts.get(text, 0.0) + row

    def statistics(self, edges: Numbers) -> SideStatistics:
        """Statistics of everything added so far."""
        tokens, selected = self.kinds.sum(axis=1)
        seen, rewards = self.positions
        texts = [TokenCount(text, int(n), r / n, int(s)) for text, (n, r, s) in self.texts.items()]
        return SideStatistics(
            tokens=int(tokens),
            selected=int(selected),
            histogram=self.rewards.histogram(edges),
            carried=self.carried / (self.size or 1.0),
            by_position=np.divide(rewards, seen, out=np.full(POSITIONS, np.nan), where=seen > 0),
            kind_tokens=self.kinds[0],
            kind_selected=self.kinds[1],
            texts=sorted(texts, key=lambda text: (-text.count, text.text)),
        )


def _carried(tokens: FlatSide, *, highest: bool) -> Numbers:
    """The sum of |reward| on the tokens that `select_tokens` selects at each of `RATIOS`."""
    order = np.lexsort((-tokens.rewards if highest else tokens.rewards, tokens.rows))
    up_to = np.concatenate([[0.0], np.cumsum(np.abs(tokens.rewards[order]))])
    counts = tokens_in_share(np.array(RATIOS)[:, None], tokens.sizes)
    return np.asarray((up_to[tokens.firsts + counts] - up_to[tokens.firsts]).sum(axis=1))
