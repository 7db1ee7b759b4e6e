"""Peak memory and time of opening a JSON-lines dataset and reading every pair, for a number of rows.

python benchmarks/read_memory.py 1000 100000 1000000
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path


def anonymous_mb() -> float:
    """Memory of this process that no file backs, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("needs Linux")


def measure(num_rows: int, folder: Path) -> str:
    """One line of the table, from a process of its own."""
    path = folder / f"{num_rows}.jsonl"
    words = "the quick brown fox jumps over the lazy dog and runs on "
    with path.open("w") as file:
        for row in range(num_rows):
            pair = {
                "prompt": f"{row} " + words * 8,
                "chosen": f"{row} yes " + words * 12,
                "rejected": words * 9,
            }
            file.write(json.dumps(pair) + "\n")
    from sepo_data.reasons import Unusable
    from sepo_data.sources.preferences import open_pairs

    before, began = anonymous_mb(), time.perf_counter()
    source, columns = open_pairs(str(path))
    opened = time.perf_counter()
    peak = anonymous_mb()
    for lo in range(0, num_rows, 256):
        for row in source.rows.with_format("arrow")[lo : lo + 256].to_pylist():
            assert not isinstance(columns.read(row), Unusable)
        peak = max(peak, anonymous_mb())
    read = time.perf_counter() - opened
    size = path.stat().st_size / 1e6
    path.unlink()
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"| {num_rows:,} ({size:,.0f} MB) | {opened - began:.1f} s | {read:.1f} s | "
        f"{peak:.0f} MB ({peak - before:+.0f}) | {top:.0f} MB |"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_DATASETS_CACHE"] = place
        print(
            "| rows | first open | read all | anonymous memory after | peak resident, mapped pages included |"
        )
        for argument in sys.argv[1:]:
            child = os.fork()
            if child == 0:
                print(measure(int(argument), Path(place)), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
