"""Tests of annotated rows on a policy's tokens: arithmetic by hand, identity for the oracle's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from annotated import with_rule
from scored_by_hand import letters, row_by_hand, scored
from tiny_pair import pairs
from tiny_tokenizers import CHATML, FAMILIES, tiny_tokenizer

from sepo_data import (
    PreferenceError,
    SchemaError,
    SelectionError,
    SelectionRule,
    SettingsError,
    TokenizerError,
    project_row,
    select_tokens,
)
from sepo_data.projected import whole
from sepo_data.projected.pairs import ProjectedPair, ProjectedRows, ProjectedSide, project_rows
from sepo_data.projected.whole import settled
from sepo_data.reasons import Reason
from sepo_data.rules.groups import RatioBy
from sepo_data.rules.token_filter import TokenFilter
from sepo_data.schema import SIDES
from sepo_data.settings import AnnotateSettings, ProjectionSettings, SelectionChange
from sepo_data.tokens.encoder import response_encoder

# a pair of texts, so that tokenizers without a chat template read it too
TEXTS = [
    {side: turns if isinstance(turns := row[side], int) else turns[0]["content"] for side in row}
    for row in pairs(12)
]
# "abcdefgh" in four tokens of the oracle, and the end of the turn
FOUR = {
    "token_start": [0, 2, 3, 6],
    "token_end": [2, 3, 6, 8],
    "token_rewards": [1.0, 3.0, 6.0, -2.0],
    "token_mask": [False, True, True, False],
    "eos_reward": -1.0,
    "eos_mask": False,
}
SEEN_TO_D = {  # the oracle was cut behind the "c"
    "token_start": [0, 2],
    "token_end": [2, 3],
    "token_rewards": [1.0, 3.0],
    "token_mask": [False, True],
    "eos_reward": None,
    "eos_mask": None,
}


def projected(rows: datasets.Dataset, family: str = "byte_bpe", **settings: Any) -> ProjectedRows:
    encoder = response_encoder(tiny_tokenizer(family))
    return project_rows(rows, encoder, ProjectionSettings(**with_rule(**settings)), 0, len(rows))


def chosen(columns: dict[str, Any], *words: str, **settings: Any) -> ProjectedSide:
    wanted = ProjectionSettings(**with_rule(**settings))
    return project_row(row_by_hand(columns), letters(*words), wanted).chosen


def marked(side: ProjectedSide) -> list[int]:
    return np.flatnonzero(side.weights).tolist()


def assert_equal(one: ProjectedPair, other: ProjectedPair) -> None:
    assert one.row == other.row
    for side in SIDES:
        for name, value in vars(getattr(one, side)).items():
            np.testing.assert_array_equal(value, getattr(getattr(other, side), name), err_msg=name)


def test_merged_tokens_add_up_and_parts_share_evenly() -> None:
    # oracle:  ab=1 | c=3 | def=6 | gh=-2     policy: a | bc | d | e | f | gh
    side = chosen(FOUR, "bc", "gh", chosen_ratio=0.5)
    assert side.token_start.tolist() == [0, 1, 3, 4, 5, 6]
    assert side.token_end.tolist() == [1, 3, 4, 5, 6, 8]
    assert side.token_rewards.tolist() == [0.5, 3.5, 2.0, 2.0, 2.0, -2.0]
    assert (side.eos_reward, side.eos_mask) == (-1.0, False)
    # half of 7 with the end is 3: "bc", and of the equal ones the two that come first
    assert side.token_mask.tolist() == [False, True, True, True, False, False]
    assert side.weights.tolist() == [0, 1, 1, 1, 0, 0, 0]
    assert side.dropped_reward == 0.0


def test_rejected_keeps_the_lowest() -> None:
    row = row_by_hand(FOUR, token_rewards=[1.0, -3.0, -1.0], eos_reward=-5.0)
    side = project_row(row, letters(), ProjectionSettings(SelectionRule(rejected_ratio=0.5))).rejected
    assert marked(side) == [1, 3]  # two of four: the end at -5, "y" at -3
    assert (side.eos_reward, side.eos_mask) == (-5.0, True)


def test_positions_say_where_the_tokens_stand() -> None:
    side = chosen(FOUR, "bc", "gh")
    tokenizer = letters("bc", "gh")
    whole = ["p", "a", "bc", "d", "e", "f", "gh", "<eos>"]
    assert tokenizer.convert_ids_to_tokens(side.input_ids.tolist()) == whole
    assert side.positions.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert tokenizer.convert_ids_to_tokens(side.token_ids.tolist()) == ["a", "bc", "d", "e", "f", "gh"]
    assert side.input_ids.dtype == side.positions.dtype == side.token_ids.dtype == np.int64
    assert side.token_rewards.dtype == side.weights.dtype == np.float32
    assert side.token_start.dtype == side.token_end.dtype == np.int32
    assert side.token_mask.dtype == np.bool_


def test_what_the_policy_cuts_off_is_dropped_and_reported() -> None:
    # p a bc d: five of the oracle's 6 nats on "def" are cut with "ef", 2 with "gh" and 1 with the end
    side = chosen(FOUR, "bc", "gh", max_length=4)
    assert side.token_rewards.tolist() == [0.5, 3.5, 2.0]
    assert (side.eos_reward, side.eos_mask) == (None, None)
    assert side.positions.tolist() == [1, 2, 3]
    assert side.weights.size == 3
    assert side.dropped_reward == pytest.approx(4 + 2 + 1)


def test_an_end_that_is_cut_alone_is_counted() -> None:
    side = chosen(FOUR, "bc", "gh", max_length=7)
    assert side.token_ids.size == 6
    assert side.eos_reward is None
    assert side.dropped_reward == 1.0


@pytest.mark.parametrize("rule", ["ratio", "mass", "random", "all"])
def test_what_the_oracle_never_saw_is_unknown_and_never_selected(rule: str) -> None:
    # the oracle saw "abc"; the policy's d, e, f, gh and its end are known to nobody
    side = chosen(SEEN_TO_D, "bc", "gh", rule=rule, chosen_ratio=1.0)
    np.testing.assert_array_equal(side.token_rewards, [0.5, 3.5, *[np.nan] * 4])
    assert side.eos_reward is not None
    assert np.isnan(side.eos_reward)
    assert side.eos_mask is False
    assert marked(side) == [0, 1]


def test_the_ratio_counts_known_tokens_only() -> None:
    # half of the known two, not of all seven
    assert marked(chosen(SEEN_TO_D, "bc", "gh", chosen_ratio=0.5)) == [1]


def test_a_token_across_the_oracles_end_keeps_the_known_part() -> None:
    side = chosen(SEEN_TO_D, "cdef")
    np.testing.assert_array_equal(side.token_rewards, [0.5, 0.5, 3.0, np.nan, np.nan])


def test_majority_carries_the_stored_mask_whatever_the_ratio_is() -> None:
    # selected: c, def. "bc" is selected by half, "efgh" by two of four, "a" not
    side = chosen(FOUR, "bc", "efgh", projection="majority", rule="all", chosen_ratio=0.01)
    assert side.token_mask.tolist() == [False, True, True, True]
    assert side.eos_mask is False
    side = chosen(
        {**FOUR, "token_mask": [False, True, False, False], "eos_mask": True}, projection="majority"
    )
    assert marked(side) == [2, 8]


def test_majority_selects_nothing_that_is_unknown() -> None:
    side = chosen(SEEN_TO_D, "bc", "gh", projection="majority")
    assert marked(side) == [1]
    assert side.eos_mask is False


def test_a_pair_without_a_selected_token_on_a_side_is_dropped_and_counted() -> None:
    columns = {**FOUR, "token_mask": [False, True, False, False]}  # one letter of a word of eight
    row, tokenizer = row_by_hand(columns), letters("abcdefgh")
    with pytest.raises(PreferenceError, match=f"^row 7: {Reason.NOTHING_SELECTED}"):
        project_row(row, tokenizer, ProjectionSettings(projection="majority"), row_number=7)
    rows = datasets.Dataset.from_list([row, row_by_hand({**FOUR, "token_mask": [True] * 4})])
    settings = ProjectionSettings(projection="majority")
    found = project_rows(rows, response_encoder(tokenizer), settings, 0, 2)
    assert found.dropped == {Reason.NOTHING_SELECTED: [0]}
    assert [pair.row for pair in found.pairs] == [1]


def test_rewards_as_weights_are_sigmoids_on_the_selected_tokens() -> None:
    # sigmoid(ln 3) = 0.75; on the rejected side of -ln 3
    columns = {**FOUR, "token_rewards": [0.0, float(np.log(3)), -9.0, -9.0]}
    row = row_by_hand(columns, token_rewards=[9.0, -float(np.log(3)), 9.0], eos_reward=9.0)
    settings = ProjectionSettings(SelectionRule(chosen_ratio=0.34, rejected_ratio=0.1), weights="rewards")
    pair = project_row(row, letters(), settings)
    # a and b get half of 0, c its own, eight letters and the end: three selected
    np.testing.assert_allclose(pair.chosen.weights, [0.5, 0.5, 0.75, 0, 0, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(pair.rejected.weights, [0, 0.75, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("max_length", [2048, 34])
@pytest.mark.parametrize("rule", ["ratio", "mass", "random", "all"])
def test_the_oracles_own_tokenizer_gives_the_stored_columns_bit_for_bit(rule: str, max_length: int) -> None:
    same: dict[str, Any] = {"rule": rule, "rejected_ratio": 0.45, "seed": 5, "max_length": max_length}
    rows = scored(pairs(12), tiny_tokenizer(), AnnotateSettings(output=Path(), **with_rule(**same)))
    ends = rows["chosen_eos_reward"]
    assert (None in ends) == (max_length == 34)
    assert_identical(rows, projected(rows, **same))
    # the dataset's own masks, whatever the policy asks for
    assert_identical(rows, projected(rows, projection="majority", max_length=max_length))


def assert_identical(rows: datasets.Dataset, found: ProjectedRows) -> None:
    assert not found.dropped
    for pair, row in zip(found.pairs, rows, strict=True):
        for side in SIDES:
            ours = getattr(pair, side)
            for name in ("token_start", "token_end", "token_rewards", "token_mask"):
                stored = np.array(row[f"{side}_{name}"], dtype=getattr(ours, name).dtype)
                assert getattr(ours, name).tobytes() == stored.tobytes(), name
            assert ours.eos_reward == row[f"{side}_eos_reward"]
            assert ours.eos_mask == row[f"{side}_eos_mask"]
            assert ours.dropped_reward == 0.0


def test_after_a_dropped_row_random_masks_agree_in_number_only() -> None:
    source = pairs(12)
    source[2] = {**source[2], "rejected": source[2]["chosen"]}  # dropped: row 3 of the source is row 2 here
    rows = scored(
        source, tiny_tokenizer(), AnnotateSettings(output=Path(), selection=SelectionRule("random"))
    )
    found = projected(rows, rule="random")
    masks = [pair.chosen.token_mask.tolist() for pair in found.pairs]
    assert masks[:2] == rows["chosen_token_mask"][:2]
    assert masks[2:] != rows["chosen_token_mask"][2:]
    for pair, row in zip(found.pairs, rows, strict=True):
        stored = sum(row["chosen_token_mask"]) + row["chosen_eos_mask"]
        assert np.count_nonzero(pair.chosen.weights) == stored
    assert_identical(rows, projected(rows, projection="majority"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("oracle", ["byte_bpe", "unigram_nfkc"])
def test_any_vocabulary_keeps_the_sum_and_the_share(oracle: str, family: str) -> None:
    rows = scored(TEXTS, tiny_tokenizer(oracle), AnnotateSettings(output=Path()))
    found = projected(rows, family, chosen_ratio=0.4)
    assert len(found.pairs) == len(rows) > 8
    for pair, row in zip(found.pairs, rows, strict=True):
        total, size = row["chosen_reward"], np.abs(row["chosen_token_rewards"]).sum()
        side = pair.chosen
        assert side.token_rewards.sum(dtype=np.float64) + side.eos_reward == pytest.approx(
            total, abs=1e-6 * size
        )
        assert np.count_nonzero(side.weights) == max(1, int(0.4 * side.positions.size + 1e-9))
        assert side.token_end[-1] == len(row["chosen"])


@pytest.mark.parametrize("max_length", [40, 2048])
def test_row_by_row_equals_the_batch_and_chunks(max_length: int) -> None:
    rows = scored(pairs(12), tiny_tokenizer(), AnnotateSettings(output=Path()))
    settings = ProjectionSettings(SelectionRule("random"), max_length=max_length)
    policy = tiny_tokenizer("sentencepiece_bpe")
    encoder = response_encoder(policy)
    batch = project_rows(rows, encoder, settings, 0, 12)
    chunks = [project_rows(rows, encoder, settings, lo, min(lo + 5, 12)) for lo in (0, 5, 10)]
    assert [pair.row for pair in batch.pairs] == [pair.row for chunk in chunks for pair in chunk.pairs]
    for one, other in zip(batch.pairs, [pair for chunk in chunks for pair in chunk.pairs], strict=True):
        assert_equal(one, other)
    for pair in batch.pairs:
        alone = project_row(rows[pair.row], policy, settings, row_number=pair.row)
        assert_equal(replace(alone, row=pair.row), pair)


def test_no_rows_are_no_pairs() -> None:
    rows = scored(pairs(3), tiny_tokenizer(), AnnotateSettings(output=Path()))
    encoder = response_encoder(tiny_tokenizer())
    found = project_rows(rows, encoder, ProjectionSettings(), 2, 2)
    assert (found.pairs, found.dropped, found.counts) == ([], {}, {})


def test_a_row_keeps_its_number_after_a_dropped_one() -> None:
    rows = scored(TEXTS[:3], tiny_tokenizer(), AnnotateSettings(output=Path())).to_list()
    rows[0]["prompt"] = "a very long prompt " * 50
    found = projected(datasets.Dataset.from_list(rows), max_length=60)
    assert found.dropped == {Reason.PROMPT_TOO_LONG: [0]}
    assert [pair.row for pair in found.pairs] == [1, 2]
    assert found.pairs[0].chosen.token_rewards.tolist() == rows[1]["chosen_token_rewards"]
    with pytest.raises(PreferenceError, match=Reason.PROMPT_TOO_LONG):
        project_row(rows[0], tiny_tokenizer(), ProjectionSettings(max_length=60))


def test_a_template_that_is_set_between_two_rows_is_noticed() -> None:
    (row,) = scored(TEXTS[:1], tiny_tokenizer(), AnnotateSettings(output=Path())).to_list()
    tokenizer = letters()
    before = project_row(row_by_hand(FOUR), tokenizer).chosen.input_ids.size
    tokenizer.chat_template = "{% for m in messages %}{{ 'zzz' + m['content'] }}{% endfor %}"
    after = project_row(row_by_hand(FOUR), tokenizer).chosen.input_ids.size
    assert after == before + 6  # zzz before the prompt and before the response
    assert project_row(row_by_hand(FOUR), tokenizer, chat_template=False).chosen.input_ids.size == before
    assert project_row(row, tiny_tokenizer(template=CHATML)).chosen.token_ids.size > 0


def test_a_row_that_is_not_annotated_is_refused() -> None:
    row = row_by_hand(FOUR)
    with pytest.raises(SchemaError, match='column "rejected_token_end" is missing'):
        project_row({k: v for k, v in row.items() if k != "rejected_token_end"}, letters())
    with pytest.raises(SchemaError, match='column "prompt" is missing'):
        project_row({k: v for k, v in row.items() if k != "prompt"}, letters())
    with pytest.raises(SchemaError, match="not a row of an annotated dataset"):
        project_row({**row, "chosen_token_end": ["a", "b", "c", "d"]}, letters())
    with pytest.raises(SchemaError, match='"chosen_token_end": is not as long as'):
        project_row({**row, "chosen_token_end": [2, 3, 6]}, letters())


def test_messages_without_a_chat_template_are_refused() -> None:
    (row,) = scored(pairs(1), tiny_tokenizer(), AnnotateSettings(output=Path())).to_list()
    with pytest.raises(TokenizerError, match="need a chat template"):
        project_row(row, letters())


@pytest.mark.parametrize("name", ["chosen_ratio", "rejected_ratio"])
def test_a_ratio_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(SelectionError, match=rf"{name.replace('_', ' ')} must be in \(0, 1\], got 30"):
        SelectionRule(**{name: 30})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rule": "best"}, '`selection` "best" is not one of ratio, mass, global, threshold, random, all'),
        ({"projection": "max"}, '`projection` "max" is not one of sum, majority'),
        ({"weights": "all"}, '`weights` "all" is not one of mask, rewards'),
        ({"max_length": 0}, "`max_length` must be at least 1, got 0"),
        ({"seed": -1}, "`seed` must not be negative, got -1"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ProjectionSettings(**with_rule(**setting))


def test_a_rule_is_that_of_the_annotation_unless_another_is_asked_for() -> None:
    annotated_with = SelectionRule("ratio", 0.1, 0.2)
    assert SelectionChange().of(annotated_with) == annotated_with
    assert SelectionChange(chosen_ratio=0.5).of(annotated_with) == SelectionRule("ratio", 0.5, 0.2)
    assert SelectionChange("random").of(annotated_with) == SelectionRule("random", 0.1, 0.2)
    # a share of the tokens is no share of the reward, and the other way round
    assert SelectionChange("mass").of(annotated_with) == SelectionRule("mass", 0.3, 0.3)
    by_mass = SelectionRule("mass", 0.6, 0.6)
    assert SelectionChange().of(by_mass) == by_mass
    assert SelectionChange("ratio").of(by_mass) == SelectionRule("ratio", 0.3, 0.3)


def test_tokens_are_filtered_by_the_policys_texts_and_ids_and_the_ratio_is_of_the_rest() -> None:
    # a=0.5 | bc=3.5 | d=2 | e=2 | f=2 | gh=-2 | end=-1; without "bc" and the id of "d" half of five are two
    tokenizer = letters("bc", "gh")
    filtered = TokenFilter(exclude=("b.", str(tokenizer.convert_tokens_to_ids("d"))))
    rule = SelectionRule(chosen_ratio=0.5, tokens=filtered)
    assert marked(project_row(row_by_hand(FOUR), tokenizer, ProjectionSettings(rule)).chosen) == [3, 4]
    only_end = SelectionRule(tokens=TokenFilter(include=("^$",)))
    assert marked(project_row(row_by_hand(FOUR), tokenizer, ProjectionSettings(only_end)).chosen) == [6]


def test_a_row_has_the_ratio_of_its_group() -> None:
    rows = datasets.Dataset.from_list(
        [{**row_by_hand(FOUR), "topic": topic} for topic in ("maths", "chat", "other")]
    )
    settings = ProjectionSettings(SelectionRule(ratio_by=RatioBy("topic", {"maths": 1.0, "chat": 0.1})))
    encoder = response_encoder(letters())
    found = project_rows(rows, encoder, settings, 0, 3)
    assert [len(marked(pair.chosen)) for pair in found.pairs] == [9, 1, 2]  # of nine: all, 0.9, 2.7
    one = project_row(rows[0], letters(), settings)
    assert len(marked(one.chosen)) == 9


def test_global_selects_the_share_of_all_tokens_and_drops_rows_without_any() -> None:
    # on the oracle's tokens the chosen rewards are 1 3 6 -2 -1 and, ten times less, 0.1 0.3 0.6 -0.2 -0.1
    words = ("ab", "de", "def", "gh")
    low = {**FOUR, "token_rewards": [0.1, 0.3, 0.6, -0.2], "eos_reward": -0.1}
    rows = datasets.Dataset.from_list([row_by_hand(FOUR), row_by_hand(low)])
    encoder = response_encoder(letters(*words))
    wanted = ProjectionSettings(SelectionRule("global", chosen_ratio=0.3, rejected_ratio=1.0))
    settings = settled(rows, "rows", encoder, wanted)
    assert settings.selection.cutoffs is not None
    assert settings.selection.cutoffs.chosen == 1.0  # 3 of 10: 6, 3 and 1
    found = project_rows(rows, encoder, settings, 0, 2)
    assert found.dropped == {Reason.NOTHING_SELECTED: [1]}
    assert marked(found.pairs[0].chosen) == [0, 1, 2]


@pytest.mark.parametrize("rows_at_once", [1, 500])
def test_global_is_the_share_of_every_token_on_other_tokens_whatever_the_chunks(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(whole, "ROWS_AT_ONCE", rows_at_once)
    rows = scored(pairs(12), tiny_tokenizer(), AnnotateSettings(output=Path()))
    encoder = response_encoder(tiny_tokenizer("unigram_nfkc"))
    settings = settled(rows, "rows", encoder, ProjectionSettings(SelectionRule("global", 0.2, 0.4)))
    everything = project_rows(rows, encoder, ProjectionSettings(SelectionRule("all")), 0, 12)
    for side, ratio in zip(SIDES, (0.2, 0.4), strict=True):
        responses = [getattr(pair, side) for pair in everything.pairs]
        rewards = np.concatenate([np.append(one.token_rewards, one.eos_reward) for one in responses])
        wanted = select_tokens(rewards, ratio, highest=side == "chosen")
        cutoff = getattr(settings.selection.cutoffs, side)
        found = rewards >= cutoff if side == "chosen" else rewards <= cutoff
        assert found[wanted].all()
        np.testing.assert_allclose(rewards[found & ~wanted], cutoff, rtol=2**-12)  # ties, to the bin's width


def test_global_with_nothing_to_select_from_is_refused() -> None:
    rows = datasets.Dataset.from_list([row_by_hand(FOUR)])
    nothing = ProjectionSettings(SelectionRule("global", tokens=TokenFilter(include=("Z",))))
    with pytest.raises(SelectionError, match="no token may be selected"):
        settled(rows, "rows", response_encoder(letters()), nothing)
