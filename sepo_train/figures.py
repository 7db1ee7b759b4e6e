"""Metrics of a training run before and after, read from its log, and a verdict on them.

No torch here: the summary of a run, its model card and its page say the same.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

COLLAPSE = -1.0  # nats per token: on average e times less likely than at the start
MOVED = 0.005  # share of the initial loss; smaller changes do not count
_RECORDED = ("loss", "margin", "accuracy", "logps/", "drift/", "length/")  # logged values to keep

# What people look at before and after: name, label, format.
SHOWN = (
    ("loss", "loss", ".4f"),
    ("margin", "margin", "+z.4f"),
    ("accuracy", "accuracy", ".1%"),
    ("logps/chosen", "chosen", ".3f"),
    ("logps/rejected", "rejected", ".3f"),
    ("margin_all", "margin of all tokens", "+z.4f"),
    ("accuracy_all", "accuracy by all tokens", ".1%"),
    ("logps/chosen_all", "all of chosen", ".3f"),
    ("logps/rejected_all", "all of rejected", ".3f"),
)

Logged = Mapping[str, float]


class Lowest(TypedDict):
    """Where the eval loss was lowest."""

    step: int
    loss: float


class Figures(TypedDict, total=False):
    """Figures of a run, see `run_figures`."""

    held_out: bool
    start: dict[str, float]
    end: dict[str, float]
    lowest: Lowest


def run_figures(history: Sequence[Logged], *, held_out: bool) -> Figures:
    """Figures of the held-out examples before and after; without any, of the first and the last log.

    Args:
        history: What the Trainer logged, in its order.
        held_out: Whether rows were held out.

    Returns:
        ``held_out``, ``start``, ``end``, and of held-out rows ``lowest``, the step of the lowest loss and
        that loss; empty if nothing was logged.
    """
    prefix = "eval_" if held_out else ""
    logged = [entry for entry in history if f"{prefix}loss" in entry]
    if not logged:
        return {}
    found: Figures = {
        "held_out": held_out,
        "start": _named(logged[0], prefix),
        "end": _named(logged[-1], prefix),
    }
    if held_out:
        lowest = min(logged, key=lambda entry: entry["eval_loss"])
        found["lowest"] = {"step": int(lowest["step"]), "loss": lowest["eval_loss"]}
    return found


def verdict(figures: Figures) -> str:
    """The verdict on a run, in a line without a full stop; empty if it has no figures.

    Args:
        figures: From `run_figures`.

    Example:
        >>> start, end = {"loss": 0.69, "accuracy": 0.5}, {"loss": 0.6, "accuracy": 0.625}
        >>> verdict({"held_out": True, "start": start, "end": end})
        'better on the eval rows: loss 0.6900 -> 0.6000, accuracy 50.0% -> 62.5%'
    """
    start, end = figures.get("start", {}), figures.get("end", {})
    if "loss" not in start or "loss" not in end:
        return ""
    changes = f"loss {start['loss']:.4f} -> {end['loss']:.4f}"
    if not figures["held_out"]:
        logs = f"; on the training batches {changes}" if start != end else ""  # a single log has no change
        return f"unknown: no rows were held out{logs}"
    if "accuracy" in start and "accuracy" in end:
        changes += f", accuracy {start['accuracy']:.1%} -> {end['accuracy']:.1%}"
    change = (end["loss"] - start["loss"]) / abs(start["loss"] or 1.0)
    how = "worse" if change > MOVED else "better" if change < -MOVED else "unchanged"
    return f"{how} on the eval rows: {changes}"


def run_warnings(figures: Figures) -> list[str]:
    """Warnings for users of the model; settings are in backticks.

    Args:
        figures: From `run_figures`.
    """
    start, end, found = figures.get("start", {}), figures.get("end", {}), list[str]()
    if figures.get("held_out") and "loss" in start and "loss" in end:
        moved = MOVED * abs(start["loss"])
        lowest = figures.get("lowest", Lowest(step=0, loss=end["loss"]))
        if end["loss"] > start["loss"] + moved:
            found.append(
                f"the eval loss rose from {start['loss']:.4f} to {end['loss']:.4f}: the model does worse on "
                "rows that it was not trained on. Lower `learning_rate`, or train on more rows."
            )
        elif end["loss"] > lowest["loss"] + moved:
            found.append(
                f"the eval loss was lowest at step {lowest['step']:,} ({lowest['loss']:.4f}) and has risen "
                f"to {end['loss']:.4f} since. Train for fewer steps: `max_steps={lowest['step']}`."
            )
    for name, what in (("drift/chosen", "the trained tokens"), ("drift/chosen_all", "all tokens")):
        if end.get(name, 0.0) < COLLAPSE:
            found.append(f"{collapse(what, end[name])}. Lower `learning_rate`, or train for fewer steps.")
            break
    return found


def collapse(what: str, drift: float) -> str:
    """The warning that chosen responses became unlikely; ``drift`` in nats per token."""
    return (
        f"{what} of chosen responses are {-drift:.1f} nats less likely than at the start: the model collapses"
    )


def _named(entry: Logged, prefix: str) -> dict[str, float]:
    named = {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}
    return {name: value for name, value in named.items() if name.startswith(_RECORDED)}
