"""How good the oracle was on this data: metrics that tell whether the rewards are worth training on.

DPO's implicit rewards are guaranteed in their sum only and generalise badly out of
distribution (arXiv 2409.03650), so every run measures them: does the sum order the
pairs like the labels, does it track length, do the selected tokens carry the reward?
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..schema import SIDES

Numbers = npt.NDArray[np.float64]

# Below these a run warns. A coin toss gives one half, and a barely trained checkpoint
# 0.01 nats per token.
WEAK_ACCURACY = 0.55
WEAK_REWARD = 0.01
LENGTH_BIAS = 0.8
MUCH_TRUNCATED = 0.1  # of the responses


@dataclass(frozen=True)
class SideHealth:
    """Figures of the chosen or the rejected responses.

    Attributes:
        tokens: Scored tokens, the ends of turns included.
        selected: Share of them that are selected.
        reward_carried: Share of the sum of |reward| that the selected tokens carry.
        eos_selected: Share of the selected tokens that end a turn.
        truncated: Responses without an end of turn: cut at the maximum length, or at generation.
    """

    tokens: int
    selected: float
    reward_carried: float
    eos_selected: float
    truncated: int


@dataclass(frozen=True)
class Health:
    """Figures of a whole run.

    Attributes:
        pairs: Annotated pairs.
        accuracy: Share of pairs whose chosen response has the larger reward.
        inverted: Share of pairs whose rejected response has the larger reward.
        margin: Mean of chosen reward minus rejected reward, in nats.
        token_reward: Mean of |reward| over all tokens, in nats.
        length_correlation: Pearson correlation, over pairs, of the difference in
            reward with the difference in tokens; 0 where either never varies.
        chosen_longer: Share of pairs whose chosen response has more tokens.
        chosen: Figures of the chosen responses.
        rejected: Figures of the rejected ones.
    """

    pairs: int
    accuracy: float
    inverted: float
    margin: float
    token_reward: float
    length_correlation: float
    chosen_longer: float
    chosen: SideHealth
    rejected: SideHealth

    def warnings(self) -> list[str]:
        """Warnings to read before training."""
        found = []
        if self.accuracy < 1 - WEAK_ACCURACY:
            found.append(
                f"the oracle prefers the rejected response in {self.inverted:.0%} of the pairs. "
                "Are `oracle` and `ref` swapped, or chosen and rejected?"
            )
        elif self.accuracy < WEAK_ACCURACY:
            found.append(
                f"the oracle orders {self.accuracy:.0%} of the pairs like the labels, which is about "
                "chance. Use an oracle trained on data like this before you train on these masks."
            )
        for name in SIDES:
            truncated = getattr(self, name).truncated
            if truncated > MUCH_TRUNCATED * self.pairs:
                found.append(
                    f"{truncated:,} of {self.pairs:,} {name} responses were cut, and nothing after the cut "
                    "has a reward. If the dataset has them whole, raise `max_length`, or use models with a "
                    "longer context."
                )
        if self.token_reward < WEAK_REWARD:
            found.append(
                f"the rewards are near zero ({self.token_reward:.4f} nats per token): oracle and reference "
                "hardly differ. Train the oracle longer, or check that `oracle` is the trained one."
            )
        if abs(self.length_correlation) > LENGTH_BIAS:
            found.append(
                f"the rewards track length (correlation {self.length_correlation:+.2f}): the oracle may "
                "judge little else. Compare its accuracy with that of judging by length alone."
            )
        return found


@dataclass
class HealthMeter:
    """Adds up the metrics batch by batch, in constant memory."""

    pairs: int = 0
    right: int = 0
    inverted: int = 0
    chosen_longer: int = 0
    moments: Numbers = field(default_factory=lambda: np.zeros((3, 3)))
    sums: dict[str, Numbers] = field(default_factory=lambda: {side: np.zeros(6) for side in SIDES})

    def add(self, table: pa.Table) -> None:
        """Count the pairs of one Arrow table in the schema of an annotated dataset."""
        margin = _numbers(table["chosen_reward"]) - _numbers(table["rejected_reward"])
        tokens = {side: self._add_side(table, side) for side in SIDES}
        longer = tokens["chosen"] - tokens["rejected"]
        self.pairs += table.num_rows
        self.right += int((margin > 0).sum())
        self.inverted += int((margin < 0).sum())
        self.chosen_longer += int((longer > 0).sum())
        values = np.stack([np.ones_like(margin), margin, longer])
        self.moments += values @ values.T

    def _add_side(self, table: pa.Table, side: str) -> Numbers:
        size = np.abs(_numbers(pc.list_flatten(table[f"{side}_token_rewards"])))
        mask = _numbers(pc.list_flatten(table[f"{side}_token_mask"]))
        ended = _numbers(table[f"{side}_eos_reward"].is_valid())
        eos_size = np.abs(_numbers(table[f"{side}_eos_reward"]))
        eos_mask = _numbers(table[f"{side}_eos_mask"])
        self.sums[side] += [
            size.size + ended.sum(),
            mask.sum() + eos_mask.sum(),
            size.sum() + eos_size.sum(),
            (size * mask).sum() + (eos_size * eos_mask).sum(),
            eos_mask.sum(),
            (1 - ended).sum(),
        ]
        tokens = _numbers(pc.list_value_length(table[f"{side}_token_start"]))
        return tokens + ended

    def health(self) -> Health:
        """The figures of everything added."""
        sides = {}
        for side, (tokens, selected, size, carried, eos, truncated) in self.sums.items():
            sides[side] = SideHealth(
                tokens=int(tokens),
                selected=float(selected / tokens),
                reward_carried=float(carried / size) if size else 0.0,
                eos_selected=float(eos / selected),
                truncated=int(truncated),
            )
        all_tokens = sum(side.tokens for side in sides.values())
        means = self.moments[0] / self.pairs
        covariance = self.moments / self.pairs - np.outer(means, means)
        spread = covariance[1, 1] * covariance[2, 2]
        return Health(
            pairs=self.pairs,
            accuracy=self.right / self.pairs,
            inverted=self.inverted / self.pairs,
            margin=float(means[1]),
            token_reward=float(sum(sums[2] for sums in self.sums.values()) / all_tokens),
            length_correlation=float(covariance[1, 2] / np.sqrt(spread)) if spread > 0 else 0.0,
            chosen_longer=self.chosen_longer / self.pairs,
            chosen=sides["chosen"],
            rejected=sides["rejected"],
        )


def health_of(tables: Iterable[pa.Table]) -> Health:
    """The figures of rows that come in tables; at least one row."""
    meter = HealthMeter()
    for table in tables:
        meter.add(table)
    return meter.health()


def _numbers(column: pa.ChunkedArray) -> Numbers:
    """As float64, null as 0."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(), dtype=np.float64)
