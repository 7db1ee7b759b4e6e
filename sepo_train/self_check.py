"""Check before the first step that a training's rows give the same log-probs in batches as alone.

`sepo_data.models.self_check` compares and falls back; this module provides the batches.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from sepo_data.models.batching import row_padding
from sepo_data.models.logprobs import Logps
from sepo_data.models.packing import tokens_to_read
from sepo_data.models.self_check import checked_logps, spread

from .batches import Forwards, collate, sequence_logps
from .examples import Example


class _Batches:
    """Micro-batches of a few examples; the longest and the shortest are in the first."""

    def __init__(self, model: Any, examples: Sequence[Example], batch_size: int, forwards: Forwards) -> None:
        lengths = [max(map(tokens_to_read, example.sequences)) for example in examples]
        few = sorted(spread(model, lengths), key=lambda i: lengths[i])
        longest_first = sorted(set(range(len(lengths))) - set(few), key=lambda i: -lengths[i])
        numbers = [few[-1], *few[:-1], *longest_first[: max(0, batch_size - len(few))]]
        self.model = model
        self.alone = False
        self.examples = [examples[i] for i in numbers]
        self.batch_size = batch_size
        self._forwards = forwards

    @property
    def forwards(self) -> Forwards:
        """How batches must be made now."""
        return replace(self._forwards, padding=row_padding(self.model), alone=self.alone)

    def active(self) -> AbstractContextManager[object]:
        """Nothing to switch in training."""
        return nullcontext()

    @torch.no_grad()
    def logps(self) -> list[Logps]:
        """Log-probs of all sequences of the examples."""
        found: list[Logps] = []
        for start in range(0, len(self.examples), self.batch_size):
            batch = collate(self.examples[start : start + self.batch_size], self.forwards)
            batch["packed"] = [part.to(self.model.device) for part in batch["packed"]]
            found += [logps.cpu().numpy() for logps in sequence_logps(self.model, batch)]
        return found


def checked_forwards(
    model: Any, examples: Sequence[Example], batch_size: int, forwards: Forwards
) -> tuple[Forwards, float]:
    """Compute a few examples in micro-batches and alone, and find batches that give equal log-probs.

    Args:
        model: On its device; packing is switched off if it gives other log-probs.
        examples: All of them.
        batch_size: Examples per micro-batch.
        forwards: How they would be batched.

    Returns:
        How they have to be batched, and the largest difference between a log-prob then and that of a
        plain forward of its sequence alone, in nats; NaN if log-probs are not numbers.

    Raises:
        ScoringError: If a plain forward does not give the same numbers twice.
    """
    batches = _Batches(model, examples, batch_size, forwards)
    was_training = model.training
    torch.nn.Module.eval(model)
    try:
        found, off = batches.logps(), float("nan")
        if all(bool((logps > -float("inf")).all()) for logps in found):  # else the first step fails
            sequences = [sequence for example in batches.examples for sequence in example.sequences]
            _, off = checked_logps(batches, sequences, found, batches.logps, first=True)
    finally:
        torch.nn.Module.train(model, was_training)
    return batches.forwards, off
