"""Tests of what a process reads from its environment: its shard, and its GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sepo_data.errors import SettingsError
from sepo_data.runs.workers import bind_gpu, own_shard

ROOT = Path(__file__).parent.parent


def array(task: int, first: int = 0, last: int = 7, step: int = 1) -> dict[str, str]:
    numbers = {"ID": task, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in numbers.items()}


def torchrun(rank: int, world: int, local_rank: int = 0) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(local_rank)}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (array(0), (0, 8)),
        (array(7), (7, 8)),
        (array(1, first=1, last=4), (0, 4)),  # --array=1-4
        (array(30, first=10, last=40, step=10), (2, 4)),  # --array=10-40:10
        (torchrun(3, 4), (3, 4)),
        (array(2, last=3) | torchrun(1, 8), (17, 32)),  # an array of nodes, eight processes each
    ],
)
def test_the_shard_is_what_the_launcher_says(environment: dict[str, str], shard: tuple[int, int]) -> None:
    assert own_shard(environment) == shard


def test_the_shards_of_an_array_of_nodes_are_all_there_once() -> None:
    found = [own_shard(array(node, last=2) | torchrun(rank, 4)) for node in range(3) for rank in range(4)]
    assert found == [(i, 12) for i in range(12)]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "neither a SLURM array nor torchrun has started this process"),
        (torchrun(4, 4), "the environment says shard 4 of 4"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, 'RANK is "x", which is not a number'),
        ({"WORLD_SIZE": "2"}, 'RANK is "", which is not a number'),
        ({"SLURM_ARRAY_TASK_ID": "3"}, 'SLURM_ARRAY_TASK_MAX is "", which is not a number'),
    ],
)
def test_an_environment_that_cannot_be_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        own_shard(environment)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("environment", "num_gpus", "bound"),
    [
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "3,5"}, 8, "5"),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"}, 2, "GPU-bb"),
        ({"LOCAL_RANK": "2"}, 4, "2"),
        ({"LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "7"}, 4, "7"),  # bound by whoever started it
        ({"LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": ""}, 4, ""),  # told to use none
        ({"LOCAL_RANK": "2"}, 0, None),
        ({"LOCAL_RANK": "2"}, 1, None),
        ({"CUDA_VISIBLE_DEVICES": "3,5"}, 8, "3,5"),
        ({}, 8, None),
    ],
)
def test_a_process_keeps_its_own_gpu(environment: dict[str, str], num_gpus: int, bound: str | None) -> None:
    bind_gpu(environment, num_gpus)
    assert environment.get("CUDA_VISIBLE_DEVICES") == bound


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"process 2 of this machine has no GPU: it sees 2\. Start one"):
        bind_gpu({"LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, 2)


def test_the_command_binds_before_anything_starts_cuda(tmp_path: Path) -> None:
    # no GPU here: what counts is that the process has bound itself when it looks for models
    environment = os.environ | torchrun(1, 2, local_rank=1) | {"CUDA_VISIBLE_DEVICES": "3,5"}
    arguments = ["--oracle", "./none", "--ref", "./none", "--dataset", "demo/pairs.jsonl", "--shard", "auto"]
    found = subprocess.run(
        [sys.executable, "-m", "cli.annotate", *arguments, "--output", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stderr.splitlines() == [
        "process 1 of this machine computes on GPU 5",
        "Error: ./none: neither a folder nor a name on the Hub. Check the path, or give user/name.",
    ]
    assert found.returncode == 1
