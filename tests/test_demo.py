"""Tests of the bundled models and sample: the output of `make demo` must be worth showing."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import annotate as annotation
from cli import inspection
from sepo_data import load_annotated

DEMO = Path(__file__).parent.parent / "demo"
ROWS = [json.loads(line) for line in (DEMO / "pairs.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("demo") / "out"
    arguments = ["--oracle", DEMO / "oracle", "--ref", DEMO / "reference", "--dataset", DEMO / "pairs.jsonl"]
    found = CliRunner().invoke(annotation.main, [*map(str, arguments), "--output", str(output)])
    assert found.exit_code == 0, found.stderr
    return output, found.stdout


def test_the_sample_is_some_tens_of_licensed_pairs_multi_turn_and_chinese_among_them() -> None:
    assert 30 <= len(ROWS) <= 60
    assert {row["license"] for row in ROWS} == {"Apache-2.0", "MIT"}
    assert {row["language"] for row in ROWS} == {"en", "zh"}
    assert sum(len(row["prompt"]) > 2 for row in ROWS) >= 4
    assert any(row["prompt"][0]["role"] == "system" for row in ROWS)


def test_every_pair_is_annotated_and_the_oracle_is_a_good_one(annotated: tuple[Path, str]) -> None:
    output, stdout = annotated
    assert stdout.startswith(f"annotated {len(ROWS)} of {len(ROWS)} rows\n")
    assert "warning" not in stdout
    assert stdout.splitlines()[-2].startswith(f"saved to {output} in ")
    health = json.loads((output / "sepo_manifest.json").read_text())["health"]
    assert health["accuracy"] > 0.75
    assert health["token_reward"] > 0.1


def test_selected_rejected_tokens_stand_in_swapped_words_more_than_in_others(
    annotated: tuple[Path, str],
) -> None:
    # where chosen and rejected have as many words, a word was swapped if the two differ there
    hit = selected = swapped = words = 0
    for row in load_annotated(str(annotated[0]))["train"]:
        good, bad = row["chosen"][-1]["content"].split(" "), row["rejected"][-1]["content"].split(" ")
        if row["language"] != "en" or len(good) != len(bad):
            continue
        place = 0
        for ours, theirs in zip(good, bad, strict=True):
            stop = place + len(theirs)
            spans = zip(
                row["rejected_token_start"],
                row["rejected_token_end"],
                row["rejected_token_mask"],
                strict=True,
            )
            marked = any(mask and start < stop and end > place for start, end, mask in spans)
            words, swapped = words + 1, swapped + (ours != theirs)
            selected, hit = selected + marked, hit + (marked and ours != theirs)
            place = stop + 1
    assert words > 500
    in_swapped, in_others = hit / swapped, (selected - hit) / (words - swapped)
    assert in_swapped > 1.4 * in_others  # 66% and 41% when the models were made


def test_inspect_shows_a_row_with_marks_and_the_health(annotated: tuple[Path, str]) -> None:
    found = CliRunner().invoke(inspection.main, [str(annotated[0]), "--row", "2"])
    assert found.exit_code == 0, found.stderr
    assert "[" in found.stdout
    assert "reward accuracy" in found.stdout
