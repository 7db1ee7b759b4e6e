"""Tests of the check before a training's first step: planted faults, both sides of LongRoPE's switch."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_packing import attention, neighbours_seen, window_ignored, window_too_wide
from test_self_check import leaking
from test_trainer import naive_loss, pairs, train
from tiny_models import VOCABULARY, save_tiny, tiny_model
from tiny_pair import write_jsonl
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from sepo_data.errors import ScoringError
from sepo_data.models import packing_check
from sepo_data.models.batching import rope_switches
from sepo_data.models.packing import is_packed, tokens_to_read
from sepo_train import DpoSettings, train_dpo
from sepo_train.batches import Forwards, collate, sequence_logps
from sepo_train.examples import Example, WeightedSequence, selected_only
from sepo_train.objectives import sepo_objective
from sepo_train.trainer import StageTrainer

OBJECTIVE = sepo_objective(2.0, 0.5)


def model_of(trainer: StageTrainer) -> PreTrainedModel:
    return cast("PreTrainedModel", trainer.model)


def first_loss(trainer: StageTrainer) -> float:
    return float(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))


def expected(family: str = "llama") -> float:
    return naive_loss(tiny_model(family), pairs(4)).item()


def test_right_batches_are_kept_and_the_difference_is_known(tmp_path: Path) -> None:
    trainer = train(tmp_path, pairs(4), OBJECTIVE)
    assert is_packed(model_of(trainer))
    assert trainer.self_check is not None
    assert 0 < trainer.self_check < 1e-4
    assert first_loss(trainer) == pytest.approx(expected(), rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "family"),
    [(neighbours_seen, "llama"), (window_too_wide, "mistral"), (window_ignored, "mistral")],
)
def test_attention_that_goes_wrong_on_the_run_s_rows_is_replaced(
    wrong: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packing_check, "_furthest", lambda *_: 0.0)  # the probe sees nothing
    with attention(wrong), caplog.at_level(logging.WARNING, "sepo"):
        trainer = train(tmp_path, pairs(4), OBJECTIVE, model=tiny_model(family))
    assert not is_packed(model_of(trainer))
    assert "batches are padded, because log-probs of a row were" in caplog.text
    assert first_loss(trainer) == pytest.approx(expected(family), rel=1e-5)


def test_numbers_that_depend_on_the_batch_are_computed_one_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    with leaking(model, 0.5), caplog.at_level(logging.WARNING, "sepo"):
        trainer = train(tmp_path, pairs(4), OBJECTIVE, model=model)
    assert trainer.forwards.alone
    assert trainer.self_check is not None
    assert trainer.self_check < 1e-4
    assert "sequences are computed one at a time" in caplog.text
    other, means = tiny_model(), []
    for example in pairs(4):
        for one in map(selected_only, example.sequences):
            places, ids = torch.from_numpy(one.positions), torch.from_numpy(one.input_ids)
            with leaking(other, 0.5), torch.no_grad():  # of the tokens that have to be read, and no more
                logps = other(input_ids=ids[None, : tokens_to_read(one)]).logits[0].log_softmax(-1)
            means.append(logps[places - 1, ids[places]].mean())
    gaps = 2.0 * (torch.stack(means[0::2]) - torch.stack(means[1::2])) - 0.5
    assert first_loss(trainer) == pytest.approx(-logsigmoid(gaps).mean().item(), rel=1e-5)


def test_random_numbers_end_the_training_before_it_begins(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.norm.register_forward_hook(lambda module, args, hidden: hidden + torch.randn_like(hidden))
    with pytest.raises(ScoringError, match="two forward passes of the same text differ by"):
        train(tmp_path, pairs(4), OBJECTIVE, model=model)


def long_pairs(lengths: Sequence[tuple[int, int]]) -> list[Example]:
    """Pairs of a prompt of 4 tokens and responses; every third token counts."""
    random = np.random.default_rng(0)
    found = []
    for row, sides in enumerate(lengths):
        prompt = random.integers(3, VOCABULARY, 4)
        sequences = []
        for length in sides:
            weights = np.zeros(length, np.float32)
            weights[: length // 2 : 3] = 1
            ids = np.concatenate([prompt, random.integers(3, VOCABULARY, length)])
            sequences.append(WeightedSequence(ids, np.arange(4, 4 + length), weights, length))
        found.append(Example(row, tuple(sequences)))
    return found


MIXED = [(6, 8), (6, 40), (40, 30), (20, 5)]  # tiny_models' phi3 switches behind 16 tokens


@pytest.mark.parametrize("packed", [True, False])
def test_a_micro_batch_is_parted_at_the_switch(tmp_path: Path, packed: bool) -> None:
    model = tiny_model("phi3") if packed else packing_refused(tiny_model("phi3"))
    switches = rope_switches(model.config)
    assert switches == [16]
    examples = [
        replace(example, sequences=tuple(selected_only(one, switches) for one in example.sequences))
        for example in long_pairs(MIXED)
    ]
    assert {tokens_to_read(one) > 16 for example in examples for one in example.sequences} == {True, False}
    trainer = train(tmp_path, long_pairs(MIXED), OBJECTIVE, model=model, switches=switches)
    assert is_packed(model_of(trainer)) == packed
    assert first_loss(trainer) == pytest.approx(
        naive_loss(tiny_model("phi3"), long_pairs(MIXED)).item(), rel=1e-5
    )


def packing_refused(model: Any) -> Any:
    model._can_set_attn_implementation = lambda: False
    return model


def test_a_cut_sequence_stays_on_its_side_of_the_switch() -> None:
    (example,) = long_pairs([(40, 40)])
    whole = example.sequences[0]  # positions 4 to 43, the last with weight is 22
    assert tokens_to_read(selected_only(whole)) == 22
    assert tokens_to_read(selected_only(whole, [16])) == 22
    kept = selected_only(whole, [30])
    assert kept.positions[-2:].tolist() == [22, 31]
    assert kept.weights[-2:].tolist() == [1, 0]
    assert selected_only(whole, [60]).positions[-1] == 22


def test_processes_compute_as_many_batches_whatever_is_in_them() -> None:
    model = tiny_model("phi3")
    few = long_pairs(MIXED[:1])
    batch = collate(few, Forwards(float("inf"), [16], least=3))
    assert len(batch["packed"]) == 3
    alone = collate(few, Forwards(float("inf"), [16]))
    found, right = sequence_logps(model, batch), sequence_logps(model, alone)
    assert len(found) == len(right) == 2
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)


def test_dpo_of_identical_models_begins_with_margins_of_0(tmp_path: Path) -> None:
    tail = " and the rain ran after the mat" * 4
    rows = [
        {
            "prompt": "the cat",
            "chosen": f" sat on mat {i}" + tail * (i % 2),
            "rejected": f" ran {i}" + tail * (i % 3 == 0),
        }
        for i in range(8)
    ]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 48,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
    size: dict[str, Any] = {
        "original_max_position_embeddings": 48,
        "max_position_embeddings": 512,
        "rope_parameters": rope,
    }
    model = save_tiny(tmp_path / "phi3", "phi3", **size)
    arguments = {"logging_steps": "1"}
    settings = DpoSettings(
        output_dir=tmp_path / "out", batch_size=8, beta=1.0, training_arguments=arguments, eval_fraction=0.0
    )
    report = train_dpo(str(model), write_jsonl(tmp_path / "prefs.jsonl", rows), settings)
    assert report.record is not None
    assert report.record["figures"]["start"]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert (report.record["self_check"] or 1.0) < 1e-4
    assert "rows computed again one at a time" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "sepo_training.json").read_text())["self_check"] < 1e-4
