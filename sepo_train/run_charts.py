"""The charts of a training run, over its steps."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sepo_data.report.drawing import Chart

from .figures import Logged

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_Dashes = str | tuple[int, tuple[float, float]]


class _Line(NamedTuple):
    label: str
    name: str  # key in the Trainer's log
    colour: str
    dashes: _Dashes = "-"


_EVAL: _Dashes = (0, (4, 1.5))  # for readers who cannot tell the colours apart


def run_charts(history: Sequence[Logged]) -> list[Chart]:
    """The charts of everything that was logged.

    Args:
        history: Log entries of the Trainer, in order.
    """
    both = (_Line("training", "{}", "rejected"), _Line("eval", "eval_{}", "chosen", _EVAL))

    def of(figure: str) -> list[_Line]:
        return [line._replace(name=line.name.format(figure)) for line in both]

    prefix = "eval_" if any("eval_logps/chosen" in entry for entry in history) else ""
    rows = "eval rows" if prefix else "training batches"
    sides = [
        _Line("chosen", f"{prefix}logps/chosen", "chosen"),
        _Line("rejected", f"{prefix}logps/rejected", "rejected", _EVAL),
    ]
    made = [
        _chart(history, "loss", "Loss", "loss", of("loss"), ".4f"),
        _chart(history, "accuracy", "Accuracy", "pairs with a positive margin (%)", of("accuracy"), ".1%"),
        _chart(history, "margin", "Margin", "margin (nats)", of("margin"), "+z.3f"),
        _chart(
            history, "logps", f"Log-probs of the trained tokens, {rows}", "nats per token", sides, ".3f"
        ),
        _chart(
            history, "rate", "Learning rate", "learning rate",
            [_Line("learning rate", "learning_rate", "ink")], ".2g",
        ),
        _chart(
            history, "gradient", "Gradient norm", "norm before clipping",
            [_Line("gradient norm", "grad_norm", "ink")], ".3g",
        ),
        _chart(
            history, "speed", "Speed, prompt tokens included", "tokens per second",
            [_Line("tokens per second", "tokens_per_second", "ink")], ",.0f",
        ),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


def _chart(
    history: Sequence[Logged], name: str, title: str, ylabel: str, lines: Sequence[_Line], form: str
) -> Chart | None:
    """One chart; None if none of its values were logged."""
    found = [(line, points) for line in lines if (points := _points(history, line.name))]
    if not found:
        return None
    factor = 100 if form.endswith("%") else 1

    def draw(axes: "Axes", colours: Mapping[str, str]) -> None:
        for line, points in found:
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps,
                [factor * value for value in values],
                label=line.label,
                color=colours[line.colour],
                linestyle=line.dashes,
                linewidth=1.8,
                marker="o" if len(points) < 30 else None,
                markersize=3.5,
                clip_on=False,  # keep markers at the ends of the axes whole
            )
        axes.set(xlabel="step", ylabel=ylabel)
        axes.locator_params(axis="x", integer=True)
        if name in ("rate", "gradient", "speed"):
            axes.set_ylim(0, None)
        if len(found) > 1:
            axes.legend(loc="best")

    sentence = "; ".join(
        f"{line.label} {points[0][1]:{form}} at step {points[0][0]:,}, {points[-1][1]:{form}} at step "
        f"{points[-1][0]:,}"
        for line, points in found
    )
    return Chart(name, title, f"{sentence[0].upper()}{sentence[1:]}.", draw)


def _points(history: Sequence[Logged], name: str) -> list[tuple[int, float]]:
    return [
        (int(entry["step"]), entry[name]) for entry in history if name in entry and math.isfinite(entry[name])
    ]
