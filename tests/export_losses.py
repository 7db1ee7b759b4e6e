"""Loss of a model on pairs of an annotated dataset, with one plain forward pass per response."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sepo_data.annotated.opening import open_annotated
from sepo_data.projected.pairs import ProjectedPair, ProjectedSide, project_rows
from sepo_data.schema import PAIR_COLUMNS
from sepo_data.settings import ProjectionSettings, SelectionChange
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.templates import set_chat_template
from sepo_train.losses import sepo_loss


def exported_pairs(
    annotated: str, policy: str, *, max_length: int = 2048, weights: Any = "mask", **change: Any
) -> list[ProjectedPair]:
    """The pairs on the policy's tokens."""
    opened = open_annotated(annotated)
    (rows,) = opened.splits.values()
    tokenizer = AutoTokenizer.from_pretrained(policy)
    set_chat_template(tokenizer, True, rows.select_columns([*PAIR_COLUMNS]).features.arrow_schema, policy)
    selection = SelectionChange(**change).of(opened.manifest.selection)
    settings = ProjectionSettings(selection, weights=weights, max_length=max_length)
    return project_rows(rows, response_encoder(tokenizer), settings, 0, len(rows)).pairs


def pair_loss(model: str | Path, pairs: list[ProjectedPair]) -> float:
    """SePO's loss, the mean over the pairs."""
    sides = _logps(model, [side for pair in pairs for side in (pair.chosen, pair.rejected)])
    losses = [
        sepo_loss(chosen[None], rejected[None], chosen_weights[None], rejected_weights[None])
        for (chosen, chosen_weights), (rejected, rejected_weights) in zip(
            sides[::2], sides[1::2], strict=True
        )
    ]
    return float(torch.cat(losses).mean())


def sft_loss_of(model: str | Path, pairs: list[ProjectedPair]) -> float:
    """The mean negative log-prob of all selected chosen tokens."""
    sides = _logps(model, [pair.chosen for pair in pairs])
    total = sum(-(logps * weights).sum() for logps, weights in sides)
    return float(total / sum(weights.sum() for _, weights in sides))


@torch.no_grad()
def _logps(model: str | Path, sides: list[ProjectedSide]) -> list[tuple[Tensor, Tensor]]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for side in sides:
        ids = torch.from_numpy(side.input_ids)
        logps = loaded(ids[None]).logits[0, :-1].log_softmax(-1)
        at = torch.from_numpy(side.positions)
        found.append((logps[at - 1, ids[at]], torch.from_numpy(side.weights)))
    return found
