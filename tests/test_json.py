"""Tests of ``--json``: one object on stdout, with the keys that the page of commands promises."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hub_server import HubServer
from tiny_pair import pairs, save_pair, write_jsonl

from cli.main import main

PAGE = (Path(__file__).parent.parent / "docs" / "exit_codes.md").read_text()
PROMISED = {
    command: set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)|: of each.*", "", keys)))
    for commands, keys in re.findall(r"^\| (`?\w.*?) \| (`.*) \|$", PAGE.split("## JSON")[1], re.MULTILINE)
    for command in re.split(r"`, `", commands.strip("`"))
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def prefs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_jsonl(tmp_path_factory.mktemp("data") / "prefs.jsonl", pairs(12))


def found(promised: str, *arguments: object, code: int = 0) -> dict[str, Any]:
    """The output of a command, checked to be one line of JSON with all promised keys."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], prog_name="sepo")
    assert result.exit_code == code, result.output
    (line,) = result.stdout.splitlines()
    made = json.loads(line, parse_constant=pytest.fail)
    assert set(made) == PROMISED["all"] | PROMISED[promised]
    assert made["command"] == " ".join(map(str, arguments)).split(" -")[0].split(" /")[0]
    assert made["seconds"] >= 0
    return dict(made)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, str], prefs: str) -> Path:
    output = tmp_path_factory.mktemp("annotated") / "out"
    made = found(
        "annotate", "annotate", "--oracle", tiny[0], "--ref", tiny[1], "--dataset", prefs, "--output", output
    )
    assert made["rows"] == {"read": 12, "annotated": 12, "dropped": {}, "notes": {}}
    assert made["output"] == str(output)
    assert made["health"]["chosen"]["tokens"] > 0
    return output


def test_annotations_are_inspected_verified_compared_and_merged(
    annotated: Path, tiny: tuple[str, str]
) -> None:
    shown = found("inspect", "inspect", annotated, "--row", 3, "--tokenizer", tiny[0])
    split = shown["splits"]["train"]
    assert split["pairs"] == 12
    assert len(split["row"]["chosen_token_mask"]) == len(split["row"]["chosen_token_start"])
    assert split["transfer"]["pairs"] == 12
    models = ("--oracle", tiny[0], "--ref", tiny[1])
    assert found("verify", "verify", annotated, *models)["holds"] is True
    swapped = ("--oracle", tiny[1], "--ref", tiny[0])
    assert found("verify", "verify", annotated, *swapped, code=3)["holds"] is False
    same = found("diff", "diff", annotated, annotated)
    assert same["same"] is True
    assert same["accuracies"][0] == same["accuracies"][1]
    assert found("merge", "merge", annotated)["finished"] is True


def test_a_dry_run_says_what_a_run_would_be(tmp_path: Path, tiny: tuple[str, str], prefs: str) -> None:
    arguments = ("--oracle", tiny[0], "--ref", tiny[1], "--dataset", prefs, "--output", tmp_path / "out")
    plan = found("annotate --dry-run", "annotate", *arguments, "--dry-run")
    assert plan["rows"] == plan["usable"] == 12


def test_masks_are_selected_again_and_a_policy_trained_and_evaluated(
    tmp_path: Path, annotated: Path, tiny: tuple[str, str], prefs: str
) -> None:
    again = found("reselect", "reselect", annotated, "--ratio", 0.5, "--output", tmp_path / "half")
    assert again["rows"]["annotated"] == 12
    policy = ("--policy", tiny[1], "--dataset", annotated, "--output", tmp_path / "p", "--batch-size", 4)
    trained = found("train", "train", "sepo", *policy)
    assert trained["rows"]["used"] == 12
    assert trained["figures"]["end"]["loss"] < trained["figures"]["start"]["loss"]
    models = ("--model", tmp_path / "p", "--ref", tiny[1], "--dataset", prefs, "--samples", 0)
    assert found("evaluate", "evaluate", *models)["accuracy"]["pairs"] == 12


def test_a_push_says_where(annotated: Path, hub: HubServer, repo_id: str) -> None:
    pushed = found("push", "push", annotated, repo_id)
    assert pushed["url"] == f"{hub.url}/datasets/{repo_id}"
    assert pushed["commit"] == hub.repos["dataset", repo_id].head


def test_an_error_leaves_stdout_empty() -> None:
    result = CliRunner().invoke(main, ["inspect", "./nothing", "--json"])
    assert (result.exit_code, result.stdout) == (1, "")
