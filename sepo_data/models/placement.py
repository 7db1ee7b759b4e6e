"""Where weights go: oracle and reference side by side, one after the other, or each spread over all GPUs.

Free memory decides, before any weights are read.
"""

import logging
import sys
from collections.abc import Iterable

import psutil
import torch

from ..errors import ModelError, SettingsError, first_line
from ..settings import Dtype
from .checkpoints import Checkpoint
from .description import PairFacts

log = logging.getLogger("sepo")

ROOM = 0.8  # share of the free memory for weights; the rest is for a batch


def scoring_device(name: str) -> torch.device:
    """The device of a setting; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        SettingsError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f'device "{name}": {first_line(error)}. Pass `device=auto`.') from error


def free_bytes(device: torch.device) -> int:
    """Free memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return int(psutil.virtual_memory().available)


def weight_bytes(checkpoint: Checkpoint, dtype: Dtype) -> int:
    """Memory for the weights of a checkpoint's base in a precision; its adapter is small."""
    return checkpoint.num_parameters * int(getattr(torch, dtype).itemsize)


def load_sequentially(facts: PairFacts, dtype: Dtype, device: torch.device) -> bool:
    """Whether memory holds only one of oracle and reference at a time. A shared base is loaded once."""
    oracle, ref = facts.checkpoints
    if oracle.shares_base(ref):
        return False
    sizes = [weight_bytes(checkpoint, dtype) for checkpoint in facts.checkpoints]
    free = free_bytes(device)
    if max(sizes) > ROOM * free:  # each is spread over all of them
        free = sum(map(free_bytes, _all_like(device)))
    if sum(sizes) <= ROOM * free:
        return False
    log.info(
        "memory (%s free) does not hold oracle and reference (%s) together: loading one after the other",
        _gib(free),
        _gib(sum(sizes)),
    )
    return True


def check_room(facts: PairFacts, dtype: Dtype, device: torch.device) -> None:
    """Check that all devices of this kind together hold the larger model.

    Raises:
        ModelError: If they do not.
    """
    free = sum(map(free_bytes, _all_like(device)))
    for checkpoint in facts.checkpoints:
        if (size := weight_bytes(checkpoint, dtype)) > ROOM * free:
            raise ModelError(
                f"{checkpoint.facts.name} takes {_gib(size)}, and {_gib(free)} are free. Free memory."
            )


def device_map(checkpoint: Checkpoint, dtype: Dtype, device: torch.device) -> dict[str, torch.device] | str:
    """Where `from_pretrained` puts a model: on the device, or ``auto``, over all GPUs, if it is too large."""
    if device.type != "cuda":
        return {"": device}
    size, free = weight_bytes(checkpoint, dtype), free_bytes(device)
    if size <= ROOM * free:
        return {"": device}
    log.info(
        "%s (%s) does not fit on %s (%s free): spread over %d GPUs and, if needed, the CPU",
        checkpoint.facts.name,
        _gib(size),
        device,
        _gib(free),
        torch.cuda.device_count(),
    )
    return "auto"


def _all_like(device: torch.device) -> Iterable[torch.device]:
    if device.type != "cuda":
        return [device]
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def peak_memory(device: str) -> int:
    """Peak memory of this process so far in bytes: of the GPU, or else of RAM."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
