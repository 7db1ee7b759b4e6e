"""Tests of opening datasets: every kind of file, and one clear line for each that cannot be read."""

import gzip
import hashlib
import io
import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from hypothesis import given
from hypothesis import strategies as st

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.errors import HubError, PreferenceError
from sepo_data.sources import compressed, json_rows, text_files
from sepo_data.sources.arrow_cache import KEPT_AS_JSON
from sepo_data.sources.compressed import DataFile
from sepo_data.sources.opening import Source
from sepo_data.sources.preferences import Pair, PairColumns, open_pairs
from sepo_data.sources.splits import open_source

EXPLICIT = PairColumns("prompt", "chosen", "rejected")

ROWS: list[dict[str, Any]] = [
    {"prompt": "p", "chosen": "a", "rejected": "b", "score": 0.5},
    {"prompt": "q", "chosen": "c", "rejected": "d", "score": None},
]
GOOD_LINE = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def opened(path: Path, content: bytes, **options: Any) -> Source:
    return open_source(str(write(path, content)), DatasetSpec(**options))


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(PreferenceError) as refusal:
        open_source(str(path), DatasetSpec(**options))
    message = str(refusal.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


# What can be read -------------------------------------------------------------------------------------------


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.text(), VALUES, min_size=1)), st.integers(1, 40), st.sampled_from([None, 1])
)
def test_an_array_is_read_in_pieces(rows: list[dict[str, Any]], size: int, indent: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "_PIECE_BYTES", size)
        text = json.dumps(rows, indent=indent, ensure_ascii=False)
        path = write(Path(folder) / "a.json", f" {text}\n ".encode())
        assert [row for _, row in json_rows._items(DataFile("a.json", path))] == rows
        write(path, text[:-1].encode())
        with pytest.raises(PreferenceError, match=r"a.json, line .*: corrupt or truncated JSON"):
            list(json_rows._items(DataFile("a.json", path)))


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(ROWS))
    write(tmp_path / "b.jsonl.gz", gzip.compress(jsonl(ROWS)))
    write(tmp_path / "c.json", json.dumps(ROWS, indent=2).encode())
    write(tmp_path / "d.json", jsonl(ROWS))
    write(tmp_path / "[e].ndjson", b"\xef\xbb\xbf\n" + jsonl(ROWS).replace(b"\n", b"\r\n\n"))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "[f].parquet")
    for path in sorted(tmp_path.glob("*.*")):
        source = open_source(str(path))
        assert source.rows[:] == datasets.Dataset.from_list(ROWS)[:], path
        assert source.name == path.name
        assert source.revision == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        assert (source.split, source.card, source.restricted, source.repairs) == ("train", {}, False, {})


def test_all_cells_of_a_csv_are_text_and_only_the_empty_one_is_null(tmp_path: Path) -> None:
    content = 'prompt,chosen,rejected,n\r\n"p, ""q""",007,None,\r\n\r\n"1\r\n2\u2028",NA,"x\0\ry\n",3\r\n'
    source = opened(tmp_path / "prefs.csv", content.encode("utf-8-sig"))
    assert source.rows[:] == {
        "prompt": ['p, "q"', "1\r\n2\u2028"],
        "chosen": ["007", "NA"],
        "rejected": ["None", "x\0\ry\n"],
        "n": [None, "3"],
    }


def test_blanks_after_the_commas_of_a_csv_are_no_text(tmp_path: Path) -> None:
    spaced = opened(tmp_path / "a.csv", b'prompt, chosen\np, "a, b"\nq,  c\n')
    assert spaced.rows.to_list() == [{"prompt": "p", "chosen": "a, b"}, {"prompt": "q", "chosen": "c"}]
    assert opened(tmp_path / "b.csv", b"prompt,chosen\np, c\n").rows[0] == {"prompt": "p", "chosen": " c"}


