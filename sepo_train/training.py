"""From examples to a trained model in its folder, shared by all stages."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, TrainingArguments, set_seed

from sepo_data.errors import PreferenceError, SettingsError, TrainingError, first_line
from sepo_data.hub.pushing import check_push_target
from sepo_data.models.batching import rope_switches
from sepo_data.models.checkpoints import ADAPTER_CONFIG, BASE
from sepo_data.models.logprobs import out_of_memory
from sepo_data.runs.progress import NO_PROGRESS, Progress

from .callbacks import _Figures, _Steps
from .cost import COSTS
from .distance import NEW_TOKENS, PROMPTS, Distance
from .examples import Example, all_selected_only, hold_out
from .figures import Figures, run_figures
from .folder import (
    Record,
    alone,
    finish_training,
    last_checkpoint,
    leave_models,
    not_writable,
    open_training,
    remove_checkpoints,
)
from .inputs import Data, Start
from .model_card import write_card
from .objectives import Objective
from .publishing import TRAINED, push_model
from .rates import warn_of_rate
from .record import training_record
from .settings import TrainSettings
from .trainable import load_trainable
from .trainer import StageTrainer

log = logging.getLogger("sepo")


@dataclass(frozen=True)
class TrainReport:
    """The result of a run.

    Attributes:
        output_dir: The folder.
        record: Content of ``sepo_training.json``; None if the run was asked to stop.
        commit: Commit of the pushed model on the Hub; None if it was not pushed.
    """

    output_dir: Path
    record: Record | None
    commit: str | None = None


@dataclass(frozen=True)
class Training:
    """What is trained, on which data and how, before weights are loaded.

    Attributes:
        stage: ``sft``, ``dpo`` or ``sepo``.
        start: The model, and how it reads.
        data: What to train on.
        settings: The stage's.
        arguments: Made from them by `arguments.training_arguments`.
        objective: The stage's.
        prepare: Finishes the examples once it is clear that they are needed.
    """

    stage: str
    start: Start
    data: Data
    settings: TrainSettings
    arguments: TrainingArguments
    objective: Objective
    prepare: Callable[[list[Example]], list[Example]] = list

    def __post_init__(self) -> None:
        """Refuse to train on nothing.

        Raises:
            PreferenceError: With the reasons for dropped rows.
        """
        if not self.data.examples:
            hints = {reason: f" ({detail.rstrip('.')})" for reason, detail in self.data.details.items()}
            reasons = [
                f"{count:,} {reason}{hints.get(reason, '')}" for reason, count in self.data.dropped.items()
            ]
            name = self.data.facts["name"]
            raise PreferenceError(f"{name}: nothing is left to train on: {', '.join(reasons)}.")


def run_training(
    training: Training,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = NO_PROGRESS,
) -> TrainReport:
    """Train a model on examples, and save it with a card and a record.

    The folder remembers the run: the same call resumes from the last checkpoint, and does
    nothing if the model is complete.

    Args:
        training: What is trained.
        stop: Asked after every step; True ends the run there, with a checkpoint.
        progress: Told how far the run is, in steps.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    start, data, settings, arguments = training.start, training.data, training.settings, training.arguments
    _, held_out = hold_out(data.examples, settings)
    private = settings.private or data.facts["restricted"]
    record = training_record(training.stage, start, data, settings, arguments, num_held_out=len(held_out))
    output_dir = settings.output_dir
    with alone(output_dir, may_write=arguments.should_save):
        finished = open_training(output_dir, record, may_write=arguments.should_save)
        if settings.push_to_hub is not None and arguments.should_save:
            check_push_target(settings.push_to_hub, TRAINED, private=private)
        if finished is not None:
            log.info("%s is already complete; more `num_train_epochs` continue it", output_dir)
        else:
            train, held_out = hold_out(training.prepare(data.examples), settings)
            trainer = _trained(training, train, held_out, stop, progress)
            if trainer.stopping:
                return TrainReport(output_dir, None)
            finished = {
                **record,
                "figures": _figures(trainer, held_out),
                "self_check": trainer.self_check,
                **_course(trainer),
            }
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
    training: Training,
    train: Sequence[Example],
    held_out: Sequence[Example],
    stop: Callable[[], bool],
    progress: Progress,
) -> StageTrainer:
    """Train, from the last checkpoint if there is one."""
    settings = training.settings
    trainer = new_trainer(training, training.arguments, train, held_out, stop)
    checkpoint = last_checkpoint(settings.output_dir)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint)
    trainer.add_callback(_Figures(settings.batch_size))
    trainer.add_callback(_Steps(progress))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except ImportError as error:  # an optimizer's package is only needed at the first step
        raise SettingsError(f"`training_arguments`: {first_line(error)}") from error
    except OSError as error:
        raise not_writable(settings.output_dir, error) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise no_memory(training.arguments) from error
    return trainer


