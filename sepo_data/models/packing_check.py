"""Use packed batches if a model computes the same with them, and padded ones otherwise.

Some models accept a packed batch and silently mix neighbouring sequences (ALiBi, state-space
layers, chunked attention), and no flag tells which. So a few sequences go through both paths
of the model at hand.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import first_line
from .batching import row_padding
from .logprobs import HEAD_ELEMENTS, batch_logps
from .packing import PACKED_ATTENTION, Ids, Packed, bare_model, is_packed, pack

log = logging.getLogger("sepo")

Role = Callable[[], AbstractContextManager[object]]

_USUAL = "_sepo_usual_attention"  # attribute of a model

PROMPT, SHORT, LONG = 9, 5, 17  # lengths of the sequences tried, in tokens
NOISE = 4.0  # times the rounding noise of padded batches
FLOOR = 1e-4  # nats, root mean square: always allowed
ROUNDINGS = 4  # times the machine epsilon of lower precisions
# root mean square, in nats: never allowed more, however noisy padded batches are
MOST = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
# integers of a config that bound how far a token attends, or switch attention at a length
_BOUNDS = re.compile(r"window|chunk|block|top_?k|floor|keep")


@dataclass(frozen=True)
class _Sequence:
    input_ids: Ids
    positions: Ids


def prepare(model: PreTrainedModel, longest: int, roles: Sequence[Role] = (nullcontext,)) -> bool:
    """Switch a model to packed batches if it gives the same log-probs with them.

    Args:
        model: A causal language model with its adapters, on the device where it will run.
        longest: Maximum length of a sequence; a longer sliding window does not matter.
        roles: Context managers that switch the adapters and set the precision of each role.

    Returns:
        Whether it was switched. If not, a line of the log says why.
    """
    was_training = model.training
    torch.nn.Module.eval(model)
    why = _difference(model, longest, roles)
    torch.nn.Module.train(model, was_training)
    if why is not None:
        log.info("%s: batches are padded, because %s", type(bare_model(model)).__name__, why)
    return why is None


def _difference(model: PreTrainedModel, longest: int, roles: Sequence[Role]) -> str | None:
    """Switch the model; return the reason if it had to be switched back."""
    groups = _groups(model, longest)
    alone = [[sequence] for group in groups for sequence in group]
    bare = bare_model(model)
    usual = bare.config._attn_implementation
    setattr(bare, _USUAL, usual)
    why = None
    try:
        if not bare._can_set_attn_implementation():
            return "its attention cannot be replaced"
        exact = [torch.cat([_logps(model, role, [row], float("inf")) for row in alone]) for role in roles]
        plain = [_logps(model, role, alone, float("inf")) for role in roles]
        bare.set_attn_implementation(PACKED_ATTENTION)
        # few logits at a time, to notice a head that cannot be run in parts
        few = PROMPT * int(bare.config.get_text_config().vocab_size)
        many = groups * _repetitions(model, groups)
        packed = [_logps(model, role, many, row_padding(model), few)[-exact[0].numel() :] for role in roles]
        with roles[0]():
            off = _furthest(model, exact, plain, packed)
        if off:
            why = f"packed batches give log-probs that differ by {off:.2g} nats"
    except Exception as error:  # a model's own code may raise anything
        why = f"it does not take packed batches ({type(error).__name__}: {first_line(error)})"
    if why is not None and is_packed(model):
        bare.set_attn_implementation(usual)
    return why


def _groups(model: PreTrainedModel, longest: int) -> list[list[_Sequence]]:
    """A pair, three responses to one prompt and two single sequences; some exceed every window."""
    config = model.config.get_text_config()
    most = max(PROMPT + SHORT, longest)
    bounds = [bound for bound in _bounds(config.to_dict()) if bound < most]
    long = min(most, max([0, *bounds]) + LONG)
    random = np.random.default_rng(0)

    def tokens(number: int) -> Ids:
        return random.integers(0, config.vocab_size, number)

    def group(*lengths: int) -> list[_Sequence]:
        prompt = tokens(PROMPT)
        responses = [np.concatenate([prompt, tokens(length)]) for length in lengths]
        return [_Sequence(ids, np.arange(PROMPT, ids.size)) for ids in responses]

    return [group(SHORT, long - PROMPT), group(SHORT), group(2, SHORT, 3), group(long - PROMPT)]


def _repetitions(model: PreTrainedModel, groups: list[list[_Sequence]]) -> int:
    """How often to repeat groups until the last are beyond the place in a batch that Llama 4 looks at.

    It scales attention by the place in the batch, whatever the position in the row, from this place on.
    """
    place = getattr(model.config.get_text_config(), "floor_scale", None) or 0
    return 1 - -place // pack(groups, padding=0.0).input_ids.numel()


def _bounds(config: dict[str, object]) -> Iterator[int]:
    """Lengths in a config, at any depth, that bound attention."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _bounds(value)
        elif isinstance(value, int) and not isinstance(value, bool) and _BOUNDS.search(name):
            yield value


def _logps(
    model: PreTrainedModel,
    role: Role,
    groups: list[list[_Sequence]],
    padding: float,
    head_elements: int = HEAD_ELEMENTS,
) -> Tensor:
    with role(), torch.no_grad():
        packed: Packed = pack(groups, padding=padding).to(model.device)
        return batch_logps(model, packed, head_elements=head_elements).double().cpu()


def _furthest(
    model: PreTrainedModel, exact: Sequence[Tensor], plain: Sequence[Tensor], packed: Sequence[Tensor]
) -> float:
    """Largest root mean square error of the packed log-probs; 0 if rounding explains it."""
    rounding = torch.finfo(model.dtype).eps
    if model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        rounding = max(rounding, 2.0**-11)  # TF32
    furthest = 0.0
    for right, other, found in zip(exact, plain, packed, strict=True):
        allowed = max(NOISE * _rms(other - right), FLOOR, ROUNDINGS * rounding)
        allowed = min(allowed, max(MOST.get(model.dtype, 1e-3), ROUNDINGS * rounding))
        off = _rms(found - right)
        if not off <= allowed:
            furthest = max(furthest, off)
    return furthest


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def usual_attention(model: PreTrainedModel) -> str:
    """The attention implementation that a model had before it was switched."""
    return str(getattr(bare_model(model), _USUAL))
