"""TRL's trainers with a model and random tokens, for the speed benchmarks."""

import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from speed import RandomPair
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]
from trl.experimental.cpo import CPOConfig, CPOTrainer

_ROW = {"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0]}
_TEXT = {"prompt": "a", "chosen": "b", "rejected": "c"}


class _TokensGiven(DPOTrainer):  # type: ignore[misc]
    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


class _SimpoTokensGiven(CPOTrainer):  # type: ignore[misc]
    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return {}


def _common(device: str) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": device == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def dpo_trainer(model: Any, ref: Any) -> Any:
    """A DPOTrainer with default settings."""
    return _TokensGiven(
        model=model,
        ref_model=ref,
        args=DPOConfig(**_common(model.device.type)),
        train_dataset=datasets.Dataset.from_list([_ROW]),
        processing_class=_tokenizer(),
    )


def simpo_trainer(model: Any) -> Any:
    """A CPOTrainer with SimPO's loss."""
    return _SimpoTokensGiven(
        model=model,
        args=CPOConfig(loss_type="simpo", cpo_alpha=0.0, **_common(model.device.type)),
        train_dataset=datasets.Dataset.from_list([_TEXT]),
        processing_class=_tokenizer(),
    )


def trl_batch(trainer: Any, pairs: Sequence[RandomPair]) -> dict[str, Any]:
    """A padded batch of TRL's collator on the trainer's device."""
    rows = [
        {
            "prompt_ids": pair.prompt.tolist(),
            "chosen_ids": pair.chosen.tolist(),
            "rejected_ids": pair.rejected.tolist(),
        }
        for pair in pairs
    ]
    batch: dict[str, Any] = trainer.data_collator(rows)
    return {name: value.to(trainer.model.device) for name, value in batch.items()}


def simpo_batch(pairs: Sequence[RandomPair], device: str) -> dict[str, Any]:
    """A batch like those of CPOTrainer's collator: chosen and rejected padded separately."""
    batch: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        ids = [torch.from_numpy(pair.sequences[side == "rejected"].input_ids) for pair in pairs]
        labels = [
            torch.where(torch.arange(len(row)) < pair.prompt.size, -100, row)
            for row, pair in zip(ids, pairs, strict=True)
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        batch[f"{side}_input_ids"] = pad(ids, batch_first=True).to(device)
        batch[f"{side}_labels"] = pad(labels, batch_first=True, padding_value=-100).to(device)
        ones = [torch.ones_like(row) for row in ids]
        batch[f"{side}_attention_mask"] = pad(ones, batch_first=True).to(device)
    return batch
