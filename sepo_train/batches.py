"""From weighted tokens to packed batches, in one form for all three stages.

An example has one sequence (SFT) or two (chosen, then rejected). Training reads
only tokens that carry weight, and cuts a sequence after the last of them; held-out
examples read every response token, so the others can be watched. Sequences that may not share a
forward pass, on both sides of a LongRoPE switch, are separated here, for all stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sepo_data.models.batching import regime
from sepo_data.models.logprobs import HEAD_ELEMENTS, batch_logps
from sepo_data.models.packing import Packed, pack, tokens_to_read

from .examples import Example, WeightedSequence

Batch = dict[str, Any]  # tensors, and `Packed`


@dataclass(frozen=True)
class Forwards:
    """Which sequences share a forward pass.

    Attributes:
        padding: For `packing.pack`, as `batching.row_padding` says.
        switches: Of LongRoPE, as `batching.rope_switches` says.
        alone: Whether every sequence gets its own forward pass.
        least: Minimum number of passes per batch; the same in all processes of a run.
    """

    padding: float
    switches: Sequence[int] = ()
    alone: bool = False
    least: int = 1


def collate(examples: Sequence[Example], forwards: Forwards) -> Batch:
    """Pack examples; the sequences of a pair share their prompt.

    Args:
        examples: At least one.
        forwards: Which sequences may share a forward pass.

    Returns:
        ``items`` ``(B,)`` float32; ``packed``, a `packing.Packed` for each forward pass, together
        ``R`` = B sequences or, for pairs, 2B; ``order`` ``(R,)``: their numbers, where chosen and rejected
        are in turn, as they are packed; ``input_ids`` ``(1, T)`` of all;
        ``weights`` ``(R, N)`` and ``read`` ``(R, N)`` bool, per token read, padded;
        ``lengths`` ``(R,)`` of the responses; for DPO ``ref_logps`` ``(B, 2)``.
    """
    sequences = [sequence for example in examples for sequence in example.sequences]
    parts: dict[int, dict[int, list[int]]] = {}  # by forward pass and example
    number = 0
    for i, example in enumerate(examples):
        for sequence in example.sequences:
            part = number if forwards.alone else regime(forwards.switches, tokens_to_read(sequence))
            parts.setdefault(part, {}).setdefault(i, []).append(number)
            number += 1
    packed = [
        pack([[sequences[i] for i in group] for group in part.values()], padding=forwards.padding)
        for part in parts.values()
    ]
    packed += [_nothing(sequences[0], forwards.padding)] * (forwards.least - len(packed))
    weights = torch.zeros(len(sequences), max(s.positions.size for s in sequences))
    read = torch.zeros_like(weights, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        weights[row, : sequence.positions.size] = torch.from_numpy(sequence.weights)
        read[row, : sequence.positions.size] = True
    batch = {
        "items": torch.tensor([float(example.items) for example in examples]),
        "packed": packed,
        "order": torch.tensor([i for part in parts.values() for group in part.values() for i in group]),
        "input_ids": torch.cat([part.input_ids for part in packed])[
            None
        ],  # the Trainer counts tokens by these
        "weights": weights,
        "read": read,
        "lengths": torch.tensor([float(sequence.length) for sequence in sequences]),
    }
    ref_logps = [example.ref_logps for example in examples if example.ref_logps is not None]
    return {**batch, "ref_logps": torch.tensor(ref_logps)} if ref_logps else batch


def sequence_logps(model: nn.Module, batch: Batch, *, head_elements: int = HEAD_ELEMENTS) -> list[Tensor]:
    """Log-probs of the tokens read, in nats, ``(n,)`` for each sequence, chosen and rejected in turn.

    Args:
        model: As for `logprobs.batch_logps`.
        batch: Made by `collate`, on the model's device.
        head_elements: As for `logprobs.batch_logps`.
    """
    flat = torch.cat([batch_logps(model, part, head_elements=head_elements) for part in batch["packed"]])
    order, sizes = batch["order"], batch["read"].sum(-1)
    *found, spare = torch.split(flat, [*sizes[order].tolist(), flat.numel() - int(sizes.sum())])
    found[0] = found[0] + 0.0 * spare.sum()  # `Forwards.least`: a gradient for every forward pass
    return [found[i] for i in order.argsort().tolist()]


def _nothing(sequence: WeightedSequence, padding: float) -> Packed:
    """One token that is read with weight 0."""
    first = WeightedSequence(sequence.input_ids[:2], np.array([1]), np.zeros(1, np.float32), length=1)
    return pack([[first]], padding=padding)
