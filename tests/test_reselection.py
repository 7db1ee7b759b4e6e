"""Tests of `sepo reselect`: other masks on the rewards that a dataset stores."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from annotated import with_rule
from click.testing import CliRunner, Result
from tiny_pair import pairs, save_pair, write_jsonl
from tiny_tokenizers import tiny_tokenizer

from cli.main import main
from sepo_data import AnnotateSettings, SelectionRule, annotate, load_annotated
from sepo_data.annotated.manifest import read_manifest
from sepo_data.reselection import reselect
from sepo_data.runs import merging
from sepo_data.schema import SIDES
from sepo_data.settings import SelectionChange
from sepo_data.verification import verify

# three rows without a common prompt, which annotation drops: row numbers of source and dataset differ
ROWS = [{**row, "topic": "maths" if row["id"] % 2 else "chat"} for row in pairs(40)]
for broken in (0, 7, 20):
    ROWS[broken] = {**ROWS[broken], "chosen": [{"role": "assistant", "content": ""}]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> Path:
    """In several files of several row groups."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "MANY_ROWS", 10)
        patch.setattr(merging, "MANY_SHARDS", 3)
        patch.setattr(merging, "ROW_GROUP_ROWS", 5)
        annotate(write_jsonl(folder / "prefs.jsonl", ROWS), *models, AnnotateSettings(folder / "out"))
    return folder / "out"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("data/*"))}


def rewards_and_masks(folder: Path, side: str) -> list[tuple[np.ndarray, np.ndarray]]:
    (rows,) = load_annotated(str(folder)).values()
    return [
        (
            np.array([*row[f"{side}_token_rewards"], row[f"{side}_eos_reward"]], np.float32),
            np.array([*row[f"{side}_token_mask"], row[f"{side}_eos_mask"]]),
        )
        for row in rows
    ]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["reselect", *map(str, arguments)])


def test_the_same_selection_gives_the_same_data(tmp_path: Path, annotated: Path) -> None:
    made = reselect(str(annotated), SelectionChange(), tmp_path / "again")
    assert len(made.shards) == 3
    assert content(tmp_path / "again") == content(annotated)


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "random", "chosen_ratio": 0.5, "seed": 3},
        {"rule": "mass", "chosen_ratio": 0.8, "rejected_ratio": 0.6},
        {"rule": "all"},
    ],
)
def test_it_is_what_an_annotation_with_that_rule_had_given(
    tmp_path: Path, annotated: Path, models: tuple[str, str], rule: dict[str, Any]
) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", ROWS)
    annotate(data, *models, AnnotateSettings(tmp_path / "annotated", **with_rule(**rule)))
    change = {"selection" if name == "rule" else name: value for name, value in rule.items()}
    seed = change.pop("seed", None)
    made = reselect(str(annotated), SelectionChange(**change), tmp_path / "again", seed=seed)
    wanted = read_manifest(tmp_path / "annotated", "annotated")
    assert made.selection == wanted.selection
    assert made.health == wanted.health
    for side in SIDES:
        pairs = zip(
            *(rewards_and_masks(tmp_path / name, side) for name in ("annotated", "again")), strict=True
        )
        for ours, theirs in pairs:
            np.testing.assert_array_equal(ours, theirs)


def test_global_keeps_the_share_of_all_tokens_and_counts_the_rows_it_drops(
    tmp_path: Path, annotated: Path, models: tuple[str, str]
) -> None:
    made = reselect(str(annotated), SelectionChange("global", 0.1, 0.1), tmp_path / "global")
    kept, lost = made.counts.annotated, made.counts.dropped["no token selected on a side"]
    assert lost > 0
    assert kept + lost == 37
    assert len(made.dropped_rows["no token selected on a side"]) == lost
    assert made.selection.cutoffs is not None
    for side, sign in zip(SIDES, (1, -1), strict=True):
        before = np.concatenate([sign * rewards for rewards, _ in rewards_and_masks(annotated, side)])
        cutoff = sign * getattr(made.selection.cutoffs, side)
        assert (before >= cutoff).sum() >= int(0.1 * before.size)
        assert (before > cutoff * (1 + np.sign(cutoff) * 2**-12)).sum() <= int(0.1 * before.size)
        for rewards, mask in rewards_and_masks(tmp_path / "global", side):
            np.testing.assert_array_equal(mask, sign * rewards >= cutoff)
    found = verify(str(tmp_path / "global"), *models)
    assert found.holds
    assert found.equal_masks == 1


