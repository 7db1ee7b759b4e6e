"""Tests of streaming a Hub dataset: the same bytes, and what cannot be streamed."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from test_annotate import contents
from tiny_pair import pairs, save_pair

from sepo_data import AnnotateSettings, HubError, PreferenceError, annotate
from sepo_data.dataset_spec import DatasetSpec
from sepo_data.sources.preferences import open_pairs

GROUP = 100


def parquet(rows: list[dict[str, Any]], group: int = GROUP) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=group)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


ROWS = [{**row, "id": i} for i, row in enumerate(pairs(610))]


@pytest.fixture
def dataset(hub: HubServer, repo_id: str) -> str:
    parts = {
        f"data/train-0000{i}.parquet": parquet(ROWS[lo:hi])
        for i, (lo, hi) in enumerate([(0, 330), (330, 610)])
    }
    hub.add("dataset", repo_id, {**parts, "README.md": b"---\nlicense: mit\n---\n"})
    return repo_id


def test_rows_have_the_numbers_that_they_have_on_disk(dataset: str, cache: Path) -> None:
    source, columns = open_pairs(dataset, streaming=True)
    assert not list(cache.rglob("*.arrow"))
    usual, same = open_pairs(dataset)
    assert columns == same
    assert source.schema == usual.schema
    assert (len(source.rows), source.revision, source.card) == (610, usual.revision, usual.card)
    for lo, hi in [(0, 256), (256, 512), (95, 105), (325, 335), (512, 610), (610, 700)]:
        assert source.rows.with_format("arrow")[lo:hi].to_pylist() == ROWS[lo:hi]
    cut = source.rows.select(range(320, 340))
    assert [row["id"] for row in cut] == list(range(320, 340))
    assert cut.with_format("arrow")[5:15]["id"].to_pylist() == list(range(325, 335))


def stopping(after: int) -> Callable[[], bool]:
    asked = iter(range(100))
    return lambda: next(asked) >= after - 1


def test_a_streamed_run_resumes_to_the_bytes_of_a_plain_one(
    tmp_path: Path, dataset: str, cache: Path, models: tuple[str, str], hub: HubServer
) -> None:
    def settings(name: str, **more: Any) -> AnnotateSettings:
        return AnnotateSettings(tmp_path / name, **more)

    report = annotate(dataset, *models, settings("streamed", streaming=True), stop=stopping(1))
    assert report.stopped
    assert annotate(dataset, *models, settings("streamed", streaming=True)).manifest is not None
    assert not list(cache.rglob("*.arrow"))
    annotate(dataset, *models, settings("plain"))
    assert contents(tmp_path / "streamed") == contents(tmp_path / "plain")


def test_a_run_whose_network_fails_resumes(
    tmp_path: Path, dataset: str, models: tuple[str, str], hub: HubServer
) -> None:
    settings = AnnotateSettings(tmp_path / "out", streaming=True)

    def fails() -> bool:  # behind the first chunk
        hub.fail(r"GET .*/resolve/.*00001.parquet", [404], 40)
        return False

    with pytest.raises(
        HubError, match=r"train-00001.parquet: cannot be read from the Hub .* The same command"
    ):
        annotate(dataset, *models, settings, stop=fails)
    hub.clear()
    assert annotate(dataset, *models, settings).manifest is not None


TEXT = [{"question": "a", "chosen": '[{"role": "user", "content": "b"}]', "rejected": "c"}]


@pytest.mark.parametrize(
    ("name", "content", "split", "words"),
    [
        ("train.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "train", "reads parquet files"),
        ("train.parquet", parquet(ROWS[:3]), "train[:2]", "reads one whole split"),
        ("train.parquet", parquet(TEXT), "train", "have to be converted"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    hub: HubServer, repo_id: str, name: str, content: bytes, split: str, words: str
) -> None:
    hub.add("dataset", repo_id, {name: content})
    with pytest.raises(PreferenceError, match=words):
        open_pairs(repo_id, DatasetSpec(split=split), streaming=True)


def test_local_files_are_not_streamed(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet(ROWS[:3]))
    with pytest.raises(PreferenceError, match="for datasets on the Hub"):
        open_pairs(str(path), streaming=True)


def test_a_role_that_the_first_rows_had_not_stops_the_run(hub: HubServer, repo_id: str) -> None:
    odd = {**ROWS[0], "prompt": [{"role": "human", "content": "Hi"}]}
    hub.add("dataset", repo_id, {"train.parquet": parquet([*ROWS[:300] * 8, odd])})
    source, _ = open_pairs(repo_id, streaming=True)
    assert len(source.rows.with_format("arrow")[:2300]) == 2300
    with pytest.raises(PreferenceError, match=r'"prompt" has a role "human", unlike the first rows'):
        source.rows.with_format("arrow")[2390:]
