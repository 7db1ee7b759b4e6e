"""Tests of the run folder: whole chunks or none, refused mixtures, and a merge that loses no row."""

import errno
import hashlib
import json
import re
import shutil
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
from sepo_data.runs.folder import (
    ChunkNotes,
    chunk_ranges,
    is_done,
    is_finished,
    open_run,
    read_chunk,
    write_chunk,
)
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
    with pytest.raises(OutputError, match=r"chunks are missing, 2 of 3 \(rows 256-511, 512-599\)"):
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


def test_a_chunk_comes_back_with_its_notes_and_under_its_own_name_only(tmp_path: Path) -> None:
    run = open_run(tmp_path / "deep" / "out", run_record())
    table = random_table(np.random.default_rng(0), 256)
    notes: ChunkNotes = {"dropped": {"empty response": [3]}, "counts": {"é": 2}, "self_check": 0.5}
    write_chunk(run, 0, 256, table, notes)
    write_chunk(run, 0, 256, table, NOTES, "bfloat16")
    assert read_chunk(run, 0, 256) == (table, notes)
    assert read_chunk(run, 0, 256, "bfloat16") == (table, NOTES)
    path = run.chunk(0, 256)
    assert path == tmp_path / "deep" / "out" / "_work" / "train-000000000-000000256.rows"
    digest, content = path.read_bytes()[:32], path.read_bytes()[32:]
    assert digest == hashlib.sha256(content).digest()
    assert pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(0).column(0).compression == "ZSTD"
    run.chunk(256, 512).write_bytes(path.read_bytes())
    assert not is_done(run, 256, 512)
    assert is_done(run, 0, 256)
    path.unlink()
    assert not is_done(run, 0, 256)
    assert is_done(run, 0, 256, "bfloat16")


def parquet(footer: dict[bytes, bytes] | None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(annotated_table().replace_schema_metadata(footer), sink)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"cannot be read \(No such file or directory\)\. Run again\."),
        (b"words", r"is not a chunk \(.*\)\. Delete it and run again\."),
        (
            parquet(None),
            r"is not a chunk \(Expecting value: line 1 column 1 \(char 0\)\)\. Delete it and run again\.",
        ),
        (parquet({b"sepo_notes": b"{"}), r"is not a chunk \(.*\)\. Delete it and run again\."),
        (parquet({b"sepo_notes": b"{}"}), r"was changed\. Delete it and run again\."),
    ],
)
def test_a_file_that_is_not_a_chunk_of_the_run_is_refused(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    run = open_run(tmp_path / "out", run_record())
    path = run.chunk(0, 256)
    if content is not None:
        path.write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(OutputError, match=f"^{re.escape(str(path))} {problem}$"):
        read_chunk(run, 0, 256)


def test_a_chunk_that_comes_after_the_merge_is_not_needed(tmp_path: Path) -> None:
    run = open_run(tmp_path / "out", run_record())
    write_all(run)
    merge_run(run.output)
    write_chunk(run, 0, 256, annotated_table(), NOTES)  # its folder is gone, the dataset complete
    (run.output / "sepo_manifest.json").unlink()
    with pytest.raises(OutputError, match="cannot be written"):
        write_chunk(run, 0, 256, annotated_table(), NOTES)


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
    both = run_record(dtype="bfloat16", selection=SelectionRule(chosen_ratio=0.2))
    with pytest.raises(OutputError) as raised:
        open_run(tmp_path / "out", both)
    assert str(raised.value) == (
        f"{tmp_path / 'out'} was made with `dtype` 'float32', this run has 'bfloat16'; `chosen_ratio` 0.3, "
        "this run has 0.2. Choose another `output` to keep both."
    )
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


def test_a_record_that_cannot_be_updated_matters_until_the_dataset_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_record()
    open_run(tmp_path / "out", first)
    licensed = replace(first, source=replace(first.source, card={"license": "mit"}))

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "write_atomically", full)
    with pytest.raises(OutputError, match=rf"^{re.escape(str(tmp_path / 'out'))} cannot .*No space left"):
        open_run(tmp_path / "out", licensed)
    answers = iter([False, True])  # another worker assembles the dataset in between
    monkeypatch.setattr(shards, "is_finished", lambda run: next(answers))
    assert open_run(tmp_path / "out", licensed).record == licensed


def test_a_folder_of_a_run_that_was_killed_before_its_record_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "out" / "_work").mkdir(parents=True)
    run = open_run(tmp_path / "out", run_record())
    assert (run.record, shards.read_record(run.output)) == (run_record(), run_record())


def test_a_finished_run_has_the_record_of_its_manifest(tmp_path: Path) -> None:
    write_all(open_run(tmp_path / "out", run_record()))
    manifest = merge_run(tmp_path / "out")
    other = replace(run_record(), sepo_version="99")
    again = open_run(tmp_path / "out", other)
    assert (again.output, again.record) == (tmp_path / "out", manifest)


def test_the_chunks_of_a_finished_run_go_though_another_worker_is_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path / "out", run_record())
    remove, tries = shutil.rmtree, []

    def remove_later(path: Path, ignore_errors: bool) -> None:
        tries.append(path)
        if len(tries) == 3:
            remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", remove_later)
    shards.clear_work(run)
    assert not run.work.exists()
    assert tries == [run.work] * 3


def test_a_record_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    run = open_run(tmp_path / "out", run_record())
    path = run.work / "run.json"
    unwritable = json.dumps({**run_record().as_dict(), "sepo_version": "\ud800"}).encode()
    for content in (b"{", b"[]", b"\xff", unwritable):
        path.write_bytes(content)
        with pytest.raises(OutputError, match=rf"^{re.escape(str(path))} cannot be read \(.*\)\. Delete "):
            shards.read_record(run.output)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="is not empty, and contains no run"):
        open_run(tmp_path, run_record())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match=f"^{re.escape(str(tmp_path / 'out'))} cannot be written"):
        open_run(tmp_path / "out", run_record())


def test_a_full_disk_leaves_no_half_chunk_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path / "out", run_record())

    def full(path: Path) -> None:
        assert path.stat().st_size
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(OutputError) as raised:
        write_chunk(run, 0, 256, annotated_table(), NOTES)
    assert str(raised.value) == (
        f"{run.output} cannot be written (No space left on device). Make room or choose another `output`; "
        "finished chunks are kept, and the same command resumes."
    )
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


def test_the_fingerprint_is_that_of_canonical_json() -> None:
    canonical = '{"a":"é","b":{"c":2,"d":null}}'.encode()
    found = shards.fingerprint({"b": {"d": None, "c": 2}, "a": "é"})
    assert found == hashlib.sha256(canonical).hexdigest()
