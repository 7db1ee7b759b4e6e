"""From examples to a trained model in its folder: the part that all stages share."""

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    GenerationConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from sepo_data.checkpoints import ADAPTER_CONFIG, BASE, Description
from sepo_data.encoding import ResponseEncoder
from sepo_data.errors import PreferenceError, SettingsError, TrainingError, first_line
from sepo_data.hashing import text_sha256
from sepo_data.hub import check_push_target, push_model
from sepo_data.logprobs import out_of_memory
from sepo_data.provenance import tokenizer_hash

from .batches import Example, selected_only
from .model_card import write_card
from .objectives import Objective
from .policies import load_trainable
from .runs import SCHEMA_VERSION, alone, finish_training, last_checkpoint, not_writable, open_training
from .settings import TrainSettings
from .trainer import StageTrainer

log = logging.getLogger("sepo")

FEW_STEPS = 5  # the defaults are for data of ten thousand rows and more

# Settings that say where things are or go, or that stand elsewhere in the record.
_NOT_IN_RECORD = {
    "output_dir", "config_name", "split", "revision", "model_revision", "push_to_hub", "private",
    "training_arguments", "chat_template", "learning_rate", "num_train_epochs", "batch_size",
    "micro_batch_size", "dtype",
}  # fmt: skip
_TRAINING = (
    "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
    "max_grad_norm", "optim", "bf16", "fp16", "train_sampling_strategy",
)  # fmt: skip
_RECORDED = ("loss", "margin", "accuracy", "logps/", "drift/", "length/")  # of what the Trainer logs
_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "numpy")


@dataclass(frozen=True)
class Start:
    """What a stage starts from.

    Attributes:
        description: The model without its weights.
        encoder: Its tokenizer, with the template that the training uses.
        max_length: Most tokens of a sequence.
        end_of_turn: Id of the token that ends a response in that template; None without one.
    """

    description: Description
    encoder: ResponseEncoder
    max_length: int
    end_of_turn: int | None


@dataclass(frozen=True)
class Data:
    """What a stage trains on.

    Attributes:
        examples: With all tokens of the responses, in the order of the rows.
        dropped: Rows that could not be used, by reason.
        facts: What the record says of the dataset.
        notes: How often something happened that a user should know, by description.
        transfer: How an annotation fits the policy's vocabulary, in one line.
    """

    examples: list[Example]
    dropped: dict[str, int]
    facts: dict[str, Any]
    notes: dict[str, int] = field(default_factory=dict)
    transfer: str | None = None


@dataclass(frozen=True)
class TrainReport:
    """What came of a run.

    Attributes:
        output_dir: The folder.
        record: What ``sepo_training.json`` says; None if the run was asked to stop.
        commit: Where on the Hub the model was pushed to; None if it was not.
    """

    output_dir: Path
    record: dict[str, Any] | None
    commit: str | None = None