def test_blanks_in_a_csv_of_one_column_are_text(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text\n Paris\n")
    assert open_source(str(tmp_path / "one.csv")).rows["text"][0] == " Paris"


def test_a_csv_cell_may_be_very_long(tmp_path: Path) -> None:
    source = opened(tmp_path / "prefs.csv.gz", gzip.compress(b"chosen,rejected\n" + b"a" * 200_000 + b",b\n"))
    assert len(source.rows[0]["chosen"]) == 200_000


def test_a_column_may_show_its_type_late(tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [],
        "late": None,
        "n": 1,
    }
    named = {"role": "user", "content": "b", "name": "Ann"}
    last = {"chosen": [named], "rejected": [named], "late": {"x": ["y"]}, "n": 0.5, "new": True}
    rows = opened(tmp_path / "prefs.jsonl", jsonl([plain] * 2500 + [last])).rows
    assert rows[2500] == last
    assert rows[0] == {**plain, "chosen": [{**plain["chosen"][0], "name": None}], "n": 1.0, "new": None}


def test_texts_survive_verbatim(tmp_path: Path) -> None:
    texts = [
        "a\r\nb\rc\n",
        "nul\0",
        "line\u2028sep\u0085",
        " \t ",
        "e\u0301 é 👩‍👩‍👧",
        "\ufeffbom",
        "\ufffd",
        "100%",
    ]
    rows = [{"prompt": "p", "chosen": text, "rejected": text[::-1]} for text in texts]
    for content in (jsonl(rows), "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()):
        source = opened(tmp_path / "prefs.jsonl", content)
        assert source.rows["chosen"][:] == texts
        assert source.repairs == {}


def test_lone_surrogates_are_replaced_and_counted(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "\ud800\ud800"}, {"role": "assistant", "content": "ok"}]
    row = {
        "prompt": messages[:1],
        "chosen": messages[1:],
        "rejected": messages[1:],
        "\udfff": "a\ud83db 😀 \ufffd",
    }
    path = tmp_path / "prefs.jsonl"
    for _ in range(2):  # converted, then from the cache
        source = opened(path, jsonl([row]))  # json.dumps writes a 😀 as a pair of escapes: not lone
        assert source.rows[0]["prompt"][0]["content"] == "\ufffd\ufffd"
        assert source.rows[0]["\ufffd"] == "a\ufffdb 😀 \ufffd"
        assert source.repairs == {"lone surrogates replaced": 4}
    raw = opened(
        path, GOOD_LINE.replace(b'"a"', b'"\xed\xa0\xbd \xed\xa0\xbd\xed\xb8\x80"')
    )  # as bytes, no escapes
    assert raw.rows["chosen"][:] == ["\ufffd 😀"]
    assert raw.repairs == {"lone surrogates replaced": 1}


@given(st.text(st.characters()))
def test_a_repair_changes_nothing_but_surrogates(text: str) -> None:
    repairs: dict[str, int] = {}
    repaired = text_files._repaired_text(text, repairs)
    repaired.encode()
    joined = text.encode("utf-16-le", "surrogatepass").decode(
        "utf-16-le", "surrogatepass"
    )  # pairs are no error
    lone = sum("\ud800" <= character <= "\udfff" for character in joined)
    assert repaired == re.sub("[\ud800-\udfff]", "\ufffd", joined)
    assert sum(repairs.values()) == lone


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "prefs.jsonl"
    first = opened(path, GOOD_LINE)
    second = opened(path, GOOD_LINE.replace(b'"a"', b'"z"'))
    assert (first.rows["chosen"][0], second.rows["chosen"][0]) == ("a", "z")
    assert first.revision != second.revision


def test_a_file_is_converted_once(tmp_path: Path) -> None:
    opened(tmp_path / "prefs.jsonl", GOOD_LINE)
    (cached,) = (tmp_path / "cache" / "sepo").iterdir()
    before = cached.stat().st_mtime_ns
    opened(tmp_path / "copy" / "other.jsonl", GOOD_LINE)
    assert [file.stat().st_mtime_ns for file in (tmp_path / "cache" / "sepo").iterdir()] == [before]


def test_rows_stay_on_disk(tmp_path: Path) -> None:
    path = write(tmp_path / "prefs.jsonl", GOOD_LINE.replace(b"a", b"a" * 1000) * 20_000)  # 20 MB
    before = pa.total_allocated_bytes()
    source = open_source(str(path))
    assert sum(isinstance(EXPLICIT.read(row), Pair) for row in source.rows) == 20_000
    assert pa.total_allocated_bytes() - before < 1e6


# Folders ----------------------------------------------------------------------------------------------------


def test_a_folder_has_splits_configs_and_a_card(tmp_path: Path) -> None:
    folder = tmp_path / "prefs"
    write(folder / "small" / "train.jsonl", jsonl(ROWS))
    write(folder / "small" / "test.jsonl", jsonl(ROWS[1:]))
    write(folder / "large" / "train-00000-of-00002.jsonl", jsonl(ROWS))
    write(folder / "large" / "train-00001-of-00002.jsonl", jsonl(ROWS[:1]))
    configs = [{"config_name": name, "data_dir": name} for name in ("small", "large")]
    write(folder / "README.md", f"---\nlicense: mit\nconfigs: {json.dumps(configs)}\n---\nText".encode())

    small, test = (
        open_source(f"{folder}/", DatasetSpec(config_name="small", split=split))
        for split in ("train", "test")
    )
    large = open_source(str(folder), DatasetSpec(config_name="large"))
    assert (len(small.rows), len(test.rows), len(large.rows)) == (2, 1, 3)
    assert (small.name, small.config, test.split, small.card["license"]) == ("prefs", "small", "test", "mit")
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in sorted((folder / "large").iterdir())
    ]
    assert large.revision == f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    assert len({small.revision, test.revision, large.revision}) == 3

    assert refused(folder) == ": has several configs. Choose with `config_name`: small, large."
    assert (
        refused(folder, config_name="tiny") == ': no config "tiny". Choose with `config_name`: small, large.'
    )
    assert (
        refused(folder, config_name="large", split="test") == ': no split "test". Choose with `split`: train.'
    )


