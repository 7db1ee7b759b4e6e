"""Tests of the figures of a transfer against arithmetic done by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from annotated import with_rule
from scored_by_hand import letters, row_by_hand, scored
from tiny_pair import pairs
from tiny_tokenizers import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from cli.reports import describe_transfer
from sepo_data.projected.pairs import ProjectedRows
from sepo_data.projected.transfer import CHUNK_ROWS, SideTransfer, Transfer, transfer_report
from sepo_data.reasons import Reason
from sepo_data.settings import AnnotateSettings, ProjectionSettings
from sepo_data.tokens.encoder import response_encoder

# "abcdefgh" in five tokens of the oracle
FIVE = {
    "token_start": [0, 1, 3, 4, 6],
    "token_end": [1, 3, 4, 6, 8],
    "token_rewards": [0.0, 4.0, 0.0, 2.0, -3.0],
    "token_mask": [False, True, False, True, False],
    "eos_reward": -1.0,
    "eos_mask": False,
}


def report(
    rows: list[dict[str, Any]] | datasets.Dataset, tokenizer: PreTrainedTokenizerBase, **settings: Any
) -> Transfer:
    rows = datasets.Dataset.from_list(rows) if isinstance(rows, list) else rows
    return transfer_report(
        rows,
        response_encoder(tokenizer),
        ProjectionSettings(**with_rule(**settings)),
    )


def test_tokens_are_one_to_one_merged_split_or_crossing() -> None:
    # oracle: a | bc | d | ef | gh     policy: a | bcd | e | fg | h
    chosen = report([row_by_hand(FIVE)], letters("bcd", "fg")).chosen
    assert chosen.tokens == 6  # with the end of the turn, which lies on nothing
    assert chosen.one_to_one == pytest.approx(1 / 5)  # a
    assert chosen.merged == pytest.approx(1 / 5)  # bcd
    assert chosen.split == pytest.approx(2 / 5)  # e, h
    assert chosen.crossing == pytest.approx(1 / 5)  # fg


def test_recall_and_overlap_count_characters() -> None:
    # rewards a=0, bcd=4, e=1, fg=1-1.5, h=-1.5, end=-1: a third of 6 tokens is bcd and e
    # the dataset selects b c e f, the policy b c d e: three in common, five in either
    found = report([row_by_hand(FIVE)], letters("bcd", "fg"), chosen_ratio=0.34)
    assert found.chosen.selected == pytest.approx(2 / 6)
    assert found.chosen.recall == pytest.approx(3 / 4)
    assert found.chosen.precision == pytest.approx(3 / 4)
    assert found.chosen.iou == pytest.approx(3 / 5)
    # at a sixth it is bcd alone: b and c in common
    found = report([row_by_hand(FIVE)], letters("bcd", "fg"), chosen_ratio=0.17)
    assert found.chosen.recall == pytest.approx(2 / 4)
    assert found.chosen.precision == pytest.approx(2 / 3)


def test_characters_of_several_tokens_count_in_parts() -> None:
    # one emoji of two oracle tokens, the first selected; the policy's one token covers both
    columns = {"token_start": [0, 0], "token_end": [1, 1], "token_rewards": [2.0, 0.0]}
    row = {**row_by_hand({**columns, "token_mask": [True, False]}), "chosen": "😀"}
    chosen = report([row], letters(), chosen_ratio=0.5).chosen
    assert (chosen.merged, chosen.recall, chosen.iou) == (1.0, 1.0, 0.5)
    assert chosen.unknown == 1.0  # letters cannot read it


def test_cut_tokens_count_by_their_rewards() -> None:
    # p a bc d, then the cut: 2 of ef, 3 of gh and 1 of the end, out of 4 + 2 + 3 + 1
    found = report([row_by_hand(FIVE)], letters("bc", "ef", "gh"), max_length=4)
    assert found.chosen.reward_cut == pytest.approx(6 / 10)
    assert found.rejected.reward_cut == pytest.approx(0.5 / 2)  # x y z fit, the end does not
    assert "chosen: 60% of the |reward| is cut off. Raise `max_length`." in found.warnings()


def test_tokens_after_the_oracles_cut_have_no_reward() -> None:
    seen = {"token_start": [0, 1], "token_end": [1, 3], "token_rewards": [1.0, 1.0]}
    row = row_by_hand({**seen, "token_mask": [True, False], "eos_reward": None, "eos_mask": None})
    found = report([row], letters())
    assert found.chosen.without_reward == pytest.approx(6 / 9)  # d to h and the end
    assert found.chosen.split == pytest.approx(2 / 3)  # b and c; shares are of the three with a reward
    assert any("67% of the tokens have no reward" in warning for warning in found.warnings())


def test_unknown_tokens_are_counted_where_there_are_any() -> None:
    found = report([row_by_hand(FIVE)], letters(unknown="bg"))
    assert found.chosen.unknown == pytest.approx(2 / 8)
    assert found.rejected.unknown == 0.0
    assert any("chosen: 25.0% of the policy's tokens are its unknown token" in w for w in found.warnings())
    rows = scored(pairs(3), tiny_tokenizer(), AnnotateSettings(output=Path()))
    assert report(rows, tiny_tokenizer()).chosen.unknown is None
    assert not any("unknown" in line for line in describe_transfer(report(rows, tiny_tokenizer())))


def test_the_oracles_own_tokenizer_loses_nothing_and_is_not_warned_of() -> None:
    rows = scored(pairs(9), tiny_tokenizer(), AnnotateSettings(output=Path()))
    found = report(rows, tiny_tokenizer())
    assert (found.rows, found.pairs, found.dropped, found.warnings()) == (9, 9, {}, [])
    for side in (found.chosen, found.rejected):
        assert (side.one_to_one, side.merged, side.split, side.crossing) == (1, 0, 0, 0)
        assert (side.recall, side.iou, side.reward_cut, side.without_reward) == (1, 1, 0, 0)
    assert found.short().startswith("transfer, chosen / rejected: 100.0% / 100.0% of the tokens one to one, ")
    assert found.short().endswith("; 0 of 9 rows lost")


def test_lost_rows_are_counted_by_reason_and_warned_of() -> None:
    nothing = row_by_hand({**FIVE, "token_mask": [False, False, True, False, False]})
    rows = [row_by_hand(FIVE), nothing, {**row_by_hand(FIVE), "prompt": "p" * 40}]
    found = report(rows, letters("abcdefgh"), projection="majority", max_length=30)
    assert (found.rows, found.pairs) == (3, 1)
    assert found.dropped == {Reason.PROMPT_TOO_LONG: 1, Reason.NOTHING_SELECTED: 1}
    assert "2 of 3 rows are lost; the reasons say what to change." in found.warnings()
    first = describe_transfer(found)[0]
    reasons = f"1 {Reason.PROMPT_TOO_LONG}, 1 {Reason.NOTHING_SELECTED}"
    assert first == f"1 of 3 rows can be trained on; dropped 2: {reasons}"


def test_a_dataset_that_is_lost_altogether_still_has_a_report() -> None:
    found = report([row_by_hand(FIVE)], letters(), max_length=1)
    assert (found.pairs, found.dropped, found.chosen.tokens) == (0, {Reason.PROMPT_TOO_LONG: 1}, 0)
    assert found.warnings() == ["1 of 1 rows are lost; the reasons say what to change."]
    assert describe_transfer(found)


def test_chunks_add_up_and_are_told() -> None:
    few = [row_by_hand(FIVE), row_by_hand({**FIVE, "token_rewards": [5.0, 0.0, 0.0, 0.0, 0.0]})]
    rows = datasets.Dataset.from_list(few * (CHUNK_ROWS // 2 + 3))
    told: list[ProjectedRows] = []
    encoder = response_encoder(letters("bcd"))
    found = transfer_report(rows, encoder, ProjectionSettings(), told.append)
    lost = transfer_report(rows, encoder, ProjectionSettings(max_length=1))
    assert lost.dropped == {Reason.PROMPT_TOO_LONG: CHUNK_ROWS + 6}
    assert [pair.row for done in told for pair in done.pairs] == list(range(CHUNK_ROWS + 6))
    assert len(told) == 2
    once = report(few, letters("bcd"))
    assert found.chosen.tokens == once.chosen.tokens * (CHUNK_ROWS // 2 + 3)
    assert found.chosen.recall == pytest.approx(once.chosen.recall)


GOOD = SideTransfer(
    tokens=100,
    selected=0.3,
    one_to_one=0.9,
    merged=0.04,
    split=0.05,
    crossing=0.01,
    recall=0.9,
    precision=0.9,
    iou=0.82,
    reward_cut=0.1,
    without_reward=0.1,
    unknown=0.01,
)


def test_a_selection_of_other_text_is_warned_of_unless_it_is_random() -> None:
    other = replace(GOOD, recall=0.69, precision=0.6)
    found = Transfer(rows=100, pairs=95, dropped={}, random=False, chosen=other, rejected=GOOD)
    assert "6 of 100 rows are lost" in replace(found, pairs=94).warnings()[-1]
    (warning,) = found.warnings()
    assert warning.startswith("chosen: the policy's selection and the dataset's share 69% of their text.")
    assert "4% of the policy's tokens merge" in warning
    assert "6% split one" in warning
    assert replace(found, random=True).warnings() == []


def test_a_smaller_ratio_than_the_datasets_is_not_warned_of() -> None:
    # a third of the dataset's selection, but all of it the dataset's
    smaller = replace(GOOD, recall=0.33, precision=1.0)
    found = Transfer(smaller, smaller, rows=100, pairs=100, dropped={}, random=False)
    assert found.warnings() == []


def test_random_is_told_from_the_settings() -> None:
    rows = [row_by_hand(FIVE)]
    assert report(rows, letters(), rule="random").random
    assert not report(rows, letters(), rule="random", projection="majority").random
    assert not report(rows, letters()).random
