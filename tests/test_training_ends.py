"""Tests of what ends a training, what is kept, its cost, and its KL divergence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from tiny_models import tiny_model
from tiny_pair import pairs, save_pair, write_jsonl
from transformers import AutoModelForCausalLM

from cli.main import main
from sepo_data import AnnotateSettings, annotate
from sepo_data.models.distance import visited_kl
from sepo_train import SepoSettings, train_sepo
from sepo_train.examples import key_tokens
from sepo_train.folder import RECORD_NAME, Record
from sepo_train.rates import suitable_rate


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A policy and an annotated dataset of 24 rows."""
    folder = tmp_path_factory.mktemp("inputs")
    oracle, ref = save_pair(folder)
    prefs = write_jsonl(folder / "prefs.jsonl", pairs(24))
    annotate(prefs, oracle, ref, AnnotateSettings(output=folder / "annotated"))
    return ref, str(folder / "annotated")


def invoke(inputs: tuple[str, str], folder: Path, *options: object) -> Result:
    command = ["sepo", "--policy", inputs[0], "--dataset", inputs[1], "--output", folder, "--batch-size", 4]
    logged = ["--learning-rate", 0.01, "--set", "logging_steps=1"]
    return CliRunner().invoke(main, ["train", *map(str, [*command, *logged, *options])])


def train(inputs: tuple[str, str], folder: Path, *options: object) -> dict[str, Any]:
    result = invoke(inputs, folder, *options)
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads((folder / RECORD_NAME).read_text())
    return record


def logged(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def weights_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat([weights.detach().flatten() for weights in model.parameters()])


def test_the_divergence_is_that_of_all_states_of_an_answer_over_the_whole_vocabulary() -> None:
    policy, start = tiny_model(), tiny_model()
    with torch.no_grad():
        for weights in policy.parameters():
            weights.add_(0.02 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)))
    prompt, answer = [5, 6, 7], [8, 9, 10, 11]
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        ours, theirs = (model(ids).logits[0, 2:6].log_softmax(-1) for model in (policy, start))
    by_hand = float(sum(p.exp() @ (p - q) for p, q in zip(ours, theirs, strict=True)))
    assert by_hand > 0.01
    assert visited_kl(policy, start, [prompt], [answer]) == pytest.approx([by_hand], rel=1e-4)
    assert visited_kl(start, start, [prompt], [answer]) == [0.0]


@pytest.mark.parametrize("lora", [(), ("--lora-rank", 4)], ids=["all", "lora"])
def test_measuring_grows_from_the_start_and_changes_no_weight(
    tmp_path: Path, inputs: tuple[str, str], lora: tuple[object, ...]
) -> None:
    measured = train(inputs, tmp_path / "measured", "--max-kl", "inf", *lora)
    plain = train(inputs, tmp_path / "plain", *lora)
    kl = logged(tmp_path / "measured", "kl")
    assert len(kl) == 6
    assert 0 < kl[0] < kl[-1]
    assert measured["distance"] == {"kl": kl[-1], "step": 6, "prompts": 16, "new_tokens": 64}
    assert "distance" not in plain
    assert measured["settings"]["max_kl"] == "inf"
    assert logged(tmp_path / "measured", "loss") == logged(tmp_path / "plain", "loss")
    if not lora:
        assert torch.equal(weights_of(tmp_path / "measured"), weights_of(tmp_path / "plain"))


