"""Which tokens belong to the response, and which characters each of them owns.

Prefix, response and suffix are tokenised together, verbatim, and a token belongs
to the response if it owns at least one of its characters: tokens across the
boundary are neither lost nor shifted. Spans are half-open, in code points of the
response text, and clean (see `projection.clean_spans`); if a response has several
texts, they count as concatenated. Truncation cuts the end of the response and
never invents the token that ends the turn.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..errors import TokenizerError
from ..pieces import Piece
from ..projection import Spans, clean_spans
from ..reasons import Reason, Unusable
from .encoder import ResponseEncoder
from .rendered import Part, RenderedChat
from .tokenising import Ids, Tokens, tokenise


@dataclass(frozen=True)
class EncodedResponse:
    """One response in its context, ready to be scored.

    Attributes:
        text: Its texts, concatenated.
        pieces: Its texts; most often one.
        input_ids: Prompt and response, ``(S,)``, cut after the last scored token.
        positions: Positions of the scored tokens in ``input_ids``, increasing, all
            at least 1: the response's ``T`` tokens and, if ``ended``, the token that
            ends the turn.
        token_start: First code point of each response token in ``text``, ``(T,)``.
        token_end: One past the last code point, ``(T,)``.
        ended: Whether the token that ends the turn was reached.
    """

    text: str
    pieces: tuple[Piece, ...]
    input_ids: Ids
    positions: Ids
    token_start: Spans
    token_end: Spans
    ended: bool

    def without_end(self) -> "EncodedResponse":
        """The same response without the token that ends the turn."""
        if not self.ended:
            return self
        positions = self.positions[:-1]
        return replace(self, input_ids=self.input_ids[: positions[-1] + 1], positions=positions, ended=False)


@dataclass(frozen=True)
class EncodedTurns:
    """The responses of one conversation, as tokens.

    Attributes:
        input_ids: The conversation, ``(S,)``, cut after the last of ``positions``.
        positions: Positions in ``input_ids`` of the tokens of all responses and of the
            token that ends each turn: ``(n,)``, increasing, all at least 1.
        ended: Whether the token that ends the last turn was reached.
    """

    input_ids: Ids
    positions: Ids
    ended: bool

    def without_end(self) -> "EncodedTurns":
        """The same conversation without the token that ends the last turn."""
        if not self.ended:
            return self
        positions = self.positions[:-1]
        return EncodedTurns(self.input_ids[: positions[-1] + 1], positions, ended=False)


def end_of_turn(encoder: ResponseEncoder) -> int | None:
    """Id of the token that ends a response in the chat template; None without a template."""
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
        chats: Rendered prompts, each with its response.
        max_length: Maximum tokens of prompt and response together.

    Returns:
        One encoded response per chat, or why it cannot be used.

    Raises:
        TokenizerError: If nothing ends a turn: no control token in the suffix, no EOS.
    """
    return [
        tokens if isinstance(tokens, Unusable) else _response(encoder, tokens, chat, max_length)
        for tokens, chat in zip(tokenise(encoder, chats), chats, strict=True)
    ]


def encode_turns(
    encoder: ResponseEncoder, chats: Sequence[RenderedChat], max_length: int
) -> list[EncodedTurns | Unusable]:
    """Tokenise conversations, and find the tokens of their responses.

    A turn ends with the first control token after its last text and before the next
    turn; if none follows the last turn, EOS takes its place. Markup between two texts
    of one turn is trained on as well.

    Args:
        encoder: Made by `response_encoder`.
        chats: Made by `ResponseEncoder.render` with every turn.
        max_length: Maximum tokens of a conversation.

    Returns:
        One encoding per conversation, or why it cannot be used.

    Raises:
        TokenizerError: As `encode_responses`.
    """
    encoded: list[EncodedTurns | Unusable] = []
    for tokens, chat in zip(tokenise(encoder, chats), chats, strict=True):
        placed = (
            tokens
            if isinstance(tokens, Unusable)
            else _place(encoder, tokens, chat, max_length, whole_turns=True)
        )
        encoded.append(placed if isinstance(placed, Unusable) else placed.turns)
    return encoded


