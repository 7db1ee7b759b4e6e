"""A stage's settings as ``transformers.TrainingArguments``; every field can be set."""

import dataclasses
import difflib
import logging
import os
from typing import NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from sepo_data.errors import SettingsError, first_line

from .settings import TrainSettings

# These have their own options, or would break the stages.
OWN_OPTIONS = {
    "output_dir": "use `output_dir`",
    "per_device_train_batch_size": "use `micro_batch_size`",
    "gradient_accumulation_steps": "use `batch_size`",
    "learning_rate": "use `learning_rate`",
    "num_train_epochs": "use `num_train_epochs`",
    "seed": "use `seed`",
    "push_to_hub": "use `push_to_hub`",
    "remove_unused_columns": "leave it out: the stages keep the columns they need",
    "resume_from_checkpoint": "leave it out: the same command resumes by itself",
    "label_names": "leave it out: the losses have no labels",
    "label_smoothing_factor": "use `label_smoothing` of dpo: the other losses have none",
    "batch_eval_metrics": "leave it out, the figures of the eval rows are summed as they are",
    "eval_do_concat_batches": "leave it out, the figures of the eval rows are summed as they are",
}

_EVALUATION = {"eval_strategy": "steps", "eval_steps": "0.25", "eval_on_start": "true"}


@dataclasses.dataclass
class StageArguments(TrainingArguments):
    """The Trainer's arguments, with a warm-up that never takes the only step of a short run."""

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """A share is rounded down; the Trainer would round it up."""
        steps = self.warmup_steps or 0
        return int(steps * num_training_steps) if steps < 1 else int(steps)


def training_arguments(settings: TrainSettings) -> TrainingArguments:
    """Make the arguments of the trainer; prepares the process for distributed training.

    Args:
        settings: The stage's settings; ``training_arguments`` wins over the defaults here.

    Raises:
        SettingsError: If a field is unknown, its value cannot be read, or the batch cannot be divided.
    """
    per_device = _batch_per_device(settings.batch_size)
    micro = max(size for size in range(1, settings.micro_batch_size + 1) if per_device % size == 0)
    values = {
        "output_dir": str(settings.output_dir),
        "per_device_train_batch_size": str(micro),
        "per_device_eval_batch_size": str(micro),
        "gradient_accumulation_steps": str(per_device // micro),
        "learning_rate": str(settings.learning_rate),
        "num_train_epochs": str(settings.num_train_epochs),
        "max_steps": str(settings.max_steps or -1),
        "seed": str(settings.seed),
        "remove_unused_columns": "false",
        "lr_scheduler_type": "cosine",
        "warmup_steps": "0.03",
        "weight_decay": "0",
        "adam_beta2": "0.95",
        "bf16": str(torch.cuda.is_available() and torch.cuda.is_bf16_supported()),
        "logging_steps": "10",
        "logging_first_step": "true",
        "logging_nan_inf_filter": "false",  # a loss that is not a number ends the run instead
        **({} if settings.save_at else {"save_total_limit": "1"}),
        "disable_tqdm": "true",
        "dataloader_pin_memory": str(torch.cuda.is_available()),
        # without this, processes without an accelerator do not find each other
        "use_cpu": str(not torch.accelerator.is_available()),
        **(_EVALUATION if settings.eval_fraction else {}),
        **_checked(settings),
    }
    flags = [part for name, value in values.items() for part in _flag(name, value)]
    try:
        parser = _Parser(StageArguments, add_help=False)  # type: ignore[arg-type]
        (arguments,) = parser.parse_args_into_dataclasses(flags)
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()  # names the missing package
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise SettingsError(f"`training_arguments`: {first_line(error)}") from error
    if arguments.n_gpu > 1:
        raise SettingsError(
            f"{arguments.n_gpu} GPUs but one process. Start it with `accelerate launch -m sepo_cli.train …`, "
            "or set CUDA_VISIBLE_DEVICES=0."
        )
    if not arguments.should_log:  # only one process of a distributed run logs
        logging.getLogger("sepo").setLevel(logging.ERROR)
    return arguments


def _flag(name: str, value: str) -> tuple[str, ...]:
    """Convert as a command line does; the older form of ``fsdp`` is text."""
    return (f"--{name}",) if name == "fsdp" and value.lower() == "true" else (f"--{name}", value)


def _batch_per_device(batch_size: int) -> int:
    world_size = os.environ.get("WORLD_SIZE", "1")
    if not world_size.isdigit() or world_size == "0":
        raise SettingsError(
            f"WORLD_SIZE is {world_size!r}, not a number of processes. Unset it, or use a launcher."
        )
    processes = int(world_size)
    if batch_size % processes:
        raise SettingsError(
            f"batch size {batch_size} cannot be divided among {processes} processes. Make `batch_size` "
            "a multiple of that."
        )
    return batch_size // processes


class _Parser(HfArgumentParser):
    """Parses values of all field types, and raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"`training_arguments`: {message}.")


def _checked(settings: TrainSettings) -> dict[str, str]:
    """The fields of ``--set``; unknown ones, and those with their own option, are refused."""
    if settings.save_at and "save_total_limit" in settings.training_arguments:
        raise SettingsError(
            "`training_arguments.save_total_limit` would remove what `save_at` keeps. Leave out one of them."
        )
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    found: dict[str, str] = {}
    for name, value in settings.training_arguments.items():
        if name.startswith(("hub_", "push_to_hub_")):
            raise SettingsError(
                f"`training_arguments.{name}`: use `push_to_hub`; the token comes from `hf auth login` or "
                "HF_TOKEN."
            )
        if name in OWN_OPTIONS:
            raise SettingsError(f"`training_arguments.{name}`: {OWN_OPTIONS[name]}.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SettingsError(f"`training_arguments.{name}`: TrainingArguments has no such field.{hint}")
        found[name] = value
    return found
