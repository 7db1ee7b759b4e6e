"""A training run's folder: it identifies the run, so the same command resumes and another is refused.

``sepo_training.json`` is written at the start of a run; the finished model, its
card and the figures come last. Checkpoints are the Trainer's.
"""

import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from sepo_data.errors import OutputError, described_differences
from sepo_data.files import json_bytes, write_atomically

from .figures import Figures

RECORD_NAME = "sepo_training.json"
TRAINER_STATE = "trainer_state.json"
_TRAINING_STATE = ("optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "training_args.bin")
_LOCK_NAME = ".sepo_training.lock"
_IDENTITY = ("stage", "model", "dataset", "settings", "training")  # what determines the trained weights
_NAMES = ("name", "on_hub", "card", "restricted")  # of model and dataset: their location, not their identity
# Of TrainingArguments: logging, saving, evaluating and parallelism; they do not affect the result.
_HARMLESS = re.compile(
    "logging_|log_|save_|eval_|report_to|run_name|dataloader_|ddp_|fsdp|deepspeed|accelerator_config|"
    "activation_checkpointing|gradient_checkpointing|torch_empty_cache|torch_compile|use_liger|project|trackio"
)


class ModelPart(TypedDict, total=False):
    """The trained model in the record; an adapter has a ``base``."""

    name: str
    revision: str
    base: str | None
    on_hub: bool
    card: dict[str, object]


class DatasetPart(TypedDict, total=False):
    """What the record says about the dataset."""

    name: str
    revision: str
    config: str | None
    split: str
    on_hub: bool
    card: dict[str, object]
    restricted: bool


class RowsPart(TypedDict):
    """Counts: rows trained on, held out, dropped by reason, and notes."""

    used: int
    held_out: int
    dropped: dict[str, int]
    notes: dict[str, int]


class Record(TypedDict, total=False):
    """The content of ``sepo_training.json``; facts unknown to an older version are missing."""

    schema_version: str
    sepo_version: str
    stage: str
    model: ModelPart
    dataset: DatasetPart
    settings: dict[str, object]
    training: dict[str, Any]
    rows: RowsPart
    transfer: str | None
    figures: Figures
    self_check: float | None
    cost: dict[str, float]
    distance: dict[str, float]
    environment: dict[str, str]
    finished: bool


@contextmanager
def alone(output_dir: Path, *, may_write: bool) -> Iterator[None]:
    """Lock a folder against other runs.

    Args:
        output_dir: The folder; created if missing.
        may_write: Whether this process writes; one process of a distributed run does.

    Raises:
        OutputError: If another process is there, or the folder cannot be written.
    """
    if not may_write:
        yield
        return
    check_folder(output_dir)
    lock = FileLock(output_dir / _LOCK_NAME, timeout=0)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"{output_dir}: another process is training there. Wait for it, or choose another `output_dir`."
        ) from error
    except OSError as error:
        raise not_writable(output_dir, error) from error
    try:
        yield
    finally:
        lock.release()
        (output_dir / _LOCK_NAME).unlink(missing_ok=True)