def test_a_folder_of_parquet_files_is_read(tmp_path: Path) -> None:
    (tmp_path / "prefs" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        table = pa.Table.from_pylist([{**row, "split": split} for row in ROWS])
        pq.write_table(table, tmp_path / "prefs" / "data" / f"{split}-00000-of-00001.parquet")
    source = open_source(str(tmp_path / "prefs"), DatasetSpec(split="test"))
    assert source.rows["split"][:] == ["test", "test"]


def shards(folder: Path, *tables: pa.Table) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"train-{i:05}-of-{len(tables):05}.parquet")
    return str(folder)


@pytest.mark.parametrize("ending", ["", "/*.parquet"])
def test_parquet_files_may_differ_in_their_columns(tmp_path: Path, ending: str) -> None:
    first = pa.Table.from_pylist([{"chosen": "a", "n": 1}])
    second = pa.Table.from_pylist([{"n": 0.5, "chosen": "b", "more": "x"}])
    source = open_source(shards(tmp_path / "prefs", first, second) + ending)
    assert source.rows.to_list() == [
        {"chosen": "a", "n": 1.0, "more": None},
        {"chosen": "b", "n": 0.5, "more": "x"},
    ]
    assert source.repairs == {}


def test_columns_that_no_type_holds_are_left_out_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = pa.table(
        {"chosen": ["a"], "n": [1], "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8()))}
    )
    second = pa.table({"chosen": ["b"], "n": ["x"], "m": pa.array([[]], pa.map_(pa.string(), pa.int8()))})
    folder = shards(tmp_path / "prefs", first, second)
    for _ in range(2):  # the second time from the cache
        source = open_source(folder)
        assert source.rows.to_list() == [{"chosen": "a", "n": "1"}, {"chosen": "b", "n": '"x"'}]
        assert source.json_columns == {"n"}
        (what, count), *others = source.repairs.items()
        assert (what.endswith("no type of datasets holds their values: m"), count) == (True, 1)
        assert others == [(KEPT_AS_JSON, 1)]
        assert what in caplog.text
    assert "map<string, int8" in refused(shards(tmp_path / "only", first.select(["m"])))
    source = open_source(shards(tmp_path / "one type", first, second.drop(["n"])))
    assert source.rows.to_list() == [{"chosen": "a", "n": 1}, {"chosen": "b", "n": None}]


def test_messages_of_parquet_files_may_differ_in_the_types_of_their_fields(tmp_path: Path) -> None:
    def table(extra: object) -> pa.Table:
        sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        row = {"prompt": [{"role": "user", "content": "Hi", "extra": extra}], **sides}
        return pa.Table.from_pylist([row])

    source, columns = open_pairs(shards(tmp_path / "prefs", table(1), table({"a": "x"})))
    found = [columns.read(row) for row in source.rows.with_format("arrow")[:].to_pylist()]
    assert [pair.prompt[0]["extra"] for pair in found] == [1, {"a": "x"}]  # type: ignore[index, union-attr]


def test_a_folder_whose_path_is_a_pattern_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "run[1]" / "train.jsonl", GOOD_LINE)
    assert "in the path of a folder are read as patterns. Rename it" in refused(tmp_path / "run[1]")
    assert len(open_source(str(tmp_path / "run[1]" / "train.jsonl")).rows) == 1


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_written_by_save_to_disk_is_read(tmp_path: Path, several: bool) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    saved = datasets.DatasetDict(train=rows, test=rows.select([0])) if several else rows
    saved.save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert source.rows[:] == rows[:]
    assert source.revision.startswith("sha256:")
    splits = "train, test" if several else "train"
    assert refused(tmp_path / "saved", split="dev") == f': no split "dev". Choose with `split`: {splits}.'
    assert "it has no configs" in refused(tmp_path / "saved", config_name="c")


