"""Draw charts with matplotlib: SVG in the colours of the page, or PNG for a card."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Replaced in the SVG by the page's CSS variables of the same names; no chart uses these colours otherwise.
_PLACEHOLDERS = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "chosen": "#010206",
    "rejected": "#010207",
}
# Colours of the page's light theme, for standalone pictures.
_LIGHT = {
    "ink": "#1d2127",
    "muted": "#5a616b",
    "line": "#dcdad5",
    "chosen": "#2166ac",
    "rejected": "#b35806",
}
_SIZE = (4.6, 2.9)  # inches; 72 points each
_DPI = 200


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: For links and ids.
        title: What it shows.
        caption: The main figures in sentences, also for readers who cannot see the chart.
        draw: Draws the chart on axes, given colours by name.
    """

    name: str
    title: str
    caption: str
    draw: Callable[["Axes", Mapping[str, str]], None]


def svg(chart: Chart) -> str:
    """The chart as an ``<svg>`` element, byte-identical for the same figures.

    Raises:
        SettingsError: If matplotlib is not installed.
    """
    drawn = _drawn(chart, _PLACEHOLDERS, "svg", transparent=True, metadata={"Date": None}).decode()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', drawn)
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", drawn)  # make ids unique on the page
    drawn = re.sub(r"font-family: [^;\"]*;? ?", "", drawn)  # the page sets its own
    for name, colour in _PLACEHOLDERS.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    return drawn


def png(chart: Chart) -> bytes:
    """The chart as a PNG, dark on white, byte-identical for the same figures.

    Raises:
        SettingsError: If matplotlib is not installed.
    """
    return _drawn(chart, _LIGHT, "png", dpi=_DPI, metadata={"Software": None})


def _drawn(chart: Chart, colours: Mapping[str, str], kind: str, **options: Any) -> bytes:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("charts need matplotlib. Install it: pip install 'sepo[report]'.") from error
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sepo",
        "font.size": 10,
        "text.color": colours["ink"],
        "axes.edgecolor": colours["line"],
        "axes.labelcolor": colours["muted"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": colours["line"],
        "grid.linewidth": 0.6,
        "hatch.linewidth": 0.6,
        "xtick.color": colours["line"],
        "ytick.color": colours["line"],
        "xtick.labelcolor": colours["muted"],
        "ytick.labelcolor": colours["muted"],
        "legend.frameon": False,
        "legend.fontsize": 10,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        chart.draw(axes, colours)
        written = io.BytesIO()
        figure.savefig(written, format=kind, **options)
    return written.getvalue()
