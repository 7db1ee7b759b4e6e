"""The training record, ``sepo_training.json``: everything that made a model, and what identifies its run."""

import math
import platform
from dataclasses import asdict
from importlib.metadata import version

from transformers import TrainingArguments

from sepo_data.files import text_sha256
from sepo_data.tokens.encoder import tokenizer_hash

from .folder import Record
from .inputs import Data, Start
from .settings import TrainSettings

RECORD_VERSION = "1.0"

# Settings about locations, or recorded elsewhere.
_NOT_IN_RECORD = {
    "output_dir", "config_name", "split", "revision", "model_revision", "push_to_hub", "private",
    "training_arguments", "chat_template", "learning_rate", "num_train_epochs", "batch_size",
    "micro_batch_size", "dtype", "max_steps", "save_at",
    "no_eos",  # part of `exclude_tokens`
}  # fmt: skip
_TRAINING = (
    "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
    "max_grad_norm", "optim", "bf16", "fp16", "train_sampling_strategy",
)  # fmt: skip
_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")


def training_record(
    stage: str,
    start: Start,
    data: Data,
    settings: TrainSettings,
    arguments: TrainingArguments,
    *,
    num_held_out: int,
) -> Record:
    """The facts of a run as plain JSON; ``folder`` uses them to tell whether a folder belongs to this run."""
    checkpoint, encoder = start.description.checkpoint, start.encoder
    facts = checkpoint.facts
    top = checkpoint.adapter or checkpoint.base
    template = encoder.tokenizer.get_chat_template() if encoder.chat_template else None
    values = asdict(settings)
    return {
        "schema_version": RECORD_VERSION,
        "sepo_version": version("sepo"),
        "stage": stage,
        "model": {
            "name": facts.name,
            "revision": facts.revision,
            "base": facts.base,
            "on_hub": top.commit is not None,
        },
        "dataset": data.facts,
        "settings": {
            **{name: _plain(values[name]) for name in sorted(values.keys() - _NOT_IN_RECORD)},
            "max_length": start.max_length,  # the model may read less than the settings allow
            "chat_template_sha256": None if template is None else text_sha256(template),
            "tokenizer_sha256": tokenizer_hash(encoder),
        },
        "training": {
            **{name: _plain(getattr(arguments, name)) for name in _TRAINING},
            **{name: values[name] for name in ("learning_rate", "num_train_epochs", "batch_size", "dtype")},
            **({"set": dict(settings.training_arguments)} if settings.training_arguments else {}),
        },
        "rows": {
            "used": len(data.examples) - num_held_out,
            "held_out": num_held_out,
            "dropped": data.dropped,
            "notes": data.notes,
        },
        "transfer": data.transfer,
        "figures": {},
        "self_check": None,
        "environment": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


def _plain(value: object) -> object:
    """Convert to JSON: enumerations to their value, tuples to lists, infinity to a word."""
    if value == math.inf:
        return "inf"
    return list(value) if isinstance(value, tuple) else getattr(value, "value", value)
