"""The dry run of a training: its cost and dropped rows, estimated from a few small steps."""

import math
import tempfile
import time
from dataclasses import dataclass, replace

from sepo_data.models.logprobs import out_of_memory
from sepo_data.models.placement import peak_memory
from sepo_data.runs.progress import Progress

from .callbacks import _Steps
from .examples import Example, hold_out
from .training import Training, new_trainer, no_memory

PROBE_STEPS = 4


@dataclass(frozen=True)
class TrainPlan:
    """The estimate of a training run.

    Attributes:
        stage: ``sft``, ``dpo`` or ``sepo``.
        name: The dataset.
        examples: Examples to train on.
        held_out: Examples to evaluate on.
        dropped: Unusable rows, by reason.
        tokens: Of all examples, each prompt once.
        longest: Tokens of the longest example.
        batch_size: Examples per step.
        steps: Total number of steps.
        device: Where the probe ran.
        seconds: Estimated time of all steps, without evaluations and checkpoints.
        memory_bytes: Peak memory of the probe, which includes the longest examples.
    """

    stage: str
    name: str
    examples: int
    held_out: int
    dropped: dict[str, int]
    tokens: int
    longest: int
    batch_size: int
    steps: int
    device: str
    seconds: float
    memory_bytes: int


class _Clock(Progress):
    """When each step finished, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, rows: float) -> None:
        """A step has finished."""
        self.times.append(time.perf_counter())


def plan_training(training: Training) -> TrainPlan:
    """Train a few micro-batches, the longest first, and extrapolate. Writes nothing.

    Args:
        training: As for `training.run_training`.

    Raises:
        SepoError: Anything that would stop the run before or in its first steps.
    """
    settings = training.settings
    train, held_out = hold_out(training.data.examples, settings)
    tokens = sum(len(example) for example in train)
    steps_per_epoch = math.ceil(len(train) / settings.batch_size)
    steps = training.arguments.max_steps
    if steps <= 0:
        steps = math.ceil(steps_per_epoch * settings.num_train_epochs)
    per_token = _seconds_per_token(training, sorted(train, key=len, reverse=True))
    device = str(training.arguments.device)
    return TrainPlan(
        stage=training.stage,
        name=training.data.facts["name"],
        examples=len(train),
        held_out=len(held_out),
        dropped=training.data.dropped,
        tokens=tokens,
        longest=max(len(example) for example in train),
        batch_size=settings.batch_size,
        steps=steps,
        device=device,
        seconds=per_token * tokens * steps / steps_per_epoch,
        memory_bytes=peak_memory(device),
    )


def _seconds_per_token(training: Training, examples: list[Example]) -> float:
    """Micro-batches of all lengths, after one of the longest, for peak memory and a warm device."""
    size = training.arguments.per_device_train_batch_size
    spread = [*examples[:: max(1, len(examples) // (PROBE_STEPS * size))]][: PROBE_STEPS * size]
    sample = training.prepare([*(examples * size)[:size], *spread])
    training = replace(training, settings=replace(training.settings, max_kl=None, save_at=()))
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = replace(
            training.arguments,
            output_dir=folder,
            gradient_accumulation_steps=1,
            num_train_epochs=1,
            max_steps=-1,
            train_sampling_strategy="sequential",
            save_strategy="no",
            eval_strategy="no",
            eval_on_start=False,
            report_to=[],
        )
        trainer = new_trainer(training, arguments, sample, [], lambda: False)
        trainer.add_callback(_Steps(clock))
        try:
            trainer.train()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise no_memory(arguments) from error
    return (clock.times[-1] - clock.times[0]) / sum(len(example) for example in spread)
