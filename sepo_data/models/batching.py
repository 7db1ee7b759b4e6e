"""Group sequences into batches: by prompt, by length, within a budget of tokens.

A packed model computes a prompt once for all of its responses; any other gets padded rows of similar length.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ScoringError
from .packing import TokenSequence, is_packed, tokens_to_read

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Group = list[int]  # indices of sequences that share their prompt

LOGITS_BYTES_CPU = 2**30
LOGITS_BYTES_ACCELERATOR = 2**32
PADDING_ACCELERATOR = 0.25  # attention over a few padded rows is faster than over many single ones


def grouped(model: "PreTrainedModel", sequences: Sequence[TokenSequence], batch_tokens: int) -> list[Group]:
    """Groups of sequences that share their prompt, up to ``batch_tokens`` each unless one alone is longer."""
    switches = rope_switches(model.config.get_text_config())
    by_prompt: dict[object, Group] = {}
    # longest first: running out of memory shows in the first batch
    for i in sorted(range(len(sequences)), key=lambda i: -tokens_to_read(sequences[i])):
        prompt = sequences[i].input_ids[: sequences[i].positions[0]]
        key = (prompt.tobytes(), regime(switches, tokens_to_read(sequences[i]))) if is_packed(model) else i
        by_prompt.setdefault(key, []).append(i)
    groups: list[Group] = []
    for group in by_prompt.values():
        part: Group = []
        for i in group:
            if part and _cost(model, [sequences[j] for j in [*part, i]]) > batch_tokens:
                groups.append(part)
                part = []
            part.append(i)
        groups.append(part)
    return sorted(groups, key=lambda group: -tokens_to_read(sequences[group[0]]))


def _cost(model: "PreTrainedModel", group: Sequence[TokenSequence]) -> int:
    """The number of tokens computed for a group, its prompt counted once."""
    if not is_packed(model):
        return tokens_to_read(group[0])
    prompt = int(group[0].positions[0])
    return prompt + sum(tokens_to_read(sequence) - prompt for sequence in group)


def batch_size(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    longest_first: Sequence[Group],
    batch_tokens: int,
) -> int:
    """The number of groups in the next batch, at least one."""
    config = model.config.get_text_config()
    logits_bytes = LOGITS_BYTES_CPU if model.device.type == "cpu" else LOGITS_BYTES_ACCELERATOR
    max_logits = math.inf if is_packed(model) else logits_bytes // (4 * config.vocab_size)
    switches = rope_switches(config)
    longest = tokens_to_read(sequences[longest_first[0][0]])
    tokens = logits = size = 0
    for size, indices in enumerate(longest_first):
        group = [sequences[i] for i in indices]
        tokens = tokens + _cost(model, group) if is_packed(model) else longest * (size + 1)
        logits += sum(sequence.positions.size for sequence in group)
        other_turn = regime(switches, tokens_to_read(group[0])) != regime(switches, longest)
        if size and (tokens > batch_tokens or logits > max_logits or other_turn):
            return size
    return size + 1


def rope_switches(config: object) -> list[int]:
    """The lengths above which LongRoPE (Phi-3) rotates all positions of a batch differently."""
    found, waiting = set[int](), [getattr(config, "rope_parameters", None)]
    while waiting:
        rope = waiting.pop()
        if isinstance(rope, dict):
            waiting += rope.values()
            if rope.get("rope_type") == "longrope":
                usual = getattr(config, "original_max_position_embeddings", None)
                found.add(int(rope.get("original_max_position_embeddings") or usual or 0))
    return sorted(found)


def regime(switches: Sequence[int], length: int) -> int:
    """The number of switches that a length exceeds."""
    return sum(length > switch for switch in switches)


def smaller_budget(
    model: "PreTrainedModel", sequences: Sequence[TokenSequence], batch: Sequence[Group]
) -> int:
    """The next budget to try after one ran out of memory.

    Raises:
        ScoringError: If the batch was a single sequence.
    """
    groups = [[sequences[i] for i in group] for group in batch]
    if len(groups) == len(groups[0]) == 1:
        raise ScoringError(
            f"a sequence of {tokens_to_read(groups[0][0]):,} tokens alone does not fit into memory. "
            "Pass a lower `max_length`, or a `dtype` of 16 bits."
        )
    return sum(_cost(model, group) for group in groups) // 2


def halves(group: Group) -> list[Group]:
    """A group that was too large, split in two."""
    middle = -(-len(group) // 2)
    return [group[:middle], group[middle:]]


def row_padding(model: "PreTrainedModel") -> float:
    """The padding that suits a model, for `packing.pack`; without packed attention all rows are one batch."""
    if not is_packed(model):
        return math.inf
    return 0.0 if model.device.type == "cpu" else PADDING_ACCELERATOR
