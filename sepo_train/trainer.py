"""One trainer for the three stages: ``transformers.Trainer`` with other losses and metrics.

Everything else (precision, checkpoints, schedules, trackers, DDP, FSDP, DeepSpeed) is the
Trainer's own. The loss of a step is the mean over all examples of the step, however they are
divided into micro-batches and devices.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from sepo_data.errors import SettingsError, TrainingError
from sepo_data.models.batching import regime, rope_switches, row_padding
from sepo_data.models.packing import tokens_to_read
from sepo_data.models.packing_check import prepare

from .batches import Batch, Forwards, collate, sequence_logps
from .cost import Cost
from .distance import Distance, watched
from .examples import Example
from .figures import COLLAPSE, collapse
from .folder import remove_checkpoints
from .objectives import Objective, Outcome
from .self_check import checked_forwards

log = logging.getLogger("sepo")

DRIFTING = ("logps/chosen", "logps/rejected", "logps/chosen_all", "logps/rejected_all")


class Examples(Dataset[dict[str, Example]]):
    """Examples in memory."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Example]:
        # the Trainer groups by the length of "input_ids"; for an example this is its number of tokens
        return {"input_ids": self.examples[index]}


def _collate(items: Sequence[dict[str, Example]], *, forwards: Forwards) -> Batch:
    return collate([item["input_ids"] for item in items], forwards)


