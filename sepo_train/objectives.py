"""What each stage minimises, and the metrics logged with it.

Shapes: B = examples, R = sequences (B, or 2B: chosen and rejected alternating), N = tokens read, padded.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .batches import Batch
from .losses import dpo_loss, sepo_loss, sft_loss

UNDECIDED = 1e-4  # nats; DPO begins with margins of 0, up to rounding


class Outcome(NamedTuple):
    """Losses and metrics of a batch, one value per example each.

    Attributes:
        losses: ``(B,)``, with gradient.
        figures: By name, ``(B,)``, without. Names ending in ``_all`` are over all tokens
            of the responses, not only those with weight.
    """

    losses: Tensor
    figures: dict[str, Tensor]


Objective = Callable[[Tensor, Batch], Outcome]  # (R, N) log-probs of the tokens read, padding 0


def sft_objective(token_logps: Tensor, batch: Batch) -> Outcome:
    """Stage 1: the likelihood of the assistant's tokens."""
    losses = sft_loss(token_logps, batch["read"])
    return Outcome(losses, {"length": batch["lengths"]})


def dpo_objective(beta: float, label_smoothing: float) -> Objective:
    """Stage 2: DPO against precomputed log-probs of the reference.

    Figures: ``margin`` is the difference of the implicit rewards, beta times the log-ratios
    (arXiv 2305.18290), in nats.
    """
    return partial(_dpo, beta=beta, label_smoothing=label_smoothing)


def sepo_objective(scale: float, margin: float) -> Objective:
    """Stage 3: the contrast of key tokens.

    Figures: ``margin`` is the mean log-prob of the selected chosen tokens minus that of the
    selected rejected ones, in nats per token, before scale and margin; ``margin_all`` is the same
    over all tokens, to compare runs that select differently.
    """
    return partial(_sepo, scale=scale, margin=margin)


def _dpo(token_logps: Tensor, batch: Batch, *, beta: float, label_smoothing: float) -> Outcome:
    chosen, rejected = (token_logps * batch["weights"]).sum(-1).view(-1, 2).T  # (B,) each
    ref_chosen, ref_rejected = batch["ref_logps"].T
    losses = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta, label_smoothing=label_smoothing)
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected)).detach()
    return Outcome(losses, _pair_figures(token_logps, batch, margin))


def _sepo(token_logps: Tensor, batch: Batch, *, scale: float, margin: float) -> Outcome:
    weights = batch["weights"]
    losses = sepo_loss(
        token_logps[0::2], token_logps[1::2], weights[0::2], weights[1::2], scale=scale, margin=margin
    )
    chosen, rejected = _means(token_logps, weights)
    figures = _pair_figures(token_logps, batch, chosen - rejected)
    chosen_all, rejected_all = _means(token_logps, batch["read"])
    everything = {
        "margin_all": chosen_all - rejected_all,
        "accuracy_all": _ranked_right(chosen_all - rejected_all),
        "logps/chosen_all": chosen_all,
        "logps/rejected_all": rejected_all,
    }
    return Outcome(losses, {**figures, **everything})


def _pair_figures(token_logps: Tensor, batch: Batch, margin: Tensor) -> dict[str, Tensor]:
    chosen, rejected = _means(token_logps, batch["weights"])
    chosen_length, rejected_length = batch["lengths"].view(-1, 2).T
    return {
        "margin": margin,
        "accuracy": _ranked_right(margin),
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "length/chosen": chosen_length,
        "length/rejected": rejected_length,
    }


def _ranked_right(margin: Tensor) -> Tensor:
    """1 if the chosen response is ahead, 0 if it is behind, one half if only rounding decides."""
    return torch.where(margin.abs() < UNDECIDED, 0.5, (margin > 0).float())


@torch.no_grad()
def _means(token_logps: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of the log-probs, chosen and rejected, ``(2, B)``."""
    return ((token_logps * weights).sum(-1) / weights.sum(-1)).view(-1, 2).T
