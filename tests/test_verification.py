"""Tests of `sepo verify`: published datasets are scored again."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotated import with_rule
from click.testing import CliRunner
from hub_server import HubServer
from tiny_pair import pairs, save_pair, write_jsonl
from tiny_tokenizers import CHATML, tiny_tokenizer

from cli.main import main
from cli.reports import describe_verification
from sepo_data import AnnotateSettings, SchemaError, SettingsError, annotate, push_annotated
from sepo_data.annotated.card import render_card
from sepo_data.annotated.from_json import from_json
from sepo_data.annotated.manifest import Manifest
from sepo_data.files import file_sha256
from sepo_data.verification import verify


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


def annotated(tmp_path: Path, tiny: tuple[str, str], rows: list[dict[str, Any]], **settings: Any) -> str:
    data = write_jsonl(tmp_path / "prefs.jsonl", rows)
    annotate(data, *tiny, AnnotateSettings(tmp_path / "out", **with_rule(**settings)))
    return str(tmp_path / "out")


def rewrite(folder: str, columns: dict[str, Any]) -> None:
    """Other content in the dataset's only file."""
    (path,) = Path(folder, "data").iterdir()
    pq.write_table(pa.table(columns, pq.read_schema(path)), path)


def sign(folder: str) -> None:
    """A manifest and a card that fit the file."""
    (path,) = Path(folder, "data").iterdir()
    manifest = json.loads(Path(folder, "sepo_manifest.json").read_text())
    manifest["shards"][0]["sha256"] = file_sha256(path)
    Path(folder, "sepo_manifest.json").write_text(json.dumps(manifest))
    Path(folder, "README.md").write_text(render_card(from_json(Manifest, manifest)))


def test_what_was_annotated_verifies(tmp_path: Path, tiny: tuple[str, str]) -> None:
    folder = annotated(tmp_path, tiny, pairs(50))
    found = verify(folder, *tiny, num_rows=20)
    assert found.holds
    assert (found.rows, found.moved) == (20, 0)
    assert found.largest_difference < 1e-5
    assert found.equal_masks == 1
    sizes = datasets.load_dataset(folder)["train"]
    places = np.linspace(0, 49, 20).astype(int)
    lengths = [
        len(sizes[int(i)][f"{side}_token_mask"]) + 1 for i in places for side in ("chosen", "rejected")
    ]
    assert found.tokens == sum(lengths)


@pytest.mark.parametrize("selection", ["mass", "random", "all"])
def test_every_rule_selects_the_same_again(tmp_path: Path, tiny: tuple[str, str], selection: str) -> None:
    # the rule "random" draws by the number of a row in the source, and three rows are dropped here
    rows = pairs(30)
    for row in (0, 7, 8):
        rows[row] = rows[row] | {"chosen": [{"role": "assistant", "content": ""}]}
    folder = annotated(tmp_path, tiny, rows, rule=selection, seed=3)
    assert verify(folder, *tiny).equal_masks == 1


def test_a_changed_reward_is_found(tmp_path: Path, tiny: tuple[str, str]) -> None:
    folder = annotated(tmp_path, tiny, pairs(10))
    (path,) = Path(folder, "data").iterdir()
    columns = pq.read_table(path).to_pydict()
    columns["chosen_token_rewards"][4][1] += 0.25
    columns["chosen_reward"][4] += 0.25
    rewrite(folder, columns)
    with pytest.raises(SchemaError, match=r"train-00000-of-00001\.parquet was changed or damaged since"):
        verify(folder, *tiny)
    sign(folder)  # whoever lies about a reward can lie about a hash
    found = verify(folder, *tiny)
    assert found.largest_difference == pytest.approx(0.25, abs=1e-5)
    assert found.noise == pytest.approx(0.25 / found.tokens**0.5, rel=1e-3)
    assert not found.holds


def test_masks_that_the_rule_does_not_give_are_found(tmp_path: Path, tiny: tuple[str, str]) -> None:
    folder = annotated(tmp_path, tiny, pairs(10))
    (path,) = Path(folder, "data").iterdir()
    columns = pq.read_table(path).to_pydict()
    columns["rejected_token_mask"][3] = [not selected for selected in columns["rejected_token_mask"][3]]
    rewrite(folder, columns)
    sign(folder)
    found = verify(folder, *tiny)
    assert found.largest_difference < 1e-5
    assert found.by_rule == found.equal_masks < 1
    assert not found.holds


