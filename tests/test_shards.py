"""Tests of the run folder: whole chunks or none, refused mixtures, and a merge that loses no row."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotated import annotated_table, random_table, run_record

from sepo_data import OutputError, SelectionRule, files
from sepo_data.runs import folder as shards
from sepo_data.runs import merging
from sepo_data.runs.folder import ChunkNotes, chunk_ranges, is_done, is_finished, open_run, write_chunk
from sepo_data.runs.merging import merge_run

NOTES: ChunkNotes = {"dropped": {}, "counts": {}}


def write_all(run: shards.Run, seed: int = 0) -> list[pa.Table]:
    tables = []
    for lo, hi in chunk_ranges(run.rows):
        table = random_table(np.random.default_rng(seed + lo), hi - lo)
        write_chunk(run, lo, hi, table, NOTES)
        tables.append(table)
    return tables


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_tile_the_rows_on_one_grid(count: int) -> None:
    whole = chunk_ranges(1000)
    assert [r for i in range(count) for r in chunk_ranges(1000, (i, count))] == whole
    assert whole[0] == (0, 256)
    assert whole[-1] == (768, 1000)


def test_merge_keeps_every_row_in_order(tmp_path: Path) -> None:
    run = open_run(tmp_path / "out", run_record())
    tables = write_all(run)
    manifest = merge_run(run.output)
    (shard,) = manifest.shards
    assert pq.read_table(tmp_path / "out" / shard.file).equals(pa.concat_tables(tables))
    assert manifest.health.pairs == manifest.counts.annotated == 600
    assert is_finished(run)
    assert merge_run(run.output) == manifest
    assert sorted(path.name for path in run.output.iterdir()) == ["README.md", "data", "sepo_manifest.json"]


def test_row_groups_are_small_and_scalars_come_first(tmp_path: Path) -> None:
    run = open_run(tmp_path / "out", run_record(2600))
    write_all(run)
    (shard,) = merge_run(run.output).shards
    layout = pq.ParquetFile(tmp_path / "out" / shard.file)
    sizes = [layout.metadata.row_group(i).num_rows for i in range(layout.num_row_groups)]
    assert sizes == [1000, 1000, 600]
    nested = [pa.types.is_nested(kind) for kind in layout.schema_arrow.types]
    assert nested == sorted(nested)
    assert layout.metadata.row_group(0).column(0).compression == "ZSTD"


def test_many_rows_make_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MANY_ROWS", 500)
    run = open_run(tmp_path / "out", run_record())
    tables = write_all(run)
    shards = merge_run(run.output).shards
    files = [shard.file for shard in shards]
    assert files[0] == "data/train-00000-of-00008.parquet"
    assert [shard.rows for shard in shards] == [75] * 8
    whole = pa.concat_tables([pq.read_table(run.output / file) for file in files])
    assert whole.equals(pa.concat_tables(tables))


def test_missing_chunks_are_named(tmp_path: Path) -> None:
    run = open_run(tmp_path / "out", run_record())
    write_chunk(run, 0, 256, random_table(np.random.default_rng(0), 256), NOTES)
    with pytest.raises(OutputError, match=r"2 of 3 chunks are missing \(rows 256-511, 512-599\)"):
        merge_run(run.output)


def test_a_damaged_chunk_counts_as_not_done(tmp_path: Path) -> None:
    run = open_run(tmp_path / "out", run_record())
    write_all(run)
    path = run.chunk(0, 256)
    path.write_bytes(path.read_bytes()[:1000])
    assert not is_done(run, 0, 256)
    assert is_done(run, 256, 512)
    with pytest.raises(
        OutputError, match=r"damaged\. The command of its shard, or one without `shard`, scores"
    ):
        merge_run(run.output)


def test_a_chunk_of_another_run_counts_as_not_done(tmp_path: Path) -> None:
    ours, other = (
        open_run(tmp_path / "a", run_record()),
        open_run(tmp_path / "b", run_record(dtype="bfloat16")),
    )
    write_all(other)
    other.chunk(0, 256).replace(ours.chunk(0, 256))
    assert not is_done(ours, 0, 256)


def test_chunks_of_another_ratio_are_not_mixed_in(tmp_path: Path) -> None:
    other = run_record(selection=SelectionRule(chosen_ratio=0.9))
    ours, theirs = open_run(tmp_path / "a", run_record()), open_run(tmp_path / "b", other)
    write_all(theirs)
    theirs.chunk(0, 256).replace(ours.chunk(0, 256))
    assert not is_done(ours, 0, 256)


def test_of_two_runs_begun_at_once_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run(tmp_path / "out", run_record())
    look = shards.read_record
    answers = iter([None])  # it looked when nothing was there yet
    monkeypatch.setattr(shards, "read_record", lambda output: next(answers, look(output)))
    with pytest.raises(OutputError, match="this run has 'bfloat16'"):
        open_run(tmp_path / "out", run_record(dtype="bfloat16"))
    assert look(tmp_path / "out") == run_record()


def test_rows_without_a_usable_pair_end_in_a_clear_line(tmp_path: Path) -> None:
    run = open_run(tmp_path / "out", run_record(3))
    notes: ChunkNotes = {"dropped": {"empty response": [0, 2], "no common prompt": [1]}, "counts": {}}
    write_chunk(run, 0, 3, annotated_table().slice(0, 0), notes)
    with pytest.raises(OutputError, match="no row could be annotated: 2 empty response, 1 no common prompt"):
        merge_run(run.output)


def test_another_run_in_the_folder_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    open_run(tmp_path / "out", run_record())
    with pytest.raises(
        OutputError, match=r"out was made with `dtype` 'float32', this run has 'bfloat16'\. Ch"
    ):
        open_run(tmp_path / "out", run_record(dtype="bfloat16"))
    changed = run_record(selection=SelectionRule(chosen_ratio=0.2))
    with pytest.raises(OutputError, match=r"`chosen_ratio` 0\.3, this run has 0\.2"):
        open_run(tmp_path / "out", changed)
    assert open_run(tmp_path / "out", run_record()).record == run_record()


def test_other_versions_take_a_run_up_and_another_licence_is_written_down(tmp_path: Path) -> None:
    first = run_record()
    open_run(tmp_path / "out", first)
    newer = replace(first, environment={"torch": "99"}, sepo_version="99")
    assert newer != first
    open_run(tmp_path / "out", newer)  # another node of the same run
    assert shards.read_record(tmp_path / "out") == first
    licensed = replace(newer, source=replace(first.source, card={"license": "mit"}))
    open_run(tmp_path / "out", licensed)
    assert shards.read_record(tmp_path / "out") == licensed


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="is not empty and no run"):
        open_run(tmp_path, run_record())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        open_run(tmp_path / "out", run_record())


def test_a_full_disk_leaves_no_half_chunk_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path / "out", run_record())

    def full(path: Path) -> None:
        assert path.stat().st_size
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(
        OutputError, match=r"No space left on device\)\. Make room or choose another `output`"
    ):
        write_chunk(run, 0, 256, annotated_table(), NOTES)
    assert [path.name for path in run.work.iterdir()] == ["run.json"]


def test_leftovers_of_a_kill_do_not_stay(tmp_path: Path) -> None:
    run = open_run(tmp_path / "out", run_record())
    write_all(run)
    (run.output / "data").mkdir()
    for name in (
        "data/train-00000-of-00001.parquet.tmp.77",
        "README.md.tmp.77",
        "data/train-00005-of-00009.parquet",
    ):
        (run.output / name).write_bytes(b"half")
    merge_run(run.output)
    files = sorted(
        path.relative_to(run.output).as_posix() for path in run.output.rglob("*") if path.is_file()
    )
    assert files == ["README.md", "data/train-00000-of-00001.parquet", "sepo_manifest.json"]
    run.work.mkdir()  # killed after the manifest, before the chunks were gone
    open_run(tmp_path / "out", run_record())
    assert not run.work.exists()


def test_the_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert shards.fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == shards.fingerprint(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert shards.fingerprint({"a": 1}) != shards.fingerprint({"a": 2})
