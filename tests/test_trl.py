"""Tests that TRL and sepo work together: models, data, and the numbers of training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from tiny_pair import pairs, save_pair, write_jsonl
from tiny_tokenizers import CHATML
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from sepo_data import AnnotateSettings, annotate
from sepo_data.sources.conversations import open_chats
from sepo_data.tokens.chats import encode_chats
from sepo_data.tokens.encoder import response_encoder
from sepo_train import DpoSettings, SftSettings, train_dpo, train_sft

# ChatML that ends behind the token that ends the turn, and says in TRL's way what the assistant wrote
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = {  # no refinement that only one of the two has by default
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "learning_rate": 0.001,
}

COMPLETIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(16)]
CHATS = [
    {"messages": [*first["prompt"], *first["chosen"], *second["prompt"], *second["chosen"]]}
    for first, second in zip(pairs(16), pairs(16, seed=1), strict=True)
]


def as_text(row: dict[str, Any]) -> dict[str, str]:
    """A prompt's and its responses' contents alone; the end of a line keeps their tokens apart."""
    texts = {role: str(row[role][0]["content"]) for role in row if role != "id"}
    return {**texts, "prompt": texts["prompt"] + "\n"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Oracle and reference that read messages."""
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> str:
    folder = tmp_path_factory.mktemp("annotated")
    prefs = write_jsonl(folder / "prefs.jsonl", pairs(16))
    annotate(prefs, *models, AnnotateSettings(output=folder / "out", store_logps=True))
    return str(folder / "out")


def trl_trainer(kind: Any, model: str, rows: Any, settings: Any, **more: Any) -> Any:
    """A trainer as TRL's users make it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return kind(model=model, args=settings, train_dataset=rows, processing_class=tokenizer, **more)


def arguments(kind: Any, folder: Path, **more: Any) -> Any:
    """TRL's settings for a few steps on the CPU."""
    few = {"learning_rate": 0.01, "per_device_train_batch_size": 4, "max_steps": 3, "logging_steps": 1}
    on_cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True}
    return kind(output_dir=str(folder), save_strategy="no", **{**on_cpu, **few, **more})


def ours_plain() -> dict[str, Any]:
    """Two epochs of TRL's steps with `PLAIN`."""
    fields = {name: str(value) for name, value in PLAIN.items() if name != "learning_rate"}
    return {
        "batch_size": 4,
        "micro_batch_size": 2,
        "num_train_epochs": 2.0,
        "learning_rate": PLAIN["learning_rate"],
        "training_arguments": fields,
    }


def trained(trainer: Any) -> list[dict[str, float]]:
    """The steps' logs."""
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def our_log(folder: Path) -> list[dict[str, float]]:
    history: list[dict[str, float]] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def parameters_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weights.detach().flatten() for weights in model.parameters()])


