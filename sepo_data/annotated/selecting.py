"""Apply a rule to the tokens stored in an annotated dataset, to make or check masks without models."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import SchemaError
from ..rules.cutoffs import Cutoffs, RewardCounts
from ..schema import SIDES, Side, Sides
from ..selection import Mask, SelectionRule
from .annotations import Annotation, group_values, read_annotations, scored_texts
from .manifest import Manifest

ScalarT = TypeVar("ScalarT", bound=np.generic)

ALL_TOKENS = SelectionRule("all")


def stored_rewards(annotation: Annotation) -> npt.NDArray[np.float64]:
    """All rewards of a response; that of the token that ends the turn, if it was seen, is the last."""
    return with_end(annotation.token_rewards, annotation.eos_reward)


def with_end(values: npt.NDArray[ScalarT], end: float | bool | None) -> npt.NDArray[ScalarT]:
    """The values of a response's tokens and, if there is one, of the token that ends the turn."""
    return values if end is None else np.append(values, end)


def rule_masks(
    table: pa.Table,
    side: Side,
    token_rewards: Sequence[npt.NDArray[np.floating]],
    selection: SelectionRule,
    numbers: Sequence[int],
) -> list[Mask]:
    """The masks of a rule, row by row.

    Args:
        table: Rows of an annotated dataset.
        side: Which responses.
        token_rewards: Their rewards from `stored_rewards`, ``(T,)`` per row.
        selection: The rule, with cutoffs if it needs any.
        numbers: The rows' numbers in the dataset's source, on which ``random`` depends.

    Raises:
        SettingsError: If tokens are filtered by id: only texts are known here.
    """
    groups = group_values(table, selection)
    eligible = _eligible(table, side, selection, [rewards.size for rewards in token_rewards])
    return [
        selection.of_group(group).mask(rewards, side, number, eligible=allowed)
        for rewards, group, number, allowed in zip(token_rewards, groups, numbers, eligible, strict=True)
    ]


def _candidates(
    table: pa.Table,
    side: Side,
    token_rewards: Sequence[npt.NDArray[np.floating]],
    selection: SelectionRule,
) -> npt.NDArray[np.float64]:
    """The rewards of all tokens that the rule may select, one row after the other."""
    everything = replace(ALL_TOKENS, tokens=selection.tokens)
    masks = rule_masks(table, side, token_rewards, everything, [0] * table.num_rows)
    return np.concatenate([rewards[mask] for rewards, mask in zip(token_rewards, masks, strict=True)])


def stored_cutoffs(tables: Iterable[pa.Table], selection: SelectionRule) -> Cutoffs:
    """The cutoffs of ``global`` at the tokens that a dataset stores, whose rows these tables are.

    Raises:
        SelectionError: If no token may be selected.
    """
    counts = Sides(RewardCounts(), RewardCounts())
    for table in tables:
        annotations = read_annotations(table)
        for side, sign in zip(SIDES, (1, -1), strict=True):
            rewards = [stored_rewards(both[side]) for both in annotations]
            counts[side].add(sign * _candidates(table, side, rewards, selection))
    return selection.dataset_cutoffs(counts)


def source_rows(made: Manifest, kept: int, name: str) -> npt.NDArray[np.int64]:
    """Numbers of the dataset's rows in its source, which seed the rule ``random``.

    Args:
        made: The dataset's manifest.
        kept: How many rows it has.
        name: Its name in messages.

    Raises:
        SchemaError: If the manifest does not fit the rows.
    """
    dropped = {row for rows in made.dropped_rows.values() for row in rows}
    total = made.counts.rows
    if kept + len(dropped) != total or max(dropped, default=0) >= total:
        problem = f"its manifest counts {total:,} rows and {len(dropped):,} dropped ones, and it has {kept:,}"
        raise SchemaError(f"{name}: {problem}. Copy it again, or annotate again.")
    return np.setdiff1d(np.arange(total), list(dropped))


def _eligible(
    table: pa.Table, side: Side, selection: SelectionRule, sizes: Sequence[int]
) -> Sequence[Mask | None]:
    if not selection.tokens:
        return [None] * len(sizes)
    found = []
    for whole, size in zip(scored_texts(table, side), sizes, strict=True):
        texts = [whole.text[lo:hi] for lo, hi in zip(whole.start, whole.end, strict=True)]
        found.append(selection.tokens.allows([*texts, ""][:size], None))
    return found
