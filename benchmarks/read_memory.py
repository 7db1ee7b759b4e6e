"""Peak memory and time of opening a dataset and reading every pair, for each reader and number of rows.

python benchmarks/read_memory.py 1000 100000 1000000 [jsonl parquet streaming …]

Memory is anonymous memory, sampled during both; each measurement runs in its own process. Linux only.
"""

import bz2
import csv
import gzip
import json
import lzma
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]

LONG = "the quick brown fox jumps over the lazy dog and runs on "
FILES = 4
ANSWERS = 4  # of a prompt


def pairs(num_rows: int) -> Iterator[Row]:
    """Rows of about 120 bytes."""
    for row in range(num_rows):
        asked = f"What is {row} and one?"
        yield {"prompt": asked, "chosen": f"It is {row + 1}.", "rejected": "I cannot count that far, sorry."}


def long_pairs(num_rows: int) -> Iterator[Row]:
    """Rows of about 1.7 kB."""
    for row in range(num_rows):
        yield {"prompt": f"{row} {LONG * 8}", "chosen": f"{row} yes {LONG * 12}", "rejected": LONG * 9}


def conversations(num_rows: int) -> Iterator[Row]:
    """ShareGPT conversations, which are rewritten."""
    for row in pairs(num_rows):
        asked = {"from": "human", "value": row.pop("prompt")}
        yield {side: [asked, {"from": "gpt", "value": text}] for side, text in row.items()}


def dumped(num_rows: int) -> Iterator[Row]:
    """Conversations stored as text."""
    for row in conversations(num_rows):
        yield {side: json.dumps(turns) for side, turns in row.items()}


def verdicts(num_rows: int) -> Iterator[Row]:
    """Two responses and which of them is better."""
    for number, row in enumerate(pairs(num_rows)):
        texts = [row["chosen"], row["rejected"]]
        best = number % 2
        yield {
            "prompt": row["prompt"],
            "response_a": texts[best],
            "response_b": texts[1 - best],
            "winner": "ab"[best],
        }


def lists(num_rows: int) -> Iterator[Row]:
    """A list of answers with scores in each row."""
    for row in pairs(num_rows):
        yield {"prompt": row["prompt"], "answers": [row["rejected"], row["chosen"]], "scores": [1, 2]}