@pytest.mark.parametrize("lora", [False, True], ids=["all_weights", "adapter"])
def test_an_oracle_of_trls_dpo_trainer_annotates_unchanged(
    tmp_path: Path, models: tuple[str, str], lora: bool
) -> None:
    trainer = trl_trainer(
        DPOTrainer,
        models[1],
        Dataset.from_list(pairs(16)),
        arguments(DPOConfig, tmp_path / "oracle", max_steps=12),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    assert trained(trainer)
    trainer.save_model()
    assert (tmp_path / "oracle" / "adapter_config.json").exists() == lora
    prefs = write_jsonl(tmp_path / "prefs.jsonl", pairs(16))
    report = annotate(
        prefs, str(tmp_path / "oracle"), models[1], AnnotateSettings(output=tmp_path / "annotated")
    )
    assert report.manifest is not None
    rows = load_dataset(str(tmp_path / "annotated"), split="train")
    assert len(rows) == 16
    right = sum(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    assert right == 16  # it knows the pairs that it was trained on


def test_a_model_of_trls_sft_trainer_is_a_reference_unchanged(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    chats = [{"messages": [*row["prompt"], *row["chosen"]]} for row in pairs(16)]
    trainer = trl_trainer(
        SFTTrainer, models[1], Dataset.from_list(chats), arguments(SFTConfig, tmp_path / "ref")
    )
    assert trained(trainer)
    trainer.save_model()
    prefs = write_jsonl(tmp_path / "prefs.jsonl", pairs(16))
    settings: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.01, "num_train_epochs": 3.0}
    train_dpo(str(tmp_path / "ref"), prefs, DpoSettings(output_dir=tmp_path / "oracle", **settings))
    report = annotate(
        prefs,
        str(tmp_path / "oracle"),
        str(tmp_path / "ref"),
        AnnotateSettings(output=tmp_path / "annotated"),
    )
    assert report.manifest is not None
    rows = load_dataset(str(tmp_path / "annotated"), split="train")
    assert sum(row["chosen_reward"] > row["rejected_reward"] for row in rows) == 16


@pytest.mark.parametrize("precompute", [False, True], ids=["ref_every_step", "ref_once"])
def test_an_annotated_dataset_trains_in_trls_dpo_trainer_unchanged(
    tmp_path: Path, models: tuple[str, str], annotated: str, precompute: bool
) -> None:
    rows = load_dataset(annotated, split="train")
    ours = {name for name in rows.column_names if name.startswith(("chosen_", "rejected_"))}
    assert len(ours) == 18
    trainer = trl_trainer(
        DPOTrainer,
        models[1],
        rows,
        arguments(DPOConfig, tmp_path, precompute_ref_log_probs=precompute, **PLAIN),
    )
    assert ours <= set(trainer.train_dataset.column_names)  # none renamed, none shadowed by TRL's own
    for name in ours:
        assert trainer.train_dataset[name][:] == rows[name][:]
    first, *_, last = trained(trainer)
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-4)  # log 2: the reference is the model
    assert last["loss"] < first["loss"]


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_dpo_gives_the_losses_and_the_weights_of_trls_dpo_trainer(tmp_path: Path, kind: str) -> None:
    # from the second step on the reference is not the model, so the losses are not log 2
    rows = pairs(16) if kind == "messages" else [as_text(row) for row in pairs(16)]
    _, model = save_pair(tmp_path / "models", template=MARKED if kind == "messages" else None)
    trainer = trl_trainer(
        DPOTrainer,
        model,
        Dataset.from_list(rows),
        arguments(DPOConfig, tmp_path / "trl", max_steps=8, beta=0.3, **PLAIN),
    )
    theirs = trained(trainer)
    prefs = write_jsonl(tmp_path / "prefs.jsonl", rows)
    train_dpo(model, prefs, DpoSettings(output_dir=tmp_path / "ours", beta=0.3, **ours_plain()))
    ours = our_log(tmp_path / "ours")
    assert len(ours) == len(theirs) == 8
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert mine["margin"] == pytest.approx(other["rewards/margins"], abs=1e-4)
    assert theirs[-1]["loss"] < 0.4
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(parameters_of(saved), parameters_of(trainer.model), rtol=0, atol=1e-4)


def test_sft_gives_the_losses_and_the_weights_of_trls_sft_trainer(tmp_path: Path) -> None:
    _, model = save_pair(tmp_path / "models", template=MARKED)
    trainer = trl_trainer(
        SFTTrainer,
        model,
        Dataset.from_list(CHATS),
        arguments(SFTConfig, tmp_path / "trl", max_steps=8, assistant_only_loss=True, **PLAIN),
    )
    theirs = trained(trainer)
    chats = write_jsonl(tmp_path / "chats.jsonl", CHATS)
    train_sft(model, chats, SftSettings(output_dir=tmp_path / "ours", **ours_plain()))
    ours = our_log(tmp_path / "ours")
    assert [entry["loss"] for entry in ours] == pytest.approx([entry["loss"] for entry in theirs], abs=1e-4)
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 0.1
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(parameters_of(saved), parameters_of(trainer.model), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "template", "options", "behind"),
    [
        (CHATS, MARKED, {"assistant_only_loss": True}, ""),  # every turn
        (COMPLETIONS, MARKED, {"completion_only_loss": True}, ""),
        ([as_text(row) for row in COMPLETIONS], None, {"completion_only_loss": True}, ""),
        # TRL counts all that a template writes behind the prompt, sepo ends with the turn
        (COMPLETIONS, CHATML, {"completion_only_loss": True}, "\n"),
    ],
    ids=["assistant", "completion", "text", "newline"],
)
def test_sft_trains_the_tokens_that_trls_sft_trainer_trains(
    tmp_path: Path, rows: list[dict[str, Any]], template: str | None, options: dict[str, bool], behind: str
) -> None:
    _, model = save_pair(tmp_path / "models", template=template)
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = trl_trainer(
        SFTTrainer, model, Dataset.from_list(rows), arguments(SFTConfig, tmp_path / "trl", **options)
    )
    source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", rows))
    encoded = encode_chats(source.rows, columns, response_encoder(tokenizer), 2048, 0, len(rows))
    assert len(encoded.chats) == len(trainer.train_dataset) == len(rows)
    for chat, theirs in zip(encoded.chats, trainer.train_dataset, strict=True):
        positions = [at for at, label in enumerate(theirs["labels"]) if label != -100]
        extra = len(tokenizer(behind)["input_ids"])
        assert tokenizer.decode(theirs["input_ids"][len(theirs["input_ids"]) - extra :]) == behind
        assert chat.positions.tolist() == positions[: len(positions) - extra]
        assert chat.input_ids.tolist() == theirs["input_ids"][: positions[-1] + 1 - extra]
