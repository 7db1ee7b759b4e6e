"""Tests of the oracle's figures against arithmetic done by hand."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from annotated import annotated_table, random_table

from sepo_data.annotated.from_json import from_json
from sepo_data.annotated.health import Health, HealthMeter, SideHealth


def test_figures_of_three_equal_pairs_and_one_inverted_one() -> None:
    # chosen "ab": 2 tokens and the end at +0.5 = 1.5; rejected "xyz": 3 and the end at -0.25 = -1.0.
    # Row 1 is turned round: chosen reward -3 (3 x -1), so its margin is -3 + 1 = -2; the others' is 2.5.
    meter = HealthMeter()
    meter.add(annotated_table(chosen_token_rewards=[-1.0, -1.0], chosen_eos_reward=-1.0, chosen_reward=-3.0))
    health = meter.health()
    assert (health.pairs, health.accuracy, health.inverted) == (4, 0.75, 0.25)
    assert health.margin == pytest.approx((3 * 2.5 - 2.0) / 4)
    # 4 x (3 chosen + 4 rejected) = 28 tokens; |r|: 3 x 1.5 + 3 + 4 x 1 = 11.5
    assert health.token_reward == pytest.approx(11.5 / 28)
    assert health.chosen_longer == 0.0
    assert health.length_correlation == 0.0  # the difference in length never varies
    # one of three chosen tokens is selected in every row: 0.5 of 1.5, and 1 of 3
    assert health.chosen.tokens == 12
    assert health.chosen.selected == pytest.approx(1 / 3)
    assert health.chosen.reward_carried == pytest.approx((3 * 0.5 + 1.0) / (3 * 1.5 + 3.0))
    assert (health.chosen.eos_selected, health.chosen.truncated) == (0.0, 0)
    assert from_json(Health, json.loads(json.dumps(asdict(health)))) == health


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


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"accuracy": 0.56}, None),
        ({"accuracy": 0.54}, "about chance"),
        ({"accuracy": 0.46}, "about chance"),
        ({"accuracy": 0.44, "inverted": 0.56}, "prefers the rejected response in 56% of the pairs"),
        ({"token_reward": 0.0101}, None),
        ({"token_reward": 0.0099}, "near zero (0.0099 nats per token)"),
        ({"length_correlation": 0.79}, None),
        ({"length_correlation": 0.81}, "track length (correlation +0.81)"),
        ({"length_correlation": -0.79}, None),
        ({"length_correlation": -0.81}, "track length (correlation -0.81)"),
        ({"chosen": replace(GOOD.chosen, truncated=100)}, None),
        ({"chosen": replace(GOOD.chosen, truncated=101)}, "101 of 1,000 chosen responses were cut"),
        ({"rejected": replace(GOOD.rejected, truncated=100)}, None),
        ({"rejected": replace(GOOD.rejected, truncated=101)}, "101 of 1,000 rejected responses were cut"),
    ],
)
def test_each_limit_warns_beyond_it_and_not_before(changes: dict[str, Any], warning: str | None) -> None:
    found = replace(GOOD, **changes).warnings()
    assert [warning is not None and warning in line for line in found] == [True] * (warning is not None)


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
