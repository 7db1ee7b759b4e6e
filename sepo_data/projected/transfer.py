"""How much of an annotation survives on a policy's tokens: metrics to read before training.

Whole tokens of the oracle are projected exactly; where the policy's tokens are finer, their
rewards are guessed as even shares. So every policy with another vocabulary is measured:
how its tokens relate to the oracle's, how much of the text selected by the oracle
is still selected, and what is cut, unknown or lost.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..annotated.annotations import Annotation, read_annotations
from ..errors import counted
from ..projection import overlaps, partition
from ..reasons import Drops
from ..schema import SIDES, Sides
from ..settings import ProjectionSettings
from ..tokens.encoder import ResponseEncoder
from .pairs import ProjectedPair, ProjectedRows, ProjectedSide, project_rows

if TYPE_CHECKING:
    import datasets

CHUNK_ROWS = 500

# Beyond these a run warns. At a ratio of 0.3 chance keeps 30% of the text; 93 to 99% was kept on English and
# 62 to 91% on Chinese (docs/measured_transfer.md), the least where the policy's tokens are much coarser.
LOW_RECALL = 0.7
MANY_UNKNOWN = 0.01  # an unknown token can stand for any text: vocabularies that cover a text produce none
MUCH_CUT = 0.10  # the end of a response carries less than a tenth of its reward only if a tenth is cut
MANY_LOST = 0.05


@dataclass(frozen=True)
class SideTransfer:
    """Figures of the chosen or the rejected responses.

    The four shares of token relations count tokens with a reward, without the ends of turns.

    Attributes:
        tokens: The policy's tokens, the ends of turns included.
        selected: Share of them that are selected.
        one_to_one: Share that are one token of the oracle.
        merged: Share that are several whole tokens of the oracle.
        split: Share that are a part of one token of the oracle.
        crossing: Share that are anything else: some token of the oracle is cut by their bounds.
        recall: Share of the characters in the dataset's selection that are in the policy's.
        precision: Share of the characters in the policy's selection that are in the dataset's.
        iou: Characters in both selections over those in either.
        reward_cut: Share of the sum of |reward| that the maximum length cuts off here.
        without_reward: Share of the tokens after the place where the oracle was cut.
        unknown: Share of the response's tokens that are the unknown token; None where there is none.
    """

    tokens: int
    selected: float
    one_to_one: float
    merged: float
    split: float
    crossing: float
    recall: float
    precision: float
    iou: float
    reward_cut: float
    without_reward: float
    unknown: float | None


@dataclass(frozen=True)
class Transfer(Sides[SideTransfer]):
    """Figures of a whole dataset on a policy's tokens, of the chosen responses and of the rejected ones.

    Attributes:
        rows: Annotated rows.
        pairs: Those that can be trained on.
        dropped: How many of the others, by reason.
        random: Whether the policy's selection is random, so its recall is meaningless.
    """

    rows: int = field(kw_only=True)
    pairs: int = field(kw_only=True)
    dropped: dict[str, int] = field(kw_only=True)
    random: bool = field(kw_only=True)

    def short(self) -> str:
        """One line for a log."""
        recall, selected, exact = (
            " / ".join(f"{getattr(side, name):.1%}" for side in self)
            for name in ("recall", "selected", "one_to_one")
        )
        return (
            f"transfer, chosen / rejected: {exact} of the tokens one to one, {recall} of the selected text "
            f"kept, {selected} of the tokens selected; {self.rows - self.pairs:,} of "
            f"{counted(self.rows, 'row')} lost"
        )

    def warnings(self, *, by_policy: bool = False) -> list[str]:
        """Warnings to read before training.

        Args:
            by_policy: The policy's context cuts, not ``max_length``.
        """
        found = []
        for name, side in self.items():
            kept = max(side.recall, side.precision)  # whichever selection is the smaller one, by its ratio
            if self.pairs and kept < LOW_RECALL and not self.random:
                found.append(
                    f"{name}: the policy's selection and the dataset's share {kept:.0%} of their text. "
                    f"{side.merged:.0%} of the policy's tokens merge several of the oracle's (exact, but a "
                    f"coarser choice), {side.split + side.crossing:.0%} split one (a guess). Compare "
                    "`projection=sum` with `projection=majority`, or use an oracle with a more similar "
                    "vocabulary."
                )
            if side.unknown is not None and side.unknown > MANY_UNKNOWN:
                found.append(
                    f"{name}: {side.unknown:.1%} of the policy's tokens are its unknown token: it cannot "
                    "represent this text. Use a policy whose vocabulary covers it."
                )
            if side.reward_cut > MUCH_CUT:
                found.append(
                    f"{name}: {side.reward_cut:.0%} of the |reward| is cut off. "
                    + ("Use a policy with a longer context." if by_policy else "Raise `max_length`.")
                )
            if side.without_reward > MUCH_CUT:
                found.append(
                    f"{name}: {side.without_reward:.0%} of the tokens have no reward, because the annotation "
                    "was cut there. Annotate with a larger `max_length`."
                )
        if self.rows - self.pairs > MANY_LOST * self.rows:
            found.append(
                f"{self.rows - self.pairs:,} of {self.rows:,} rows are lost; the reasons say what to change."
            )
        return found


_SUMS = (  # quantities summed up per side, in this order
    *("tokens", "response_tokens", "selected", "one_to_one", "merged", "split", "crossing"),
    *("oracle_ticks", "policy_ticks", "common_ticks"),
    *("reward", "reward_cut", "without_reward", "unknown"),
)


@dataclass
class TransferMeter:
    """Adds up the metrics batch by batch, in constant memory.

    Attributes:
        settings: As given to `policy_rows.project_rows`.
        unknown_id: Id of the policy's unknown token, if it has one.
        pairs: Pairs added.
        sums: What was added up, by side.
    """

    settings: ProjectionSettings
    unknown_id: int | None
    pairs: int = 0
    sums: dict[str, npt.NDArray[np.float64]] = field(
        default_factory=lambda: {side: np.zeros(len(_SUMS)) for side in SIDES}
    )

    def add(self, pairs: list[ProjectedPair], rows: pa.Table) -> None:
        """Count pairs; ``rows`` are their rows in the annotated dataset, in the same order."""
        self.pairs += len(pairs)
        for pair, annotations in zip(pairs, read_annotations(rows), strict=True):
            for side in SIDES:
                self.sums[side] += _counts(pair[side], annotations[side], self.unknown_id)

    def transfer(self, rows: int, dropped: dict[str, int]) -> Transfer:
        """The figures of everything added.

        Args:
            rows: Rows of the dataset.
            dropped: How many of them were dropped, by reason.
        """
        chosen, rejected = (
            _side_transfer(
                dict(zip(_SUMS, self.sums[side].tolist(), strict=True)), self.unknown_id is not None
            )
            for side in SIDES
        )
        random = self.settings.selection.rule == "random" and self.settings.projection == "sum"
        return Transfer(chosen, rejected, rows=rows, pairs=self.pairs, dropped=dropped, random=random)


def transfer_report(
    rows: "datasets.Dataset",
    encoder: ResponseEncoder,
    settings: ProjectionSettings,
    on_rows: Callable[[ProjectedRows], object] = lambda rows: None,
    numbers: npt.NDArray[np.int64] | None = None,
) -> Transfer:
    """Project a whole annotated dataset onto a policy's tokens, and measure what survives.

    Args:
        rows: One split of an annotated dataset.
        encoder: The policy's tokenizer, from `encoding.response_encoder`.
        settings: How to project and select.
        on_rows: Called with the result of each chunk of rows.
        numbers: Of a part of a dataset, see `pairs.project_rows`.

    Raises:
        TokenizerError: If the tokenizer cannot serve this dataset at all.
    """
    meter = TransferMeter(settings, encoder.tokenizer.unk_token_id)
    dropped = Drops()
    for lo in range(0, len(rows), CHUNK_ROWS):
        hi = min(lo + CHUNK_ROWS, len(rows))
        projected = project_rows(rows, encoder, settings, lo, hi, numbers)
        table = rows.with_format("arrow")[lo:hi]
        meter.add(
            projected.pairs, table.take(pa.array([pair.row - lo for pair in projected.pairs], pa.int64()))
        )
        dropped.extend(projected.dropped)
        on_rows(projected)
    return meter.transfer(len(rows), dropped.counts)


def _counts(side: ProjectedSide, annotation: Annotation, unknown_id: int | None) -> list[float]:
    """What one response adds, in the order of ``_SUMS``."""
    rewards = np.append(annotation.token_rewards, annotation.eos_reward or 0.0)
    annotation = annotation.over(side.pieces)
    source, target = annotation.bounds, partition(side.token_start, side.token_end)
    shared = overlaps(source, target)
    pieces = np.bincount(shared.target, minlength=target.size - 1)  # 0 where the oracle was cut
    whole = np.isin(target[:-1], source) & np.isin(target[1:], source)
    by_oracle, by_policy = annotation.token_mask[shared.source], side.token_mask[shared.target]
    eos_unknown = side.eos_reward is not None and np.isnan(side.eos_reward)
    return [
        side.positions.size,
        side.token_ids.size,
        side.token_mask.sum() + bool(side.eos_mask),
        (whole & (pieces == 1)).sum(),
        (whole & (pieces > 1)).sum(),
        (~whole & (pieces == 1)).sum(),
        (~whole & (pieces > 1)).sum(),
        np.diff(source)[annotation.token_mask].sum(),
        np.diff(target)[side.token_mask].sum(),
        shared.ticks[by_oracle & by_policy].sum(),
        np.abs(rewards).sum(),
        side.dropped_reward,
        np.isnan(side.token_rewards).sum() + eos_unknown,
        0 if unknown_id is None else (side.token_ids == unknown_id).sum(),
    ]


def _side_transfer(sums: dict[str, float], has_unknown: bool) -> SideTransfer:
    known = sum(sums[kind] for kind in ("one_to_one", "merged", "split", "crossing"))
    either = sums["oracle_ticks"] + sums["policy_ticks"] - sums["common_ticks"]
    return SideTransfer(
        tokens=int(sums["tokens"]),
        selected=_share(sums["selected"], sums["tokens"]),
        one_to_one=_share(sums["one_to_one"], known),
        merged=_share(sums["merged"], known),
        split=_share(sums["split"], known),
        crossing=_share(sums["crossing"], known),
        recall=_share(sums["common_ticks"], sums["oracle_ticks"]),
        precision=_share(sums["common_ticks"], sums["policy_ticks"]),
        iou=_share(sums["common_ticks"], either),
        reward_cut=_share(sums["reward_cut"], sums["reward"]),
        without_reward=_share(sums["without_reward"], sums["tokens"]),
        unknown=_share(sums["unknown"], sums["response_tokens"]) if has_unknown else None,
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
