"""Exactly-once work: what a run is, its finished chunks, and how they become a dataset.

A run is the facts that change its numbers. Work goes in chunks of rows with their
global range in the name, written aside and renamed when complete, so a finished
name means done: a killed run repeats at most one chunk, and two workers on one
chunk write the same bytes. `merge` demands that the chunks tile the dataset.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import OutputError
from .schema import MANIFEST_NAME, annotation_columns

CHUNK_ROWS = 256
ROW_GROUP_ROWS = 1000  # viewers and streaming readers fetch whole row groups
SHARD_BYTES = 400_000_000
MANY_ROWS, MANY_SHARDS = 50_000, 8  # readers share a streamed dataset by file

_NOTES_KEY = b"sepo_notes"
_FINGERPRINT_KEY = b"sepo_fingerprint"


@dataclass(frozen=True)
class Run:
    """One annotation run and its folder.

    Attributes:
        output: The folder that becomes the dataset.
        record: Facts of the run, plain JSON. ``record["scoring"]`` and
            ``record["selection"]`` make its identity; the rest is for the card.
    """

    output: Path
    record: dict[str, Any]

    @property
    def work(self) -> Path:
        """Where chunks are kept until they are merged; readers of datasets skip the underscore."""
        return self.output / "_work"

    @property
    def fingerprint(self) -> str:
        """Identity of the numbers, see `fingerprint`."""
        return fingerprint(self.record["scoring"])

    @property
    def split(self) -> str:
        """Name of the split, in file names."""
        return str(self.record["scoring"]["source"]["split"])

    @property
    def rows(self) -> int:
        """Rows of the source that the run covers."""
        return int(self.record["scoring"]["source"]["rows"])

    def chunk(self, lo: int, hi: int) -> Path:
        """The file of the source rows ``lo`` to ``hi``."""
        return self.work / f"{self.split}-{lo:09d}-{hi:09d}.parquet"


def fingerprint(scoring: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of everything that changes numbers."""
    canonical = json.dumps(scoring, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def open_run(output: Path, record: dict[str, Any]) -> Run:
    """Begin a run in a folder, or take up the one that was begun there.

    Args:
        output: The folder; made if it is missing.
        record: Facts of this run.

    Returns:
        The run with the record that stands in the folder.

    Raises:
        OutputError: If the folder cannot be written, holds something else, or
            holds a run that differs in what makes its identity.
    """
    run = Run(output, record)
    found = read_record(output)
    if found is not None:
        _refuse_other_run(run, found)
        if is_finished(run):  # a kill between the manifest and the end of `finish` leaves chunks behind
            shutil.rmtree(run.work, ignore_errors=True)
        return Run(output, found)
    with _writing(output):
        if output.is_dir() and any(path.name != "_work" for path in output.iterdir()):
            raise OutputError(f"{output} is not empty and holds no run of sepo. Choose another --output.")
        run.work.mkdir(parents=True, exist_ok=True)
        write_atomically(run.work / "run.json", _json(record))
    return run


def read_record(output: Path) -> dict[str, Any] | None:
    """The record of the run in a folder, finished or not; None if there is none."""
    for path in (output / MANIFEST_NAME, output / "_work" / "run.json"):
        if path.exists():
            try:
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise OutputError(
                    f"{path} cannot be read ({error}). Delete {output} and run again."
                ) from error
    return None


def is_finished(run: Run) -> bool:
    """Whether the dataset is complete: the manifest is written last."""
    return (run.output / MANIFEST_NAME).exists()


def chunk_ranges(num_rows: int, shard: tuple[int, int] = (0, 1)) -> list[tuple[int, int]]:
    """The half-open row ranges of one shard's chunks, on a grid that no shard count changes.

    Example:
        >>> chunk_ranges(600), chunk_ranges(600, (1, 2))
        ([(0, 256), (256, 512), (512, 600)], [(256, 512), (512, 600)])
    """
    starts = range(0, num_rows, CHUNK_ROWS)
    index, count = shard
    own = starts[len(starts) * index // count : len(starts) * (index + 1) // count]
    return [(lo, min(lo + CHUNK_ROWS, num_rows)) for lo in own]


def is_done(run: Run, lo: int, hi: int) -> bool:
    """Whether a chunk is written whole; a damaged one counts as not done and is written again."""
    try:
        _read_notes(run, run.chunk(lo, hi))
    except OutputError:
        return False
    return True


def write_chunk(run: Run, lo: int, hi: int, table: pa.Table, notes: dict[str, Any]) -> None:
    """Write the annotated rows of one chunk, whole or not at all.

    Args:
        run: The run.
        lo: First source row.
        hi: One past the last source row.
        table: The rows that could be annotated, in the final columns.
        notes: What happened to the others, plain JSON; kept in the file's footer.

    Raises:
        OutputError: If the folder cannot be written or the disk is full.
    """
    footer = {_NOTES_KEY: _json(notes), _FINGERPRINT_KEY: run.fingerprint.encode()}
    with _writing(run.output), _renamed(run.chunk(lo, hi)) as path:
        pq.write_table(table.replace_schema_metadata(footer), path, compression="zstd")


@dataclass(frozen=True)
class Merged:
    """What `merge` wrote: the data files, and the notes of all chunks with their row ranges."""

    shards: list[dict[str, Any]]
    notes: list[dict[str, Any]]


def merge(run: Run, on_table: Callable[[pa.Table], None]) -> Merged:
    """Turn the chunks of a run into the data files of a dataset.

    Args:
        run: A run whose chunks are all done, by whichever workers.
        on_table: Sees every chunk's table once, in order.

    Raises:
        OutputError: If rows are missing (the message names them), a chunk is
            damaged, nothing was left to annotate, or the folder cannot be written.
    """
    ranges = chunk_ranges(run.rows)
    missing = [(lo, hi) for lo, hi in ranges if not run.chunk(lo, hi).exists()]
    if missing:
        spans = ", ".join(f"{lo}-{hi - 1}" for lo, hi in missing[:5]) + ("…" if len(missing) > 5 else "")
        raise OutputError(
            f"{run.output}: {len(missing)} of {len(ranges)} chunks are missing (rows {spans}). "
            "Run the shards that own them, then sepo merge."
        )
    paths = [run.chunk(lo, hi) for lo, hi in ranges]
    notes = [_read_notes(run, path) for path in paths]
    kept = sum(pq.read_metadata(path).num_rows for path in paths)
    if kept == 0:
        raise OutputError(f"{run.output}: no row could be annotated: {_reasons(notes)}. Look at the dataset.")
    size = sum(path.stat().st_size for path in paths)
    count = max(-(-size // SHARD_BYTES), MANY_SHARDS if kept > MANY_ROWS else 1)
    with _writing(run.output):
        (run.output / "data").mkdir(exist_ok=True)
        shards = _write_shards(run, paths, kept, count, on_table)
        for stale in set((run.output / "data").iterdir()) - {run.output / shard["file"] for shard in shards}:
            stale.unlink()
    return Merged(shards, notes)


def finish(run: Run, card: str, manifest: dict[str, Any]) -> None:
    """Write the card and, last of all, the manifest; then drop the chunks."""
    with _writing(run.output):
        write_atomically(run.output / "README.md", card.encode())
        for stale in run.output.glob("*.tmp.*"):
            stale.unlink()
        write_atomically(run.output / MANIFEST_NAME, _json(manifest))
        shutil.rmtree(run.work)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with _renamed(path) as partial:
        partial.write_bytes(content)


def _write_shards(
    run: Run, paths: list[Path], kept: int, count: int, on_table: Callable[[pa.Table], None]
) -> list[dict[str, Any]]:
    ends = [kept * (i + 1) // count for i in range(count)]
    groups = [_group_sizes(end - start) for start, end in pairwise([0, *ends])]
    batches = _rebatched(_tables(paths, on_table), [size for sizes in groups for size in sizes])
    schema = pq.read_schema(paths[0]).remove_metadata()
    shards = []
    for i, sizes in enumerate(groups):
        name = f"data/{run.split}-{i:05d}-of-{count:05d}.parquet"
        with _renamed(run.output / name) as path:
            with pq.ParquetWriter(path, schema, **_layout(schema)) as writer:
                for _ in sizes:
                    writer.write_table(next(batches))
            shards.append(
                {"file": name, "rows": sum(sizes), "bytes": path.stat().st_size, "sha256": _sha256(path)}
            )
    return shards


def _group_sizes(rows: int) -> list[int]:
    return [min(ROW_GROUP_ROWS, rows - start) for start in range(0, rows, ROW_GROUP_ROWS)]


def _tables(paths: list[Path], on_table: Callable[[pa.Table], None]) -> Iterator[pa.Table]:
    for path in paths:
        try:
            table = pq.read_table(path).replace_schema_metadata(None)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{path} is damaged ({error}). Delete it and run again.") from error
        on_table(table)
        yield table


def _rebatched(tables: Iterator[pa.Table], sizes: list[int]) -> Iterator[pa.Table]:
    """The same rows in tables of the given sizes."""
    held = next(tables)
    for size in sizes:
        while held.num_rows < size:
            held = pa.concat_tables([held, next(tables)])
        yield held.slice(0, size).combine_chunks()
        held = held.slice(size)


def _layout(schema: pa.Schema) -> dict[str, Any]:
    """How columns lie in a file: spans climb in small steps, rewards share their exponents."""
    encodings = {}
    for field in schema:
        if field.name in annotation_columns() and pa.types.is_list(field.type):
            leaf = f"{field.name}.list.{field.type.value_field.name}"
            if pa.types.is_int32(field.type.value_type):
                encodings[leaf] = "DELTA_BINARY_PACKED"
            elif pa.types.is_float32(field.type.value_type):
                encodings[leaf] = "BYTE_STREAM_SPLIT"
    names = {leaf.split(".")[0] for leaf in encodings}
    others = [field.name for field in schema if field.name not in names]
    return {"compression": "zstd", "use_dictionary": others, "column_encoding": encodings}


def _read_notes(run: Run, path: Path) -> dict[str, Any]:
    try:
        footer = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{path} is damaged ({error}). Delete it and run again.") from error
    if footer.get(_FINGERPRINT_KEY) != run.fingerprint.encode():
        raise OutputError(f"{path} belongs to another run. Delete it and run again.")
    return dict(json.loads(footer[_NOTES_KEY]))


def _reasons(notes: list[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for note in notes:
        for reason, rows in note["dropped"].items():
            counts[reason] = counts.get(reason, 0) + len(rows)
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def _refuse_other_run(run: Run, found: dict[str, Any]) -> None:
    differing = [
        f"{name} {theirs!r}, this run has {ours!r}"
        for part in ("scoring", "selection")
        for name, theirs, ours in _differences(found.get(part, {}), run.record[part])
    ]
    if differing:
        raise OutputError(
            f"{run.output} was made with {'; '.join(differing)}. Choose another --output to keep both."
        )


def _differences(theirs: Any, ours: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from _differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif theirs != ours:
        yield name, theirs, ours


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turn what the file system says into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written ({error.strerror or error}). Make room or choose another --output; "
            "finished chunks are kept, and the same command goes on from there."
        ) from error


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A path to write to, which takes its name when it is complete and on disk."""
    partial = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
