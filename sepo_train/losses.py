"""Training losses as plain functions. Shapes: B = examples, T = tokens read, padded on the right."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def sft_loss(token_logps: Tensor, token_mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of the trained tokens, one value per conversation.

    The mean over a batch weights a conversation by its number of tokens, so
    every token of the batch counts the same.

    Args:
        token_logps: Log-probs in nats, ``(B, T)``; padding finite.
        token_mask: Bool, ``(B, T)``, False on padding, at least one True a row.

    Returns:
        Nats per token, ``(B,)``.
    """
    return -_weighted_mean(token_logps, token_mask)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO's sigmoid loss, one value per pair.

    Args:
        chosen_logps: Log-probs of the whole chosen responses under the model, in nats, ``(B,)``.
        rejected_logps: As above, of the rejected ones.
        ref_chosen_logps: Under the reference, ``(B,)``.
        ref_rejected_logps: As above.
        beta: A larger one keeps the model closer to the reference.
        label_smoothing: Assumed share of pairs whose labels are swapped, in ``[0, 0.5)``.

    Returns:
        ``-(1 - s) log sigmoid(h) - s log sigmoid(-h)``, ``(B,)``, where ``h`` is beta times
        the difference of the two log-ratios.

    Source:
        arXiv 2305.18290, eq. 7; with smoothing it is "conservative DPO", as in TRL.
    """
    margin = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def sepo_loss(
    chosen_token_logps: Tensor,
    rejected_token_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    *,
    scale: float = 1.0,
    margin: float = 0.0,
) -> Tensor:
    """SePO's reference-free contrastive loss, one value per pair.

    Args:
        chosen_token_logps: Policy log-probs in nats, ``(B, T)``; padding finite.
        rejected_token_logps: As above; its ``T`` may differ.
        chosen_mask: Bool, or weights of 0 or more, ``(B, T)``: 0 on padding and
            where not selected, at least one positive a row.
        rejected_mask: As above.
        scale: Factor on the gap. 1 is what the authors' code computes; a review of
            the paper quotes a search over 2.1–2.5.
        margin: Target for the scaled gap, as in SimPO (arXiv 2405.14734).

    Returns:
        ``-log sigmoid(scale * (mean selected chosen - mean selected rejected) - margin)``,
        ``(B,)``; means are weighted if the masks are weights.

    Source:
        arXiv 2408.13518; same form as ``SimPO`` in the authors' utils_selective.py.
    """
    chosen = _weighted_mean(chosen_token_logps, chosen_mask)
    rejected = _weighted_mean(rejected_token_logps, rejected_mask)
    return -logsigmoid(scale * (chosen - rejected) - margin)


def _weighted_mean(token_logps: Tensor, weights: Tensor) -> Tensor:
    return (token_logps * weights).sum(-1) / weights.sum(-1)
