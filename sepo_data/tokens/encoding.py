"""Which tokens are the response's, and which characters each of them owns.

Prefix, response and suffix are tokenised together, verbatim, and a token is the
response's if it owns at least one of its characters: tokens that reach over the
seam are neither lost nor shifted. A conversation has many responses, and is
tokenised once; so is a prompt that several responses follow, up to its last control
token, where a cut changes no token. Spans are code points of the response text,
half-open, clean (see `projection.clean_spans`). Truncation cuts the response's end
and never invents the token that ends the turn.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import TokenizerError
from ..projection import Spans, clean_spans
from ..reasons import Reason, Unusable
from .encoder import ResponseEncoder
from .rendering import RenderedChat

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncodedResponse:
    """One response in its context, ready to be scored.

    Attributes:
        input_ids: Prompt and response, ``(S,)``, cut behind the last scored token.
        positions: Where the scored tokens stand in ``input_ids``, increasing, all
            at least 1: the response's ``T`` tokens and, if ``ended``, the token that
            ends the turn.
        token_start: First code point of each response token, ``(T,)``.
        token_end: One past the last code point, ``(T,)``.
        ended: Whether the token that ends the turn was reached.
    """

    input_ids: Ids
    positions: Ids
    token_start: Spans
    token_end: Spans
    ended: bool

    def without_end(self) -> "EncodedResponse":
        """The same response, cut behind its last own token."""
        if not self.ended:
            return self
        positions = self.positions[:-1]
        return replace(self, input_ids=self.input_ids[: positions[-1] + 1], positions=positions, ended=False)


@dataclass(frozen=True)
class EncodedTurns:
    """The responses of one conversation, as tokens.

    Attributes:
        input_ids: The conversation, ``(S,)``, cut behind the last of ``positions``.
        positions: Where the tokens of all responses, and the token that ends each
            turn, stand in ``input_ids``: ``(n,)``, increasing, all at least 1.
        ended: Whether the token that ends the last turn was reached.
    """

    input_ids: Ids
    positions: Ids
    ended: bool

    def without_end(self) -> "EncodedTurns":
        """The same conversation, its last response cut behind its last own token."""
        if not self.ended:
            return self
        positions = self.positions[:-1]
        return EncodedTurns(self.input_ids[: positions[-1] + 1], positions, ended=False)


def end_of_turn(encoder: ResponseEncoder) -> int | None:
    """Id of the token that ends a response in the tokenizer's template; None without a template."""
    if not encoder.chat_template:
        return None
    chat = encoder.render("Hi", "Hello")
    if isinstance(chat, Unusable):
        return None
    (encoded,) = encode_responses(encoder, [chat], sys.maxsize)
    return None if isinstance(encoded, Unusable) else int(encoded.input_ids[-1])


def encode_responses(
    encoder: ResponseEncoder, chats: Sequence[RenderedChat], max_length: int
) -> list[EncodedResponse | Unusable]:
    """Tokenise responses in their contexts.

    Args:
        encoder: Made by `response_encoder`.
        chats: Rendered prompts, each with one response.
        max_length: Most tokens of prompt and response together.

    Returns:
        One encoded response per chat, or why it cannot be used.

    Raises:
        TokenizerError: If nothing ends a turn: no control token in the suffix, no EOS.
    """
    return [
        tokens if isinstance(tokens, Unusable) else _response(encoder, tokens, chat, max_length)
        for tokens, chat in zip(_tokenise(encoder, chats), chats, strict=True)
    ]


def encode_turns(
    encoder: ResponseEncoder, chats: Sequence[RenderedChat], max_length: int
) -> list[EncodedTurns | Unusable]:
    """Tokenise conversations, and find the tokens of their responses.

    The end of a turn is the first control token behind its response, before the
    next one; behind the last response EOS stands in if there is none.

    Args:
        encoder: Made by `response_encoder`.
        chats: Made by `ResponseEncoder.render` with every turn.
        max_length: Most tokens of a conversation.

    Returns:
        One encoding per conversation, or why it cannot be used.

    Raises:
        TokenizerError: As `encode_responses`.
    """
    encoded: list[EncodedTurns | Unusable] = []
    for tokens, chat in zip(_tokenise(encoder, chats), chats, strict=True):
        placed = tokens if isinstance(tokens, Unusable) else _place(encoder, tokens, chat, max_length)
        encoded.append(placed if isinstance(placed, Unusable) else placed.turns)
    return encoded


@dataclass(frozen=True)
class _Tokens:
    ids: Ids
    start: Ids  # first code point in the text
    end: Ids


def _tokenise(encoder: ResponseEncoder, chats: Sequence[RenderedChat]) -> list[_Tokens | Unusable]:
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
    tokens: list[_Tokens | Unusable] = []
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
    """A text, cut in front of its last control token before its only response, if that changes no token."""
    cut = 0
    if len(chat.responses) == 1:
        for found in encoder.added.finditer(text):
            if found.end() > len(chat.segments[0]):
                break
            if found[0] in encoder.cuts:
                cut = found.start()
    return text[:cut], text[cut:]


def _tokens(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> _Tokens:
    flat = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(ids))  # np.array is slow
    return _Tokens(np.array(ids, dtype=np.int64), flat[::2], flat[1::2])


def _offsets(encoder: ResponseEncoder, text: str, encoding: "Encoding") -> list[tuple[int, int]]:
    """What the backend reports, with the characters that it does not count."""
    offsets = encoding.offsets
    for found in encoder.uncounted.finditer(text):
        lo, hi = found.span(1)
        behind = encoder.added.search(text, hi)
        stop, low = behind.start() if behind else len(text), hi - lo
        offsets = [(start + low, end + low) if lo <= start < stop else (start, end) for start, end in offsets]
    return offsets


