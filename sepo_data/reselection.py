"""Change the masks of an annotated dataset without its oracle, from the stored rewards.

Works row group by row group, in constant memory. ``global`` reads the rewards twice: to count
them, and to select.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .annotated.annotations import check_groups, read_annotations
from .annotated.card import render_card
from .annotated.health import HealthMeter
from .annotated.manifest import Manifest, Origin, Shard
from .annotated.opening import open_annotated
from .annotated.selecting import rule_masks, source_rows, stored_cutoffs, stored_rewards
from .errors import OutputError
from .files import check_empty, file_sha256, json_bytes, renamed, write_atomically, writing
from .reasons import Reason
from .runs.merging import parquet_layout
from .runs.tables import list_array
from .schema import MANIFEST_NAME, SIDES
from .selection import Mask, SelectionRule
from .settings import SelectionChange

Numbers = npt.NDArray[np.int64]


def reselect(
    dataset: str,
    change: SelectionChange,
    output: Path,
    *,
    revision: str | None = None,
    seed: int | None = None,
) -> Manifest:
    """Write an annotated dataset with other masks; everything else stays the same.

    Rows without a selected token on a side are dropped and counted.

    Args:
        dataset: Annotated dataset, Hub id or folder.
        change: The changes of the selection.
        output: A new folder, or one where an earlier call was interrupted.
        revision: Branch, tag or commit of a dataset on the Hub.
        seed: For ``random``; None: as annotated.

    Returns:
        The new dataset's manifest, which names the parent dataset.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    annotated = open_annotated(dataset, revision=revision)
    was = annotated.manifest
    selection = change.of(was.selection if seed is None else replace(was.selection, seed=seed))
    rows = next(iter(annotated.splits.values()))
    numbers = source_rows(was, len(rows), dataset)
    if selection.ratio_by is not None:
        check_groups(rows, selection.ratio_by, dataset)
    check_empty(output, but={"data", "README.md"})
    if selection.rule == "global":
        tables = chain.from_iterable(_row_groups(annotated.folder / shard.file) for shard in was.shards)
        selection = replace(selection, cutoffs=stored_cutoffs(tables, selection))
    meter = HealthMeter()
    with writing(output):
        shards, lost = _rewrite(annotated.folder, output, was.shards, selection, numbers, meter)
        if not meter.pairs:
            problem = f"{dataset}: selection {selection.rule} keeps no row"
            raise OutputError(f"{problem}. Choose a larger ratio or a lower threshold, or filter less.")
        manifest = replace(
            _without(was, lost),
            sepo_version=version("sepo"),
            selection=selection,
            health=meter.health(),
            shards=shards,
            reselected_from=Origin(annotated.name, annotated.revision, was.selection),
        )
        write_atomically(output / "README.md", render_card(manifest).encode())
        write_atomically(output / MANIFEST_NAME, json_bytes(manifest.as_dict()))
    return manifest


def _row_groups(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            yield opened.read_row_group(group)


def _rewrite(
    folder: Path,
    output: Path,
    shards: list[Shard],
    selection: SelectionRule,
    numbers: Numbers,
    meter: HealthMeter,
) -> tuple[list[Shard], list[int]]:
    """Write the data files with other masks; returns them, and the numbers of the rows dropped."""
    (output / "data").mkdir(parents=True, exist_ok=True)
    written, lost, begin = [], list[int](), 0
    for shard in shards:
        path = output / shard.file
        of_shard = numbers[begin : begin + shard.rows]
        begin += shard.rows
        dropped = _rewrite_file(folder / shard.file, path, selection, of_shard, meter)
        lost += dropped
        written.append(Shard(shard.file, shard.rows - len(dropped), path.stat().st_size, file_sha256(path)))
    return written, lost


def _rewrite_file(
    file: Path, target: Path, selection: SelectionRule, numbers: Numbers, meter: HealthMeter
) -> list[int]:
    lost, begin = list[int](), 0
    schema = pq.read_schema(file)
    with renamed(target) as path, pq.ParquetWriter(path, schema, **parquet_layout(schema)) as writer:
        for table in _row_groups(file):
            of_group = numbers[begin : begin + table.num_rows]
            begin += table.num_rows
            table, kept = _with_masks(table, selection, of_group)
            lost += of_group[~kept].tolist()
            if table.num_rows:
                meter.add(table)
                writer.write_table(table)
    return lost


def _with_masks(table: pa.Table, selection: SelectionRule, numbers: Numbers) -> tuple[pa.Table, Mask]:
    """The rows with new masks, without those with nothing selected on a side, and which rows are kept."""
    kept = np.ones(table.num_rows, dtype=bool)
    both = read_annotations(table)
    for side in SIDES:
        annotations = [of_row[side] for of_row in both]
        rewards = [stored_rewards(one) for one in annotations]
        masks = rule_masks(table, side, rewards, selection, numbers.tolist())
        kept &= [bool(mask.any()) for mask in masks]
        ends = np.array([one.eos_mask is not None for one in annotations])
        tokens = [mask[: one.token_mask.size] for mask, one in zip(masks, annotations, strict=True)]
        columns = {
            f"{side}_token_mask": list_array(tokens, pa.bool_()),
            f"{side}_eos_mask": pa.array(np.array([mask[-1] for mask in masks], dtype=bool), mask=~ends),
        }
        for name, values in columns.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), values.cast(table.schema.field(at).type))
    return (table if kept.all() else table.filter(pa.array(kept)).combine_chunks()), kept


def _without(was: Manifest, lost: list[int]) -> Manifest:
    """The manifest of the dataset without these rows of its source."""
    dropped_rows = dict(was.dropped_rows)
    before = dropped_rows.get(Reason.NOTHING_SELECTED, [])
    if lost:
        dropped_rows[str(Reason.NOTHING_SELECTED)] = sorted([*before, *lost])
    dropped = {reason: len(rows) for reason, rows in sorted(dropped_rows.items())}
    counts = replace(was.counts, annotated=was.counts.annotated - len(lost), dropped=dropped)
    return replace(was, counts=counts, dropped_rows=dropped_rows)
