"""What a training run logs."""

import logging
from collections.abc import Mapping

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sepo_data.errors import counted
from sepo_data.runs.progress import Progress

log = logging.getLogger("sepo")

FEW_STEPS = 5  # the defaults are for datasets of ten thousand rows and more


class _Figures(TrainerCallback):
    """Logs the number of steps, and the important figures in one line."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The number of steps, and a warning if they are too few to learn anything."""
        log.info("%s of %s", counted(state.max_steps, "step"), counted(self.batch_size, "row"))
        if state.max_steps < FEW_STEPS:
            log.warning(
                "with %s hardly anything is learned. Lower `batch_size` (%d now), or raise "
                "`num_train_epochs`.",
                counted(state.max_steps, "step"),
                self.batch_size,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """One line for the training batches since the last, one for an evaluation."""
        assert logs is not None
        held_out = any(name.startswith("eval_") for name in logs)
        named = {name.removeprefix("eval_"): value for name, value in logs.items()}
        shown = [f"{label} {named[name]:{form}}" for name, label, form in _SHOWN if name in named]
        if shown and "train_loss" not in named:
            kind = "eval" if held_out else "training"
            log.info("step %d/%d, %s: %s", state.global_step, state.max_steps, kind, ", ".join(shown))


class _Steps(TrainerCallback):
    """Reports progress, and restores the learning rate of a continued run whose optimizer is gone."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer | None = None,
        lr_scheduler: object = None,
        **_: object,
    ) -> None:
        """A longer run follows its own schedule from its first step."""
        if state.global_step and optimizer is not None and isinstance(lr_scheduler, LambdaLR):
            if lr_scheduler.last_epoch == 0:
                log.info(
                    "the optimizer starts anew at step %d; `training_arguments.save_total_limit=1` keeps it",
                    state.global_step,
                )
                lr_scheduler.last_epoch = state.global_step
            rates = [
                rate * factor(state.global_step)
                for rate, factor in zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
            ]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            lr_scheduler._last_lr = rates
        if state.is_world_process_zero:
            self.progress.start(state.max_steps, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """One step more."""
        if state.is_world_process_zero:
            self.progress.advance(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Saving and evaluating may follow."""
        if state.is_world_process_zero:
            self.progress.finish()


_SHOWN = (
    ("loss", "loss", ".4f"),
    ("margin", "margin", "+z.4f"),
    ("accuracy", "accuracy", ".1%"),
    ("logps/chosen", "chosen", ".3f"),
    ("logps/rejected", "rejected", ".3f"),
    ("drift/chosen", "drift of chosen", "+.3f"),
    ("kl", "KL", ".2f"),
    ("grad_norm", "gradient", ".3g"),
    ("learning_rate", "rate", ".2g"),
)
