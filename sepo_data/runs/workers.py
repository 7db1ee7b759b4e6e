"""This process's shard and GPU, from the environment variables of launchers.

Every process works independently on its own rows: torchrun, ``accelerate launch``, SLURM arrays
and `sepo_cli.executors` only tell which one it is. No collectives.
"""

import logging
from collections.abc import Mapping, MutableMapping

from ..errors import SettingsError

log = logging.getLogger("sepo")

VISIBLE = "CUDA_VISIBLE_DEVICES"


def own_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """The shard of ``--shard auto``: the task of a SLURM array, the process of torchrun, or both.

    Returns:
        ``(i, n)``, counted from 0.

    Raises:
        SettingsError: If neither is set, or their numbers are invalid.

    Example:
        >>> array = {"SLURM_ARRAY_TASK_ID": "11", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "12"}
        >>> own_shard(array), own_shard({**array, "RANK": "1", "WORLD_SIZE": "4"})
        ((1, 3), (5, 12))
    """
    index, count = 0, 1
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = _number(environment, "SLURM_ARRAY_TASK_MIN", "0")
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", "1")
        index = (_number(environment, "SLURM_ARRAY_TASK_ID") - first) // step
        count = (_number(environment, "SLURM_ARRAY_TASK_MAX") - first) // step + 1
    if "WORLD_SIZE" in environment:
        world = _number(environment, "WORLD_SIZE")
        index, count = index * world + _number(environment, "RANK"), count * world
    elif "SLURM_ARRAY_TASK_ID" not in environment:
        raise SettingsError(
            "`shard=auto`: neither a SLURM array nor torchrun has started this process (no "
            "SLURM_ARRAY_TASK_ID, no RANK). Pass `shard=i/n`, or leave it out."
        )
    if not 0 <= index < count:
        raise SettingsError(f"`shard=auto`: the environment says shard {index} of {count}. Pass `shard=i/n`.")
    return index, count


def num_gpus() -> int:
    """Number of GPUs visible to this process, without initialising CUDA."""
    import torch

    return torch.cuda.device_count()


def bind_gpu(environment: MutableMapping[str, str], num_gpus: int) -> None:
    """Let one of several processes on a machine see only the GPU of its ``LOCAL_RANK``.

    Must be called before CUDA is initialised. A process that sees one GPU is already bound.

    Args:
        environment: Changed: ``CUDA_VISIBLE_DEVICES`` keeps one of its entries.
        num_gpus: How many GPUs there are if it has none.

    Raises:
        SettingsError: If there are more processes than GPUs.

    Example:
        >>> environment = {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "3,5"}
        >>> bind_gpu(environment, 8)
        >>> environment["CUDA_VISIBLE_DEVICES"]
        '5'
    """
    listed = environment.get(VISIBLE)
    visible = list(map(str, range(num_gpus))) if listed is None else [gpu for gpu in listed.split(",") if gpu]
    if "LOCAL_RANK" not in environment or len(visible) < 2:
        return
    rank = _number(environment, "LOCAL_RANK")
    if rank >= len(visible):
        raise SettingsError(
            f"process {rank} of this machine has no GPU: it sees {len(visible)}. Start one process per GPU."
        )
    environment[VISIBLE] = visible[rank]
    log.info("process %d of this machine computes on GPU %s", rank, visible[rank])


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    value = environment.get(name, default)
    if not value.isdecimal():
        raise SettingsError(f'{name} is "{value}", which is not a number. Pass `shard=i/n` and `device`.')
    return int(value)
