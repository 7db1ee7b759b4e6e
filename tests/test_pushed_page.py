"""Tests of what a push adds to an annotated dataset: the report, and charts in the card."""

import re
import sys
from pathlib import Path

import datasets
import pytest
from click.testing import CliRunner
from hub_server import HubServer
from tiny_pair import pairs, save_pair, write_jsonl

from cli.main import main
from sepo_data import AnnotateSettings, annotate, load_annotated, push_annotated

CHARTS = ["charts/carried.png", "charts/margins.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pushed")
    oracle, ref = save_pair(place / "models")
    data = write_jsonl(place / "prefs.jsonl", pairs(6))
    return annotate(data, oracle, ref, AnnotateSettings(output=place / "out")).output


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_page_and_two_charts_of_the_card_are_pushed(folder: Path, hub: HubServer, repo_id: str) -> None:
    before = files_of(folder)
    commit = push_annotated(folder, repo_id)
    assert files_of(folder) == before
    pushed = hub.files(repo_id, "dataset")
    assert sorted(pushed.keys() - before.keys()) == [*CHARTS, "report.html"]
    card = pushed["README.md"].decode()
    assert sorted(re.findall(r"^!\[[^\]]+\]\(([^)]+)\)$", card, re.MULTILINE)) == CHARTS
    assert "[report.html](report.html)" in card
    head, _, rest = card.partition("\n## Charts\n")
    assert before["README.md"].decode() == head + rest[rest.index("\n## Columns\n") :]
    assert all(pushed[name].startswith(b"\x89PNG") for name in CHARTS)
    assert b'id="row"' in pushed["report.html"]
    assert push_annotated(folder, repo_id) == commit  # the same bytes again
    assert hub.num_commits(repo_id, "dataset") == 1
    assert len(load_annotated(repo_id)["train"]) == 6
    assert len(datasets.load_dataset(repo_id, split="train")) == 6


def test_without_a_report_the_folder_is_pushed_and_an_earlier_page_goes(
    folder: Path, hub: HubServer, repo_id: str
) -> None:
    push_annotated(folder, repo_id)
    found = CliRunner().invoke(main, ["push", str(folder), repo_id, "--no-report"])
    assert found.exit_code == 0, found.output
    pushed = hub.files(repo_id, "dataset")
    assert pushed == {name: files_of(folder)[name] for name in pushed}
    assert "README.md" in pushed


def test_without_matplotlib_the_dataset_is_pushed_and_the_extra_named(
    folder: Path,
    hub: HubServer,
    repo_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    push_annotated(folder, repo_id)
    assert "report.html" not in hub.files(repo_id, "dataset")
    assert "pip install 'sepo[report]'" in caplog.text