# The Hub ----------------------------------------------------------------------------------------------------


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def test_a_hub_dataset_is_read_at_the_commit_that_it_names(hub: HubServer, repo_id: str) -> None:
    card = b"---\nlicense: mit\n---\nText"
    first = hub.add("dataset", repo_id, {"data/train.parquet": parquet(ROWS[:1]), "README.md": card})
    second = hub.add("dataset", repo_id, {"data/train.parquet": parquet(ROWS), "README.md": card})
    source = open_source(repo_id)
    assert (source.rows[:], source.name) == (datasets.Dataset.from_list(ROWS)[:], repo_id)
    assert (source.revision, source.card, source.restricted) == (second, {"license": "mit"}, False)
    source = open_source(repo_id, DatasetSpec(revision=first))
    assert (len(source.rows), source.revision) == (1, first)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_on_the_hub_may_differ_in_their_columns(
    hub: HubServer, repo_id: str, streaming: bool
) -> None:
    first = {"prompt": "a", "chosen": "b", "rejected": "c", "n": 1, "mixed": 1}
    second = {"rejected": "f", "n": 0.5, "prompt": "d", "chosen": "e", "more": "x", "mixed": "x"}
    names = [f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)]
    hub.add("dataset", repo_id, {names[0]: parquet([first]), names[1]: parquet([second])})
    source, columns = open_pairs(repo_id, streaming=streaming)
    pairs = [columns.read(row) for row in source.rows]
    assert pairs == [Pair("a", "b", "c"), Pair("d", "e", "f")]
    rows = source.rows.with_format("arrow")[0:2].select(["n", "more"]).to_pylist()
    assert rows == [{"n": 1.0, "more": None}, {"n": 0.5, "more": "x"}]
    assert ("mixed" in source.schema.names) != streaming  # JSON text needs all rows
    assert any(what.endswith("values: mixed") for what in source.repairs) == streaming


def test_json_on_the_hub_is_read_as_on_this_machine(hub: HubServer, repo_id: str) -> None:
    plain, named = {"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "a", "name": "Ann"}
    row = {"chosen": [plain, named], "rejected": [plain, named]}
    files = {"train.jsonl.gz": gzip.compress(jsonl([row])), "test.jsonl": GOOD_LINE + b"{"}
    hub.add("dataset", repo_id, files)
    source = open_source(repo_id)
    assert source.rows[0]["chosen"] == [{"role": "user", "content": "\ufffd", "name": None}, named]
    assert source.repairs == {"lone surrogates replaced": 2}
    with pytest.raises(PreferenceError, match=f"^{repo_id}/test.jsonl, line 2: corrupt or truncated JSON"):
        open_source(repo_id, DatasetSpec(split="test"))


@pytest.mark.parametrize("access", ["private", "gated"])
def test_a_hub_dataset_that_not_everybody_may_see_is_restricted(
    hub: HubServer, repo_id: str, access: str
) -> None:
    hub.add("dataset", repo_id, {"train.jsonl": GOOD_LINE}, **{access: True})
    assert open_source(repo_id).restricted


def test_what_the_hub_does_not_have_is_refused_with_what_it_has(hub: HubServer, repo_id: str) -> None:
    assert "not on the Hub" in refused(repo_id)
    hub.add("dataset", repo_id, {"train.jsonl": GOOD_LINE, "test.jsonl": GOOD_LINE})
    assert refused(repo_id, split="dev") == ': no split "dev". Choose with `split`: train, test.'
    assert refused(repo_id, config_name="c") == ': no config "c". Choose with `config_name`: default.'
    assert 'no revision "v2"' in refused(repo_id, revision="v2")
    hub.add("dataset", repo_id, {"data.py": b""})
    assert refused(repo_id).startswith(": no data files in it.")


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_a_download_that_fails_is_the_hub_s_error(hub: HubServer, repo_id: str, name: str) -> None:
    hub.add("dataset", repo_id, {name: parquet(ROWS) if name.endswith("parquet") else GOOD_LINE})
    hub.fail(rf"GET .*{name}", [404], 20)
    with pytest.raises(HubError, match=rf"^{repo_id}: the download failed \(.*404.*\)\. Try again\.$"):
        open_source(repo_id)


def test_a_bad_parquet_file_on_the_hub_is_named(hub: HubServer, repo_id: str) -> None:
    hub.add("dataset", repo_id, {"data/train.parquet": parquet(ROWS)[:-9]})
    assert refused(repo_id).startswith("/data/train.parquet: corrupt or truncated parquet (")


# What cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["prefs.jsonl", "prefs.parquet", "a/b/c", "./prefs", "/no/such", "~/no such"]
)
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name: str) -> None:
    assert refused(name) == ": no such file or folder. Check the path, or give a Hub id like user/name."


