"""One annotated row as a heat map in a notebook, without scripts."""

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ..errors import SchemaError, visible
from ..pieces import one_text
from ..schema import SIDES, Row

_SPAN = Markup('<span title="{}" style="background:rgba({},{:.2f});{}">{}</span>')
_SIDE = Markup(
    '<div style="flex:1 1 20em"><b>{}</b> {:+.2f} nats<div dir="auto" style="white-space:pre-wrap;'
    'overflow-wrap:anywhere;line-height:1.8">{}</div></div>'
)
_BLUE, _ORANGE = "67,147,195", "241,163,64"  # as on the page; transparent, for light and dark
_SELECTED = "text-decoration:underline 2px;text-underline-offset:3px"


class HeatMap:
    """A heat map that notebooks display.

    Attributes:
        html: Its HTML.
    """

    def __init__(self, html: str) -> None:
        self.html = html

    def _repr_html_(self) -> str:
        return self.html


def show(row: Row) -> HeatMap:
    """Show both responses of a row, with tokens coloured by reward and selected ones underlined.

    Args:
        row: A row of an annotated dataset, as loaded by ``datasets``.

    Returns:
        An object for a notebook: tokens that the oracle finds more likely than the reference are blue, less
        likely ones orange; the tooltip of a token has its reward in nats.

    Raises:
        SchemaError: If it is not a row of an annotated dataset.

    Example:
        >>> show(load_annotated("me/prefs-sepo")["train"][13])
    """
    try:
        rewards = [np.abs(_rewards(row, side)) for side in SIDES]
        scale = float(np.quantile(np.concatenate(rewards), 0.97)) or 1.0
        sides = [_SIDE.format(side, row[f"{side}_reward"], _tokens(row, side, scale)) for side in SIDES]
    except KeyError as error:
        raise SchemaError(
            f"not a row of an annotated dataset: {error.args[0]} is missing. Pass a row as loaded."
        ) from error
    html = Markup('<div style="display:flex;flex-wrap:wrap;gap:1.5em">{}</div>').format(
        Markup("").join(sides)
    )
    return HeatMap(str(html))


def _rewards(row: Row, side: str) -> npt.NDArray[np.float64]:
    ends = [] if row[f"{side}_eos_reward"] is None else [row[f"{side}_eos_reward"]]
    return np.array([*row[f"{side}_token_rewards"], *ends], dtype=np.float64)


def _tokens(row: Row, side: str, scale: float) -> Markup:
    places = (row.get(f"{side}_token_message"), row.get(f"{side}_token_field"))
    whole = one_text(row[side], row[f"{side}_token_start"], row[f"{side}_token_end"], *places)
    rewards, mask = _rewards(row, side), [*row[f"{side}_token_mask"], row[f"{side}_eos_mask"]]
    spans, done = list[Markup](), 0
    for i, reward in enumerate(rewards.tolist()):
        text = "⏎ end of turn"
        if i < whole.end.size:
            # byte tokens may share a character, which is shown in the first of them
            text = whole.text[max(done, int(whole.start[i])) : int(whole.end[i])] or "·"
            done = max(done, int(whole.end[i]))
        title = f"{reward:+.3f} nats, {'selected' if mask[i] else 'not selected'}"
        shade = min(1.0, abs(reward) / scale) * 0.75
        look = (_BLUE if reward > 0 else _ORANGE, shade, _SELECTED if mask[i] else "")
        spans.append(_SPAN.format(title, *look, visible(text)))
    return Markup("").join([*spans, visible(whole.text[done:])])
