"""Tests of the model card: the Hub can read it, and it agrees with the training record."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load

from sepo_train.model_card import write_card

SHA, DIGEST = "a" * 40, "sha256:" + "b" * 64


def record(**changes: Any) -> dict[str, Any]:
    """A trainer's record for the third stage; ``changes`` replaces whole parts."""
    return {
        "schema_version": "1.0",
        "sepo_version": "0.1.0",
        "stage": "sepo",
        "model": {"name": "me/policy", "revision": SHA, "base": None, "on_hub": True},
        "dataset": {
            "name": "me/prefs-sepo",
            "revision": SHA,
            "config": None,
            "split": "train",
            "on_hub": True,
            "card": {"license": "mit", "language": ["en", "de"]},
            "restricted": False,
        },
        "settings": {
            "selection": "ratio",
            "chosen_ratio": 0.5,
            "rejected_ratio": 0.2,
            "projection": "sum",
            "weights": "mask",
            "scale": 2.1,
            "margin": 0.4,
            "max_length": 2048,
            "lora_rank": None,
            "chat_template": False,
        },
        "training": {"learning_rate": 5e-7, "batch_size": 128, "num_train_epochs": 1.0, "max_steps": -1},
        "rows": {"used": 61122, "held_out": 500, "dropped": {"no token selected on a side": 13}},
        "figures": {
            "held_out": True,
            "start": {"loss": 0.693147, "margin": 0.0},
            "end": {"loss": 0.5, "margin": 0.4321987, "drift/chosen": -0.00001234, "length/chosen": 1234},
        },
        "transfer": "transfer, chosen / rejected: 97.1% / 96.0% of the tokens one to one",
        "environment": {"python": "3.11.7", "torch": "2.13.0"},
        **changes,
    }


def card_of(folder: Path, facts: dict[str, Any]) -> str:
    """The card as written, checked for what holds for every card."""
    write_card(folder, json.loads(json.dumps(facts)))
    text = (folder / "README.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert "None" not in line
        assert "{}" not in line
        assert "[]" not in line
        assert "Undefined" not in line
    assert "\n\n\n" not in text
    return text


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of all tables, by their first cell."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_hub_reads_what_the_model_is_made_of(tmp_path: Path) -> None:
    card_of(tmp_path, record())
    assert metadata_load(tmp_path / "README.md") == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "me/policy",
        "datasets": ["me/prefs-sepo"],
        "language": ["en", "de"],
        "tags": ["sepo", "alignment"],
    }
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.datasets, data.library_name) == (
        "me/policy",
        ["me/prefs-sepo"],
        "transformers",
    )


def test_an_adapter_is_known_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    text = card_of(tmp_path, record(stage="dpo"))
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata is not None
    assert (metadata["library_name"], metadata["tags"]) == ("peft", ["sepo", "alignment", "dpo", "lora"])
    assert rows_of(text)["stage"] == ["dpo, as a LoRA adapter"]


def test_the_page_says_what_the_record_says(tmp_path: Path) -> None:
    text = card_of(tmp_path, record())
    rows = rows_of(text)
    assert rows["started from"] == [f"`me/policy`, revision `{SHA}`"]
    assert rows["dataset"] == [f"`me/prefs-sepo`, split `train`, revision `{SHA}`"]
    assert rows["rows"] == ["61,122 trained on; 500 held out; dropped 13: no token selected on a side"]
    assert rows["chosen_ratio"] + rows["rejected_ratio"] + rows["scale"] == ["0.5", "0.2", "2.1"]
    assert rows["selection"] + rows["projection"] == ["`ratio`", "`sum`"]
    assert rows["chat_template"] + rows["max_length"] + rows["max_steps"] == ["no", "2,048", "-1"]
    assert rows["learning_rate"] == ["5e-07"]
    assert "lora_rank" not in rows
    assert "sepo 0.1.0, python 3.11.7, torch 2.13.0." in text


def test_figures_stand_side_by_side(tmp_path: Path) -> None:
    text = card_of(tmp_path, record())
    rows = rows_of(text)
    assert "On the rows held out, before and after training." in text
    assert rows["loss"] == ["0.6931", "0.5000"]
    assert rows["drift/chosen"] == ["", "-1.23e-05"]
    assert rows["length/chosen"] == ["", "1,234"]
    text = card_of(
        tmp_path, record(figures={"held_out": False, "start": {"loss": 0.7}, "end": {"loss": 0.6}})
    )
    assert "no rows were held out" in text
    assert "| | first | last |" in text
    text = card_of(tmp_path, record(figures={"start": {}, "end": {"loss": 0.6}}))
    assert rows_of(text)["loss"] == ["0.6000"]
    assert "## Figures" not in card_of(tmp_path, record(figures={}))