def run_training(
    stage: str,
    start: Start,
    data: Data,
    settings: TrainSettings,
    arguments: TrainingArguments,
    objective: Objective,
    *,
    prepare: Callable[[list[Example]], list[Example]] = lambda examples: examples,
    stop: Callable[[], bool] = lambda: False,
) -> TrainReport:
    """Train a model on examples, and leave a model folder with a card and a record.

    The folder is the run's memory: the same call goes on from the last checkpoint, and does
    nothing where the model is complete.

    Args:
        stage: ``sft``, ``dpo`` or ``sepo``.
        start: The model, and how it reads.
        data: What to train on.
        settings: The stage's.
        arguments: Made of them by `arguments.training_arguments`.
        objective: The stage's.
        prepare: What remains to be done to the examples once it is clear that they are needed.
        stop: Asked after every step; True ends the run there, with a checkpoint.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    if not data.examples:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in data.dropped.items())
        raise PreferenceError(f"{data.facts['name']}: nothing is left to train on: {reasons}.")
    _, held_out = hold_out(data.examples, settings)
    private = settings.private or data.facts["restricted"]
    record = training_record(stage, start, data, settings, arguments, num_held_out=len(held_out))
    output_dir = settings.output_dir
    with alone(output_dir, may_write=arguments.should_save):
        finished = open_training(output_dir, record, may_write=arguments.should_save)
        if settings.push_to_hub is not None and arguments.should_save:
            check_push_target(settings.push_to_hub, private=private, repo_type="model")
        if finished is not None:
            log.info("%s is complete already", output_dir)
        else:
            train, held_out = hold_out(prepare(data.examples), settings)
            trainer = _trained(start, train, held_out, settings, arguments, objective, stop)
            if trainer.stopping:
                return TrainReport(output_dir, None)
            finished = {**record, "figures": _figures(trainer, held_out)}
            _save(trainer, start, output_dir, finished)
    if settings.push_to_hub is None or not arguments.should_save:
        return TrainReport(output_dir, finished)
    if (output_dir / ADAPTER_CONFIG).exists() and start.description.checkpoint.base.commit is None:
        log.warning(
            "the adapter names a folder of this machine as its base: push the base too, and set %s in %s",
            BASE,
            ADAPTER_CONFIG,
        )
    return TrainReport(output_dir, finished, push_model(output_dir, settings.push_to_hub, private=private))


def _trained(
    start: Start,
    train: Sequence[Example],
    held_out: Sequence[Example],
    settings: TrainSettings,
    arguments: TrainingArguments,
    objective: Objective,
    stop: Callable[[], bool],
) -> StageTrainer:
    """Train, from the last checkpoint if there is one."""
    set_seed(settings.seed)  # a new adapter is random
    model = load_trainable(start.description, settings)
    selected = [_selected_only(example) for example in train]
    checkpoint = last_checkpoint(settings.output_dir)
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    tokenizer = start.description.tokenizer
    try:
        trainer = StageTrainer(model, arguments, objective, selected, held_out, tokenizer, stop)
    except (ImportError, ValueError) as error:  # what an argument needs is missing, or two exclude each other
        raise SettingsError(f"training arguments: {first_line(error)}") from error
    trainer.add_callback(_Figures(settings.batch_size))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except ImportError as error:  # an optimizer's package is looked for at the first step
        raise SettingsError(f"training arguments: {first_line(error)}") from error
    except OSError as error:
        raise not_writable(settings.output_dir, error) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            f"a batch of {arguments.per_device_train_batch_size} does not fit into memory. Lower "
            "--micro-batch-size or --max-length, train a LoRA adapter (--lora-rank 16), or pass "
            "--set activation_checkpointing=true."
        ) from error
    return trainer


def training_record(
    stage: str,
    start: Start,
    data: Data,
    settings: TrainSettings,
    arguments: TrainingArguments,
    *,
    num_held_out: int,
) -> dict[str, Any]:
    """The facts of a run, plain JSON; ``runs`` decides by them whether a folder is this run's."""
    checkpoint, encoder = start.description.checkpoint, start.encoder
    top = checkpoint.adapter or checkpoint.base
    template = encoder.tokenizer.get_chat_template() if encoder.chat_template else None
    said = asdict(settings)
    return {
        "schema_version": SCHEMA_VERSION,
        "sepo_version": version("sepo"),
        "stage": stage,
        "model": {**asdict(checkpoint.facts), "on_hub": top.commit is not None},
        "dataset": data.facts,
        "settings": {
            **{name: said[name] for name in sorted(said.keys() - _NOT_IN_RECORD)},
            "chat_template_sha256": None if template is None else text_sha256(template),
            "tokenizer_sha256": tokenizer_hash(encoder),
        },
        "training": {
            **{name: _plain(getattr(arguments, name)) for name in _TRAINING},
            **{name: said[name] for name in ("learning_rate", "num_train_epochs", "batch_size", "dtype")},
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
        "environment": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


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
                "with %d %s hardly anything is learned. Lower --batch-size (%d now), or raise --epochs.",
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
            kind = "held out" if held_out else "training"
            log.info("step %d/%d, %s: %s", state.global_step, state.max_steps, kind, ", ".join(shown))


_SHOWN = (
    ("loss", "loss", ".4f"),
    ("margin", "margin", "+.4f"),
    ("accuracy", "ranked right", ".1%"),
    ("logps/chosen", "chosen", ".3f"),
    ("logps/rejected", "rejected", ".3f"),
    ("drift/chosen", "drift of chosen", "+.3f"),
    ("grad_norm", "gradient", ".3g"),
    ("learning_rate", "rate", ".2g"),
)


def hold_out(examples: Sequence[Example], settings: TrainSettings) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and those held out: a random draw of prompts that the seed decides.

    Raises:
        PreferenceError: If none is left to train on.
    """
    wanted = max(1, round(settings.eval_fraction * len(examples))) if settings.eval_fraction else 0
    by_prompt: dict[bytes, list[int]] = {}  # a prompt that is trained on says much of its other pairs
    for i, example in enumerate(examples):
        sequence = example.sequences[0]
        by_prompt.setdefault(sequence.input_ids[: sequence.positions[0]].tobytes(), []).append(i)
    prompts = list(by_prompt.values())
    random = np.random.default_rng((settings.seed, 1))
    drawn: set[int] = set()
    for i in random.permutation(len(prompts)):
        if len(drawn) + len(prompts[i]) <= wanted:
            drawn.update(prompts[i])
    if not drawn:  # every prompt has more pairs than are wanted
        drawn.update(random.permutation(len(examples))[:wanted].tolist())
    train = [example for i, example in enumerate(examples) if i not in drawn]
    if not train:
        raise PreferenceError(
            f"{len(examples)} rows and --eval-fraction {settings.eval_fraction} leave none to train on."
        )
    return train, [examples[i] for i in sorted(drawn)]


def _selected_only(example: Example) -> Example:
    return replace(example, sequences=tuple(map(selected_only, example.sequences)))


def _figures(trainer: StageTrainer, held_out: Sequence[Example]) -> dict[str, Any]:
    """Figures of the held-out examples before and after; without any, of the first and the last log."""
    prefix = "eval_" if held_out else ""
    step = trainer.state.global_step
    history = trainer.state.log_history
    if held_out and not any("eval_loss" in entry and entry["step"] == step for entry in history):
        trainer.evaluate()
    logged = [entry for entry in history if f"{prefix}loss" in entry]

    def shown(entry: Mapping[str, float]) -> dict[str, float]:
        named = {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}
        return {name: value for name, value in named.items() if name.startswith(_RECORDED)}

    if not logged:
        return {}
    return {"held_out": bool(held_out), "start": shown(logged[0]), "end": shown(logged[-1])}


def _save(trainer: StageTrainer, start: Start, output_dir: Path, record: dict[str, Any]) -> None:
    """The model, its card and, last, the record that says that all is there."""
    model: Any = trainer.model
    if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise TrainingError("the last step made weights that are no finite numbers. Lower --learning-rate.")
    # the Trainer switches the cache off, and generation needs it
    model.config.use_cache = getattr(start.description.checkpoint.config, "use_cache", True)
    _stop_at(model.generation_config, start.end_of_turn)
    try:
        trainer.save_model(str(output_dir))
        if trainer.args.should_save:
            (output_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle, and of no use to anyone
            write_card(output_dir, record)
            for path in output_dir.glob("*.safetensors"):  # they are written for their owner alone
                path.chmod((output_dir / "README.md").stat().st_mode)
            finish_training(output_dir, record)
    except OSError as error:
        raise not_writable(output_dir, error) from error


def _stop_at(generation: GenerationConfig, end_of_turn: int | None) -> None:
    """Let ``generate`` stop where the training has ended a turn, if that is not the end of a text already."""
    known = generation.eos_token_id
    ends = known if isinstance(known, list) else [] if known is None else [known]
    if end_of_turn is not None and end_of_turn not in ends:
        generation.eos_token_id = [*ends, end_of_turn]


def _plain(value: Any) -> Any:
    """Enumerations by their value."""
    return getattr(value, "value", value)
