"""The charts of an annotated dataset."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..schema import SIDES, Side
from ..selection import SelectionRule
from .drawing import Chart
from .kinds import KINDS
from .statistics import POSITIONS, RATIOS, Statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARGIN_BARS = 40
_POINTS = 600  # of the chart of margins against length: more say no more, and weigh
_DASHES = {"chosen": "-", "rejected": (0, (4, 1.5))}  # for readers who cannot tell the colours apart
_KIND_NAMES = {"blank": "blanks", "newline": "newlines", "number": "numbers", "word": "words"}


def charts(statistics: Statistics, selection: SelectionRule) -> list[Chart]:
    """The charts of a dataset.

    Args:
        statistics: Statistics of its rows.
        selection: Its selection rule.
    """
    return [
        _rewards(statistics),
        _margins(statistics),
        _carried(statistics, selection),
        _kinds(statistics),
        _positions(statistics),
        _lengths(statistics),
    ]


def _rewards(found: Statistics) -> Chart:
    def draw(axes: "Axes", colours: Mapping[str, str]) -> None:
        for name, side in found.sides.items():
            axes.stairs(
                100 * side.histogram / side.tokens, found.edges, color=colours[name], label=name,
                linestyle=_DASHES[name], linewidth=1.6, fill=False,
            )  # fmt: skip
        axes.axvline(0, color=colours["muted"], linewidth=0.8)
        axes.set(xlabel="token reward (nats)", ylabel="% of tokens (log scale)", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(loc="upper left")

    means = {
        name: np.nansum([text.reward * text.count for text in side.texts]) / side.tokens
        for name, side in found.sides.items()
    }
    return Chart(
        "rewards",
        "Token rewards",
        f"Mean reward per token: {means['chosen']:+.3f} nats in chosen responses, {means['rejected']:+.3f} "
        "in rejected ones. Positive: more likely under the oracle than under the reference.",
        draw,
    )


def _margins(found: Statistics) -> Chart:
    def draw(axes: "Axes", colours: Mapping[str, str]) -> None:
        low, high = np.quantile(found.margins, [0.005, 0.995])
        low, high = min(low, 0.0), max(high, 0.0)
        step = ((high - low) or 1.0) / _MARGIN_BARS
        edges = np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step  # one of them is 0
        counts, _ = np.histogram(found.margins, edges)
        for wrong, colour in ((True, "rejected"), (False, "chosen")):
            there = (edges[:-1] < -step / 2) == wrong
            axes.bar(
                edges[:-1][there], counts[there], step * 0.9, align="edge", color=colours[colour],
                hatch="////" if wrong else None, edgecolor=colours["line"] if wrong else "none", linewidth=0,
            )  # fmt: skip
        axes.axvline(0, color=colours["muted"], linewidth=0.8)
        axes.set(xlabel="margin: chosen − rejected reward (nats)", ylabel="pairs")

    health = found.health
    return Chart(
        "margins",
        "Margins",
        f"The oracle agrees with {health.accuracy:.1%} of the {health.pairs:,} labels and inverts "
        f"{health.inverted:.1%} (hatched). Mean margin {health.margin:+.2f} nats.",
        draw,
    )


def _line(axes: "Axes", colours: Mapping[str, str], side: Side, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
    axes.plot(x, y, label=side, color=colours[side], linestyle=_DASHES[side], linewidth=1.8)


def _carried(found: Statistics, selection: SelectionRule) -> Chart:
    at_run = {side: selection.ratio(side) for side in SIDES}

    def draw(axes: "Axes", colours: Mapping[str, str]) -> None:
        for name, side in found.sides.items():
            _line(axes, colours, name, np.multiply(100, RATIOS), 100 * side.carried)
            if selection.rule == "ratio":
                ratio = at_run[name]
                axes.axvline(100 * ratio, color=colours["muted"], linewidth=0.8, linestyle=":")
                share = 100 * np.interp(ratio, RATIOS, side.carried)
                axes.plot(100 * ratio, share, "o", color=colours[name], markersize=5)
        axes.plot([0, 100], [0, 100], color=colours["line"], linewidth=1)
        axes.set(
            xlabel="share of tokens selected (%)", ylabel="share of |reward| carried (%)",
            xlim=(0, 100), ylim=(0, 102),
        )  # fmt: skip
        axes.legend(loc="upper left")

    health = found.health
    return Chart(
        "carried",
        "Reward carried by the selected tokens",
        f"The selected {health.chosen.selected:.1%} of the chosen tokens carry "
        f"{health.chosen.reward_carried:.1%} of the |reward|, the selected {health.rejected.selected:.1%} of "
        f"the rejected ones {health.rejected.reward_carried:.1%}. Diagonal: random tokens.",
        draw,
    )


def _kinds(found: Statistics) -> Chart:
    there = [i for i in reversed(range(len(KINDS))) if any(side.kind_tokens[i] for side in found.sides)]
    labels = [_KIND_NAMES.get(KINDS[i], KINDS[i]) for i in there]
    shares = found.sides.map(
        lambda side: 100 * side.kind_selected[there] / np.maximum(1, side.kind_tokens[there])
    )

    def draw(axes: "Axes", colours: Mapping[str, str]) -> None:
        places = np.arange(len(there))[::-1].astype(float)
        for (name, side), offset in zip(found.sides.items(), (0.19, -0.19), strict=True):
            axes.barh(places + offset, shares[name], 0.34, color=colours[name], label=name)
            base = 100 * side.selected / side.tokens
            axes.axvline(base, color=colours["muted"], linewidth=0.8, linestyle=_DASHES[name])
        axes.set_yticks(places, labels)
        axes.set(xlabel="selected (%)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="best")

    sentences = []
    for name in SIDES:
        each = zip(labels, shares[name], strict=True)
        sentences.append(f"{name}: {', '.join(f'{label} {share:.0f}%' for label, share in each)}")
    return Chart(
        "kinds",
        "Selected tokens by kind",
        f"Selected share of each kind of token; vertical lines: share of all tokens. {'; '.join(sentences)}.",
        draw,
    )


def _positions(found: Statistics) -> Chart:
    def draw(axes: "Axes", colours: Mapping[str, str]) -> None:
        middles = (np.arange(POSITIONS) + 0.5) * 100 / POSITIONS
        for name, side in found.sides.items():
            _line(axes, colours, name, middles, side.by_position)
        axes.axhline(0, color=colours["muted"], linewidth=0.8)
        axes.set(xlabel="position in the response (%)", ylabel="mean reward (nats)", xlim=(0, 100))
        axes.legend(loc="best")

    ends = [
        f"{name} {side.by_position[0]:+.2f} and {side.by_position[-1]:+.2f} nats"
        for name, side in found.sides.items()
    ]
    return Chart(
        "positions",
        "Reward along the response",
        f"Mean token reward by position. First and last twentieth: {'; '.join(ends)}.",
        draw,
    )


def _lengths(found: Statistics) -> Chart:
    rows = found.margins.size
    shown = np.unique(np.linspace(0, rows - 1, min(rows, _POINTS)).round().astype(np.int64))

    def draw(axes: "Axes", colours: Mapping[str, str]) -> None:
        margins, longer = found.margins[shown], found.longer[shown]
        for wrong, colour in ((False, "chosen"), (True, "rejected")):
            there = (margins < 0) == wrong
            axes.plot(
                longer[there], margins[there], "x" if wrong else "o", color=colours[colour],
                markersize=3.6, alpha=0.65, markeredgewidth=1.1 if wrong else 0,
            )  # fmt: skip
        axes.axhline(0, color=colours["muted"], linewidth=0.8)
        axes.axvline(0, color=colours["muted"], linewidth=0.8)
        axes.set(xlabel="tokens: chosen − rejected", ylabel="margin (nats)")

    drawn = "" if shown.size == rows else f" {shown.size:,} pairs are shown."
    return Chart(
        "lengths",
        "Margin and length",
        f"Correlation of margin and length difference: {found.health.length_correlation:+.2f}. "
        f"Chosen is longer in {found.health.chosen_longer:.1%} of the pairs. Crosses: wrong order.{drawn}",
        draw,
    )
