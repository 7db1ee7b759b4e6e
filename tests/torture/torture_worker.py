"""A process of ``sepo-annotate``, forked from one with all modules loaded, so that starting many is cheap."""

import os
import random
import time

import torch

import sepo_data.runs.chunks
import sepo_data.verification  # noqa: F401  loads what a run loads late
from cli.annotate import main
from sepo_data.runs import folder as shards

CHUNK_ROWS = 16


def work(arguments: list[str], log: str, *, jumping_clock: bool = False) -> None:
    """Run the command with its output in a file, and exit with its exit code."""
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(number, 1)
    os.dup2(number, 2)
    torch.set_num_threads(1)
    shards.CHUNK_ROWS = CHUNK_ROWS
    if jumping_clock:
        _let_the_clock_jump()
    main(arguments)


def _let_the_clock_jump() -> None:
    """A clock that jumps years back and forth."""
    right = time.time

    def wrong() -> float:
        return right() + random.uniform(-1e9, 1e9)

    time.time = wrong
    time.time_ns = lambda: int(1e9 * wrong())