def test_only_the_third_stage_cites_sepo_and_says_what_differs_from_the_paper(tmp_path: Path) -> None:
    text = card_of(tmp_path, record())
    assert "note = {arXiv:2408.13518}" in text
    assert "Transfer, chosen / rejected: 97.1% / 96.0% of the tokens one to one." in text
    assert "extension by sepo that is not part of the paper" in " ".join(text.split())
    assert "not part of the paper" not in card_of(tmp_path, record(transfer=None))
    for stage in ("sft", "dpo"):
        text = card_of(tmp_path, record(stage=stage, transfer=None))
        assert "bibtex" not in text
        assert stage in metadata_tags(tmp_path)


def metadata_tags(folder: Path) -> list[str]:
    metadata = metadata_load(folder / "README.md")
    assert metadata is not None
    return list(metadata["tags"])


def test_what_is_not_on_the_hub_is_not_linked_and_loses_its_folders(tmp_path: Path) -> None:
    text = card_of(
        tmp_path,
        record(
            model={"name": "/home/me/runs/ref", "revision": DIGEST, "on_hub": False},
            dataset={"name": "C:\\Users\\me\\annotated", "revision": DIGEST, "on_hub": False},
            training={"set": {"deepspeed": "/home/me/zero3.json", "optim": "adafactor"}},
        ),
    )
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata is not None
    assert not {"base_model", "datasets"} & set(metadata)
    assert "# `ref`, trained with SePO" in text
    assert rows_of(text)["started from"] == [f"`ref`, revision `{DIGEST}`"]
    assert rows_of(text)["dataset"] == [f"`annotated`, revision `{DIGEST}`"]
    assert rows_of(text)["set"] == ["`deepspeed` = `zero3.json`, `optim` = `adafactor`"]
    assert "home" not in text
    assert "Users" not in text


@pytest.mark.parametrize(
    "name", ["a: b", "yes", "1e3", "#x", "@me", "- x", "me/ü {y}", "[z]", "'q\"", "x|y`z"]
)
def test_names_that_mean_something_to_yaml_survive(tmp_path: Path, name: str) -> None:
    facts = {"name": name, "revision": SHA, "on_hub": True, "card": {"language": name}}
    text = card_of(tmp_path, record(model=facts, dataset=facts))
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata is not None
    assert (metadata["base_model"], metadata["datasets"]) == (name, [name])
    assert metadata["language"] == [name]
    cell = name.replace("|", r"\|").replace("`", "'")
    assert rows_of(text)["started from"] == [f"`{cell}`, revision `{SHA}`"]


def test_norwegian_is_not_false(tmp_path: Path) -> None:
    # "language: [en, no]" in a dataset's card; YAML 1.1 reads no as False
    card_of(tmp_path, record(dataset={"name": "me/x", "on_hub": True, "card": {"language": ["en", False]}}))
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata is not None
    assert metadata["language"] == ["en", "no"]


def test_a_licence_is_the_models_or_none(tmp_path: Path) -> None:
    text = card_of(tmp_path, record())
    assert "license" not in (metadata_load(tmp_path / "README.md") or {})
    assert "The dataset is under `mit`." in text
    model = {"name": "me/policy", "on_hub": True, "card": {"license": "other", "license_name": "house"}}
    card_of(tmp_path, record(model=model))
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata is not None
    assert (metadata["license"], metadata["license_name"]) == ("other", "house")


def test_a_restricted_dataset_is_named_as_such(tmp_path: Path) -> None:
    assert "gated or private" not in card_of(tmp_path, record())
    assert "gated or private" in card_of(tmp_path, record(dataset={"name": "me/x", "restricted": True}))


@pytest.mark.parametrize("stage", ["sft", "dpo", "sepo"])
def test_what_the_record_does_not_say_is_left_out(tmp_path: Path, stage: str) -> None:
    bare = card_of(tmp_path, {"stage": stage})
    nulls = dict.fromkeys(record()) | {
        "stage": stage,
        "model": {"name": None, "revision": None, "base": None, "on_hub": False},
        "dataset": {"name": None, "card": {}, "restricted": False},
        "settings": {"selection": None},
        "training": {"set": {}},
        "rows": {"used": None, "dropped": {}},
        "figures": {"start": {}, "end": {}},
        "environment": {},
    }
    assert card_of(tmp_path, nulls) == bare
    assert rows_of(bare)["stage"] == [stage]
    assert not {"started from", "dataset", "rows", "set"} & set(rows_of(bare))
    assert "## Settings" not in bare
