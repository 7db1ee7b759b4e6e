"""A training run's folder: what it is, so that the same command goes on and another is refused.

``sepo_training.json`` holds the record of the run from its start; the finished model, its
card and the figures come last. Checkpoints are the Trainer's.
"""

import json
import re
from pathlib import Path
from typing import Any

from sepo_data.errors import OutputError
from sepo_data.hub_files import RECORD_NAME
from sepo_data.shards import differences, json_bytes, write_atomically

SCHEMA_VERSION = "1.0"

_IDENTITY = ("stage", "model", "dataset", "settings", "training")  # what changes the trained weights
_NAMES = ("name", "on_hub", "card", "restricted")  # of model and dataset: where they are is not what they are


def open_training(output_dir: Path, record: dict[str, Any], *, may_write: bool) -> dict[str, Any] | None:
    """Begin a run in a folder, or find the one that was begun there.

    Args:
        output_dir: The folder; made if it is missing.
        record: Facts of this run.
        may_write: Whether this process writes; one of a distributed run does.

    Returns:
        The finished run's record; None if there is something to train.

    Raises:
        OutputError: If the folder cannot be written, holds something else, or another run.
    """
    path = output_dir / RECORD_NAME
    found = _read(path)
    if found is not None:
        _refuse_other_run(output_dir, found, record)
        return found if found.get("finished") else None
    if not may_write:
        return None
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if strange := sorted(item.name for item in output_dir.iterdir()):
            raise OutputError(
                f"{output_dir} holds {strange[0]} and no run of sepo. Choose another --output-dir."
            )
        write_atomically(path, json_bytes({**record, "finished": False}))
    except OSError as error:
        raise not_writable(output_dir, error) from error
    return None


def last_checkpoint(output_dir: Path) -> str | None:
    """The newest checkpoint that is complete: the Trainer writes its state last."""
    steps = {
        int(match[1]): path
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / "trainer_state.json").is_file()
    }
    return str(steps[max(steps)]) if steps else None


def finish_training(output_dir: Path, record: dict[str, Any]) -> None:
    """Write the record of a run whose model is saved."""
    write_atomically(output_dir / RECORD_NAME, json_bytes({**record, "finished": True}))


def not_writable(output_dir: Path, error: OSError) -> OutputError:
    """The error for a folder that cannot be written."""
    return OutputError(
        f"{output_dir} cannot be written ({error.strerror or error}). Make room and run the same command "
        "again, which goes on from the last checkpoint; or choose another --output-dir."
    )


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}). Delete {path.parent} and run again.") from error


def _refuse_other_run(output_dir: Path, found: dict[str, Any], record: dict[str, Any]) -> None:
    differing = [
        f"{name} {theirs!r}, this run has {ours!r}"
        for name, theirs, ours in differences(_identity(found), _identity(record))
    ]
    if differing:
        raise OutputError(
            f"{output_dir} was made with {'; '.join(differing)}. Choose another --output-dir to keep both."
        )


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    return {
        part: {key: value for key, value in facts.items() if key not in _NAMES}
        if isinstance(facts := record.get(part), dict)
        else facts
        for part in _IDENTITY
    }