def answers(num_rows: int) -> Iterator[Row]:
    """One answer per row, with those of a prompt far apart."""
    prompts = max(1, num_rows // ANSWERS)
    for row in range(num_rows):
        yield {"prompt": f"Question {row % prompts}", "response": f"Answer {row}", "score": row // prompts}


def batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Batches of a thousand rows."""
    rest = iter(rows)
    while some := list(islice(rest, 1000)):
        yield some


def _table(rows: list[Row]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def write_lines(path: Path, rows: Iterable[Row], opened: Callable[..., IO[str]] = open) -> None:
    """One object per line."""
    with opened(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_zstandard(path: Path, rows: Iterable[Row]) -> None:
    """One object per line, compressed."""
    import pyarrow as pa

    with pa.CompressedOutputStream(str(path), "zstd") as file:
        for some in batched(rows):
            file.write("".join(json.dumps(row) + "\n" for row in some).encode())


def write_zip(path: Path, rows: Iterable[Row]) -> None:
    """One object per line, in an archive."""
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("pairs.jsonl", "w", force_zip64=True) as file:
        file.writelines((json.dumps(row) + "\n").encode() for row in rows)


def write_array(path: Path, rows: Iterable[Row]) -> None:
    """One array with one object per line."""
    with path.open("w") as file:
        for number, row in enumerate(rows):
            file.write(("," if number else "[") + "\n" + json.dumps(row))
        file.write("\n]\n")


def write_pretty(path: Path, rows: Iterable[Row]) -> None:
    """Objects over several lines, one after the other."""
    with path.open("w") as file:
        file.writelines(json.dumps(row, indent=2) + "\n" for row in rows)


def write_columns(path: Path, rows: Iterable[Row]) -> None:
    """One object of columns."""
    given = list(rows)
    path.write_text(json.dumps({name: [row[name] for row in given] for name in given[0]}))


def write_table(path: Path, rows: Iterable[Row], delimiter: str = ",") -> None:
    """A table of texts."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "chosen", "rejected"], delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """Row groups of 1000 rows."""
    import pyarrow.parquet as pq

    _write_tables(partial(pq.ParquetWriter, path), rows)


def write_arrow(path: Path, rows: Iterable[Row]) -> None:
    """An Arrow stream, as written by ``datasets``."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink:
        _write_tables(partial(pa.ipc.new_stream, sink), rows)


def _write_tables(opened: Callable[..., Any], rows: Iterable[Row]) -> None:
    """Write tables of 1000 rows with a writer opened for their schema."""
    tables = map(_table, batched(rows))
    first = next(tables)
    with opened(first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def write_several(write: Callable[[Path, Iterable[Row]], None], ending: str) -> Callable[..., None]:
    """Write a folder with some of the rows in each file."""

    def written(folder: Path, rows: Iterable[Row]) -> None:
        folder.mkdir()
        given = list(rows)
        for part in range(FILES):
            write(folder / f"train-{part:05}-of-{FILES:05}{ending}", given[part::FILES])

    return written


# reader → suffix of the path, its rows, how they are written, what follows the path in the name
READERS: dict[str, tuple[str, Callable[[int], Iterator[Row]], Callable[..., None], str]] = {
    "jsonl": (".jsonl", pairs, write_lines, ""),
    "jsonl, rows of 1.7 kB": (".jsonl", long_pairs, write_lines, ""),
    "jsonl.gz": (".jsonl.gz", pairs, lambda path, rows: write_lines(path, rows, gzip.open), ""),
    "jsonl.bz2": (".jsonl.bz2", pairs, lambda path, rows: write_lines(path, rows, bz2.open), ""),
    "jsonl.xz": (".jsonl.xz", pairs, lambda path, rows: write_lines(path, rows, lzma.open), ""),
    "jsonl.zst": (".jsonl.zst", pairs, write_zstandard, ""),
    "jsonl.zip": (".jsonl.zip", pairs, write_zip, ""),
    "json, objects over several lines": (".json", pairs, write_pretty, ""),
    "json, an array": (".json", pairs, write_array, ""),
    "json, an object of columns": (".json", pairs, write_columns, ""),
    "csv": (".csv", pairs, write_table, ""),
    "tsv": (".tsv", pairs, lambda path, rows: write_table(path, rows, "\t"), ""),
    "parquet": (".parquet", pairs, write_parquet, ""),
    "arrow": (".arrow", pairs, write_arrow, ""),
    "folder of jsonl": ("", pairs, write_several(write_lines, ".jsonl"), ""),
    "folder of parquet": ("", pairs, write_several(write_parquet, ".parquet"), ""),
    "pattern of jsonl": ("", pairs, write_several(write_lines, ".jsonl"), "/train-*.jsonl"),
    "pattern of parquet": ("", pairs, write_several(write_parquet, ".parquet"), "/train-*.parquet"),
    "streaming": (".parquet", pairs, write_parquet, ""),
    "conversations": (".jsonl", conversations, write_lines, ""),
    "conversations as text": (".jsonl", dumped, write_lines, ""),
    "two responses and a verdict": (".jsonl", verdicts, write_lines, ""),
    "answers in a list": (".jsonl", lists, write_lines, ""),
    "answers in rows": (".jsonl", answers, write_lines, ""),
}


class Watched:
    """Peak anonymous memory of this process in MB, while entered."""

    peak = 0.0

    def __enter__(self) -> "Watched":
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, anonymous_mb())


def anonymous_mb() -> float:
    """Anonymous memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("needs Linux")


def read(dataset: str, *, streaming: bool) -> None:
    """Print memory above the imports, seconds of opening and reading, and the number of rows."""
    import datasets
    import pyarrow.parquet  # noqa: F401  as an import it is no memory of the reading

    from sepo_data.reasons import Unusable
    from sepo_data.sources.preferences import open_pairs

    datasets.disable_progress_bars()
    before, began = anonymous_mb(), time.perf_counter()
    with Watched() as watched:
        source, columns = open_pairs(dataset, streaming=streaming)
        opened, usable = time.perf_counter(), 0
        for lo in range(0, len(source.rows), 256):
            for row in source.rows.with_format("arrow")[lo : lo + 256].to_pylist():
                usable += not isinstance(columns.read(row), Unusable)
    took = opened - began, time.perf_counter() - opened
    print(json.dumps([watched.peak - before, *took, usable]))


def measure(reader: str, num_rows: int, folder: Path, hub: Any) -> str:
    """Measure one line of the table in its own process."""
    ending, made, write, pattern = READERS[reader]
    path = folder / f"pairs-{num_rows}{ending}"
    write(path, made(num_rows))
    size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path])) / 1e6
    dataset = f"{path}{pattern}"
    if streaming := reader == "streaming":
        dataset = f"me/pairs-{num_rows}"
        hub.add("dataset", dataset, {"data/train.parquet": path.read_bytes()})
    command = [sys.executable, __file__, "--read", dataset, *(["--streaming"] if streaming else [])]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, opening, reading, usable = json.loads(told.splitlines()[-1])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / "sepo", ignore_errors=True)
    speed = num_rows / (opening + reading)
    times = f"{opening:.1f} s | {reading:.1f} s | {speed:,.0f}"
    return f"| {reader} | {num_rows:,} ({size:,.0f} MB) | {times} | {peak:+.0f} MB | {usable:,} |"


def main(arguments: list[str]) -> None:
    """Print the table."""
    numbers = [int(argument) for argument in arguments if argument.isdecimal()]
    tests = Path(__file__).parent.parent / "tests"
    hub = runpy.run_path(str(tests / "hub_server.py"))["HubServer"]()
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"HF_DATASETS_CACHE": place, "HF_HOME": place, "HF_ENDPOINT": hub.url}
        print("| reader | rows | first open | read all | rows per second | peak memory | pairs |", flush=True)
        for reader in [argument for argument in arguments if argument in READERS] or READERS:
            for number in numbers:
                print(measure(reader, number, Path(place), hub), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        read(sys.argv[2], streaming="--streaming" in sys.argv)
    else:
        main(sys.argv[1:])
