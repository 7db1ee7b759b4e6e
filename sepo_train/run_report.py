"""The page of a training run: its curves, figures before and after, and a verdict."""

import json
from collections.abc import Sequence
from pathlib import Path

from sepo_data.errors import OutputError, SettingsError
from sepo_data.report.html import render, write_page

from .figures import SHOWN, Logged, run_figures, run_warnings, verdict
from .folder import TRAINER_STATE, Record, last_checkpoint, read_record
from .run_charts import run_charts

STAGES = {"sft": "supervised fine-tuning", "dpo": "DPO", "sepo": "SePO"}


def report_run(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a training run, finished or not.

    Args:
        folder: Folder of ``sepo-train``; for an unfinished run, the log of its last checkpoint is shown.
        output: The file; None: ``report.html`` in the folder.

    Returns:
        The path of the file.

    Raises:
        SettingsError: If nothing is logged yet, or matplotlib is not installed.
        OutputError: If the folder cannot be read, or the page cannot be written.
    """
    record = read_record(folder)
    finished = record is not None and record.get("finished")
    place = folder if finished else Path(last_checkpoint(folder) or folder)
    history, steps = _logged(place / TRAINER_STATE)
    if record is None or not history:
        raise SettingsError(
            f"{folder}: this run has logged no step yet. Wait for its first checkpoint, or let the same "
            "command finish."
        )
    path = output or folder / "report.html"
    write_page(path, render_run(folder.resolve().name, record, history, steps))
    return path


def render_run(name: str, record: Record, history: Sequence[Logged], steps: int) -> str:
    """Render the page as HTML.

    Args:
        name: Name of the model.
        record: Content of ``sepo_training.json``.
        history: Log entries of the Trainer.
        steps: Total number of steps of the run.
    """
    # a finished run has its figures in the record; for an unfinished one they come from the log so far
    figures = record.get("figures") or run_figures(history, held_out=bool(record["rows"]["held_out"]))
    start, end = figures.get("start", {}), figures.get("end", {})
    how, _, changes = verdict(figures).partition(": ")
    return render(
        "run.html.j2",
        package="sepo_train",
        charts=run_charts(history),
        name=name,
        r=record,
        stage=STAGES.get(record["stage"], record["stage"]),
        step=max(int(entry["step"]) for entry in history),
        steps=steps,
        how=how,
        changes=changes,
        warnings=run_warnings(figures),
        held_out=figures.get("held_out", False),
        figures=[
            (_label(name, label), f"{start[name]:{form}}", f"{end[name]:{form}}")
            for name, label, form in SHOWN
            if name in start and name in end
        ],
    )


def _label(name: str, label: str) -> str:
    return f"log-prob, {label}" if name.startswith("logps/") else label


def _logged(path: Path) -> tuple[list[dict[str, float]], int]:
    """Log entries of the Trainer and the number of steps; empty if the file does not exist."""
    if not path.is_file():
        return [], 0
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return [dict(entry) for entry in state["log_history"]], int(state["max_steps"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{path} cannot be read ({error}). Copy the folder or train again.") from error
