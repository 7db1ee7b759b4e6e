"""What a selection needs to know about the whole dataset before selecting in its first row."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..annotated.annotations import check_groups
from ..rules.cutoffs import RewardCounts
from ..schema import Sides
from ..selection import SelectionRule
from ..settings import ProjectionSettings
from ..tokens.encoder import ResponseEncoder
from .pairs import Floats, ProjectedSide, project_rows

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("sepo")

ROWS_AT_ONCE = 500


def settled(
    rows: "datasets.Dataset", name: str, encoder: ResponseEncoder, settings: ProjectionSettings
) -> ProjectionSettings:
    """The settings with the cutoffs of ``global`` at the policy's own tokens, once all groups are found.

    ``global`` projects the dataset once more for it, in constant memory.

    Args:
        rows: One split of an annotated dataset.
        name: The dataset's name in messages.
        encoder: The policy's tokenizer, from `encoding.response_encoder`.
        settings: How to project and select.

    Raises:
        SettingsError: If a group of ``ratio_by`` does not occur.
        SelectionError: If ``global`` has no token to select from.
        TokenizerError: If the tokenizer cannot serve this dataset at all.
    """
    selection = settings.selection
    if selection.ratio_by is not None:
        check_groups(rows, selection.ratio_by, name)
    if selection.rule != "global" or settings.projection == "majority":
        return settings
    candidates = replace(settings, selection=SelectionRule("all", tokens=selection.tokens), weights="mask")
    counts = Sides(RewardCounts(), RewardCounts())
    for lo in range(0, len(rows), ROWS_AT_ONCE):
        projected = project_rows(rows, encoder, candidates, lo, min(lo + ROWS_AT_ONCE, len(rows)))
        if projected.pairs:
            counts.chosen.add(np.concatenate([_candidates(pair.chosen) for pair in projected.pairs]))
            counts.rejected.add(-np.concatenate([_candidates(pair.rejected) for pair in projected.pairs]))
    cutoffs = selection.dataset_cutoffs(counts)
    log.info(
        "selection global: chosen tokens from %.4g nats, rejected from %.4g", cutoffs.chosen, cutoffs.rejected
    )
    return replace(settings, selection=replace(selection, cutoffs=cutoffs))


def _candidates(side: ProjectedSide) -> Floats:
    end = [] if side.eos_reward is None else [side.eos_reward]
    return np.append(side.token_rewards, np.asarray(end, np.float32))[side.weights > 0]
