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
        folder: Of ``sepo-train``; what its last checkpoint has logged is shown if it goes on.
        output: The file; None: ``report.html`` in the folder.

    Returns:
        Where it is.

    Raises:
        SettingsError: If it has logged nothing yet, or matplotlib is not installed.
        OutputError: If the folder cannot be read, or the page cannot be written.
    """
    record = read_record(folder)
    finished = record is not None and record.get("finished")
    place = folder if finished else Path(last_checkpoint(folder) or folder)
    history, steps = _logged(place / TRAINER_STATE)
    if record is None or not history:
        raise SettingsError(
            f"{folder}: no step of this run is logged yet. Wait for its first checkpoint, or let the same "
            "command finish."
        )
    path = output or folder / "report.html"
    write_page(path, render_run(folder.resolve().name, record, history, steps))
    return path


def render_run(name: str, record: Record, history: Sequence[Logged], steps: int) -> str:
    """The page as HTML.

    Args:
        name: What the model is called.
        record: What ``sepo_training.json`` says.
        history: What the Trainer logged.
        steps: How many the run has in all.
    """
    # a finished run's figures are those of its record; another's are what it has logged so far
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
    """What the Trainer logged, and how many steps the run has; nothing if there is no such file."""
    if not path.is_file():
        return [], 0
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return [dict(entry) for entry in state["log_history"]], int(state["max_steps"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{path} cannot be read ({error}). Train again, or copy it again.") from error
