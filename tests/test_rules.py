"""Tests of cutoffs, filters, groups and weights against arithmetic done by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo_data import SelectionError, SelectionRule, SettingsError
from sepo_data.annotated.from_json import from_json
from sepo_data.rules.cutoffs import Cutoffs, RewardCounts
from sepo_data.rules.groups import RatioBy
from sepo_data.rules.shares import tokens_in_share
from sepo_data.rules.token_filter import TokenFilter
from sepo_data.rules.weights import WEIGHTS, Weights, margin_weight, weigh_tokens
from sepo_data.selection import Selection
from sepo_data.settings import SelectionChange


def weights_of(name: str, rewards: list[float], *, highest: bool) -> list[float]:
    mask = np.ones(len(rewards), dtype=bool)
    weights: list[float] = weigh_tokens(np.array(rewards), mask, name, highest=highest).tolist()  # type: ignore[arg-type]
    return weights


def test_the_cutoff_is_what_the_share_of_all_rewards_reaches() -> None:
    # two responses, 8 tokens; a quarter of them are the two highest: 3 and 2
    counts = RewardCounts()
    counts.add([0.5, 3.0, -1.0])
    counts.add([2.0, 1.5, 0.0, -2.0, 1.0])
    assert counts.cutoff(0.25) == 2.0
    assert counts.cutoff(1.0) == pytest.approx(-2.0, rel=2**-12)  # the lower end of its bin
    assert counts.cutoff(0.01) == 3.0  # at least one


def test_zero_is_one_reward_whatever_its_sign() -> None:
    counts = RewardCounts()
    counts.add([-0.0, 0.0])
    assert counts.cutoff(0.5) == counts.cutoff(1.0) == 0.0


def test_rewards_are_counted_each_time_from_each_edge_up_to_the_next() -> None:
    counts = RewardCounts()
    counts.add([1.0, -0.5])
    counts.add([1.0, 2.0])
    # half of four rewards are two: 2 and one of the 1s
    assert counts.cutoff(0.5) == 1.0
    assert counts.cutoff(1.0) == pytest.approx(-0.5, rel=2**-12)
    assert counts.histogram([-1, 0, 1, 2]).tolist() == [1, 0, 2]
    assert counts.histogram([-0.0, 1, 3]).tolist() == [0, 3]


def test_nothing_counted_has_no_cutoff() -> None:
    with pytest.raises(SelectionError) as raised:
        RewardCounts().cutoff(0.5)
    assert str(raised.value) == "no token may be selected. Exclude fewer tokens."


def test_a_share_of_some_tokens_is_a_whole_number_of_at_least_one() -> None:
    found = tokens_in_share([0.29, 0.3, 0.5, 1.0], [100, 2, 5, 7])
    assert found.dtype == np.int64
    assert found.tolist() == [29, 1, 2, 7]


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_cutoff_keeps_at_least_the_share_and_no_reward_below_it_but_by_a_bins_width(
    rewards: list[float], ratio: float
) -> None:
    counts, values = RewardCounts(), np.array(rewards, np.float32)
    counts.add(values)
    cutoff = counts.cutoff(ratio)
    wanted = max(1, int(ratio * values.size + 1e-9))
    exact = np.sort(values)[::-1][wanted - 1]
    assert (values >= cutoff).sum() >= wanted
    assert cutoff <= exact <= cutoff + max(abs(float(exact)), 1e-37) * 2**-12


def test_global_takes_more_of_a_response_that_has_more() -> None:
    rule = SelectionRule("global", cutoffs=Cutoffs(chosen=1.0, rejected=-0.5))
    assert rule.mask([1.0, 2.0, 0.9], "chosen", 0).tolist() == [True, True, False]
    assert rule.mask([0.1, 0.2], "chosen", 0).tolist() == [False, False]
    assert rule.mask([-0.4, -0.5, 2.0], "rejected", 0).tolist() == [False, True, False]


def test_global_without_the_datasets_cutoffs_is_refused() -> None:
    with pytest.raises(SelectionError, match="ranks the tokens of a whole dataset"):
        SelectionRule("global").mask([1.0], "chosen", 0)


def test_a_threshold_is_upside_down_on_the_rejected_side() -> None:
    rule = SelectionChange(selection="threshold", threshold=0.5).of(SelectionRule())
    assert rule.cutoffs == Cutoffs(0.5, -0.5)
    assert rule.mask([0.5, 0.4, -0.6], "chosen", 0).tolist() == [True, False, False]
    assert rule.mask([0.5, 0.4, -0.6], "rejected", 0).tolist() == [False, False, True]


def test_tokens_are_filtered_by_their_whole_text_or_their_id() -> None:
    texts, ids = ["Paris", " ", " is", "7", ""], np.array([11, 12, 13, 14, 2])
    assert TokenFilter(exclude=(r"\s+",)).allows(texts, ids).tolist() == [True, False, True, True, True]
    assert TokenFilter(exclude=("14", "^$")).allows(texts, ids).tolist() == [True, True, True, False, False]
    assert TokenFilter(include=("[7]",)).allows(texts, ids).tolist() == [False, False, False, True, False]
    assert TokenFilter(include=("14", "x")).allows(texts, ids).tolist() == [False, False, False, True, False]
    only = TokenFilter(include=(r"\s?\w+",), exclude=("Paris",))
    assert only.allows(texts, ids).tolist() == [False, False, True, True, False]


def test_of_no_tokens_none_are_marked() -> None:
    found = TokenFilter(include=("a",)).allows([], np.array([], dtype=np.int64))
    assert found.dtype == bool
    assert found.size == 0


@pytest.mark.parametrize(
    ("tokens", "filters"),
    [
        (TokenFilter(), False),
        (TokenFilter(include=("a",)), True),
        (TokenFilter(exclude=("a",)), True),
    ],
)
def test_a_filter_is_true_if_it_has_an_entry(tokens: TokenFilter, filters: bool) -> None:
    assert bool(tokens) == filters
    assert ("tokens" in SelectionRule(tokens=tokens).as_dict()) == filters


def test_an_id_needs_a_tokenizer_and_a_pattern_must_be_one() -> None:
    with pytest.raises(SettingsError) as raised:
        TokenFilter(exclude=("15", "14")).allows(["7"], None)
    assert str(raised.value) == (
        "token id 14 has no meaning here, where no tokenizer is known. Use a regular expression for its text."
    )
    with pytest.raises(SettingsError) as raised:
        TokenFilter(include=("(",))
    assert str(raised.value) == (
        '"(" is neither a token id nor a regular expression (missing ), unterminated subpattern at position '
        r"0). To match it literally, escape special characters with \."
    )


def test_the_ratio_is_a_share_of_the_tokens_that_may_be_selected() -> None:
    # 4 of 6 may be: half of them are 2, though the two highest rewards are filtered out
    eligible = np.array([True, False, True, True, False, True])
    mask = SelectionRule(chosen_ratio=0.5).mask(
        [1.0, 9.0, 2.0, 3.0, 8.0, 0.0], "chosen", 0, eligible=eligible
    )
    assert mask.tolist() == [False, False, True, True, False, False]


def test_nothing_is_selected_if_no_token_is_allowed() -> None:
    nothing = np.zeros(2, dtype=bool)
    assert not SelectionRule().mask([1.0, 2.0], "chosen", 0, eligible=nothing).any()


def test_a_group_has_its_ratio_and_other_rows_keep_theirs() -> None:
    rule = SelectionRule(chosen_ratio=0.1, ratio_by=RatioBy.parse("category=math:0.5, chat:0.2"))
    assert rule.of_group("math") == SelectionRule("ratio", 0.5, 0.5)
    assert rule.of_group("chat") == SelectionRule("ratio", 0.2, 0.2)
    assert rule.of_group(None) == SelectionRule("ratio", 0.1, 0.3)


def test_blanks_around_names_and_signs_within_them_are_read_as_meant() -> None:
    assert RatioBy.parse(" a b = x : 1.0 ,y=z:w:.5") == RatioBy("a b", {"x": 1.0, "y=z:w": 0.5})


@pytest.mark.parametrize(
    "text", ["category", "category=math", "=math:0.5", "category=:0.5", "c=a:x", "c=a:1,a:1"]
)
def test_groups_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not column=value:ratio"):
        RatioBy.parse(text)


@pytest.mark.parametrize("ratio", ["30", "1.01", "0", "-0.1", "nan"])
def test_a_groups_ratio_is_a_share(ratio: str) -> None:
    with pytest.raises(SelectionError) as raised:
        RatioBy.parse(f"category=math:{ratio}")
    expected = f'ratio of "math" must be in (0, 1], got {float(ratio)}. For 30% write 0.3.'
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        (["math", "chat"], "chat, math"),
        ([5, 4, 3, 2, 1], "1, 2, 3, 4, 5"),
        ([6, 5, 4, 3, 2, 1, 1], "1, 2, 3, 4, 5, …"),
    ],
)
def test_a_group_that_does_not_occur_is_refused_with_some_that_do(known: list[object], shown: str) -> None:
    RatioBy("topic", {str(known[0]): 0.3}).check_groups(known, "d")
    with pytest.raises(SettingsError) as raised:
        RatioBy("topic", {str(known[0]): 0.3, "maths": 0.3}).check_groups(known, "d")
    assert str(raised.value) == (
        f'no row of d has "maths" in column topic. It holds {shown}. Correct `ratio_by`.'
    )


@pytest.mark.parametrize("rule", ["global", "all", "threshold"])
def test_groups_need_a_rule_with_a_ratio_for_each_response(rule: Selection) -> None:
    with pytest.raises(SettingsError, match="ratios by c have no effect with"):
        SelectionChange(
            selection=rule, threshold=1.0 if rule == "threshold" else None, ratio_by="c=a:0.5"
        ).of(SelectionRule())


def test_a_threshold_belongs_to_its_rule_only() -> None:
    with pytest.raises(SettingsError, match="Pass `threshold"):
        SelectionChange(selection="threshold").of(SelectionRule())
    with pytest.raises(SettingsError, match="a threshold has no effect with ratio"):
        SelectionChange(threshold=0.5).of(SelectionRule())


def test_cutoffs_are_counted_again_when_the_share_changes() -> None:
    was = SelectionRule("global", cutoffs=Cutoffs(1.0, -1.0))
    assert SelectionChange().of(was) == was
    assert SelectionChange(chosen_ratio=0.5).of(was).cutoffs is None
    assert SelectionChange(selection="ratio").of(was) == SelectionRule()


@pytest.mark.parametrize(
    "rule",
    [
        SelectionRule("global", cutoffs=Cutoffs(0.25, -1.5)),
        SelectionRule(tokens=TokenFilter((r"\w+",), ("13",)), ratio_by=RatioBy("c", {"a": 0.5})),
    ],
)
def test_a_rule_comes_back_from_the_manifest(rule: SelectionRule) -> None:
    import json

    assert from_json(SelectionRule, {**json.loads(json.dumps(rule.as_dict())), "seed": 0}) == rule
    assert set(SelectionRule().as_dict()) == {"chosen_ratio", "rejected_ratio", "rule", "seed"}


def test_tis_weighs_by_the_clamped_ratio() -> None:
    # e^0.2, e^1.5 and e^-0.5 for chosen; their inverses for rejected
    assert weights_of("tis", [0.2, 3.0, -2.0], highest=True) == pytest.approx(
        [1.2214028, 4.4816891, 0.6065307]
    )
    assert weights_of("tis", [0.2, 3.0, -2.0], highest=False) == pytest.approx(
        [0.8187308, 0.2231302, 1.6487213]
    )


def test_tgdpo_adds_and_subtracts_a_twentieth_of_the_reward() -> None:
    # 1 + 0.5 * 0.1 * r: r = 2 -> 1.1, r = -4 -> 0.8, r = -30 -> -0.5 -> 0
    assert weights_of("tgdpo", [2.0, -4.0, -30.0], highest=True) == pytest.approx([1.1, 0.8, 0.0])
    assert weights_of("tgdpo", [2.0, -4.0, 30.0], highest=False) == pytest.approx([0.9, 1.2, 0.0])


def test_signed_is_the_reward_where_it_has_the_sides_sign() -> None:
    assert weights_of("signed", [2.0, -3.0, 0.0], highest=True) == [2.0, 0.0, 0.0]
    assert weights_of("signed", [2.0, -3.0, 0.0], highest=False) == [0.0, 3.0, 0.0]


def test_rewards_weigh_by_the_probability_that_the_oracle_wrote_the_token() -> None:
    # sigmoid(log 3) = 3 / (1 + 3)
    assert weights_of("rewards", [np.log(3), 0.0], highest=True) == pytest.approx([0.75, 0.5])
    assert weights_of("rewards", [np.log(3), 0.0], highest=False) == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize("name", WEIGHTS)
def test_unselected_tokens_weigh_nothing_and_no_weight_is_negative(name: str) -> None:
    rewards, mask = np.array([-1e4, 0.5, 1e4, np.nan]), np.array([True, False, True, False])
    for highest in (True, False):
        found = weigh_tokens(rewards, mask, name, highest=highest)  # type: ignore[arg-type]
        assert found.dtype == np.float32
        assert found[1] == found[3] == 0
        assert np.isfinite(found).all()
        assert (found >= 0).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_float32_that_a_dataset_stores_weighs_as_the_same_number_in_float64(name: Weights) -> None:
    stored = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    mask = np.ones(1000, dtype=bool)
    for highest in (True, False):
        found, exact = (weigh_tokens(r, mask, name, highest=highest) for r in (stored, stored.astype(float)))
        assert found.tobytes() == exact.tobytes()


def test_unknown_weights_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="mask, rewards, tis, tgdpo, signed"):
        weigh_tokens([1.0], np.array([True]), "best", highest=True)  # type: ignore[arg-type]


def test_a_pair_counts_by_the_probability_of_its_label() -> None:
    # sigmoid(0.1 * (5 - -5)) = 1 / (1 + e^-1)
    assert margin_weight(5.0, -5.0) == pytest.approx(0.7310586)
    assert margin_weight(-5.0, 5.0) == pytest.approx(0.2689414)
    assert margin_weight(0.0, 0.0) == 0.5
    assert margin_weight(-1e6, 1e6) == 1e-6


def test_weights_of_unknown_rewards_are_0_and_large_rewards_are_quiet() -> None:
    rewards, mask = np.array([np.nan, 1000.0, -1000.0]), np.array([True, True, True])
    with np.errstate(over="raise", invalid="raise"):
        assert weigh_tokens(rewards, mask, "rewards", highest=True).tolist() == [0.0, 1.0, 0.0]
        assert weigh_tokens(rewards, mask, "rewards", highest=False).tolist() == [0.0, 0.0, 1.0]


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40))
def test_reward_weights_lie_between_0_and_1_and_the_two_sides_add_up_to_1(rewards: list[float]) -> None:
    both = np.array([weights_of("rewards", rewards, highest=highest) for highest in (True, False)])
    assert ((both > 0) & (both < 1)).all()
    np.testing.assert_allclose(both.sum(0), 1, rtol=1e-6)
