"""Tests of `sepo evaluate` against plain forward passes, and of a policy that is its own reference."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from tiny_pair import pairs, save_pair, write_jsonl
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cli.main import main
from sepo_data import SettingsError
from sepo_data.evaluation.evaluating import evaluate
from sepo_data.evaluation.figures import is_degenerate, share_ordered, win_rate
from sepo_data.evaluation.settings import EvaluateSettings
from sepo_data.models import loading, packing_check
from sepo_data.models.weights import load_base
from sepo_data.sources.preferences import open_pairs
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import encode_pairs

ROWS = [{**row, "subset": "maths" if row["id"] % 3 else "chat"} for row in pairs(12)]
ROWS[5] = {**ROWS[5], "chosen": [{"role": "assistant", "content": ""}]}  # dropped
FEW: dict[str, Any] = {"device": "cpu", "max_new_tokens": 8, "samples": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"), noise=0.5)


@pytest.fixture(scope="module")
def prefs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_jsonl(tmp_path_factory.mktemp("data") / "prefs.jsonl", ROWS)


@torch.no_grad()
def plain_logps(model: str, prefs: str) -> list[list[np.ndarray]]:
    """Log-probs with one forward pass per response: ``[row][side]``."""
    source, columns = open_pairs(prefs)
    encoder = response_encoder(AutoTokenizer.from_pretrained(model))
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for pair in encode_pairs(source.rows, columns, encoder, 2048, 0, len(source.rows)).pairs:
        sides = []
        for side in pair:
            ids, at = torch.from_numpy(side.input_ids), torch.from_numpy(side.positions)
            logps = loaded(ids[None]).logits[0, :-1].log_softmax(-1)
            sides.append(logps[at - 1, ids[at]].double().numpy())
        found.append(sides)
    return found


def test_accuracies_and_shifts_are_those_of_plain_forward_passes(models: tuple[str, str], prefs: str) -> None:
    ours, theirs = (plain_logps(model, prefs) for model in models)
    found = evaluate(*models, prefs, EvaluateSettings(device="cpu", samples=0, by="subset"))
    assert found.dropped == {"empty response": 1}
    assert found.accuracy.pairs == 11
    ratio = [
        [one.sum() - ref.sum() for one, ref in zip(a, b, strict=True)]
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert found.accuracy.log_ratio == pytest.approx(np.mean([c > r for c, r in ratio]))
    means = np.array([[one.mean() for one in row] for row in ours])
    ref_means = np.array([[one.mean() for one in row] for row in theirs])
    assert found.accuracy.log_prob == pytest.approx((means[:, 0] > means[:, 1]).mean())
    assert found.accuracy.ref_log_prob == pytest.approx((ref_means[:, 0] > ref_means[:, 1]).mean())
    shift = (means - ref_means).mean(0)
    assert [found.shift["chosen"], found.shift["rejected"]] == pytest.approx(shift.tolist(), abs=1e-5)
    kept = [row["subset"] for row in ROWS if row["id"] != 5]
    assert {name: group.pairs for name, group in found.groups.items()} == {
        name: kept.count(name) for name in ("chat", "maths")
    }
    total = sum(group.log_ratio * group.pairs for group in found.groups.values())
    assert total == pytest.approx(found.accuracy.log_ratio * 11)


def test_a_policy_that_is_its_reference_has_moved_nowhere(models: tuple[str, str], prefs: str) -> None:
    oracle, ref = models
    found = evaluate(ref, ref, prefs, EvaluateSettings(**FEW), oracle=oracle)
    assert found.accuracy.log_ratio == 0.5
    assert found.shift == {"chosen": 0.0, "rejected": 0.0}
    assert found.sampled is not None
    assert found.sampled.kl == pytest.approx(0, abs=1e-4)
    assert found.sampled.length == found.sampled.ref_length
    assert found.sampled.oracle_wins is not None
    assert found.sampled.oracle_wins.rate == 0.5
    assert found.sampled.oracle_wins.number == found.sampled.prompts == 4


def test_a_model_whose_numbers_depend_on_the_batch_is_scored_one_row_at_a_time(
    models: tuple[str, str], prefs: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EvaluateSettings(**FEW)

    def leaking(*args: Any, **kwargs: Any) -> Any:
        def mix(module: Any, args: Any, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + (hidden[0] - hidden[-1]).mean()  # nothing where a row is alone

        model = load_base(*args, **kwargs)
        model.model.embed_tokens.register_forward_hook(mix)
        return model

    right = evaluate(*models, prefs, settings, oracle=models[0])
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "sepo"):
        patch.setattr(loading, "load_base", leaking)
        patch.setattr(packing_check, "_difference", lambda *_: "the probe would see it")
        found = evaluate(*models, prefs, settings, oracle=models[0])
    assert "one at a time" in caplog.text
    assert max(right.self_check, found.self_check) < 1e-4
    assert found.accuracy == right.accuracy
    assert found.shift == pytest.approx(right.shift, abs=1e-5)


def test_random_numbers_and_none_end_the_evaluation(
    monkeypatch: pytest.MonkeyPatch, models: tuple[str, str], prefs: str
) -> None:
    def noisy(*args: Any, noise: Any, **kwargs: Any) -> Any:
        model = load_base(*args, **kwargs)
        model.model.norm.register_forward_hook(lambda module, args, hidden: hidden + noise(hidden))
        return model

    random, broken = lambda one: torch.randn_like(one) / 100, lambda one: one * np.nan
    for noise, said in ((random, "two forward passes"), (broken, "not a finite number")):
        monkeypatch.setattr(loading, "load_base", partial(noisy, noise=noise))
        result = run(models, prefs, "--samples", 0)
        assert result.exit_code == 1
        assert said in result.output.splitlines()[-1]


def test_sampled_answers_are_the_same_for_a_seed_and_far_from_another_model(
    models: tuple[str, str], prefs: str
) -> None:
    oracle, ref = models
    first, again, other = (
        evaluate(oracle, ref, prefs, EvaluateSettings(**FEW, seed=seed)).sampled for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first is not None
    assert first.kl > 0.1


def test_a_reference_with_another_vocabulary_will_do(
    tmp_path: Path, models: tuple[str, str], prefs: str
) -> None:
    tokenizer = tiny_tokenizer("unigram_nfkc")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    found = evaluate(models[0], str(tmp_path / "other"), prefs, EvaluateSettings(**FEW))
    assert found.accuracy.pairs == 11
    assert found.sampled is not None
    assert np.isfinite(found.sampled.kl)


def test_win_rates_have_wilsons_interval() -> None:
    # 8 of 10: centre (0.8 + 1.9208/10) / 1.38415, half width 0.2269
    found = win_rate([1.0] * 8 + [0.0] * 2, [0.5] * 10)
    assert (found.rate, found.number) == (0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    certain = win_rate([1.0] * 5, [0.0] * 5)
    assert (certain.rate, round(certain.high, 6)) == (1.0, 1.0)
    assert certain.low < 0.6


def test_ties_count_half_and_circles_are_degenerate() -> None:
    assert share_ordered(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [2.0, 1.0]])) == 0.625
    assert is_degenerate(np.zeros(0, np.int64))
    assert is_degenerate(np.array([1, 2, 3] * 5))
    assert not is_degenerate(np.array([1, 2]))
    assert not is_degenerate(np.arange(50))


def run(models: tuple[str, str], prefs: str, *options: object) -> Result:
    command = ["evaluate", "--model", models[0], "--ref", models[1], "--dataset", prefs, "--device", "cpu"]
    return CliRunner().invoke(main, [*command, *map(str, options)])


def test_the_command_prints_the_figures_and_writes_all_of_them(
    tmp_path: Path, models: tuple[str, str], prefs: str
) -> None:
    options = ("--samples", 2, "--max-new-tokens", 4, "--by", "subset", "--oracle", models[0])
    result = run(models, prefs, *options, "--output", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("all pairs: 11 pairs, accuracy ")
    assert lines[0].endswith("; 1 row dropped")
    assert [line.split(":")[0] for line in lines[1:3]] == ["chat", "maths"]
    assert lines[-1].startswith(f"saved to {tmp_path / 'figures.json'} in ")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["accuracy"]["pairs"] == 11
    assert 0 < figures["self_check"] < 1e-4
    assert "self-check: log-probs of single rows differ by at most " in result.stdout
    assert figures["sampled"]["oracle_wins"]["number"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--by", "topic"), "no column topic. Correct --by"),
        (("--max-length", 3), "no pair can be used"),
        (("--split", "test"), 'no split "test"'),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    models: tuple[str, str], prefs: str, options: tuple[object, ...], said: str
) -> None:
    result = run(models, prefs, "--samples", 0, *options)
    assert result.exit_code == 1
    assert said in result.output.splitlines()[-1]


def test_columns_are_named_as_in_annotation(tmp_path: Path, models: tuple[str, str]) -> None:
    renamed = [{"prompt": row["prompt"], "x": row["chosen"], "y": row["rejected"]} for row in ROWS]
    prefs = write_jsonl(tmp_path / "renamed.jsonl", renamed)
    refused = run(models, prefs, "--samples", 0)
    assert refused.exit_code == 1
    assert "name the right one with --chosen-column." in refused.output
    found = run(models, prefs, "--samples", 0, "--chosen-column", "x", "--rejected-column", "y")
    assert found.stdout.startswith("all pairs: 11 pairs, accuracy "), found.output


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match="`samples` must be at least 0, got -1"):
        EvaluateSettings(samples=-1)