def test_the_training_ends_after_the_first_step_that_is_too_far(
    tmp_path: Path, inputs: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    train(inputs, tmp_path / "all", "--max-kl", "inf")
    kl = logged(tmp_path / "all", "kl")
    limit = (kl[1] + kl[2]) / 2
    record = train(inputs, tmp_path / "ended", "--max-kl", limit)
    assert record["finished"]
    assert record["distance"]["step"] == 3
    assert logged(tmp_path / "ended", "kl") == kl[:3]
    assert "step 3 of 6: the KL divergence from the start is " in caplog.text
    again = invoke(inputs, tmp_path / "ended", "--max-kl", limit)
    assert again.exit_code == 0
    assert json.loads((tmp_path / "ended" / RECORD_NAME).read_text()) == record


def test_a_killed_run_resumes_to_the_same_end(tmp_path: Path, inputs: tuple[str, str]) -> None:
    def once(name: str, stop: Callable[[], bool] = lambda: False) -> Record:
        settings = SepoSettings(
            output_dir=tmp_path / name,
            batch_size=4,
            learning_rate=0.01,
            max_kl=limit,
            save_at=(2,),
            training_arguments={"logging_steps": "1"},
        )
        record = train_sepo(*inputs, settings, stop=stop).record
        assert record is not None
        return record

    train(inputs, tmp_path / "all", "--max-kl", "inf")
    kl = logged(tmp_path / "all", "kl")
    limit = (kl[3] + kl[4]) / 2
    whole = once("whole")
    calls = iter(range(100))

    def killed() -> bool:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        once("parts", killed)
    assert (tmp_path / "parts" / "checkpoint-2" / "trainer_state.json").exists()
    parts = once("parts")
    assert parts["distance"] == whole["distance"]
    assert parts["distance"]["step"] == 5
    assert torch.equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    for name in ("tokens", "trained_tokens"):
        assert parts["cost"][name] == whole["cost"][name]


def test_steps_that_are_asked_for_are_kept_as_models(tmp_path: Path, inputs: tuple[str, str]) -> None:
    record = train(inputs, tmp_path / "kept", "--save-at", "2,4", "--set", "save_steps=1")
    folders = sorted(path.name for path in (tmp_path / "kept").glob("checkpoint-*"))
    assert folders == ["checkpoint-2", "checkpoint-4"]
    for name in folders:
        left = {path.name for path in (tmp_path / "kept" / name).iterdir()}
        assert not {"trainer_state.json", "optimizer.pt", "rng_state.pth", "training_args.bin"} & left
    shorter = train(inputs, tmp_path / "plain")
    assert torch.equal(weights_of(tmp_path / "kept"), weights_of(tmp_path / "plain"))
    assert shorter["settings"] == record["settings"]
    two, four, end = (weights_of(tmp_path / "kept" / name) for name in (*folders, ""))
    assert not torch.equal(two, four)
    assert not torch.equal(four, end)
    # more epochs go on from the end, not from a step that was kept
    longer = train(inputs, tmp_path / "kept", "--save-at", "2,4", "--epochs", 2)
    whole = train(inputs, tmp_path / "whole", "--epochs", 2)
    assert len(logged(tmp_path / "kept", "loss")) == len(logged(tmp_path / "whole", "loss")) == 12
    assert longer["cost"]["tokens"] == whole["cost"]["tokens"] == 2 * shorter["cost"]["tokens"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--save-at", "7"), 1, "--save-at has step 7, and this training ends at 6."),
        (("--save-at", "four"), 2, "'four' is not a step, as in --save-at 4,8,16."),
        (("--save-at", "0"), 1, "--save-at must be steps from 1 on, got 0."),
        (("--save-at", "2", "--set", "save_total_limit=1"), 1, "would remove what --save-at keeps"),
        (("--max-kl", "0"), 2, "0 is not in the range x>0"),
        (("--max-kl", "1", "--set", "fsdp=true"), 1, "FSDP and DeepSpeed divide it"),
        (("--no-eos", "--projection", "majority"), 1, "projection majority carries the masks"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    tmp_path: Path, inputs: tuple[str, str], options: tuple[str, ...], code: int, said: str
) -> None:
    result = invoke(inputs, tmp_path / "new", *options)
    assert result.exit_code == code, result.output
    assert said in result.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.glob("new/*.safetensors"))


def test_the_cost_is_what_the_model_read_and_learned_from(tmp_path: Path, inputs: tuple[str, str]) -> None:
    some = train(inputs, tmp_path / "some", "--selection", "all")["cost"]
    few = train(inputs, tmp_path / "few", "--ratio", 0.3)["cost"]
    assert some["tokens"] >= few["tokens"] > few["trained_tokens"] > 0  # what no key token needs is cut
    assert some["trained_tokens"] > 3 * few["trained_tokens"]
    assert few["seconds"] > 0


def test_no_eos_is_the_end_of_turn_excluded(tmp_path: Path, inputs: tuple[str, str]) -> None:
    without = train(inputs, tmp_path / "without", "--no-eos")
    excluded = train(inputs, tmp_path / "excluded", "--exclude-tokens", "^$")
    train(inputs, tmp_path / "usual")
    assert without["settings"] == excluded["settings"]
    assert without["settings"]["exclude_tokens"] == ["^$"]
    assert torch.equal(weights_of(tmp_path / "without"), weights_of(tmp_path / "excluded"))
    assert not torch.equal(weights_of(tmp_path / "without"), weights_of(tmp_path / "usual"))
    both = train(inputs, tmp_path / "both", "--no-eos", "--exclude-tokens", r"\s+")
    assert both["settings"]["exclude_tokens"] == [r"\s+", "^$"]


def test_random_tokens_are_those_of_the_row_whichever_rows_and_shares_are_used(
    tmp_path: Path, inputs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sepo_train import stages

    found: dict[tuple[float, float], dict[bytes, set[int]]] = {}
    key = (0.0, 0.0)

    def keep(side: Any) -> Any:
        text = side.input_ids.tobytes()
        found.setdefault(key, {})[text] = set(np.flatnonzero(side.weights).tolist())
        return key_tokens(side)

    monkeypatch.setattr("sepo_train.stages.key_tokens", keep)
    for number, key in enumerate([(1.0, 0.4), (0.5, 0.4), (1.0, 0.2)]):
        settings = SepoSettings(
            output_dir=tmp_path / str(number),
            selection="random",
            fraction=key[0],
            chosen_ratio=key[1],
            rejected_ratio=key[1],
        )
        stages.sepo_training(*inputs, settings)
    whole, half, fewer = found.values()
    assert 0 < len(half) < len(whole)
    assert all(whole[text] == tokens for text, tokens in half.items())
    assert all(tokens <= whole[text] for text, tokens in fewer.items())


def test_a_rate_far_above_what_sepo_bears_is_warned_of(
    tmp_path: Path, inputs: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    # two known points, and half-way between their logarithms the geometric mean of their rates
    assert suitable_rate(260_000) == pytest.approx(1e-4)
    assert suitable_rate(10**12) == pytest.approx(5e-7)
    assert suitable_rate(round((260_000 * 1e9) ** 0.5)) == pytest.approx((1e-4 * 5e-7) ** 0.5, rel=1e-4)
    train(inputs, tmp_path / "fast")
    assert "`learning_rate=0.01` is 100 times the rate known to work for `sepo` at" in caplog.text
    caplog.clear()
    train(inputs, tmp_path / "slow", "--learning-rate", 4e-4)
    train(inputs, tmp_path / "lora", "--lora-rank", 2)
    assert "known to work" not in caplog.text