@pytest.mark.parametrize("selection", ["random", "all"])
def test_where_masks_do_not_depend_on_rewards_another_oracle_does_not_verify_either(
    tmp_path: Path, tiny: tuple[str, str], selection: str
) -> None:
    folder = annotated(tmp_path, tiny, pairs(10), rule=selection)
    found = verify(folder, tiny[1], tiny[0])
    assert found.equal_masks == 1
    assert not found.holds


def test_another_oracle_does_not_verify(
    tmp_path: Path, tiny: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = annotated(tmp_path, tiny, pairs(10))
    found = verify(folder, tiny[1], tiny[0])  # the wrong way round
    assert not found.holds
    assert "the dataset's oracle is oracle@sha256:" in caplog.text
    assert ", this is ref@sha256:" in caplog.text


def test_another_template_does_not_verify(tmp_path: Path, tiny: tuple[str, str]) -> None:
    folder = annotated(tmp_path, tiny, pairs(10))
    other = save_pair(tmp_path / "others", template=CHATML.replace("\n", " "))
    assert not verify(folder, *other).holds


def test_another_vocabulary_moves_the_tokens(tmp_path: Path, tiny: tuple[str, str]) -> None:
    folder = annotated(tmp_path, tiny, pairs(10))
    for name in ("oracle", "ref"):
        shutil.copytree(tiny[0] if name == "oracle" else tiny[1], tmp_path / name)
        tiny_tokenizer("wordpiece", CHATML).save_pretrained(tmp_path / name)
    found = verify(folder, str(tmp_path / "oracle"), str(tmp_path / "ref"))
    assert not found.holds
    assert found.moved == 10
    assert np.isnan(found.largest_difference)
    assert describe_verification(found)[0].startswith("10 of 10 rows have other tokens now")


def test_a_cut_response_verifies_as_it_was_cut(tmp_path: Path, tiny: tuple[str, str]) -> None:
    rows = [{"prompt": "Say it.", "chosen": "a b c " * 9, "rejected": "d"}]
    folder = annotated(tmp_path, tiny, rows, max_length=40)
    (row,) = datasets.load_dataset(folder)["train"]
    assert row["chosen_eos_reward"] is None
    assert row["rejected_eos_reward"] is not None
    assert verify(folder, *tiny).holds


def test_a_published_dataset_names_the_models_that_it_was_made_with(
    tmp_path: Path, tiny: tuple[str, str], hub: HubServer, repo_id: str
) -> None:
    for name, folder in zip(("oracle", "ref"), tiny, strict=True):
        hub.add("model", f"me/{name}-of-prefs", Path(folder))
    names = ("me/oracle-of-prefs", "me/ref-of-prefs")
    folder = annotated(tmp_path, names, pairs(5))
    push_annotated(Path(folder), repo_id)
    hub.add("model", names[0], Path(tiny[1]))  # the name stands for other weights by now
    assert verify(repo_id).holds


def test_models_in_folders_have_to_be_given(tmp_path: Path, tiny: tuple[str, str]) -> None:
    folder = annotated(tmp_path, tiny, pairs(5))
    with pytest.raises(
        SettingsError, match=r"the dataset's models were folders, so pass them: oracle as `oracle` and"
    ):
        verify(folder)


def test_the_command_says_what_it_found(tmp_path: Path, tiny: tuple[str, str]) -> None:
    folder = annotated(tmp_path, tiny, pairs(12))
    models = ["--oracle", tiny[0], "--ref", tiny[1]]
    found = CliRunner().invoke(main, ["verify", folder, *models, "--rows", "5"])
    assert found.exit_code == 0, found.stderr
    first, second, third, last = found.stdout.splitlines()
    assert first.startswith("5 rows, ")
    assert second.startswith("largest difference of a reward ")
    assert third == "100.00% of the mask entries are the same"
    assert last == "these models give the rewards of the dataset"
    wrong = CliRunner().invoke(main, ["verify", folder, "--oracle", tiny[1], "--ref", tiny[0]])
    assert wrong.exit_code == 3
    assert wrong.stdout.splitlines()[-1] == "these models do not give the rewards of the dataset"
    missing = CliRunner().invoke(main, ["verify", folder, "--oracle", "./nothing"])
    assert missing.exit_code == 1  # an error is no mismatch


def test_an_annotation_in_bfloat16_verifies_in_float32_as_far_as_it_goes(
    tmp_path: Path, tiny: tuple[str, str]
) -> None:
    folder = annotated(tmp_path, tiny, pairs(32), dtype="bfloat16")
    manifest = json.loads(Path(folder, "sepo_manifest.json").read_text())
    found = verify(folder, *tiny, dtype="float32")
    assert found.noise == pytest.approx(manifest["precision"]["noise"], rel=1e-3)
    assert verify(folder, *tiny).equal_masks == 1
