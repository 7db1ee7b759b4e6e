"""Tokens with weights to packed batches, one form for all three stages.

An example holds one sequence (SFT) or two (chosen, then rejected). Training reads
only tokens that carry weight, and cuts a sequence behind the last of them; held-out
examples read every response token, so that the others can be watched.
"""

from collections.abc import Sequence
from typing import Any

import torch

from sepo_data.models.packing import pack

from .examples import Example

Batch = dict[str, Any]  # tensors, and `Packed`


def collate(examples: Sequence[Example], *, padding: float) -> Batch:
    """Pack examples; the sequences of a pair share their prompt.

    Args:
        examples: At least one.
        padding: For `packing.pack`, as `logprobs.row_padding` says.

    Returns:
        ``items`` ``(B,)`` float32; ``packed``, a `packing.Packed` of ``R`` = B sequences or, for
        pairs, 2B, chosen and rejected in turn; ``input_ids`` ``(1, T)`` of it;
        ``weights`` ``(R, N)`` and ``read`` ``(R, N)`` bool, per token read, padded;
        ``lengths`` ``(R,)`` of the responses; for DPO ``ref_logps`` ``(B, 2)``.
    """
    packed = pack([example.sequences for example in examples], padding=padding)
    sequences = [sequence for example in examples for sequence in example.sequences]
    weights = torch.zeros(len(sequences), max(s.positions.size for s in sequences))
    read = torch.zeros_like(weights, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        weights[row, : sequence.positions.size] = torch.from_numpy(sequence.weights)
        read[row, : sequence.positions.size] = True
    batch = {
        "items": torch.tensor([float(example.items) for example in examples]),
        "packed": packed,
        "input_ids": packed.input_ids[None],  # the Trainer counts tokens by them
        "weights": weights,
        "read": read,
        "lengths": torch.tensor([float(sequence.length) for sequence in sequences]),
    }
    ref_logps = [example.ref_logps for example in examples if example.ref_logps is not None]
    return {**batch, "ref_logps": torch.tensor(ref_logps)} if ref_logps else batch
