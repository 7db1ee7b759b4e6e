"""Peak memory and time of opening a dataset and reading every pair, for numbers of rows and each reader.

python benchmarks/read_memory.py 1000 100000 1000000 [jsonl csv parquet conversations]
"""

import csv
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path


def anonymous_mb() -> float:
    """Memory of this process that no file backs, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("needs Linux")


READERS = ("jsonl", "csv", "parquet", "conversations")
WORDS = "the quick brown fox jumps over the lazy dog and runs on "


def pairs(num_rows: int) -> Iterator[dict[str, str]]:
    """Rows of about 1.7 kB."""
    for row in range(num_rows):
        yield {"prompt": f"{row} " + WORDS * 8, "chosen": f"{row} yes " + WORDS * 12, "rejected": WORDS * 9}


def write(path: Path, num_rows: int, reader: str) -> None:
    """The rows as a reader takes them; ``conversations`` are ShareGPT's, which are written anew."""
    if reader == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows, writer = pairs(num_rows), None
        while batch := list(islice(rows, 1000)):
            table = pa.Table.from_pylist(batch)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        return
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        if reader == "csv":
            table.writeheader()
        for pair in pairs(num_rows):
            if reader == "csv":
                table.writerow(pair)
                continue
            if reader == "conversations":
                asked = {"from": "human", "value": pair.pop("prompt")}
                pair = {side: [asked, {"from": "gpt", "value": text}] for side, text in pair.items()}
            file.write(json.dumps(pair) + "\n")


def measure(num_rows: int, reader: str, folder: Path) -> str:
    """One line of the table, from a process of its own."""
    path = folder / f"{num_rows}-{reader}.{'jsonl' if reader == 'conversations' else reader}"
    write(path, num_rows, reader)
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
        f"| {reader} | {num_rows:,} ({size:,.0f} MB) | {opened - began:.1f} s | {read:.1f} s | "
        f"{peak:.0f} MB ({peak - before:+.0f}) | {top:.0f} MB |"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_DATASETS_CACHE"] = place
        print(
            "| reader | rows | first open | read all | anonymous memory after | peak, mapped pages included |"
        )
        numbers = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
        for reader in [argument for argument in sys.argv[1:] if argument in READERS] or READERS:
            for number in numbers:
                child = os.fork()
                if child == 0:
                    print(measure(number, reader, Path(place)), flush=True)
                    os._exit(0)
                os.waitpid(child, 0)
                shutil.rmtree(Path(place) / "sepo", ignore_errors=True)
