"""The texts of a response, which its tokens' spans address.

Most responses are one text, the content of the last message. If there is reasoning in its own field,
a tool call, or more than one assistant message, two columns tell for each token which text it is in.
Everything that reads spans sees the scored texts concatenated.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")  # its names in templates and trainers
TOOL_CALLS = "tool_calls"
BLOCK_START, BLOCK_END = "<think>", "</think>"


class Piece(NamedTuple):
    """A text of a response.

    Attributes:
        message: Index of its message in the side; 0 for a string.
        field: Its key in the message.
        begins: First scored code point: after a reasoning block, if that is not scored.
        size: Code points from there to the text's end.
    """

    message: int
    field: str
    begins: int
    size: int


class OneText(NamedTuple):
    """A response's scored texts, concatenated.

    Attributes:
        text: The concatenation.
        pieces: The texts.
        start: First code point of each token in ``text``, ``(T,)``.
        end: One past the last one, ``(T,)``.
    """

    text: str
    pieces: tuple[Piece, ...]
    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]


def compact(value: Any) -> Any:
    """Without nulls: Arrow gives every object all keys that occur in the column."""
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items() if item is not None}
    return [compact(item) for item in value] if isinstance(value, list) else value


def as_given(content: Any) -> Any:
    """A text, or messages as a template is to see them: parsed if Arrow holds each as JSON.

    Arrow gives every object all keys of its column, so the nulls inside a message's fields are left out; JSON
    has those that were written.
    """
    if not isinstance(content, list):
        return content
    return [
        parsed_json(one)
        if isinstance(one, str)
        else one and {key: compact(item) for key, item in one.items()}
        for one in content
    ]


def keys_differ(values: list[Any]) -> bool:
    """Whether objects at one place have different keys, which those of an Arrow type never have."""
    objects = [one for one in values if isinstance(one, dict)]
    if any(one.keys() != objects[0].keys() for one in objects):
        return True
    inside = ([one[key] for one in objects] for key in (objects[0] if objects else ()))
    return any(
        keys_differ([item for value in found for item in (value if isinstance(value, list) else [value])])
        for found in inside
    )


def parsed_json(value: Any) -> Any:
    """A message or another value, which Arrow holds as JSON where those of a column share no type."""
    return json.loads(value) if isinstance(value, str) else value


def field_text(message: Mapping[str, Any], field: str) -> str:
    """The text that spans of a field address; of tool calls, their names and arguments as JSON."""
    return calls_text(message[TOOL_CALLS]) if field == TOOL_CALLS else message[field] or ""


def calls_text(calls: Iterable[Mapping[str, object]]) -> str:
    """Tool calls as JSON: a list of objects with ``name`` and ``arguments``."""
    functions = (compact(call.get("function") or call) for call in calls)
    named = [{"name": each.get("name"), "arguments": _arguments(each.get("arguments"))} for each in functions]
    return json.dumps(named, ensure_ascii=False)


def _arguments(value: object) -> object:
    """Arguments are an object, or its JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def last_message(side: str | Sequence[Mapping[str, object]]) -> int:
    """Index of the message whose content is the whole response; 0 for a string."""
    return 0 if isinstance(side, str) else len(side) - 1


def response_text(side: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a single-text response: the string itself, or the last message's content."""
    return side if isinstance(side, str) else parsed_json(side[-1])["content"] or ""


def piece_text(side: str | Sequence[Mapping[str, object]], piece: Piece) -> str:
    """The whole text of a piece."""
    return side if isinstance(side, str) else field_text(parsed_json(side[piece.message]), piece.field)


def one_text(
    side: str | Sequence[Mapping[str, object]],
    start: npt.ArrayLike,
    end: npt.ArrayLike,
    messages: Sequence[int] | None,
    fields: Sequence[str] | None,
) -> OneText:
    """Concatenate the scored texts of a response.

    Args:
        side: The text, or the messages.
        start: First code point of each token in its own text, ``(T,)``.
        end: One past the last one.
        messages: Index of the message of each token; None if there is one text.
        fields: Its key there; None if there is one text.
    """
    lows, highs = np.asarray(start, np.int32), np.asarray(end, np.int32)
    if messages is None and fields is None:
        begins = int(lows[0])
        text = response_text(side)[begins:]
        piece = Piece(last_message(side), "content", begins, len(text))
        return OneText(text, (piece,), lows - begins, highs - begins)
    pieces, texts, offset = list[Piece](), list[str](), 0
    shifts = np.zeros(lows.size, np.int32)
    places = list(zip(messages or (), fields or (), strict=True))
    for place, tokens in groupby(range(lows.size), key=places.__getitem__):
        first, *others = tokens
        piece = Piece(*place, int(lows[first]), 0)
        texts.append(piece_text(side, piece)[piece.begins :])
        pieces.append(piece._replace(size=len(texts[-1])))
        shifts[[first, *others]] = offset - piece.begins
        offset += len(texts[-1])
    return OneText("".join(texts), tuple(pieces), lows + shifts, highs + shifts)