def test_what_a_single_file_cannot_have_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "prefs.jsonl", GOOD_LINE)
    assert refused(path, split="test") == ': no split "test". Choose with `split`: train.'
    assert refused(path, config_name="c") == ': it has no configs. Leave out the config "c".'
    assert (
        refused(path, revision="main") == ": only Hub datasets have revisions. Leave out the revision main."
    )
    other = write(tmp_path / "prefs.xlsx", b"")
    assert refused(other).startswith(
        ': files that end in ".xlsx" are not read. Convert it to one of .parquet,'
    )


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prefs").mkdir()
    assert refused(tmp_path / "prefs").startswith(": no data files in it.")
    write(tmp_path / "prefs" / "state.json", b"{")
    assert refused(tmp_path / "prefs").startswith(": cannot be read:")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD_LINE * 3 + b"\n" + GOOD_LINE[:20], ", line 5: corrupt or truncated JSON"),
        (GOOD_LINE * 3 + b"{'a': 1}\n" + GOOD_LINE, ", line 4: corrupt or truncated JSON"),
        (GOOD_LINE * 2000 + b"{\n", ", line 2001: corrupt or truncated JSON"),
        (GOOD_LINE + b'"text"\n', ", line 2: not a JSON object"),
        (GOOD_LINE + GOOD_LINE.replace(b"a", b"\xff"), ", line 2: not UTF-8 (invalid start byte)"),
        (b'[{"a": 1},\n{"a": 2},\n{"a": 3', ", line 3: corrupt or truncated JSON"),
        (b'\n[{"a": 1},\n2]', ", item 2: not a JSON object"),
        (b'{"chosen": ' + b"[" * 100_000, ", line 1: corrupt or truncated JSON"),
        (b'{"a\\u0000b": 1}\n', r': column "a\x00b" has a NUL character in its name'),
        (b'{"a": {"b\\u0000": 1}}\n', ': column "a" has a NUL character in its name'),
    ],
)
def test_a_bad_json_file_is_named_with_its_line_or_column(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    assert refused(write(tmp_path / "prefs.jsonl", content)).startswith(problem)
    assert not list(tmp_path.glob("cache/sepo/*"))


@pytest.mark.parametrize(
    "values",
    [
        ["x", 1],
        [*[1] * 1000, "x"],
        [9007199254740993, 0.5],
        [*[9007199254740993] * 1000, 0.5],
        [99999999999999999999],
        [{"b": {}}],
        [{"arguments": {"city": "Rome"}}, {"arguments": '{"city": "Rome"}'}, None],
    ],
)
def test_values_without_a_common_type_are_kept_as_their_json(tmp_path: Path, values: list[Any]) -> None:
    content = "".join(json.dumps({"a": value, "b": "text"}) + "\n" for value in values)
    source = opened(tmp_path / "prefs.jsonl", content.encode())
    assert source.json_columns == {"a"}
    assert source.repairs == {KEPT_AS_JSON: 1}
    assert [None if text is None else json.loads(text) for text in source.rows["a"]] == values
    assert source.rows["b"][:] == ["text"] * len(values)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'chosen,rejected\na,b\nc,"d', ", line 3: corrupt or truncated CSV (unexpected end of data)"),
        (b"chosen,rejected\na,b\nc\n", ", line 3: corrupt or truncated CSV (1 cells where the header has 2)"),
        (b"chosen,rejected\na,b,c\n", ", line 2: corrupt or truncated CSV (3 cells where the header has 2)"),
        (b"chosen,chosen\na,b\n", ", line 1: corrupt or truncated CSV (two columns with the same name)"),
        (b'chosen,rejected\n"a\n\n",b\n"c"x,d\n', ", line 5: corrupt or truncated CSV"),
        (b"chosen,rejected\na,\xe9\n", ", line 2: not UTF-8"),
        (b"chosen,rejected\ra,b\rc,d\r", ", line 1: corrupt or truncated CSV (new-line character"),
    ],
)
def test_a_bad_csv_file_is_named_with_its_line(tmp_path: Path, content: bytes, problem: str) -> None:
    assert refused(write(tmp_path / "prefs.csv", content)).startswith(problem)