def _joined(head: Ids, tail: _Tokens, cut: int) -> _Tokens:
    """The tokens of both halves; no response has a character of the head, whose spans stay empty."""
    nowhere = np.zeros(head.size, dtype=np.int64)
    return _Tokens(
        np.concatenate((head, tail.ids)),
        np.concatenate((nowhere, tail.start + cut)),
        np.concatenate((nowhere, tail.end + cut)),
    )


@dataclass(frozen=True)
class _Placed:
    turns: EncodedTurns
    lead: int  # ids in front of the text's own
    last: int  # the last token of the last response, among the text's own


def _place(
    encoder: ResponseEncoder, tokens: _Tokens, chat: RenderedChat, max_length: int
) -> _Placed | Unusable:
    ids, start, end = tokens.ids, tokens.start, tokens.end
    control = encoder.is_control.take(ids, mode="clip")
    owned = []
    for lo, hi in chat.spans:
        # some control tokens swallow the blanks beside them: the blanks are the response's, the token is not
        own = np.flatnonzero((end > lo) & (start < hi) & ~(control & ((start < lo) | (end > hi))))
        if not own.size:
            return Unusable(Reason.NO_TOKENS)
        owned.append((int(own[0]), int(own[-1])))

    scored = np.zeros(ids.size + 1, dtype=bool)
    for first, last in owned:
        scored[first : last + 1] = True
    for (_, last), (following, _) in pairwise(owned):
        scored[last + 1 + np.flatnonzero(control[last + 1 : following])[:1]] = True
    behind = owned[-1][1] + 1
    enders = np.flatnonzero(control[behind:])
    eos_at = behind + int(enders[0]) if enders.size else behind
    eos_id = ids[eos_at] if enders.size else _eos_id(encoder)
    scored[eos_at] = True

    lead = _lead(encoder, chat.segments[0], owned[0][0])
    if lead is None:
        return Unusable(Reason.NO_CONTEXT)
    positions = np.flatnonzero(scored) + len(lead)
    positions = positions[positions < max_length]
    if not positions.size:
        return Unusable(Reason.PROMPT_TOO_LONG)
    whole = np.concatenate([np.array(lead, dtype=np.int64), ids[:eos_at], [eos_id]])
    ended = len(lead) + eos_at < max_length
    return _Placed(
        EncodedTurns(whole[: positions[-1] + 1], positions, ended), lead=len(lead), last=owned[-1][1]
    )


def _response(
    encoder: ResponseEncoder, tokens: _Tokens, chat: RenderedChat, max_length: int
) -> EncodedResponse | Unusable:
    placed = _place(encoder, tokens, chat, max_length)
    if isinstance(placed, Unusable):
        return placed
    turns, (response,), ((lo, hi),) = placed.turns, chat.responses, chat.spans
    at = (turns.positions[:-1] if turns.ended else turns.positions) - placed.lead
    start, end = tokens.start[at], tokens.end[at]
    seen = response if at[-1] == placed.last else response[: min(int(end.max()), hi) - lo]
    token_start, token_end = clean_spans(seen, start - lo, end - lo)
    return EncodedResponse(turns.input_ids, turns.positions, token_start, token_end, turns.ended)


def _lead(encoder: ResponseEncoder, prefix: str, first: int) -> tuple[int, ...] | None:
    """Ids in front of the text: the BOS of a plain text, and something for a first token to follow."""
    bos = encoder.tokenizer.bos_token
    already = bool(bos) and prefix.startswith(bos)
    if encoder.bos_ids and not already:
        return encoder.bos_ids
    if first > 0:
        return ()
    bos_id = encoder.tokenizer.bos_token_id
    return None if bos_id is None else (int(bos_id),)


def _eos_id(encoder: ResponseEncoder) -> int:
    eos_id = encoder.tokenizer.eos_token_id
    if eos_id is None:
        raise TokenizerError(
            "nothing ends a turn: the chat template writes no control token behind a response and the "
            "tokenizer has no eos_token. Set eos_token in tokenizer_config.json."
        )
    return int(eos_id)


def _typed_spans(encoder: ResponseEncoder, chat: RenderedChat, text: str) -> list[tuple[int, int]]:
    """Where the text reads like a control token but is none: in messages, in responses, over their seams."""
    responses = chat.spans
    found = (match.span() for match in encoder.control.finditer(text))
    spans = [(start, end) for start, end in found if any(end > lo and start < hi for lo, hi in responses)]
    for at, typed in zip([0, *(hi for _, hi in responses)], chat.typed, strict=True):
        spans += [(at + start, at + end) for start, end in typed]
    return sorted(spans)


def _encode_literally(encoder: ResponseEncoder, text: str, typed: list[tuple[int, int]]) -> _Tokens:
    """Tokenise a text in which some control tokens are text: they are encoded by themselves."""
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
    """The vocabulary has a control token's spelling as an ordinary piece too, like Unigram's."""


def _encode_piece(
    encoder: ResponseEncoder, backend: "Tokenizer", piece: str, *, first: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenise a piece as it stands in the text: SentencePiece puts a blank before the first word only."""
    newline = backend.encode("\n", add_special_tokens=False).ids
    led = backend.encode("\n" + piece, add_special_tokens=False)
    behind = led.offsets[len(newline) :]
    if first or led.ids[: len(newline)] != newline or any(start < 1 for start, _ in behind):
        alone = backend.encode(piece, add_special_tokens=False)
        return alone.ids, _offsets(encoder, piece, alone)
    return led.ids[len(newline) :], [(start - 1, end - 1) for start, end in behind]
