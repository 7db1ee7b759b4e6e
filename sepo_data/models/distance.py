"""KL divergence of a model from another with the same vocabulary, at states that the model visits."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from .logprobs import logits_at


@torch.no_grad()
def visited_kl(
    model: PreTrainedModel,
    other: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    as_other: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[float]:
    """KL divergence of a model from another, summed over the states of answers that it sampled.

    At each state it is exact, over the whole vocabulary, so it has less noise than the mean of
    sampled log-ratios, and the same mean.

    Args:
        model: The model that sampled the answers. Both have their usual attention.
        other: The other model, on the same device.
        prompts: Token ids.
        answers: Token ids sampled after each prompt, including the end of the turn.
        as_other: Turns ``model`` into ``other`` if both are one, by switching an adapter off.

    Returns:
        One value per answer, in nats.
    """
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        places = torch.arange(len(prompt) - 1, ids.shape[1] - 1, device=model.device)
        ours = _log_probs(model, ids, places)
        with as_other():
            theirs = _log_probs(other, ids, places)
        found.append(float((ours.exp() * (ours - theirs)).sum()))
    return found


def _log_probs(model: PreTrainedModel, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Log-probs of the whole vocabulary at some positions, float32, ``(N, V)``."""
    return logits_at(model, model, {"input_ids": ids}, places).float().log_softmax(-1)