def check_folder(output_dir: Path) -> None:
    """Refuse a folder with other content, before any work is done.

    Raises:
        OutputError: If it is a file, or contains files but no run of sepo.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise OutputError(f"{output_dir} is a file. Choose another `output_dir`.")
    if not output_dir.exists() or (output_dir / RECORD_NAME).exists():
        return
    names = sorted(item.name for item in output_dir.iterdir() if not item.name.startswith("."))
    strange = [name for name in names if not name.startswith((RECORD_NAME, "checkpoint-"))]
    if strange:
        raise OutputError(
            f"{output_dir} contains {strange[0]}, but no run of sepo. Choose another `output_dir`."
        )


def open_training(output_dir: Path, record: Record, *, may_write: bool) -> Record | None:
    """Begin a run in a folder, or find the one begun there.

    A run without a checkpoint has nothing to lose, so another may take its folder. More epochs
    or steps continue a run, finished or not.

    Args:
        output_dir: The folder.
        record: Facts of this run.
        may_write: Whether this process writes.

    Returns:
        The record of a finished run; None if there is something to train.

    Raises:
        OutputError: If the folder cannot be written, or contains something else or another run.
    """
    path = output_dir / RECORD_NAME
    found = read_record(output_dir)
    if found is not None and (found.get("finished") or last_checkpoint(output_dir) is not None):
        longer = _is_longer(found, record)
        if not longer:
            _refuse_other_run(output_dir, found, record)
        if not longer or not may_write:
            return found if found.get("finished") and not longer else None
    if not may_write:
        return None
    try:
        write_atomically(path, json_bytes({**record, "finished": False}))
    except OSError as error:
        raise not_writable(output_dir, error) from error
    return None


def last_checkpoint(output_dir: Path) -> str | None:
    """The newest complete checkpoint, or a finished model; the Trainer writes its state last."""
    steps = {
        int(match[1]): path
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / TRAINER_STATE).is_file()
    }
    if steps:
        return str(steps[max(steps)])
    return str(output_dir) if (output_dir / TRAINER_STATE).is_file() else None


def remove_checkpoints(output_dir: Path, kept: Collection[int] = ()) -> None:
    """Delete the checkpoints of all steps but some."""
    for path in output_dir.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir() and int(match[1]) not in kept:
            shutil.rmtree(path)


def leave_models(output_dir: Path) -> None:
    """Delete from the checkpoints of a finished run what only resuming needs."""
    for path in output_dir.glob("checkpoint-*"):
        (path / TRAINER_STATE).unlink(missing_ok=True)  # first, since no run resumes without it
        for pattern in _TRAINING_STATE:
            for file in path.glob(pattern):
                file.unlink()


def finish_training(output_dir: Path, record: Record) -> None:
    """Write the record once the model is saved.

    Raises:
        OutputError: If the model is missing, for instance because a sharded one was not gathered.
    """
    if not any(output_dir.glob("*.safetensors")):
        raise OutputError(
            f"{output_dir}: the model was saved in parts that belong to its processes. Save it whole: with "
            "FSDP a FULL_STATE_DICT, with DeepSpeed stage3_gather_16bit_weights_on_model_save. The same "
            "command then resumes from the last checkpoint."
        )
    write_atomically(output_dir / RECORD_NAME, json_bytes({**record, "finished": True}))


def not_writable(output_dir: Path, error: OSError) -> OutputError:
    """The error for a folder that cannot be written."""
    return OutputError(
        f"{output_dir} cannot be written ({error.strerror or error}). Make room and run the same command "
        "again, which resumes from the last checkpoint; or choose another `output_dir`."
    )


def read_record(folder: Path) -> Record | None:
    """What ``sepo_training.json`` says; None if there is none.

    Raises:
        OutputError: If it cannot be read.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    try:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}). Delete {folder} and run again.") from error


def _refuse_other_run(output_dir: Path, found: Record, record: Record) -> None:
    if differing := described_differences(_identity(found), _identity(record)):
        raise OutputError(
            f"{output_dir} was made with {differing}. Choose another `output_dir` to keep both."
        )


def _is_longer(found: Record, record: Record) -> bool:
    """Whether a run is the same but for more epochs or steps."""
    theirs, ours = _identity(found), _identity(record)
    (steps, epochs), (more_steps, more_epochs) = _length_of(theirs), _length_of(ours)
    if theirs != ours:
        return False
    return more_steps > steps > 0 if more_steps > 0 else steps <= 0 and more_epochs > epochs


def _length_of(identity: dict[str, Any]) -> tuple[float, float]:
    """Remove and return steps (0 or less if epochs count) and epochs."""
    training = identity["training"]
    return float(training.pop("max_steps", -1)), float(training.pop("num_train_epochs", 1))


def _identity(record: Record) -> dict[str, Any]:
    values: dict[str, object] = {**record}
    found = {part: values.get(part) for part in _IDENTITY}
    for part, facts in found.items():
        if isinstance(facts, dict):
            found[part] = {name: value for name, value in facts.items() if name not in _NAMES}
    training = dict(record.get("training", {}))
    set_ = {name: value for name, value in training.pop("set", {}).items() if not _HARMLESS.match(name)}
    return {**found, "training": {**training, "set": set_}}
