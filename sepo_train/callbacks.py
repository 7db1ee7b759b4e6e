"""What a training run logs."""

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger("sepo")

FEW_STEPS = 5  # the defaults are for data of ten thousand rows and more


class _Figures(TrainerCallback):
    """Says how long the way is, and in one line of log what people look at."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The number of steps, and a warning if they are too few to learn anything."""
        log.info("%d steps of %d rows", state.max_steps, self.batch_size)
        if state.max_steps < FEW_STEPS:
            log.warning(
                "with %d %s hardly anything is learned. Lower `batch_size` (%d now), or raise "
                "`num_train_epochs`.",
                state.max_steps,
                "step" if state.max_steps == 1 else "steps",
                self.batch_size,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line for the training batches since the last, one for an evaluation."""
        assert logs is not None
        held_out = any(name.startswith("eval_") for name in logs)
        named = {name.removeprefix("eval_"): value for name, value in logs.items()}
        shown = [f"{label} {named[name]:{form}}" for name, label, form in _SHOWN if name in named]
        if shown and "train_loss" not in named:
            kind = "eval" if held_out else "training"
            log.info("step %d/%d, %s: %s", state.global_step, state.max_steps, kind, ", ".join(shown))


_SHOWN = (
    ("loss", "loss", ".4f"),
    ("margin", "margin", "+.4f"),
    ("accuracy", "accuracy", ".1%"),
    ("logps/chosen", "chosen", ".3f"),
    ("logps/rejected", "rejected", ".3f"),
    ("drift/chosen", "drift of chosen", "+.3f"),
    ("grad_norm", "gradient", ".3g"),
    ("learning_rate", "rate", ".2g"),
)