def new_trainer(
    training: Training,
    arguments: TrainingArguments,
    train: Sequence[Example],
    held_out: Sequence[Example],
    stop: Callable[[], bool],
) -> StageTrainer:
    """Load the weights and make the trainer of a stage.

    Raises:
        SettingsError: If a package for an argument is missing, or two arguments exclude each other.
    """
    set_seed(training.settings.seed)  # a new adapter is initialised at random
    model = load_trainable(training.start.description, training.settings)
    switches = rope_switches(model.config.get_text_config())
    selected = [all_selected_only(example, switches) for example in train]
    tokenizer = training.start.description.tokenizer
    warn_of_rate(training.stage, model, training.settings)
    try:
        return StageTrainer(
            model,
            arguments,
            training.objective,
            selected,
            held_out,
            tokenizer,
            stop,
            distance=_distance(training, arguments, held_out or train),
            save_at=training.settings.save_at,
        )
    except (ImportError, ValueError) as error:
        raise SettingsError(f"`training_arguments`: {first_line(error)}") from error


def _distance(
    training: Training, arguments: TrainingArguments, examples: Sequence[Example]
) -> Distance | None:
    settings = training.settings
    if settings.max_kl is None:
        return None
    if arguments.fsdp or arguments.deepspeed:
        raise SettingsError(
            "`max_kl` needs a whole model in each process, and FSDP and DeepSpeed divide it. Leave it out, "
            "and run sepo evaluate on checkpoints."
        )
    return Distance(training.start, settings, examples, settings.max_kl)


def no_memory(arguments: TrainingArguments) -> TrainingError:
    """The error for a step that does not fit."""
    return TrainingError(
        f"a batch of {arguments.per_device_train_batch_size} does not fit into memory. Lower "
        "`micro_batch_size` or `max_length`, train a LoRA adapter (`lora_rank=16`), or pass "
        "`training_arguments.activation_checkpointing=true`."
    )


def _figures(trainer: StageTrainer, held_out: Sequence[Example]) -> Figures:
    """Figures of the run, after one more evaluation if its last step was not evaluated."""
    step = trainer.state.global_step
    history = trainer.state.log_history
    if held_out and not any("eval_loss" in entry and entry["step"] == step for entry in history):
        trainer.evaluate()
    return run_figures(history, held_out=bool(held_out))


def _course(trainer: StageTrainer) -> Record:
    """What the training cost, and where it ended by ``max_kl``."""
    last = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    cost = {name: last.get(f"cost/{name}", 0) for name in COSTS}
    found: Record = {"cost": {**cost, "seconds": round(cost["seconds"], 2)}}
    if "kl" in last:
        measured = {"kl": last["kl"], "step": last["step"], "prompts": PROMPTS, "new_tokens": NEW_TOKENS}
        found["distance"] = measured
    return found


def _save(trainer: StageTrainer, start: Start, output_dir: Path, record: Record) -> None:
    """Save the model, its card and, last, the record, which marks it complete."""
    model: Any = trainer.model
    if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
        raise TrainingError("the last step made weights that are not finite numbers. Lower `learning_rate`.")
    # the Trainer switches the cache off, and generation needs it
    model.config.use_cache = getattr(start.description.checkpoint.config, "use_cache", True)
    _stop_at(model.generation_config, start.end_of_turn)
    try:
        trainer.save_model(str(output_dir))
        if trainer.args.should_save:
            (output_dir / "training_args.bin").unlink(missing_ok=True)  # an unneeded pickle
            write_card(output_dir, record)
            for path in output_dir.glob("*.safetensors"):  # they are created readable by their owner only
                path.chmod((output_dir / "README.md").stat().st_mode)
            trainer.save_state()
            finish_training(output_dir, record)
            if "save_total_limit" not in record["training"].get("set", {}):
                remove_checkpoints(output_dir, trainer.save_at)
                leave_models(output_dir)
    except OSError as error:
        raise not_writable(output_dir, error) from error


def _stop_at(generation: GenerationConfig, end_of_turn: int | None) -> None:
    """Let ``generate`` stop at the end of a turn, unless that already ends a text."""
    known = generation.eos_token_id
    ends = known if isinstance(known, list) else [] if known is None else [known]
    if end_of_turn is not None and end_of_turn not in ends:
        generation.eos_token_id = [*ends, end_of_turn]