def test_a_bad_gzip_file_is_named_with_its_line(tmp_path: Path) -> None:
    lines = b"".join(b'{"chosen": "%d", "rejected": "b"}\n' % i for i in range(5000))
    packed = gzip.compress(lines)
    message = refused(write(tmp_path / "prefs.jsonl.gz", packed[: len(packed) // 2]))
    problem = re.fullmatch(r", line (\d+): corrupt or truncated gzip \(.*\)\. Copy or download .*", message)
    assert problem
    assert 1 < int(problem[1]) < 5000
    damaged = write(tmp_path / "prefs.jsonl.gz", packed[:-8] + bytes(8))  # the checksum stands at the end
    assert refused(damaged).startswith(", line 5001: corrupt or truncated gzip (CRC check failed")


def test_a_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "prefs" / "train-0.jsonl", GOOD_LINE)
    write(tmp_path / "prefs" / "train-1.jsonl", GOOD_LINE + b"{")
    assert refused(tmp_path / "prefs").startswith("/train-1.jsonl, line 2: corrupt or truncated JSON")


@pytest.mark.parametrize("where", ["footer", "pages"])
def test_a_bad_parquet_file_is_named(tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture) -> None:
    table = pa.table({"chosen": [f"text {i}" for i in range(20_000)], "rejected": ["b"] * 20_000})
    (tmp_path / "prefs").mkdir()
    for name in ("train-0.parquet", "train-1.parquet"):
        pq.write_table(table, tmp_path / "prefs" / name)
    whole = (tmp_path / "prefs" / "train-1.parquet").read_bytes()
    bad = whole[:-100] if where == "footer" else whole[:500] + b"\x07" * 5000 + whole[5500:]
    path = write(tmp_path / "prefs" / "train-1.parquet", bad)
    logging.getLogger("datasets").addHandler(caplog.handler)
    for dataset in (path, tmp_path / "prefs"):
        problem = "corrupt or truncated parquet"
        with pytest.raises(
            PreferenceError, match=rf"train-1\.parquet: {problem} .*\. Copy or download it again\.$"
        ):
            open_source(str(dataset))
    logging.getLogger("datasets").removeHandler(caplog.handler)
    assert not caplog.records


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "prefs.jsonl", GOOD_LINE)
    write(tmp_path / "cache", b"a file where a folder should be")
    with pytest.raises(PreferenceError, match=r"cannot write the cache .* Set HF_DATASETS_CACHE to"):
        open_source(str(path))


def test_changed_parquet_in_a_folder_is_never_taken_from_a_cache(tmp_path: Path) -> None:
    data_files = "- split: train\n    path: data/*.parquet"
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  {data_files}\n---\n"
    for prompt in ("first", "second"):
        folder = tmp_path / prompt / "prefs"
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text(card)
        pq.write_table(
            pa.table({"prompt": [prompt], "chosen": ["a"], "rejected": ["b"]}), folder / "data/a.parquet"
        )
        assert open_source(str(folder)).rows[0]["prompt"] == prompt