@dataclass(frozen=True)
class _Placed:
    turns: EncodedTurns
    lead: int  # ids before those of the text
    owned: list[tuple[int, int]]  # first and last token of each part, counted within the text


def _place(
    encoder: ResponseEncoder, tokens: Tokens, chat: RenderedChat, max_length: int, *, whole_turns: bool
) -> _Placed | Unusable:
    ids, start, end = tokens.ids, tokens.start, tokens.end
    control = encoder.is_control.take(ids, mode="clip")
    owned = []
    for lo, hi in chat.spans:
        # some control tokens swallow adjacent white space: it belongs to the response, the token does not
        own = np.flatnonzero((end > lo) & (start < hi) & ~(control & ((start < lo) | (end > hi))))
        if not own.size:
            return Unusable(Reason.NO_TOKENS)
        owned.append((int(own[0]), int(own[-1])))

    scored = np.zeros(ids.size + 1, dtype=bool)
    for first, last in owned:
        scored[first : last + 1] = True
    if whole_turns:
        for ((_, last), part), ((following, _), other) in pairwise(zip(owned, chat.parts, strict=True)):
            same_turn = part.message == other.message
            between = np.arange(last + 1, following)
            scored[between if same_turn else between[control[between]][:1]] = True
    after = owned[-1][1] + 1
    enders = np.flatnonzero(control[after:])
    eos_at = after + int(enders[0]) if enders.size else after
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
    return _Placed(EncodedTurns(whole[: positions[-1] + 1], positions, ended), lead=len(lead), owned=owned)


def _response(
    encoder: ResponseEncoder, tokens: Tokens, chat: RenderedChat, max_length: int
) -> EncodedResponse | Unusable:
    placed = _place(encoder, tokens, chat, max_length, whole_turns=False)
    if isinstance(placed, Unusable):
        return placed
    turns = placed.turns
    at = turns.positions - placed.lead  # the end of the turn is after every text
    texts, pieces, starts, ends, offset = [], [], [], [], 0
    for part, (lo, _), (_, last) in zip(chat.parts, chat.spans, placed.owned, strict=True):
        mine, at = at[at <= last], at[at > last]
        if not mine.size:  # nothing that was cut off is scored
            continue
        start, end = _in_source(part, tokens.start[mine] - lo, tokens.end[mine] - lo)
        seen = part.source[part.begins : None if mine[-1] == last else int(end.max())]
        token_start, token_end = clean_spans(seen, start - part.begins, end - part.begins)
        starts.append(token_start + offset)
        ends.append(token_end + offset)
        texts.append(part.source[part.begins :])
        pieces.append(Piece(part.message, part.field, part.begins, len(texts[-1])))
        offset += len(texts[-1])
    token_start, token_end = np.concatenate(starts), np.concatenate(ends)
    return EncodedResponse(
        "".join(texts), tuple(pieces), turns.input_ids, turns.positions, token_start, token_end, turns.ended
    )


def _in_source(part: Part, start: Ids, end: Ids) -> tuple[Ids, Ids]:
    """Map spans in the rendered text to the source; markup owns all characters that it replaces."""
    source_start = np.where(start < 0, part.begins, len(part.source))
    source_end = np.full_like(end, len(part.source))
    for lo, hi, source_lo, source_hi, spoken in part.stretches:
        same = spoken or part.rendered[lo:hi] == part.source[source_lo:source_hi]
        begin, stop = (start >= lo) & (start < hi), (end > lo) & (end <= hi)
        source_start[begin] = source_lo + (start[begin] - lo if same else 0)
        source_end[stop] = source_lo + end[stop] - lo if same else source_hi
    return source_start, source_end


def _lead(encoder: ResponseEncoder, prefix: str, first: int) -> tuple[int, ...] | None:
    """Ids before the text: BOS for a plain text, or any token that can predict the first one."""
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
            "nothing ends a turn: the chat template writes no control token after a response and the "
            "tokenizer has no eos_token. Set eos_token in tokenizer_config.json."
        )
    return int(eos_id)
