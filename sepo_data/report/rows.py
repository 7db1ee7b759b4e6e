"""Choose the rows that a page shows, and store them as JSON."""

import base64
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from ..errors import SettingsError
from ..pieces import OneText, one_text, piece_text
from ..projected.pairs import ProjectedSide
from ..schema import SIDES, Message, Row, Side

if TYPE_CHECKING:
    import datasets

ROWS = 200
_LOGPS: tuple[Literal["oracle", "ref"], ...] = ("oracle", "ref")
INVERTED_SHARE = 0.25  # of the rows shown are those with the lowest margins


class StoredSide(TypedDict):
    """A response as `rows.js` reads it: arrays are base64 of little-endian numbers.

    If the end of the turn was reached, it is the last token. ``before`` holds the messages that are not
    scored, ``pieces`` the names of several scored texts and the offset of each in ``text``.
    """

    text: str
    ended: bool
    starts: str
    ends: str
    rewards: str
    mask: str
    before: list[list[str]]
    pieces: list[tuple[str, int]]
    reward: float
    oracle: NotRequired[str]
    ref: NotRequired[str]
    layers: NotRequired[list["StoredLayer"]]


class StoredLayer(StoredSide):
    """Another line of tokens to show below a response."""

    layer: str


class StoredSides(TypedDict):
    """Both responses."""

    chosen: StoredSide
    rejected: StoredSide


class StoredRow(StoredSides):
    """A row as `rows.js` reads it; prompt turns are roles and texts, the group is an index."""

    row: int
    margin: float
    prompt: list[list[str]]
    group: NotRequired[int]


def rows_shown(margins: npt.NDArray[np.float64], count: int, wanted: Iterable[int] = ()) -> list[int]:
    """Choose a sample of rows that is representative and includes inverted pairs.

    Args:
        margins: Chosen reward minus rejected reward of each row, nats, ``(rows,)``.
        count: Number of rows: up to a quarter are the most inverted ones, the others are spread evenly over
            the margins of the rest.
        wanted: Further rows to show.

    Returns:
        Row numbers in ascending order.

    Raises:
        SettingsError: If a wanted row does not exist.

    Example:
        >>> rows_shown(np.array([3.0, -9.0, 1.0, 2.0, 5.0, 4.0]), 3, [0])
        [0, 1, 2, 4]
    """
    for row in wanted:
        if not 0 <= row < margins.size:
            raise SettingsError(f"no row {row}: the dataset has {margins.size:,}, counted from 0.")
    order = np.argsort(margins, kind="stable")
    inverted = min(round(count * INVERTED_SHARE + 1e-9), int((margins < 0).sum()))
    rest = order[inverted:]
    places = np.linspace(0, rest.size - 1, min(count - inverted, rest.size)).round().astype(np.int64)
    return sorted({*order[:inverted].tolist(), *rest[places].tolist(), *wanted})


def stored_rows(rows: "datasets.Dataset", numbers: Sequence[int]) -> list[StoredRow]:
    """The rows as the page stores them, as plain JSON: texts, and base64 of little-endian arrays."""
    return [_stored_row(row, number) for row, number in zip(rows.select(numbers), numbers, strict=True)]


def _stored_row(row: Row, number: int) -> StoredRow:
    prompt = row["prompt"]
    turns = [["", prompt]] if isinstance(prompt, str) else [_turn(message) for message in prompt]
    chosen, rejected = (_stored_side(row, side) for side in SIDES)
    margin = float(np.float64(row["chosen_reward"]) - row["rejected_reward"])
    return {"row": number, "margin": margin, "prompt": turns, "chosen": chosen, "rejected": rejected}


def _stored_side(row: Row, side: Side) -> StoredSide:
    """One response; if the end of the turn was reached, it is the last token."""
    ended = row[f"{side}_eos_reward"] is not None
    ends = {name: [row[f"{side}_eos_{name}"]] if ended else [] for name in ("reward", "mask")}
    spans = (row[f"{side}_token_start"], row[f"{side}_token_end"])
    whole = one_text(row[side], *spans, row.get(f"{side}_token_message"), row.get(f"{side}_token_field"))
    rewards = [*row[f"{side}_token_rewards"], *ends["reward"]]
    mask = [*row[f"{side}_token_mask"], *ends["mask"]]
    stored = _stored(row[side], whole, rewards, mask, ended=ended)
    stored["reward"] = row[f"{side}_reward"]
    for name in _LOGPS:
        if (column := f"{side}_token_{name}_logps") in row:
            stored[name] = _base64(row[column], "<f4")
    return stored


def projected_side(response: str | list[Message], side: ProjectedSide) -> StoredSide:
    """One response on a policy's tokens, as the page stores it; unknown rewards are NaN.

    Args:
        response: The response of the annotated row.
        side: Its projection.
    """
    ended = side.eos_reward is not None
    texts = [piece_text(response, piece)[piece.begins : piece.begins + piece.size] for piece in side.pieces]
    rewards = [*side.token_rewards.tolist(), *([side.eos_reward] if ended else [])]
    mask = [*side.token_mask.tolist(), *([side.eos_mask] if ended else [])]
    whole = OneText("".join(texts), side.pieces, side.token_start, side.token_end)
    stored = _stored(response, whole, rewards, mask, ended=ended)
    stored["before"] = []
    return stored


def _stored(
    response: str | list[Message],
    whole: OneText,
    rewards: npt.ArrayLike,
    mask: npt.ArrayLike,
    *,
    ended: bool,
) -> StoredSide:
    width = "<u2" if len(whole.text) < 1 << 16 else "<u4"  # the page tells the width from the number of bytes
    scored = {piece.message for piece in whole.pieces}
    messages = [] if isinstance(response, str) else response
    begins = [0, *accumulate(piece.size for piece in whole.pieces)]
    named = [
        (f"message {piece.message + 1}, {piece.field}", begin)
        for piece, begin in zip(whole.pieces, begins, strict=False)
    ]
    return {
        "text": whole.text,
        "ended": ended,
        "starts": _base64(whole.start, width),
        "ends": _base64(whole.end, width),
        "rewards": _base64(rewards, "<f4"),
        "mask": _base64(mask, "u1"),
        "before": [_turn(message) for at, message in enumerate(messages) if at not in scored],
        "pieces": named if len(named) > 1 else [],
        "reward": float(np.nansum(rewards)),
    }


def _turn(message: Message) -> list[str]:
    """Role and text; other fields of a message, such as tool calls, as JSON."""
    content = message.get("content")
    parts = [content] if isinstance(content, str) else [] if content is None else [json.dumps(content)]
    parts += [
        f"{key}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in message.items()
        if key not in ("role", "content") and value
    ]
    return [str(message.get("role", "")), "\n".join(parts)]


def _base64(values: npt.ArrayLike, kind: str) -> str:
    return base64.b64encode(np.asarray(values, dtype=kind).tobytes()).decode("ascii")
