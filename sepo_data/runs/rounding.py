"""Also score a few rows of a run in float32, to see what lower precision changes."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..annotated.precision import Precision, compute_dtype
from ..errors import ModelError, ScoringError, counted
from ..models.placement import check_room, load_sequentially
from ..models.scoring import Logps, Scores, score_once
from ..schema import SIDES
from ..selection import SelectionRule
from ..tokens.pairs import EncodedPair
from .inputs import Job
from .tables import side_masks

log = logging.getLogger("sepo")

PAIRS = 32  # scored twice


def scores_in_float32(job: Job, pairs: Sequence[EncodedPair], *, in_turn: bool) -> Scores | None:
    """Log-probs in true float32, from models that are dropped again; None if they do not fit."""
    how = replace(job.loading, dtype="float32", exact=True)
    less = compute_dtype(job.settings.dtype)
    log.info("scoring %s in float32, to see what %s changes", counted(len(pairs), "row"), less)
    try:
        check_room(job.facts, "float32", how.place)
        in_turn = in_turn or load_sequentially(job.facts, "float32", how.place)
        return score_once(job.facts, how, pairs, job.settings.batch_tokens, in_turn=in_turn)
    except (ModelError, ScoringError, torch.OutOfMemoryError) as error:
        log.warning("what %s changes is not measured: in float32, %s", less, error)
        return None


def compare(
    pairs: Sequence[EncodedPair],
    exact: Scores,
    scored: Scores,
    selection: SelectionRule,
) -> Precision:
    """Compare the log-probs of a run with those in float32 of its first pairs.

    Args:
        pairs: The pairs of ``scored``.
        exact: Log-probs in float32 by side, of the first of the pairs.
        scored: Log-probs of the run by side, of all of them.
        selection: Which tokens are the key tokens.
    """
    rewards: list[Logps] = []
    differences: list[Logps] = []
    selected = both = 0
    for side in SIDES:
        right = exact[side].rewards
        found = scored[side].rewards[: len(right)]
        masks = [side_masks(pairs[: len(right)], side, values, selection) for values in (right, found)]
        selected += sum(int(mask.sum()) for mask in masks[0])
        both += sum(int((one & other).sum()) for one, other in zip(*masks, strict=True))
        rewards += right
        differences += [one - other for one, other in zip(found, right, strict=True)]
    flat = np.concatenate(rewards)
    return Precision(
        pairs=len(rewards) // len(SIDES),
        tokens=flat.size,
        reward_spread=float(flat.std(dtype=np.float64)),
        noise=float(np.sqrt(np.square(np.concatenate(differences), dtype=np.float64).mean())),
        overlap=both / selected,
    )
