"""Tests of the oracle's figures against arithmetic done by hand."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from annotated import annotated_table, random_table

from sepo_data.annotated.from_json import from_json
from sepo_data.annotated.health import WEAK_ACCURACY, Health, HealthMeter, SideHealth, health_of

# beside the pair of "ab" (0.5 a token: 1.5 with its end) and "xyz" (-0.25 a token: -1.0 with its end)
CUT: dict[str, Any] = {  # margin -2.0 + 1.5 = -0.5, 2 tokens to 4; of the rejected one the end is selected
    "chosen_token_rewards": [1.0, -3.0],
    "chosen_token_mask": [True, True],
    "chosen_eos_reward": None,
    "chosen_eos_mask": None,
    "chosen_reward": -2.0,
    "rejected_token_mask": [False] * 3,
    "rejected_eos_reward": -0.75,
    "rejected_eos_mask": True,
    "rejected_reward": -1.5,
}
TIE: dict[str, Any] = {  # margin -1.0 + 1.0 = 0, 3 tokens to 3
    "chosen_token_rewards": [-0.5, -0.25],
    "chosen_eos_reward": -0.25,
    "chosen_reward": -1.0,
    "rejected_token_start": [0, 1],
    "rejected_token_end": [1, 3],
    "rejected_token_rewards": [-0.5, -0.25],
    "rejected_token_mask": [True, False],
}
LONGER: dict[str, Any] = {  # margin -0.5 + 1.0 = 0.5, 3 tokens to 2
    "chosen_token_rewards": [-0.5, 0.25],
    "chosen_eos_reward": -0.25,
    "chosen_reward": -0.5,
    "rejected_token_start": [0],
    "rejected_token_end": [3],
    "rejected_token_rewards": [-0.5],
    "rejected_token_mask": [True],
    "rejected_eos_reward": -0.5,
}


def test_the_figures_are_those_of_a_reader_with_a_pencil() -> None:
    # each table begins with a plain pair: margin 2.5, 3 tokens to 4
    health = health_of(annotated_table(2, **changes) for changes in (CUT, TIE, LONGER))
    assert (health.pairs, health.accuracy, health.inverted) == (6, 4 / 6, 1 / 6)
    assert health.margin == (3 * 2.5 - 0.5 + 0 + 0.5) / 6
    assert health.chosen_longer == 1 / 6
    # |r| is 1.5, 4, 1, 1 and 1, 1.5, 1, 1; 17 and 21 tokens
    assert health.token_reward == (3 * 1.5 + 4 + 1 + 1 + 3 * 1 + 1.5 + 1 + 1) / (17 + 21)
    assert health.chosen == SideHealth(
        tokens=3 * 3 + 2 + 3 + 3,
        selected=(3 + 2 + 1 + 1) / 17,
        reward_carried=(3 * 0.5 + 4 + 0.5 + 0.5) / 10.5,
        eos_selected=0.0,
        truncated=1,
    )
    assert health.rejected == SideHealth(
        tokens=3 * 4 + 4 + 3 + 2,
        selected=(3 + 1 + 1 + 1) / 21,
        reward_carried=(3 * 0.25 + 0.75 + 0.5 + 0.5) / 6.5,
        eos_selected=1 / 6,
        truncated=0,
    )
    assert from_json(Health, json.loads(json.dumps(asdict(health)))) == health


def test_what_does_not_vary_correlates_with_nothing_and_two_pairs_fully() -> None:
    same_length = annotated_table(2, chosen_reward=-3.0)
    assert health_of([same_length]).length_correlation == 0.0
    # margins 2.5 and 0.5, lengths -1 and 1: both variances are 1
    assert health_of([annotated_table(2, **LONGER)]).length_correlation == -1.0


def test_of_no_reward_none_is_carried() -> None:
    nothing = annotated_table(2, chosen_token_rewards=[0.0, 0.0], chosen_eos_reward=0.0).slice(1)
    assert health_of([nothing]).chosen.reward_carried == 0.0


def test_the_length_correlation_is_pearsons() -> None:
    table = random_table(np.random.default_rng(1), 200)
    meter = HealthMeter()
    meter.add(table.slice(0, 70))
    meter.add(table.slice(70))
    columns = table.to_pydict()
    margin = np.subtract(columns["chosen_reward"], columns["rejected_reward"])
    tokens = [
        np.array(
            [
                len(t) + (e is not None)
                for t, e in zip(columns[f"{s}_token_end"], columns[f"{s}_eos_reward"], strict=True)
            ]
        )
        for s in ("chosen", "rejected")
    ]
    expected = np.corrcoef(margin, tokens[0] - tokens[1])[0, 1]
    assert meter.health().length_correlation == pytest.approx(expected)
    assert meter.health().chosen_longer == pytest.approx((tokens[0] > tokens[1]).mean())
    truncated = sum(reward is None for reward in columns["rejected_eos_reward"])
    assert meter.health().rejected.truncated == truncated


def changed(table: pa.Table, chosen: float, rejected: float) -> list[str]:
    meter = HealthMeter()
    size = table.num_rows
    for name, value in (("chosen_reward", chosen), ("rejected_reward", rejected)):
        table = table.set_column(
            table.schema.get_field_index(name), name, pa.array([value] * size, pa.float32())
        )
    meter.add(table)
    return meter.health().warnings()


def test_a_good_oracle_gets_no_warning_and_a_swapped_or_idle_one_does() -> None:
    table = annotated_table()
    assert changed(table, 1.0, -1.0) == []
    (swapped,) = changed(table, -1.0, 1.0)
    assert "prefers the rejected response in 100% of the pairs" in swapped
    assert "`oracle` and `ref` swapped" in swapped


GOOD = Health(
    pairs=1000,
    accuracy=0.7,
    inverted=0.3,
    margin=2.0,
    token_reward=0.1,
    length_correlation=0.1,
    chosen_longer=0.5,
    chosen=SideHealth(tokens=9000, selected=0.3, reward_carried=0.6, eos_selected=0.0, truncated=0),
    rejected=SideHealth(tokens=9000, selected=0.3, reward_carried=0.6, eos_selected=0.0, truncated=0),
)


AT_CHANCE = (
    "the oracle orders {} of the pairs like the labels, which is about chance. Use an oracle trained on data "
    "like this before you train on these masks."
)
SWAPPED = (
    "the oracle prefers the rejected response in 56% of the pairs. Are `oracle` and `ref` swapped, or chosen "
    "and rejected?"
)
NEAR_ZERO = (
    "the rewards are near zero (0.0099 nats per token): oracle and reference hardly differ. Train the oracle "
    "longer, or check that `oracle` is the trained one."
)
TRACKS_LENGTH = (
    "the rewards track length (correlation {}): the oracle may judge little else. Compare its accuracy with "
    "that of judging by length alone."
)
CUT_OFF = (
    "101 of 1,000 {} responses were cut, and nothing after the cut has a reward. If the dataset has them "
    "whole, raise `max_length`, or use models with a longer context."
)


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"accuracy": 0.55}, []),
        ({"accuracy": 0.54}, [AT_CHANCE.format("54%")]),
        ({"accuracy": 1 - WEAK_ACCURACY}, [AT_CHANCE.format("45%")]),
        ({"accuracy": 0.44, "inverted": 0.56}, [SWAPPED]),
        ({"token_reward": 0.01}, []),
        ({"token_reward": 0.0099}, [NEAR_ZERO]),
        ({"length_correlation": 0.8}, []),
        ({"length_correlation": 0.81}, [TRACKS_LENGTH.format("+0.81")]),
        ({"length_correlation": -0.8}, []),
        ({"length_correlation": -0.81}, [TRACKS_LENGTH.format("-0.81")]),
        ({"chosen": replace(GOOD.chosen, truncated=100)}, []),
        ({"chosen": replace(GOOD.chosen, truncated=101)}, [CUT_OFF.format("chosen")]),
        ({"rejected": replace(GOOD.rejected, truncated=100)}, []),
        ({"rejected": replace(GOOD.rejected, truncated=101)}, [CUT_OFF.format("rejected")]),
    ],
)
def test_each_limit_warns_beyond_it_and_not_at_it(changes: dict[str, Any], warnings: list[str]) -> None:
    assert replace(GOOD, **changes).warnings() == warnings


def test_an_oracle_at_chance_is_warned_of() -> None:
    meter = HealthMeter()
    meter.add(annotated_table(rows=2, chosen_reward=-9.0))
    (warning,) = meter.health().warnings()
    assert "orders 50% of the pairs like the labels, which is about chance" in warning


def test_rewards_that_follow_length_are_warned_of() -> None:
    table = random_table(np.random.default_rng(1), 50)
    tokens = [len(ends) for ends in table["chosen_token_end"].to_pylist()]
    zero = [-len(ends) for ends in table["rejected_token_end"].to_pylist()]
    for name, values in (("chosen_reward", tokens), ("rejected_reward", [-value for value in zero])):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array([float(value) for value in values], pa.float32()))
    meter = HealthMeter()
    meter.add(table)
    assert any("track length (correlation +" in warning for warning in meter.health().warnings())


def test_rewards_near_zero_are_warned_of() -> None:
    table = annotated_table(rows=2)
    for side in ("chosen", "rejected"):
        small = [[0.001] * len(row) for row in table[f"{side}_token_rewards"].to_pylist()]
        for name, values in ((f"{side}_token_rewards", small), (f"{side}_eos_reward", [0.001] * 2)):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    meter = HealthMeter()
    meter.add(table)
    assert any("near zero (0.0010 nats per token)" in warning for warning in meter.health().warnings())