class ByLength(Sampler[int]):
    """Groups examples of similar lengths, in an order that every process and resumed run agrees on.

    The Trainer's own sampler draws from a generator that no checkpoint restores, and sorts what
    one device takes at a time.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return iter(order)


class _StopWhenAsked(TrainerCallback):
    """Ends the training after the current step, with a checkpoint; keeps the checkpoints of some steps."""

    def __init__(self, trainer: "StageTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Refuse steps after the end of the training."""
        if (last := max(self.trainer.save_at, default=0)) > state.max_steps:
            raise SettingsError(
                f"`save_at` has step {last}, and this training ends at {state.max_steps}. Leave it out, or "
                "raise `max_steps`."
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Save and stop if any process was asked to; log first, so that the saved state is visible."""
        self.trainer.end_step()
        control.should_save = control.should_save or state.global_step in self.trainer.save_at
        last = state.global_step >= state.max_steps
        self.trainer.stopping = self.trainer.stopping and not last
        if self.trainer.stopping:
            control.should_save = control.should_training_stop = True
        control.should_log = control.should_log or control.should_save or last

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Remove checkpoints in place of the Trainer if some are kept."""
        if self.trainer.save_at and args.should_save:
            remove_checkpoints(Path(str(args.output_dir)), {*self.trainer.save_at, state.global_step})


class StageTrainer(Trainer):
    """Trains a causal language model on one stage's objective."""

    loss_is_scaled_for_ga = True  # `compute_loss` scales it

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        objective: Objective,
        train: Sequence[Example],
        held_out: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        stop: Callable[[], bool],
        *,
        distance: Distance | None = None,
        save_at: Sequence[int] = (),
    ) -> None:
        self.objective: Objective = objective
        self.stop = stop
        self.distance = distance
        self.save_at = frozenset(save_at)
        self.cost = Cost()
        self.stopping = False
        self.lengths = [len(example) for example in train]
        self.names: list[str] = []  # of the metrics gathered in an evaluation
        self.sums: dict[str, Tensor] = {}  # since the last log: sum and count, (2,)
        self.warned = False
        self.everything = [*train, *held_out]
        self.self_check: float | None = None  # nats
        self.began = 0.0  # when the current step began
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=Examples(train),
            eval_dataset=Examples(held_out) if held_out else None,
            processing_class=tokenizer,
            compute_metrics=self._mean_figures,
        )
        sequences = [sequence for example in self.everything for sequence in example.sequences]
        prepare(model, max(sequence.input_ids.size for sequence in sequences))
        switches = rope_switches(model.config.get_text_config())
        least = len({regime(switches, tokens_to_read(sequence)) for sequence in sequences})
        self.forwards = Forwards(
            row_padding(model), switches, least=1 if self.args.world_size == 1 else least
        )
        self.data_collator = partial(_collate, forwards=self.forwards)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_StopWhenAsked(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, after checking that batches give the same log-probs as their rows alone.

        Raises:
            TrainingError: If only single rows do, and there are several processes.
            ScoringError: If the model does not give the same numbers twice.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            log.info("batches are not compared with single rows: the weights are sharded")
            return super().train(*args, **kwargs)
        size = self.args.per_device_train_batch_size
        self.forwards, off = checked_forwards(self.model, self.everything, size, self.forwards)
        if self.forwards.alone and self.args.world_size > 1:
            raise TrainingError(
                "the model's log-probs depend on the other rows of a batch. Train it with one process, which "
                "computes every row alone."
            )
        self.self_check = off if math.isfinite(off) else None
        self.data_collator = partial(_collate, forwards=self.forwards)
        return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset[object] | None = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByLength(self.lengths, step, self.args.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | int | None]:
        """The micro-batches of a step, and its number of items over all devices."""
        self.began = time.perf_counter()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = sum(float(batch["items"].sum()) for batch in batches)
        # also gathers whether any process was asked to stop: all must stop at the same step
        gathered = self.accelerator.gather(torch.tensor([[items, float(self.stop())]], device=device))
        self.stopping = bool(gathered[:, 1].any())
        return batches, gathered[:, 0].sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """This micro-batch's share of the step's loss, times the processes, whose gradients are averaged."""
        self._count("tokens_per_second", inputs["input_ids"].numel(), 0.0)
        outcome = self._outcome(model, inputs)
        self.cost.add("tokens", inputs["input_ids"].numel())
        self.cost.add("trained_tokens", sum(part.labels.numel() for part in inputs["packed"]))
        for name, values in self._figures(outcome, inputs).items():
            if not name.endswith("_all"):  # training reads the selected tokens only
                self.sums[name] = self.sums.get(name, torch.zeros_like(values[0])) + values.sum(0)
        items = inputs["items"].sum() if num_items_in_batch is None else num_items_in_batch
        loss = (outcome.losses * inputs["items"]).sum() / items * self.accelerator.num_processes
        return (loss, outcome) if return_outputs else loss

    def end_step(self) -> None:
        """Count the time of a step; that of evaluating and saving between two steps is not training."""
        seconds = time.perf_counter() - self.began
        self.cost.add("seconds", seconds)
        self._count("tokens_per_second", 0.0, seconds)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and metrics of a held-out batch; the Trainer gathers them over all devices."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            figures = self._figures(self._outcome(model, inputs), inputs)
        self.names = list(figures)
        values = torch.stack(list(figures.values()), dim=1)  # (B, figures, 2)
        return values[:, 0, 0].mean(), values, values

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics since the last log, and the drift of the log-probs."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise TrainingError(
                    f"step {self.state.global_step}: the loss is not a finite number. Lower `learning_rate`, "
                    "and leave out 16-bit options like fp16; the checkpoints before this step are kept."
                )
            for name, sums in self.sums.items():
                total, number = self.accelerator.reduce(sums, "sum").tolist()
                if name == "tokens_per_second":  # each process took the same seconds
                    total *= self.accelerator.num_processes
                logs.setdefault(name, total / number)
            self.sums = {}
            logs |= self.cost.logged(self.state.log_history, self.accelerator)
            if self.distance is not None:
                logs |= watched(self.distance, self)
        for prefix in ("", "eval_"):
            logs |= self._drift(logs, prefix)
        super().log(logs, start_time)

    def _count(self, name: str, total: float, number: float) -> None:
        counted = torch.tensor([total, number], device=self.accelerator.device)
        self.sums[name] = self.sums.get(name, torch.zeros_like(counted)) + counted

    def _outcome(self, model: nn.Module, inputs: Batch) -> Outcome:
        token_logps = pad_sequence(sequence_logps(model, inputs), batch_first=True)  # (R, N)
        return self.objective(token_logps, inputs)

    def _figures(self, outcome: Outcome, inputs: Batch) -> dict[str, Tensor]:
        """Values and their weights, ``(B, 2)`` each; the loss first."""
        items = inputs["items"]
        ones = torch.ones_like(items)
        found = {"loss": torch.stack([outcome.losses.detach().float() * items, items], dim=1)}
        for name, values in outcome.figures.items():
            found[name] = torch.stack([values.float(), ones], dim=1)
        return found

    def _mean_figures(self, gathered: EvalPrediction) -> dict[str, float]:
        totals, numbers = np.asarray(gathered.predictions).sum(0).T  # (figures,) each
        return {name: float(t / n) for name, t, n in zip(self.names, totals, numbers, strict=True)}

    def _drift(self, logs: dict[str, float], prefix: str) -> dict[str, float]:
        """Mean log-probs minus the first ones logged; warns when chosen responses become unlikely."""
        found = {}
        for name in DRIFTING:
            key = prefix + name
            first = next((entry[key] for entry in self.state.log_history if key in entry), logs.get(key))
            if key in logs and first is not None:
                found[prefix + name.replace("logps", "drift")] = logs[key] - first
        for name, what in (("drift/chosen", "the trained tokens"), ("drift/chosen_all", "all tokens")):
            if found.get(prefix + name, 0.0) < COLLAPSE and not self.warned:
                self.warned = True
                log.warning(
                    "%s. Lower `learning_rate`, or train for fewer steps.",
                    collapse(what, found[prefix + name]),
                )
        return found
