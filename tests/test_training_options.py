"""Tests that ``--set`` reaches the options of the Trainer, in all three stages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_pair import pairs, save_pair, write_jsonl
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from cli.main import main
from sepo_data import AnnotateSettings, annotate
from sepo_train import SepoSettings, SftSettings, train_sft
from sepo_train.arguments import training_arguments
from sepo_train.folder import RECORD_NAME

Inputs = dict[str, tuple[str, str]]  # by stage, the model and the dataset


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    oracle, ref = save_pair(folder)
    prefs = write_jsonl(folder / "prefs.jsonl", pairs(24))
    annotate(prefs, oracle, ref, AnnotateSettings(output=folder / "annotated"))
    chats = [{"messages": [*row["prompt"], *row["chosen"]]} for row in pairs(24)]
    return {
        "sft": (ref, write_jsonl(folder / "chats.jsonl", chats)),
        "dpo": (ref, prefs),
        "sepo": (ref, str(folder / "annotated")),
    }


def train(inputs: Inputs, folder: Path, *options: object, stage: str = "sepo") -> dict[str, Any]:
    """Run a stage from the command line; return its record."""
    model, dataset = inputs[stage]
    role = "--policy" if stage == "sepo" else "--model"
    command = [stage, role, model, "--dataset", dataset, "--output", folder, "--batch-size", 4]
    result = CliRunner().invoke(
        main, ["train", *map(str, [*command, "--learning-rate", 0.01, "--set", "logging_steps=1", *options])]
    )
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads((folder / RECORD_NAME).read_text())
    return record


def set_fields(**fields: object) -> list[str]:
    return [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]


def history_of(folder: Path) -> list[dict[str, float]]:
    """The log lines."""
    history: list[dict[str, float]] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return history


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in history_of(folder) if "loss" in entry]


def weights_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return torch.cat([weights.detach().flatten() for weights in model.parameters()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, inputs: Inputs) -> Path:
    """A policy trained with no field set."""
    folder = tmp_path_factory.mktemp("plain") / "policy"
    train(inputs, folder)
    return folder


@pytest.mark.parametrize("stage", ["sft", "dpo", "sepo"])
def test_activation_checkpointing_computes_twice_and_changes_no_loss_of_an_adapter(
    tmp_path: Path, inputs: Inputs, stage: str
) -> None:
    def calls(folder: Path, *options: object) -> int:
        found: list[nn.Module] = []

        def count(module: nn.Module, _: object) -> None:
            if isinstance(module, LlamaAttention) and module.training:
                found.append(module)

        hook = register_module_forward_pre_hook(count)
        train(inputs, folder, "--lora-rank", 4, *options, stage=stage)
        hook.remove()
        return len(found)

    kept = calls(tmp_path / "kept")
    assert kept > 0
    assert calls(tmp_path / "twice", *set_fields(activation_checkpointing="true")) == 2 * kept
    assert losses(tmp_path / "twice") == pytest.approx(losses(tmp_path / "kept"), abs=1e-6)


@pytest.mark.parametrize("stage", ["sft", "dpo", "sepo"])
def test_bf16_on_a_cpu_stays_close_to_float32_and_keeps_the_weights_in_it(
    tmp_path: Path, inputs: Inputs, stage: str
) -> None:
    train(inputs, tmp_path / "float32", stage=stage)
    record = train(inputs, tmp_path / "bf16", *set_fields(bf16="true"), stage=stage)
    assert record["training"]["bf16"] is True
    wide, narrow = losses(tmp_path / "float32"), losses(tmp_path / "bf16")
    assert narrow[0] == pytest.approx(wide[0], rel=0.02)
    assert narrow[-1] != wide[-1]
    assert narrow[-1] < narrow[0]
    assert weights_of(tmp_path / "bf16").dtype == torch.float32


@pytest.mark.parametrize("options", [(), ("--eval-fraction", 0.2)], ids=["all", "held_out"])
def test_conversations_can_be_grouped_by_length(
    tmp_path: Path, inputs: Inputs, options: tuple[object, ...]
) -> None:
    turns = [{"role": "user", "content": "Say it."}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "x " * row}]} for row in range(1, 81)]
    chats = {"sft": (inputs["sft"][0], write_jsonl(tmp_path / "chats.jsonl", rows))}
    field = set_fields(train_sampling_strategy="group_by_length")
    record = train(chats, tmp_path / "ref", "--micro-batch-size", 4, *field, *options, stage="sft")
    assert record["training"]["train_sampling_strategy"] == "group_by_length"
    lengths = [entry["length"] for entry in history_of(tmp_path / "ref") if "loss" in entry]
    # 64 or 80 rows, 4 a step: 16 or 20 are sorted at once, longest first; the very longest is swapped in
    group = len(lengths) // 4
    assert len(lengths) == (16 if options else 20)
    for start in range(0, len(lengths), group):
        behind_the_swap = lengths[start + 1 : start + group]
        assert behind_the_swap == sorted(behind_the_swap, reverse=True)


def test_a_killed_run_resumes_through_the_lengths_of_a_later_epoch(tmp_path: Path, inputs: Inputs) -> None:
    model, chats = inputs["sft"]

    def train_once(name: str, stop: Callable[[], bool]) -> None:
        settings = SftSettings(
            output_dir=tmp_path / name,
            batch_size=4,
            learning_rate=0.01,
            num_train_epochs=3.0,
            training_arguments={"save_steps": "3"},
        )
        train_sft(model, chats, settings, stop=stop)

    steps = iter(range(100))

    def killed() -> bool:
        if next(steps) == 10:  # of 18: in the second epoch, behind the checkpoint of step 9
            raise KeyboardInterrupt
        return False

    train_once("whole", lambda: False)
    with pytest.raises(KeyboardInterrupt):
        train_once("parts", killed)
    train_once("parts", lambda: False)
    assert torch.equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))


@pytest.mark.parametrize("stage", ["dpo", "sepo"])
def test_pairs_can_be_grouped_by_length(tmp_path: Path, inputs: Inputs, stage: str) -> None:
    field = set_fields(train_sampling_strategy="group_by_length")
    record = train(inputs, tmp_path / "policy", *field, "--eval-fraction", 0.25, stage=stage)
    assert record["training"]["train_sampling_strategy"] == "group_by_length"
    assert (record["rows"]["used"], record["rows"]["held_out"]) == (18, 6)


def test_the_rate_follows_the_schedule_that_is_set(tmp_path: Path, inputs: Inputs) -> None:
    train(inputs, tmp_path / "policy", *set_fields(lr_scheduler_type="linear", warmup_steps=0))
    rates = [entry["learning_rate"] for entry in history_of(tmp_path / "policy") if "loss" in entry]
    # 24 rows, 4 a step: six steps from the peak straight to 0
    assert rates == pytest.approx([0.01 * (6 - step) / 6 for step in range(6)])


def test_max_steps_ends_a_run_early(tmp_path: Path, inputs: Inputs) -> None:
    record = train(inputs, tmp_path / "policy", "--max-steps", 2)
    assert record["training"]["max_steps"] == 2
    assert len(losses(tmp_path / "policy")) == 2


def test_a_checkpoint_can_be_kept_of_every_epoch(tmp_path: Path, inputs: Inputs) -> None:
    fields = set_fields(save_strategy="epoch", save_total_limit=5)
    train(inputs, tmp_path / "policy", *fields, "--epochs", 3)
    kept = {path.name for path in (tmp_path / "policy").glob("checkpoint-*")}
    assert kept == {"checkpoint-6", "checkpoint-12", "checkpoint-18"}


def test_workers_load_the_same_batches(tmp_path: Path, inputs: Inputs, plain: Path) -> None:
    train(inputs, tmp_path / "policy", *set_fields(dataloader_num_workers=2))
    assert losses(tmp_path / "policy") == losses(plain)
    assert torch.equal(weights_of(tmp_path / "policy"), weights_of(plain))


@pytest.mark.parametrize("optim", ["adafactor", "sgd"])
def test_another_optimizer_trains(tmp_path: Path, inputs: Inputs, plain: Path, optim: str) -> None:
    record = train(inputs, tmp_path / "policy", *set_fields(optim=optim))
    assert record["training"]["optim"] == optim
    ours, theirs = losses(tmp_path / "policy"), losses(plain)
    assert ours[0] == theirs[0]  # nothing was learnt yet
    assert ours[-1] != theirs[-1]
    assert not torch.equal(weights_of(tmp_path / "policy"), weights_of(plain))


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("report_to=swanlab", "pip install swanlab"),
        ("report_to=tensorbord", "tensorbord is not supported"),
        ("optim=adamw_8bit", "bitsandbytes"),
        ("use_liger_kernel=true", "liger-kernel"),
        ("label_smoothing_factor=0.1", "use `label_smoothing` of dpo"),
        ("eval_do_concat_batches=false", "eval_do_concat_batches"),
    ],
)
def test_what_is_not_installed_or_has_no_meaning_here_is_refused_in_one_line(
    tmp_path: Path, inputs: Inputs, field: str, said: str
) -> None:
    policy, dataset = inputs["sepo"]
    flags = ["--policy", policy, "--dataset", dataset, "--output", str(tmp_path / "policy")]
    result = CliRunner().invoke(main, ["train", "sepo", *flags, "--set", field, "--eval-fraction", "0.25"])
    assert not isinstance(result.exception, Exception), result.exception
    assert result.exit_code == 1
    assert said in result.stderr.strip().splitlines()[-1]


def test_fsdp_is_switched_on_by_true(tmp_path: Path) -> None:
    settings = SepoSettings(output_dir=tmp_path, training_arguments={"fsdp": "true"})
    assert training_arguments(settings).fsdp_plugin_args["fsdp_version"] == 2


def test_figures_are_logged_as_often_as_asked(tmp_path: Path, inputs: Inputs) -> None:
    train(inputs, tmp_path / "policy", *set_fields(logging_steps=2), "--eval-fraction", 0.25)
    history = history_of(tmp_path / "policy")
    trained = [entry for entry in history if "loss" in entry]
    # 18 rows, 4 a step: five steps; the first, then each second, and the last
    assert [entry["step"] for entry in trained] == [1, 2, 4, 5]
    assert {"margin", "accuracy", "logps/chosen", "drift/chosen", "length/chosen"} <= trained[0].keys()
    assert {"eval_loss", "eval_margin_all"} <= history[-1].keys() | history[-2].keys()
