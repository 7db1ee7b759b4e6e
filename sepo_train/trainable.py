"""The model to train: its weights, or an adapter instead of them."""

from typing import Any

import torch
from transformers import PreTrainedModel

from sepo_data.errors import ModelError, first_line
from sepo_data.models.adapters import attach
from sepo_data.models.description import Description
from sepo_data.models.weights import load_base

from .settings import TrainSettings

LORA_ALPHA = 2  # times the rank, as in peft's own examples


def load_trainable(description: Description, settings: TrainSettings) -> Any:
    """Load a model to train: all of its weights, a new LoRA adapter on it, or an existing adapter.

    Args:
        description: From `checkpoints.describe_model`.
        settings: ``dtype`` and ``lora_rank``.

    Raises:
        ModelError: If weights are missing or broken, or cannot be trained as asked.
    """
    checkpoint = description.checkpoint
    name = checkpoint.facts.name
    if checkpoint.adapter is not None and settings.lora_rank is not None:
        raise ModelError(
            f"{name}: is already an adapter, which is trained further. Leave out `lora_rank`, or merge "
            "it into its base first."
        )
    if settings.dtype != "float32" and checkpoint.adapter is None and settings.lora_rank is None:
        raise ModelError(
            f"{name}: small updates of all weights round to nothing in {settings.dtype}. Leave out `dtype` "
            "(a GPU computes in 16 bits all the same), or pass `lora_rank=16`."
        )
    model: Any = load_base(checkpoint, dtype=getattr(torch, settings.dtype), device_map=None)
    if getattr(model, "is_quantized", False) and checkpoint.adapter is None and settings.lora_rank is None:
        raise ModelError(f"{name}: is quantised, so its weights cannot be trained. Pass `lora_rank=16`.")
    if checkpoint.adapter is not None:
        model = attach(model, checkpoint.adapter, "default", trainable=True)
    elif settings.lora_rank is not None:
        model = _add_lora(model, name, settings.lora_rank)
    return model


def _add_lora(model: PreTrainedModel, name: str, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    except ImportError as error:
        raise ModelError("`lora_rank` needs peft. Run pip install peft first.") from error
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=rank, lora_alpha=LORA_ALPHA * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{name}: no LoRA adapter fits it: {first_line(error)}.") from error
