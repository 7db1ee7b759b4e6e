"""Write records to files, one range after the other, in constant memory."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import renamed
from .target import Record, Target

ROW_GROUP_ROWS = 1000


def write_records(records: Iterator[Record], output: Path, target: Target) -> tuple[Path, int]:  # type: ignore[type-arg]
    """Write a target's records into a folder.

    Returns:
        The path for the trainer, and the number of records.
    """
    data = output / target.file
    data.parent.mkdir(parents=True, exist_ok=True)
    if target.file == "train.jsonl":
        return data, _write_lines(records, data)
    if target.file == "data/train.parquet":
        return data, _write_parquet(records, data, target.schema)
    return data, _write_dataset(records, data, target.schema)


def _write_lines(records: Iterator[Record], path: Path) -> int:
    count = 0
    with renamed(path) as partial, partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(records: Iterator[Record], path: Path, schema: pa.Schema) -> int:
    count = 0
    with renamed(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        while rows := list(islice(records, ROW_GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _write_dataset(records: Iterator[Record], folder: Path, schema: pa.Schema) -> int:
    """A folder of ``DatasetDict.save_to_disk``, made from a parquet file that is memory-mapped once."""
    import datasets

    work = folder.with_name(f"{folder.name}.tmp.work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir()
    try:
        count = _write_parquet(records, work / "train.parquet", schema)
        if count:
            rows = datasets.Dataset.from_parquet(str(work / "train.parquet"), cache_dir=str(work))
            datasets.DatasetDict({"train": rows}).save_to_disk(str(folder))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return count
