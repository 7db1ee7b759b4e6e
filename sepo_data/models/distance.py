"""How far a model is from another one of its vocabulary, at states that it visits itself."""

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
        model: Sampled the answers; both with their usual attention.
        other: On the same device.
        prompts: Ids.
        answers: Ids sampled after each, the end of the turn included.
        as_other: Makes ``other`` of ``model`` where both are one, as with an adapter switched off.

    Returns:
        In nats, one for each answer.
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
    """Of all tokens at some places, float32, ``(N, V)``."""
    return logits_at(model, model, {"input_ids": ids}, places).float().log_softmax(-1)
