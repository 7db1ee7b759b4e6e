"""A rendered conversation as tokens, each with the characters that it owns.

A text is tokenised as a whole, but a prompt shared by several responses only once: up to its last
control token, where splitting changes no token. Control tokens typed in a message are encoded as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..reasons import Reason, Unusable
from .encoder import ResponseEncoder
from .rendered import RenderedChat

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Attributes:
        ids: Their ids, ``(S,)``.
        start: First code point of each in the text, ``(S,)``; 0 before the response.
        end: One past the last code point, ``(S,)``.
    """

    ids: Ids
    start: Ids
    end: Ids


def tokenise(encoder: ResponseEncoder, chats: Sequence[RenderedChat]) -> list[Tokens | Unusable]:
    """Tokenise rendered conversations, each verbatim and as a whole, or say why one cannot be."""
    texts = [chat.text for chat in chats]
    typed = [_typed_spans(encoder, chat, text) for chat, text in zip(chats, texts, strict=True)]
    halves = [_halves(encoder, chat, text) for chat, text in zip(chats, texts, strict=True)]
    plain = [pair for pair, spans in zip(halves, typed, strict=True) if not spans]
    heads, tails = list({head: None for head, _ in plain}), list({tail: None for _, tail in plain})
    encodings = encoder.backend.encode_batch([*heads, *tails], add_special_tokens=False)
    of_head = {
        head: np.array(encoding.ids, dtype=np.int64) for head, encoding in zip(heads, encodings, strict=False)
    }
    of_tail = {
        tail: _tokens(encoding.ids, _offsets(encoder, tail, encoding))
        for tail, encoding in zip(tails, encodings[len(heads) :], strict=True)
    }
    tokens: list[Tokens | Unusable] = []
    for text, (head, tail), spans in zip(texts, halves, typed, strict=True):
        try:
            tokens.append(
                _encode_literally(encoder, text, spans)
                if spans
                else _joined(of_head[head], of_tail[tail], len(head))
            )
        except _UnreadableError:
            tokens.append(Unusable(Reason.WRITTEN_CONTROL))
    return tokens


def _halves(encoder: ResponseEncoder, chat: RenderedChat, text: str) -> tuple[str, str]:
    """A text, split before its last control token ahead of its only response, if that changes no token."""
    cut = 0
    if len(chat.responses) == 1:
        for found in encoder.added.finditer(text):
            if found.end() > len(chat.segments[0]):
                break
            if found[0] in encoder.cuts:
                cut = found.start()
    return text[:cut], text[cut:]


def _tokens(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Tokens:
    flat = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(ids))  # np.array is slow
    return Tokens(np.array(ids, dtype=np.int64), flat[::2], flat[1::2])


def _offsets(encoder: ResponseEncoder, text: str, encoding: "Encoding") -> list[tuple[int, int]]:
    """The backend's offsets, corrected for the characters that it does not count."""
    offsets = encoding.offsets
    for found in encoder.uncounted.finditer(text):
        lo, hi = found.span(1)
        following = encoder.added.search(text, hi)
        stop, low = following.start() if following else len(text), hi - lo
        offsets = [(start + low, end + low) if lo <= start < stop else (start, end) for start, end in offsets]
    return offsets


def _joined(head: Ids, tail: Tokens, cut: int) -> Tokens:
    """The tokens of both halves; the head is all prompt, and its spans stay empty."""
    nowhere = np.zeros(head.size, dtype=np.int64)
    return Tokens(
        np.concatenate((head, tail.ids)),
        np.concatenate((nowhere, tail.start + cut)),
        np.concatenate((nowhere, tail.end + cut)),
    )


def _typed_spans(encoder: ResponseEncoder, chat: RenderedChat, text: str) -> list[tuple[int, int]]:
    """Where the text looks like a control token but is none: in messages, responses, across their edges."""
    parts = list(zip(chat.spans, chat.parts, strict=True))
    spoken = [
        (lo + stretch.lo, lo + stretch.hi)
        for (lo, _), part in parts
        for stretch in part.stretches
        if stretch.spoken
    ]
    found = (match.span() for match in encoder.control.finditer(text))
    spans = [(start, end) for start, end in found if any(end > lo and start < hi for lo, hi in spoken)]
    for at, typed in zip([0, *(hi for (_, hi), _ in parts)], chat.typed, strict=True):
        spans += [(at + start, at + end) for start, end in typed]
    return sorted(spans)


def _encode_literally(encoder: ResponseEncoder, text: str, typed: list[tuple[int, int]]) -> Tokens:
    """Tokenise a text in which some control tokens are text; these are encoded separately."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    cuts = [0, *(cut for span in typed for cut in span), len(text)]
    for i, (lo, hi) in enumerate(pairwise(cuts)):
        backend = encoder.literal_backend if i % 2 else encoder.backend
        piece_ids, piece_offsets = _encode_piece(encoder, backend, text[lo:hi], first=lo == 0)
        if i % 2 and encoder.backend.token_to_id(text[lo:hi]) in piece_ids:
            raise _UnreadableError
        ids += piece_ids
        offsets += [(lo + start, lo + end) for start, end in piece_offsets]
    return _tokens(ids, offsets)


class _UnreadableError(Exception):
    """The vocabulary has a control token's spelling as an ordinary piece too, as Unigram may."""


def _encode_piece(
    encoder: ResponseEncoder, backend: "Tokenizer", piece: str, *, first: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenise a piece as inside the text: SentencePiece prepends a space to the first word only."""
    newline = backend.encode("\n", add_special_tokens=False).ids
    led = backend.encode("\n" + piece, add_special_tokens=False)
    rest = led.offsets[len(newline) :]
    if first or led.ids[: len(newline)] != newline or any(start < 1 for start, _ in rest):
        alone = backend.encode(piece, add_special_tokens=False)
        return alone.ids, _offsets(encoder, piece, alone)
    return led.ids[len(newline) :], [(start - 1, end - 1) for start, end in rest]
