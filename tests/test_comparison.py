"""Tests of `sepo diff`: two annotations of the same pairs, by hand and from the command line."""

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from annotated import TEXT, annotated_table, side_values
from click.testing import CliRunner
from scored_by_hand import scored
from tiny_pair import pairs, save_pair, write_jsonl
from tiny_tokenizers import tiny_tokenizer

from cli.main import main
from sepo_data import AnnotateSettings, SchemaError, annotate
from sepo_data.comparison import compare_annotations
from sepo_data.schema import SIDES, annotated_schema


def dataset(*rows: dict[str, Any]) -> datasets.Dataset:
    """Rows of ``chosen`` "abcd" and ``rejected`` "xy", by default with one token per character."""
    content = []
    for row in rows:
        values: dict[str, Any] = {
            "id": 0,
            "prompt": row.get("prompt", "p"),
            "chosen": "abcd",
            "rejected": "xy",
        }
        for side in SIDES:
            values |= {f"{side}_{name}": value for name, value in side_values(values[side]).items()}
        values |= row
        for side in SIDES:
            values[f"{side}_reward"] = sum(values[f"{side}_token_rewards"]) + values[f"{side}_eos_reward"]
        content.append(values)
    schema = annotated_schema(pa.schema({"id": pa.int64()}), TEXT, store_logps=False)
    return datasets.Dataset(pa.Table.from_pylist(content, schema=schema))


def chosen(rewards: list[float], mask: list[bool]) -> dict[str, Any]:
    return {"chosen_token_rewards": rewards, "chosen_token_mask": mask}


def test_ranks_and_masks_by_hand() -> None:
    # ranks 1 2 3 4 against 2 1 3 4: 1 - 6 * 2 / (4 * 15) = 0.8. Masks "cd" and "bd": "d" of "bcd"
    first = dataset(chosen([1.0, 2.0, 3.0, 4.0], [False, False, True, True]))
    second = dataset(chosen([2.5, 0.5, 3.0, 9.0], [False, True, False, True]))
    found = compare_annotations(first, second)
    assert found.chosen.rank_correlation == pytest.approx(0.8)
    assert found.chosen.mask_overlap == pytest.approx(1 / 3)
    assert found.chosen.same_tokens == 1
    assert found.chosen.largest_difference == 5
    assert math.isnan(found.rejected.rank_correlation)  # two tokens have no ranks to speak of
    assert found.rejected.mask_overlap == 1


def test_rewards_of_other_tokens_are_compared_where_they_are() -> None:
    # the second's tokens are "ab" and "cd": its rewards 4 and 8 are 2 2 4 4 at the first's
    coarse = {
        "chosen_token_start": [0, 2],
        "chosen_token_end": [2, 4],
        **chosen([4.0, 8.0], [False, True]),
    }
    found = compare_annotations(
        dataset(chosen([1.0, 2.0, 3.0, 4.0], [True, False, False, True])), dataset(coarse)
    )
    # ranks 1 2 3 4 against 1.5 1.5 3.5 3.5: covariance 4, variances 5 and 4
    assert found.chosen.rank_correlation == pytest.approx(4 / 20**0.5)
    assert found.chosen.mask_overlap == pytest.approx(1 / 3)  # "d" of "acd"
    assert found.chosen.same_tokens == 0
    assert math.isnan(found.chosen.largest_difference)


def test_pairs_are_matched_by_their_texts_and_accuracies_are_of_those() -> None:
    right, wrong = (chosen([v] * 4, [True] * 4) for v in (5.0, -5.0))  # rejected: 1.5 in all
    first = dataset({"prompt": "1", **right}, {"prompt": "2", **wrong}, {"prompt": "3", **wrong})
    second = dataset({"prompt": "4", **right}, {"prompt": "2", **right}, {"prompt": "1", **right})
    found = compare_annotations(first, second)
    assert (found.pairs, found.only_first, found.only_second) == (2, 1, 1)
    assert found.accuracies == (0.5, 1.0)
    assert found.agreement == 0.5


def test_datasets_without_a_common_pair_are_refused() -> None:
    with pytest.raises(SchemaError, match="no pair in common"):
        compare_annotations(dataset({"prompt": "1"}), dataset({"prompt": "2"}))


def test_a_repeated_pair_is_matched_as_often_as_it_is_there() -> None:
    found = compare_annotations(dataset({}, {}), dataset({}))
    assert (found.pairs, found.only_first, found.only_second) == (1, 1, 0)
    found = compare_annotations(dataset({}, {}), dataset({}, {}))
    assert (found.pairs, found.only_first, found.only_second) == (2, 0, 0)


def test_an_annotation_is_like_itself() -> None:
    table = datasets.Dataset(annotated_table(4))
    distinct = table.map(lambda row, i: {"prompt": f"p{i}"}, with_indices=True)
    found = compare_annotations(distinct, distinct)
    assert (found.pairs, found.agreement) == (4, 1)
    for side in (found.chosen, found.rejected):
        assert (side.mask_overlap, side.same_tokens, side.largest_difference) == (1, 1, 0)


def test_messages_are_matched_as_well_and_tokenizers_may_differ() -> None:
    rows = pairs(20)
    ours, theirs = (
        scored(rows, tiny_tokenizer(family), AnnotateSettings(Path("out")))
        for family in ("byte_bpe", "wordpiece")
    )
    found = compare_annotations(ours, theirs)
    assert found.pairs == 20
    assert found.chosen.same_tokens < 1
    assert abs(found.chosen.rank_correlation) < 0.5  # random rewards
    again = compare_annotations(ours, ours)
    assert again.chosen.rank_correlation == pytest.approx(1)
    assert np.isclose(again.rejected.mask_overlap, 1)


def test_the_command_compares_two_folders(tmp_path: Path) -> None:
    data, tiny = write_jsonl(tmp_path / "prefs.jsonl", pairs(20)), save_pair(tmp_path / "models")
    for dtype in ("float32", "bfloat16"):
        annotate(data, *tiny, AnnotateSettings(tmp_path / dtype, dtype=dtype))
    found = CliRunner().invoke(main, ["diff", str(tmp_path / "float32"), str(tmp_path / "bfloat16")])
    assert found.exit_code == 3, found.stderr
    lines = found.stdout.splitlines()
    assert lines[-1] == "the annotations differ"
    same = CliRunner().invoke(main, ["diff", str(tmp_path / "float32"), str(tmp_path / "float32")])
    assert (same.exit_code, same.stdout.splitlines()[-1]) == (0, "the annotations are the same")
    assert lines[0] == "20 pairs in both; 0 only in A, 0 only in B"
    assert lines[1].startswith("reward accuracy ")
    assert lines[2].startswith("chosen: rank correlation of the token rewards +0.")
    assert "100.0% of the responses have the same tokens, whose rewards differ by at most" in lines[3]
