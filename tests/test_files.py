"""Tests of files, patterns and splits in use: each gives the intended rows."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.errors import OutputError, PreferenceError
from sepo_data.files import check_apart
from sepo_data.sources.splits import open_source

ROWS = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(path: Path, content: bytes) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(path)


def rows(dataset: str, **options: Any) -> list[dict[str, Any]]:
    return list(open_source(dataset, DatasetSpec(**options)).rows)


def zipped(name: str, content: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, content)
    return held.getvalue()


COMPRESSED = {
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.jsonl.xz": lzma.compress(LINES),
    "rows.jsonl.bz2": bz2.compress(LINES),
    "rows.jsonl.zip": zipped("rows.jsonl", LINES),
    "rows.zip": zipped("in/rows.jsonl", LINES),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_files_are_read_and_cut_ones_refused(tmp_path: Path, name: str) -> None:
    assert rows(written(tmp_path / name, COMPRESSED[name])) == ROWS
    cut = written(tmp_path / f"cut-{name}", COMPRESSED[name][:-40])
    with pytest.raises(PreferenceError, match="corrupt or truncated"):
        rows(cut)


def test_zstandard_is_read(tmp_path: Path) -> None:
    target = str(tmp_path / "rows.jsonl.zst")
    with pa.OSFile(target, "wb") as sink, pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(LINES)
    assert rows(target) == ROWS


TABLE = [list(row.values()) for row in ROWS]
JSON_FORMS = {
    "printed": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "an array": json.dumps(ROWS, indent=1),
    "in data": json.dumps({"version": "1", "data": ROWS}, indent=2),
    "in data, one line": json.dumps({"data": ROWS}),
    "columns": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "columns, printed": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}, indent=4),
    "pandas": json.dumps({name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}),
    "pandas, split": json.dumps({"columns": list(ROWS[0]), "index": [0, 1, 2], "data": TABLE}),
    "pandas, index": json.dumps({str(i): row for i, row in enumerate(ROWS)}),
    "by id, printed": json.dumps({f"id-{i}": row for i, row in enumerate(ROWS)}, indent=1),
    "one after the other": "".join(map(json.dumps, ROWS)),
    "one after the other, printed": "".join(json.dumps(row, indent=2) for row in ROWS),
    "a comma behind each": ",\n".join(map(json.dumps, ROWS)) + ",\n",
    "a comma behind each, printed": ",\n".join(json.dumps(row, indent=2) for row in ROWS),
    "one split": json.dumps({"train": ROWS, "version": 1}),
}


@pytest.mark.parametrize("form", JSON_FORMS)
def test_json_is_read_however_it_was_written(tmp_path: Path, form: str) -> None:
    assert rows(written(tmp_path / "rows.json", JSON_FORMS[form].encode())) == ROWS


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}]},
        {"prompt": "p", "chosen": "a"},
        {"messages": [{"input": "a", "output": "b"}]},
        {"chosen": {"text": "a", "score": 1}, "rejected": {"text": "b", "score": 0}},
    ],
)
def test_the_only_row_of_a_file_is_a_row(tmp_path: Path, row: dict[str, Any]) -> None:
    assert rows(written(tmp_path / "row.jsonl", json.dumps(row).encode())) == [row]


def test_the_splits_in_a_file_are_chosen_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "rows.json", json.dumps({"train": ROWS[:2], "test": ROWS[2:]}).encode())
    assert rows(path) == ROWS[:2]
    assert "holds the splits train, test; train is read" in caplog.text
    assert rows(path, split="test") == ROWS[2:]
    assert rows(path, split="all") == rows(path, split="train+test") == ROWS
    with pytest.raises(PreferenceError, match=r'no split "dev"\. Choose with `split`: train, test\.$'):
        rows(path, split="dev")
    written(tmp_path / "part" / "rows.json", Path(path).read_bytes())
    with pytest.raises(PreferenceError, match="holds the splits train, test"):
        rows(str(tmp_path / "part"))


def test_values_in_a_line_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    for line in (b'{"prompt": "p"} x', b'{"prompt": "p"} [1]', b'{"prompt": "p"},,{"prompt": "q"}'):
        with pytest.raises(PreferenceError, match=r"line 1: corrupt or truncated JSON \(Extra data\)"):
            rows(written(tmp_path / "rows.jsonl", line))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_tables_are_split_at_what_their_header_is_split_at(tmp_path: Path, delimiter: str) -> None:
    lines = [delimiter.join(cells) for cells in (ROWS[0], *TABLE)]
    assert rows(written(tmp_path / "rows.csv", "\n".join(lines).encode())) == ROWS
    assert rows(written(tmp_path / "rows.tsv", "\n".join(lines).encode())) == ROWS


def test_a_line_that_says_what_excel_splits_at_is_no_header(tmp_path: Path) -> None:
    lines = ["sep=;", *(";".join(cells) for cells in (ROWS[0], *TABLE))]
    assert rows(written(tmp_path / "rows.csv", "\r\n".join(lines).encode("utf-8-sig"))) == ROWS


def test_a_pattern_means_its_files_in_order_and_arrow_files_are_read(tmp_path: Path) -> None:
    for i in (1, 0):
        written(tmp_path / "part" / f"{i}.jsonl", json.dumps(ROWS[i]).encode())
    assert rows(f"{tmp_path}/part/*.jsonl") == ROWS[:2]
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert rows(str(next((tmp_path / "saved").glob("*.arrow")))) == ROWS
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(f"{tmp_path}/file.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert rows(f"{tmp_path}/file.arrow") == ROWS
    with pytest.raises(PreferenceError, match="no such file or folder"):
        rows(f"{tmp_path}/part/*.csv")


@pytest.mark.parametrize(
    "name", ["ROWS.JSONL", "rows.jsonlines", "rows.NDJSON", "rows.JSON", "Rows.Jsonl.GZ"]
)
def test_endings_may_be_in_capitals(tmp_path: Path, name: str) -> None:
    content = gzip.compress(LINES) if name.endswith("GZ") else LINES
    assert rows(written(tmp_path / "part" / name, content)) == ROWS
    assert rows(str(tmp_path / "part")) == rows(f"{tmp_path}/part/*.*") == ROWS
    written(tmp_path / "part" / "TEST.JSONL", LINES)  # not among the rows of training
    with pytest.raises(PreferenceError, match=r"no data files in it\. .* give a pattern of its files"):
        rows(str(tmp_path / "part"))


@pytest.mark.parametrize("name", ["B.JSONL", "b.csv", "more/b.jsonlines"])
def test_files_of_a_folder_that_are_in_no_split_are_named(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "prefs" / "a.jsonl", LINES)
    (tmp_path / "prefs" / name).parent.mkdir(exist_ok=True)
    written(tmp_path / "prefs" / name, LINES)
    written(tmp_path / "prefs" / ".cache" / "c.JSONL", LINES)
    source = open_source(str(tmp_path / "prefs"))
    assert list(source.rows) == ROWS
    assert source.repairs == {f"files left out, in no split of the folder: {name}": 1}
    assert f"no split of the folder: {name}. Give a pattern" in caplog.text


def test_tables_and_parquet_may_end_in_capitals(tmp_path: Path) -> None:
    lines = [",".join(cells) for cells in (ROWS[0], *TABLE)]
    assert rows(written(tmp_path / "ROWS.CSV", "\n".join(lines).encode())) == ROWS
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "ROWS.PARQUET")
    assert rows(str(tmp_path / "ROWS.PARQUET")) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("form", ["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz"])
def test_utf_16_is_read_where_its_first_bytes_say_so(tmp_path: Path, encoding: str, form: str) -> None:
    given = [{**row, "chosen": "a 中文 😀\u2028\u0a0a b"} for row in ROWS]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in given)
    if form == "rows.json":
        text = json.dumps(given, indent=1, ensure_ascii=False)
    elif form == "rows.csv":
        text = "\r\n".join(",".join(cells) for cells in (given[0], *(row.values() for row in given)))
    content = ("\ufeff" if encoding == "utf-16-be" else "").encode(encoding) + text.encode(encoding)
    assert rows(written(tmp_path / form, gzip.compress(content) if form.endswith("gz") else content)) == given


def test_utf_16_that_is_cut_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", LINES.decode().encode("utf-16")[:-1])
    with pytest.raises(
        PreferenceError, match=r"rows\.jsonl, line \d: not UTF-16-LE \(truncated data\)\. Save"
    ):
        rows(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path / "rows.jsonl", LINES.decode().encode(encoding))
    with pytest.raises(PreferenceError, match=r"UTF-32, or UTF-16 without its mark\. Save .* as UTF-8\.$"):
        rows(path)


@pytest.mark.parametrize("name", ["stats.json", "a_stats.json"])
def test_an_object_beside_the_data_is_no_row_of_it(tmp_path: Path, name: str) -> None:
    written(tmp_path / "prefs" / "pairs.jsonl", LINES)
    written(tmp_path / "prefs" / name, b'{"rows": 3, "seed": 0}')
    source = open_source(str(tmp_path / "prefs"))
    assert list(source.rows) == ROWS
    assert [what.endswith(f"of the others: {name}") for what in source.repairs] == [True]
    written(tmp_path / "prefs" / name, json.dumps(ROWS[0]).encode())
    assert len(open_source(str(tmp_path / "prefs")).rows) == 4


def test_an_address_is_refused_with_what_to_give(tmp_path: Path) -> None:
    for address in ("https://huggingface.co/datasets/me/prefs", "hf://datasets/me/prefs/a.jsonl"):
        with pytest.raises(PreferenceError, match=r"Give the name on the Hub, me/prefs\.$"):
            rows(address)
    with pytest.raises(PreferenceError, match="Download it"):
        rows("https://example.org/pairs.jsonl")


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train[:2]", [0, 1]),
        ("train[1:]", [1, 2]),
        ("train[-1:]", [2]),
        ("train[:34%]", [0]),
        ("train[50%:]", [2]),
        ("train+test", [0, 1, 2, 0]),
        ("test + train[:1]", [0, 0]),
        ("all", [0, 1, 2, 0]),
    ],
)
def test_splits_are_sliced_and_joined(tmp_path: Path, split: str, numbers: list[int]) -> None:
    written(tmp_path / "prefs" / "train.jsonl", LINES)
    written(tmp_path / "prefs" / "test.jsonl", json.dumps(ROWS[0]).encode())
    source = open_source(str(tmp_path / "prefs"), DatasetSpec(split=split))
    assert [row["prompt"] for row in source.rows] == [f"p{i}" for i in numbers]
    assert source.part == split
    assert source.split in ("train", "all")


def test_joined_splits_may_differ_in_the_types_of_a_column(tmp_path: Path) -> None:
    notes: list[list[Any]] = [[1, 2, 3], ["x", None, {"a": 1}]]  # the second is kept as JSON
    for split, held in zip(("train", "test"), notes, strict=True):
        given = [{**row, "note": note} for row, note in zip(ROWS, held, strict=True)]
        written(tmp_path / "prefs" / f"{split}.jsonl", "\n".join(map(json.dumps, given)).encode())
    source = open_source(str(tmp_path / "prefs"), DatasetSpec(split="train+test"))
    assert source.rows["note"][:] == ["1", "2", "3", '"x"', None, '{"a": 1}']
    assert source.json_columns == {"note"}
    assert list(source.rows.remove_columns("note")) == ROWS * 2
    assert list(source.repairs.values()) == [1]
    first = open_source(str(tmp_path / "prefs"), DatasetSpec(split="train[:1]+test[2:]"))
    assert first.rows["note"][:] == ["1", '{"a": 1}']


def test_a_slice_that_is_none_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", LINES)
    with pytest.raises(PreferenceError, match=r'split "train\[0\]" cannot be read\. Write train'):
        rows(path, split="train[0]")
    with pytest.raises(PreferenceError, match="has no rows"):
        rows(path, split="train[3:]")
    with pytest.raises(PreferenceError, match='no split "dev"'):
        rows(path, split="dev+train")


def test_parquet_is_read_again_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "one" / "train.parquet")
    assert rows(str(tmp_path / "one")) == ROWS
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for place in ("two", "one/train.parquet", "two/train.parquet", "one", "two/../one"):
        assert rows(str(tmp_path / place)) == ROWS


def test_an_output_among_the_files_of_the_dataset_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "prefs" / "train.jsonl", LINES)
    for output in ("prefs", "prefs/out", "other/../prefs/out"):
        with pytest.raises(OutputError, match="inside the dataset"):
            check_apart(tmp_path / output, str(tmp_path / "prefs"))
    check_apart(tmp_path / "out", str(tmp_path / "prefs"))
    check_apart(tmp_path / "prefs" / "out", str(tmp_path / "prefs" / "train.jsonl"))
