"""A row on the terminal: selected tokens in brackets, every token coloured by its reward."""

import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import rich_click as click

from sepo_data.errors import visible
from sepo_data.pieces import OneText, one_text
from sepo_data.projected.pairs import ProjectedPair
from sepo_data.schema import SIDES, Row


class Look(TypedDict, total=False):
    """How click styles a text."""

    fg: str
    bg: int
    bold: bool
    dim: bool


Pieces = list[tuple[str, Look]]  # texts, and how click styles them

# From the 256 colours of every colour terminal; the page's blue and orange, for black text.
_HIGH, _LOW = (195, 153, 111), (230, 222, 215)
_SIDE_COLOURS = {"chosen": "green", "rejected": "red"}
_NAMED = 5  # tokens per side listed with their rewards


def describe_row(row: Row, number: int) -> str:
    """One pair, with selected tokens in brackets and, on a colour terminal, all tokens coloured by reward."""
    prompt = row["prompt"]
    turns = [("prompt", prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
    pieces: Pieces = [(f"row {number}\n", {})]
    for role, content in turns:
        pieces += [(f"{visible(role)}:", {"dim": True}), (f" {visible(content or '')}\n", {})]
    scale = _scale(row)
    for side in SIDES:
        head = f"{side} ({row[f'{side}_reward']:+.2f} nats):"
        pieces += [(head, {"fg": _SIDE_COLOURS[side]}), (" ", {}), *_response(row, side, scale), ("\n", {})]
        pieces += [(f"{_extremes(row, side)}\n", {"dim": True})]
    for colours, end in ((_LOW, f" {-scale:.2f} "), (_HIGH, f" {scale:+.2f} ")):
        pieces.append((end, {"bg": colours[-1], "fg": "black"}))
    pieces.append((" nats: colours saturate", {"dim": True}))
    return _wrapped(pieces)


def describe_projected(row: Row, pair: ProjectedPair) -> str:
    """The responses of a row, the tokens marked that are selected for a policy."""
    pieces: Pieces = []
    fields = ("token_start", "token_end", "token_rewards", "token_mask", "eos_reward", "eos_mask")
    marks = {f"{side}_{name}": getattr(pair[side], name) for side in SIDES for name in fields}
    scale = _scale(marks)
    for side in SIDES:
        selected = int((pair[side].weights > 0).sum())
        head = f"{side} ({selected} of {pair[side].positions.size} tokens):"
        pieces += [(head, {"fg": _SIDE_COLOURS[side]}), (" ", {})]
        pieces += [*_response({**row, **marks}, side, scale), ("\n", {})]
    return _wrapped(pieces[:-1])


def _rewards(row: Row, side: str) -> npt.NDArray[np.float64]:
    """Rewards of the tokens and, if it was reached, the end of the turn."""
    ends = [] if row[f"{side}_eos_reward"] is None else [row[f"{side}_eos_reward"]]
    return np.array([*row[f"{side}_token_rewards"], *ends], dtype=np.float64)


def _scale(row: Row) -> float:
    """|reward| at which colours saturate: about one token in thirty exceeds it."""
    sizes = np.abs(np.concatenate([_rewards(row, side) for side in SIDES]))
    return float(np.quantile(sizes[~np.isnan(sizes)], 0.97)) if not np.isnan(sizes).all() else 1.0


def _extremes(row: Row, side: str) -> str:
    """The tokens that the rule looks at first, with their rewards."""
    whole, rewards = _whole(row, side), _rewards(row, side)
    order = np.argsort(-rewards if side == "chosen" else rewards, kind="stable")[:_NAMED]
    spans = [*zip(whole.start.tolist(), whole.end.tolist(), strict=True), (0, 0)]
    texts = [visible(whole.text[slice(*spans[i])]) for i in order]
    shown = [text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥") or "end of turn" for text in texts]
    listed = ", ".join(f"{text} {rewards[i]:+.2f}" for text, i in zip(shown, order, strict=True))
    return f"  {'highest' if side == 'chosen' else 'lowest'}: {listed}"


def _whole(row: Row, side: str) -> OneText:
    places = (row.get(f"{side}_token_message"), row.get(f"{side}_token_field"))
    return one_text(row[side], row[f"{side}_token_start"], row[f"{side}_token_end"], *places)


def _response(row: Row, side: str, scale: float) -> Pieces:
    """The response, its selected tokens in brackets, neighbours joined; ``[end]`` is the end of the turn."""
    whole, rewards = _whole(row, side), _rewards(row, side)
    marks = _marks(whole, row[f"{side}_token_mask"])
    owners = np.full(len(whole.text), -1)
    for i in reversed(range(whole.start.size)):  # of several byte tokens of a character the first has it
        owners[whole.start[i] : whole.end[i]] = i
    bracket: Look = {"fg": _SIDE_COLOURS[side], "bold": True}
    changes = np.flatnonzero(np.diff(owners)) + 1
    cuts = sorted({0, len(whole.text), *changes.tolist(), *(place for mark in marks for place in mark)})
    begins, ends = ({mark[i] for mark in marks} for i in (0, 1))
    pieces: Pieces = []
    for start, end in pairwise(cuts):
        pieces += [("[", bracket)] * (start in begins)
        owner = owners[start]
        pieces.append(
            (visible(whole.text[start:end]), _look(rewards[owner] if owner >= 0 else np.nan, scale))
        )
        pieces += [("]", bracket)] * (end in ends)
    if row[f"{side}_eos_reward"] is None:
        return [*pieces, (" … (cut)", {})]
    look = _look(rewards[-1], scale)
    return [*pieces, ("[", bracket), ("end", look), ("]", bracket)] if row[f"{side}_eos_mask"] else pieces


def _marks(whole: OneText, mask: Sequence[bool]) -> list[tuple[int, int]]:
    """Spans of the selected tokens, those that touch merged, without blanks before a word."""
    spans: list[tuple[int, int]] = []
    for start, end, selected in zip(whole.start.tolist(), whole.end.tolist(), mask, strict=True):
        if selected and spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        elif selected:
            spans.append((start, end))
    # blanks before a word belong to its token, but read better outside the bracket
    trimmed = [(end - len(whole.text[start:end].lstrip()), end) for start, end in spans]
    return [(start, end) for start, end in trimmed if start < end]


def _look(reward: float, scale: float) -> Look:
    """The colour of a reward: none below a quarter of the scale, then three shades of blue or orange."""
    if np.isnan(reward) or abs(reward) < scale / 4:
        return {}
    shade = min(2, int(4 * abs(reward) / scale) - 1)
    return {"bg": (_HIGH if reward > 0 else _LOW)[shade], "fg": "black"}


def _wrapped(pieces: Iterable[tuple[str, Look]]) -> str:
    """Styled text; on a terminal wrapped between words to its width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines: list[Pieces] = [[]]
    word: Pieces = []

    def put() -> None:
        if width is not None and lines[-1] and _cells([*lines[-1], *word]) > width:
            lines.append([])
        lines[-1] += word
        word.clear()

    for text, look in pieces:
        for part in re.findall(r"\n|[^\S\n]+|\S+", text):
            if part == "\n":
                put()
                lines.append([])
            elif part.isspace():
                put()
                lines[-1].append((part, look))
            else:
                word.append((part, look))
    put()
    return "\n".join("".join(_styled(line)) for line in lines)


def _styled(line: Pieces) -> Iterator[str]:
    """Join neighbours of the same style."""
    for look, group in groupby(line, key=itemgetter(1)):
        text = "".join(text for text, _ in group)
        yield click.style(text, **look) if look else text


def _cells(line: Pieces) -> int:
    """Width on a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for text, _ in line
        for character in text
    )
