"""Tests of the selection rules: arithmetic done by hand, and what must hold for any rewards."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo_data import SelectionError, SelectionRule, SepoError
from sepo_data.rules.cutoffs import Cutoffs, RewardCounts
from sepo_data.rules.groups import RatioBy
from sepo_data.schema import Sides
from sepo_data.selection import PER_RESPONSE, select, select_mass, select_random, select_tokens

REWARDS = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40)
RATIOS = st.floats(0.01, 1.0)


def marked(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_chosen_keeps_the_highest_and_rejected_the_lowest() -> None:
    # 30% of 7 tokens = 2.1 -> 2
    rewards = [0.1, 2.0, -1.0, 0.5, -3.0, 0.0, 1.5]
    assert marked(select_tokens(rewards, 0.3, highest=True)) == [1, 6]
    assert marked(select_tokens(rewards, 0.3, highest=False)) == [2, 4]


def test_of_equal_rewards_the_earlier_wins() -> None:
    assert marked(select_tokens([1.0, 1.0, 1.0, 1.0], 0.5, highest=True)) == [0, 1]
    assert marked(select_tokens([1.0, 1.0, 1.0, 1.0], 0.5, highest=False)) == [0, 1]


@pytest.mark.parametrize("highest", [True, False])
def test_ties_go_to_the_earlier_token_of_a_long_response_too(highest: bool) -> None:
    rewards = np.random.default_rng(0).integers(0, 4, 1000).astype(float)
    order = sorted(range(1000), key=lambda i: (-rewards[i] if highest else rewards[i], i))
    assert marked(select_tokens(rewards, 0.4, highest=highest)) == sorted(order[:400])


def test_a_short_response_still_has_one_token() -> None:
    assert marked(select_tokens([0.2, 0.7], 0.3, highest=True)) == [1]


def test_29_percent_of_100_are_29_whatever_floats_say() -> None:
    assert int(0.29 * 100) == 28  # why the rule adds 1e-9
    assert select_tokens(np.arange(100.0), 0.29, highest=True).sum() == 29


def test_mass_takes_the_fewest_tokens_that_carry_the_share() -> None:
    # positive mass 3 + 1 + 6 = 10: 60% is the 6 alone, 61% needs the 3 too
    rewards = [3.0, -9.0, 1.0, 6.0]
    assert marked(select_mass(rewards, 0.60, highest=True)) == [3]
    assert marked(select_mass(rewards, 0.61, highest=True)) == [0, 3]
    assert marked(select_mass(rewards, 1.00, highest=True)) == [0, 2, 3]
    assert marked(select_mass(rewards, 1.00, highest=False)) == [1]


def test_two_fifths_of_five_equal_rewards_are_two_whatever_floats_say() -> None:
    assert np.cumsum([0.3] * 5)[-1] * 0.4 > 0.3 + 0.3  # why the share is taken 1e-12 lower
    assert marked(select_mass([0.3] * 5, 0.4, highest=True)) == [0, 1]
    assert marked(select_mass([-0.3] * 5, 0.4, highest=False)) == [0, 1]


def test_the_mass_of_float32_is_summed_in_float64() -> None:
    stored = np.array([2**24, 1, 1, 1, 1], np.float32)
    assert stored[0] + stored[1] == stored[0]  # in float32 the ones would add nothing
    share = (2**24 + 2) / (2**24 + 4)
    assert marked(select_mass(stored, share, highest=True)) == [0, 1, 2]
    assert marked(SelectionRule("mass", share).mask(stored, "chosen", 0)) == [0, 1, 2]


def test_mass_without_any_reward_of_its_sign_is_one_token() -> None:
    assert marked(select_mass([-3.0, -1.0], 0.8, highest=True)) == [1]


def test_random_depends_on_its_seed_only() -> None:
    first = select_random(50, 0.3, seed=(7, 3, 0))
    assert first.sum() == 15
    assert (first == select_random(50, 0.3, seed=(7, 3, 0))).all()
    assert (first != select_random(50, 0.3, seed=(7, 4, 0))).any()


def test_a_rule_has_a_ratio_for_each_side_and_its_seed_meets_row_and_side() -> None:
    rule, rewards = SelectionRule("random", 0.2, 0.6, seed=3), np.zeros(50)
    assert (rule.mask(rewards, "chosen", 4) == select_random(50, 0.2, seed=(3, 4, 0))).all()
    assert (rule.mask(rewards, "rejected", 4) == select_random(50, 0.6, seed=(3, 4, 1))).all()
    eligible = np.arange(60) < 50
    some = rule.mask(np.zeros(60), "chosen", 4, eligible=eligible)
    assert some.dtype == bool
    assert (some[:50] == select_random(50, 0.2, seed=(3, 4, 0))).all()
    assert not some[50:].any()
    by_reward = SelectionRule("ratio", 0.2, 0.6)
    assert by_reward.mask(np.arange(10), "chosen", 0).sum() == 2
    assert by_reward.mask(np.arange(10), "rejected", 0).sum() == 6


def test_a_seed_is_stored_only_where_it_decides() -> None:
    assert SelectionRule("random", seed=7).as_dict()["seed"] == 7
    assert SelectionRule("ratio", seed=7).as_dict()["seed"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chosen_ratio": 30.0}, "chosen ratio must be in (0, 1], got 30.0. For 30% pass 0.3."),
        ({"rejected_ratio": 0.0}, "rejected ratio must be in (0, 1], got 0.0. For 30% pass 0.3."),
        (
            {"rule": "best"},
            '`selection` "best" is not one of ratio, mass, global, threshold, random, all.',
        ),
        ({"seed": -1}, "`seed` must not be negative, got -1."),
        ({"rule": "threshold"}, "selection threshold needs a number of nats. Pass `threshold=0.5`."),
        (
            {"cutoffs": Cutoffs(0.5, -0.5)},
            "a threshold has no effect with ratio. Pass `selection=threshold` with it.",
        ),
        (
            {"rule": "all", "ratio_by": RatioBy("topic", {})},
            "ratios by topic have no effect with all. Use one of ratio, mass, random.",
        ),
    ],
)
def test_a_rule_that_cannot_work_is_refused_in_these_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SepoError) as raised:
        SelectionRule(**fields)
    assert str(raised.value) == message


def test_one_response_has_no_share_of_a_dataset() -> None:
    with pytest.raises(SelectionError) as raised:
        SelectionRule("global").mask([1.0, 2.0], "chosen", 0)
    assert str(raised.value) == (
        "selection global ranks the tokens of a whole dataset, but this is one response. Run sepo reselect "
        "first, or set the rule's cutoffs."
    )


def test_a_dataset_s_cutoffs_are_its_highest_and_its_lowest_rewards() -> None:
    counts = Sides(RewardCounts(), RewardCounts())
    counts.chosen.add([0.5, 2.0, 1.0, -1.0])
    counts.rejected.add([3.0, 0.5, -1.0, -2.0])  # the negatives of -3, -0.5, 1 and 2
    # half of four chosen tokens are 2 and 1; a quarter of four rejected ones is -3
    assert SelectionRule("global", 0.5, 0.25).dataset_cutoffs(counts) == Cutoffs(1.0, -3.0)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, 30, float("nan")])
@pytest.mark.parametrize("rule", ["ratio", "mass", "random"])
def test_a_ratio_out_of_range_is_refused(rule: str, ratio: float) -> None:
    with pytest.raises(SelectionError) as raised:
        select([1.0, 2.0], rule, ratio, highest=True)  # type: ignore[arg-type]
    assert str(raised.value) == f"ratio must be in (0, 1], got {ratio}. For 30% pass 0.3."


def test_rewards_that_are_not_there_or_not_numbers_are_refused() -> None:
    for rewards in ([], [1.0, float("nan")]):
        with pytest.raises(SelectionError, match=r"^token rewards must be non-empty and not NaN$"):
            select_tokens(rewards, 0.3, highest=True)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SelectionError, match="ratio, mass, random, all"):
        select([1.0], "best", 0.3, highest=True)  # type: ignore[arg-type]


@given(REWARDS, RATIOS)
def test_rejected_is_chosen_upside_down(rewards: list[float], ratio: float) -> None:
    values = np.array(rewards)
    for rule in ("ratio", "mass"):
        assert (
            select(values, rule, ratio, highest=False) == select(-values, rule, ratio, highest=True)
        ).all()


@given(REWARDS, RATIOS)
def test_selected_rewards_are_never_below_the_others(rewards: list[float], ratio: float) -> None:
    values = np.array(rewards)
    for rule in ("ratio", "mass"):
        mask = select(values, rule, ratio, highest=True)
        assert mask.any()
        assert mask.all() or values[mask].min() >= values[~mask].max()


@given(REWARDS, RATIOS)
def test_counts_are_exact(rewards: list[float], ratio: float) -> None:
    expected = max(1, int(np.floor(ratio * len(rewards) + 1e-9)))
    assert select(rewards, "ratio", ratio, highest=True).sum() == expected
    assert select(rewards, "random", ratio, highest=True).sum() == expected
    assert select(rewards, "all", ratio, highest=True).all()
    assert set(PER_RESPONSE) == {"ratio", "mass", "random", "all"}


@given(REWARDS, RATIOS)
def test_mass_carries_its_share_and_one_token_less_does_not(rewards: list[float], share: float) -> None:
    values = np.array(rewards)
    mask = select_mass(values, share, highest=True)
    positive = np.clip(values, 0, None)
    carried, total = positive[mask].sum(), positive.sum()
    assert carried >= share * total - 1e-9 * total
    if mask.sum() > 1:
        assert carried - values[mask].min() < share * total
