"""Cost of the self-check: CPU time of annotations with and without it.

    python benchmarks/self_check.py [ROWS]

The demo's models, random words, float32 on one thread. Runs are interleaved and measured in CPU time, so a
busy machine does not matter.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sepo_data import AnnotateSettings, annotate
from sepo_data.models import self_check
from sepo_data.runs.chunks import Work
from sepo_data.schema import SIDES

DEMO = Path(__file__).parent.parent / "demo"
WORDS = ["the", "a", "of", "to", "and", "in", "that", "it", "was", "his", "she", "with", "for", "on", "some"]


def rows(number: int, file: Path) -> None:
    """Pairs with prompts of 10 to 40 words and responses of 5 to 120."""
    random = np.random.default_rng(0)

    def words(lo: int, hi: int) -> str:
        return " ".join(random.choice(WORDS, int(random.integers(lo, hi))))

    with file.open("w") as stream:
        for i in range(number):
            pair = {"prompt": f"{i} {words(10, 40)}", **{side: words(5, 120) for side in SIDES}}
            stream.write(json.dumps(pair) + "\n")


def seconds(data: Path, output: Path) -> float:
    """CPU time of an annotation."""
    began = time.process_time()
    annotate(str(data), str(DEMO / "oracle"), str(DEMO / "reference"), AnnotateSettings(output, device="cpu"))
    return time.process_time() - began


def main() -> None:
    """Print a line for each round."""
    torch.set_num_threads(1)
    logging.getLogger("sepo").setLevel(logging.ERROR)
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    checked, usual, spent = self_check.checked_logps, Work.check, [0.0]

    def timed(*args: Any, **more: Any) -> Any:
        began = time.process_time()
        found = checked(*args, **more)
        spent[0] += time.process_time() - began
        return found

    self_check.checked_logps = timed
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        rows(number, data)
        for turn in range(2):
            spent[0] = 0.0
            with_it = seconds(data, Path(folder) / f"with{turn}")
            print(f"{number:,} rows: {with_it:.1f} s, of which the check took {spent[0]:.2f} s", flush=True)
            Work.check = lambda *_: None  # type: ignore[method-assign, assignment]
            without = seconds(data, Path(folder) / f"without{turn}")
            Work.check = usual  # type: ignore[method-assign]
            print(f"{number:,} rows: {without:.1f} s without it", flush=True)


if __name__ == "__main__":
    main()