def test_the_preview_on_other_tokens_takes_the_share_of_those_tokens(tmp_path: Path, annotated: Path) -> None:
    # the dataset's cutoffs are of the oracle's tokens; a policy's have other rewards, as training counts them
    reselect(str(annotated), SelectionChange("global", 0.3, 0.3), tmp_path / "global")
    tiny_tokenizer("sentencepiece_bpe").save_pretrained(tmp_path / "policy")
    shown = CliRunner().invoke(
        main, ["inspect", str(tmp_path / "global"), "--tokenizer", str(tmp_path / "policy"), "--json"]
    )
    assert shown.exit_code == 0, shown.output
    transfer = json.loads(shown.stdout)["splits"]["train"]["transfer"]
    for side in SIDES:
        assert transfer[side]["selected"] == pytest.approx(0.3, abs=2 / transfer[side]["tokens"])


def test_tokens_are_filtered_by_text_and_groups_have_their_ratio(
    tmp_path: Path, annotated: Path, models: tuple[str, str]
) -> None:
    result = run(
        annotated, "--exclude-tokens", r"\s.*", "--exclude-tokens", "^$", "--ratio", 0.01,
        "--ratio-by", "topic=maths:1", "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (rows,) = load_annotated(str(tmp_path / "out")).values()
    for row in rows:
        text = row["chosen"][0]["content"]
        spans = zip(row["chosen_token_start"], row["chosen_token_end"], strict=True)
        words = [not text[start:end][0].isspace() for start, end in spans]
        assert not row["chosen_eos_mask"]
        if row["topic"] == "maths":
            assert row["chosen_token_mask"] == words
        else:
            assert sum(row["chosen_token_mask"]) == 1
    assert verify(str(tmp_path / "out"), *models).by_rule == 1


def test_card_and_manifest_say_from_what(tmp_path: Path, annotated: Path) -> None:
    result = run(annotated, "--selection", "threshold", "--threshold", 0.05, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"next: sepo inspect {tmp_path / 'out'}"
    made = read_manifest(tmp_path / "out", "out")
    assert made.reselected_from is not None
    assert made.reselected_from.name == "out"
    assert made.reselected_from.revision.startswith("sha256:")
    assert made.reselected_from.selection == SelectionRule()
    assert read_manifest(annotated, "out").reselected_from is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| reselected from | `out`, revision `sha256:" in card
    assert "`threshold`: chosen tokens from 0.05 nats, rejected ones from -0.05 down" in card
    assert datasets.load_dataset(str(tmp_path / "out"), split="train").num_rows == made.counts.annotated


def test_what_was_selected_again_can_be_again(tmp_path: Path, annotated: Path) -> None:
    reselect(str(annotated), SelectionChange("global", 0.1, 0.1), tmp_path / "global")
    again = reselect(str(tmp_path / "global"), SelectionChange("random"), tmp_path / "random")
    assert again.reselected_from is not None
    assert again.reselected_from.selection.cutoffs is not None
    assert again.counts.annotated == read_manifest(tmp_path / "global", "global").counts.annotated


def test_an_interrupted_call_is_written_over_and_another_dataset_is_not(
    tmp_path: Path, annotated: Path
) -> None:
    left = tmp_path / "out" / "data"
    left.mkdir(parents=True)
    (left / "train-00000-of-00003.parquet").write_bytes(b"half")
    (left / "train-00001-of-00003.parquet.tmp.0a").write_bytes(b"half")
    assert run(annotated, "--ratio", 0.5, "--output", tmp_path / "out").exit_code == 0
    assert len(content(tmp_path / "out")) == 3
    before = content(tmp_path / "out")
    result = run(annotated, "--ratio", 0.1, "--output", tmp_path / "out")
    assert (result.exit_code, "is not empty. Choose another --output." in result.output) == (1, True)
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--exclude-tokens", "13"), "token id 13 has no meaning here"),
        (("--include-tokens", "nowhere"), "keeps no row"),
        (("--include-tokens", "nowhere", "--selection", "global"), "no token may be selected"),
        (("--ratio-by", "topic=history:0.5"), 'has "history" in column topic. It holds chat, maths'),
        (("--ratio-by", "subject=history:0.5"), "no column subject"),
        (("--threshold", "1"), "a threshold has no effect with ratio"),
    ],
)
def test_what_cannot_be_selected_is_refused_in_one_line(
    tmp_path: Path, annotated: Path, options: tuple[str, ...], said: str
) -> None:
    result = run(annotated, *options, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert said in result.output.splitlines()[-1]
    assert not (tmp_path / "out" / "sepo_manifest.json").exists()
