"""Tests of the arithmetic behind docs/evidence.md, by hand; `make evidence-quick` runs the rest."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "evidence"))

import frontier
import golds


def checkpoint(kl: float, *values: float) -> dict[str, Any]:
    return {"kl": kl, "golds": {"valence": list(values)}}


def test_gold_at_a_kl_lies_on_a_line_in_its_square_root() -> None:
    run = [checkpoint(0, 1, 3), checkpoint(4, 5, 3), checkpoint(16, 9, 11)]
    found = frontier.gold_at_kl(run, "valence", 9)
    assert found is not None
    np.testing.assert_allclose(found, [7, 7])  # the root of 9 is half way between those of 4 and 16
    assert frontier.gold_at_kl(run, "valence", 17) is None
    assert frontier.score(run, "valence", [4, 9, 17]) == (2, 5.5)
    assert frontier.score(run, "valence", [17]) == (0, -np.inf)


def test_no_gold_is_read_from_a_line_over_a_wide_gap() -> None:
    run = [checkpoint(0, 1, 3), checkpoint(4, 5, 3), checkpoint(20, 9, 11), checkpoint(101, 9, 11)]
    assert frontier.gold_at_kl(run, "valence", 3) is None  # between the reference and the first checkpoint
    assert frontier.gold_at_kl(run, "valence", 19) is not None
    assert frontier.gold_at_kl(run, "valence", 21) is None


def test_gold_counts_whole_words_and_finished_sentences() -> None:
    happy, sad = golds.valences()["happy"], golds.valences()["sad"]
    assert golds.valence("Happy, and sad. She") == pytest.approx(happy + sad)
    assert golds.valence("It was happy") == 0  # the last word may be cut: happy-go-lucky
    assert golds.valued_words("so happy.") == [(3, 8, happy)]
    assert golds.brevity("He ran to me. I saw. She is so big! And th") == 2


def test_an_interval_is_that_of_resampled_seeds_and_prompts() -> None:
    report = importlib.import_module("report")
    same = report.interval(np.full((3, 50), 2.0))
    assert (same.mean, same.low, same.high, str(same)) == (2.0, 2.0, 2.0, "2.00 ± 0.00")
    values = np.random.default_rng(1).normal(0.5, 1, (1, 400))
    found = report.interval(values)
    # one seed: the bootstrap of a mean, 1.96 standard errors to either side
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)
    assert found.signed.startswith("**+")


def test_the_share_of_a_gain_is_a_ratio_of_gains_over_the_reference() -> None:
    report = importlib.import_module("report")

    def arm(*reached: float) -> Any:
        runs = [
            [
                {**checkpoint(kl, *values), "seed": seed}
                for kl, values in ((0, (1, 3)), (4, (gold, gold + 2)), (16, (gold, gold)))
            ]
            for seed, gold in enumerate(reached)
        ]
        return report.Arm("arm", "valence", 1e-4, runs)

    # gains of 6 and 8 over the reference, where the other gains 10 and 10
    found = report.share_of_gain(arm(7, 9), arm(11, 11), 4)
    assert found.mean == pytest.approx(0.7)
    assert (found.low, found.high) == (pytest.approx(0.6), pytest.approx(0.8))
    assert found.percent == "70% (60% to 80%)"
    assert report.share_of_gain(arm(7, 9), arm(11, 11), 17) is None
