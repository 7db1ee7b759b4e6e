"""Turn the chunks of a run into a dataset: data files, card and, last, the manifest.

The chunks must tile the source's rows exactly. Memory holds one row group,
however large the dataset.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from ..annotated.card import render_card
from ..annotated.health import HealthMeter
from ..annotated.manifest import Counts, Manifest, Shard, completed
from ..annotated.precision import Precision
from ..errors import OutputError
from ..files import file_sha256, json_bytes, renamed, write_atomically, writing
from ..reasons import Drops
from ..schema import MANIFEST_NAME, SIDES, annotation_columns, piece_fields
from .folder import (
    Run,
    chunk_ranges,
    clear_work,
    is_finished,
    missing_chunks,
    read_chunk,
    read_record,
)
from .repeats import RepeatMeter

ROW_GROUP_ROWS = 1000  # viewers and streaming readers fetch whole row groups
SHARD_BYTES = 400_000_000
MANY_ROWS, MANY_SHARDS = 50_000, 8  # readers share a streamed dataset by file


def merge_run(output: Path) -> Manifest:
    """Turn the chunks of all workers of a run into the annotated dataset.

    A finished dataset is left unchanged.

    Args:
        output: The folder of the run.

    Returns:
        The dataset's manifest.

    Raises:
        OutputError: If the folder contains no run, rows are missing (the message names
            them), a chunk is damaged, or no row could be annotated.
    """
    record = read_record(output)
    if record is None:
        raise OutputError(f"{output} contains no run of sepo. Annotate into that folder first.")
    run = Run(output, record)
    if isinstance(record, Manifest):
        clear_work(run)
        return record
    try:
        with writing(output), FileLock(run.work / "merge.lock"):
            if not is_finished(run):
                return _merge(run)
    except OutputError:
        if not is_finished(run):  # else another process has removed the lock's folder
            raise
    return merge_run(output)  # another process was faster


def _merge(run: Run) -> Manifest:
    chunks = chunk_ranges(run.rows)
    _check_complete(run)
    kept, notes = 0, []
    used: set[str] = set()
    for chunk in chunks:
        table, of_chunk = read_chunk(run, *chunk)
        schema = table.schema
        used.update(name for name in table.column_names if table[name].null_count < table.num_rows)
        kept += table.num_rows
        notes.append(of_chunk)
    dropped = Drops()
    counts = Counter(run.record.source.repairs)
    for note in notes:
        counts.update(note["counts"])
        dropped.extend(note["dropped"])
    dropped_counts = dict(sorted(dropped.counts.items()))
    if kept == 0:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped_counts.items())
        advice = "A dry run shows how its columns and rows are read"
        raise OutputError(f"{run.output}: no row could be annotated: {reasons}. {advice}.")
    pieces = {field.name for side in SIDES for field in piece_fields(side)}
    schema = pa.schema(column for column in schema if column.name in used or column.name not in pieces)
    meter, repeats = HealthMeter(), RepeatMeter()
    shards = _write_shards(run, chunks, schema, kept, (meter, repeats))
    counts.update(repeats.counts())
    manifest = completed(
        run.record,
        fingerprint=run.fingerprint,
        counts=Counts(run.rows, kept, dropped_counts, dict(sorted(counts.items()))),
        dropped_rows=dropped,
        health=meter.health(),
        precision=next((Precision(**note["precision"]) for note in notes if "precision" in note), None),
        self_check=max((note["self_check"] for note in notes if "self_check" in note), default=None),
        shards=shards,
    )
    _finish(run, manifest)
    return manifest


def _check_complete(run: Run) -> None:
    missing = missing_chunks(run)
    if missing:
        spans = ", ".join(f"{lo}-{hi - 1}" for lo, hi in missing[:5]) + ("…" if len(missing) > 5 else "")
        raise OutputError(
            f"{run.output}: chunks are missing, {len(missing)} of {len(chunk_ranges(run.rows))} "
            f"(rows {spans}). Run the same sepo-annotate again, or the shards that own them."
        )


def _finish(run: Run, manifest: Manifest) -> None:
    written = {run.output / shard.file for shard in manifest.shards}
    leftovers = {*(run.output / "data").iterdir(), *run.output.glob("*.tmp.*")}  # left by killed runs
    for path in leftovers - written:
        path.unlink()
    write_atomically(run.output / "README.md", render_card(manifest).encode())
    write_atomically(run.output / MANIFEST_NAME, json_bytes(manifest.as_dict()))
    clear_work(run)


def _write_shards(
    run: Run,
    chunks: list[tuple[int, int]],
    schema: pa.Schema,
    kept: int,
    meters: Sequence[HealthMeter | RepeatMeter],
) -> list[Shard]:
    size = sum(run.chunk(*chunk).stat().st_size for chunk in chunks)
    count = max(-(-size // SHARD_BYTES), MANY_SHARDS if kept > MANY_ROWS else 1)
    ends = [kept * (i + 1) // count for i in range(count)]
    groups = [_group_sizes(end - start) for start, end in pairwise([0, *ends])]
    batches = _rebatched(_tables(run, chunks, schema, meters), [size for sizes in groups for size in sizes])
    (run.output / "data").mkdir(exist_ok=True)
    shards = []
    for i, sizes in enumerate(groups):
        name = f"data/{run.split}-{i:05d}-of-{count:05d}.parquet"
        with renamed(run.output / name) as path:
            with pq.ParquetWriter(path, schema, **parquet_layout(schema)) as writer:
                for _ in sizes:
                    writer.write_table(next(batches))
            shards.append(Shard(name, sum(sizes), path.stat().st_size, file_sha256(path)))
    return shards


def _group_sizes(rows: int) -> list[int]:
    return [min(ROW_GROUP_ROWS, rows - start) for start in range(0, rows, ROW_GROUP_ROWS)]


def _tables(
    run: Run,
    chunks: list[tuple[int, int]],
    schema: pa.Schema,
    meters: Sequence[HealthMeter | RepeatMeter],
) -> Iterator[pa.Table]:
    """The rows of each chunk, counted by the meters as they pass."""
    for chunk in chunks:
        table, _ = read_chunk(run, *chunk)
        table = table.select(schema.names)
        for meter in meters:
            meter.add(table)
        yield table


def _rebatched(tables: Iterator[pa.Table], sizes: list[int]) -> Iterator[pa.Table]:
    """The same rows in tables of the given sizes."""
    held = next(tables)
    for size in sizes:
        while held.num_rows < size:
            held = pa.concat_tables([held, next(tables)])
        yield held.slice(0, size).combine_chunks()
        held = held.slice(size)


def parquet_layout(schema: pa.Schema) -> dict[str, object]:
    """Column encodings: spans increase in small steps, rewards share their exponents."""
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
