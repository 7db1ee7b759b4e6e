"""Which tokens are the response's, and which characters each of them owns.

Prefix, response and suffix are tokenised together, verbatim, and a token is the
response's if it owns at least one of its characters: tokens that reach over the
seam are neither lost nor shifted. A conversation has many responses, and is
tokenised once. Spans are code points of the response text,
half-open, clean (see `projection.clean_spans`). Truncation cuts the response's end
and never invents the token that ends the turn.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .errors import TokenizerError
from .projection import Spans, clean_spans
from .rendering import RenderedChat, Rendering, control_tokens, render

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# why a row is dropped, in the user's words
PROMPT_TOO_LONG = "prompt longer than the maximum length"
NO_TOKENS = "response without tokens"
NO_CONTEXT = "nothing in front of the response"
WRITTEN_CONTROL = "control token written out, which this tokenizer cannot read as text"

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


@dataclass(frozen=True)
class ResponseEncoder:
    """A tokenizer prepared to encode responses; made by `response_encoder`.

    Attributes:
        tokenizer: The tokenizer as loaded.
        chat_template: Whether prompts are rendered with its chat template.
        control: Pattern of its control tokens.
        control_ids: Their ids.
        bos_ids: What the tokenizer puts in front of a plain text; empty with a template.
        backend: Its fast tokenizer, which reports every character that a token owns.
        literal_backend: The same, reading control tokens as text.
    """

    tokenizer: "PreTrainedTokenizerBase"
    chat_template: bool
    control: re.Pattern[str]
    control_ids: frozenset[int]
    bos_ids: tuple[int, ...]
    backend: "Tokenizer"
    literal_backend: "Tokenizer"


def response_encoder(tokenizer: "PreTrainedTokenizerBase", *, chat_template: bool = True) -> ResponseEncoder:
    """Prepare a tokenizer to encode responses.

    Args:
        tokenizer: A fast tokenizer.
        chat_template: Use its chat template, if it has one.

    Raises:
        TokenizerError: If the tokenizer reports no character offsets.
    """
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"{type(tokenizer).__name__} reports no character offsets, so its tokens cannot be placed in the "
            "text. Use a model with a fast tokenizer (one with a tokenizer.json)."
        )
    use_template = chat_template and tokenizer.chat_template is not None
    if (
        use_template
        and not isinstance(tokenizer.chat_template, str)
        and "default" not in tokenizer.chat_template
    ):
        raise TokenizerError(
            f"the tokenizer has chat templates named {', '.join(tokenizer.chat_template)}, and none is "
            "the default. Save the one to use as its chat_template."
        )
    return ResponseEncoder(
        tokenizer=tokenizer,
        chat_template=use_template,
        control=control_tokens(tokenizer),
        control_ids=frozenset(
            i
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special and i != tokenizer.unk_token_id  # an unknown character is text
        ),
        bos_ids=() if use_template else bos_ids(tokenizer),
        backend=_offset_backend(tokenizer, literal=False),
        literal_backend=_offset_backend(tokenizer, literal=True),
    )


def end_of_turn(encoder: ResponseEncoder) -> int | None:
    """Id of the token that ends a response in the tokenizer's template; None without a template."""
    if not encoder.chat_template:
        return None
    rendering = render(encoder.tokenizer, "Hi", encoder.control, chat_template=True)
    if isinstance(rendering, str):
        return None
    (encoded,) = encode_responses(encoder, [(rendering, "Hello")], sys.maxsize)
    return None if isinstance(encoded, str) else int(encoded.input_ids[-1])


def encode_responses(
    encoder: ResponseEncoder, items: Sequence[tuple[Rendering, str]], max_length: int
) -> list[EncodedResponse | str]:
    """Tokenise responses in their contexts.

    Args:
        encoder: Made by `response_encoder`.
        items: Renderings and response texts.
        max_length: Most tokens of prompt and response together.

    Returns:
        One encoded response an item, or the reason why it cannot be used.

    Raises:
        TokenizerError: If nothing ends a turn: no control token in the suffix, no EOS.
    """
    chats = [
        RenderedChat((rendering.prefix, rendering.suffix), (response,), (rendering.typed, ()))
        for rendering, response in items
    ]
    return [
        tokens if isinstance(tokens, str) else _response(encoder, tokens, chat, max_length)
        for tokens, chat in zip(_tokenise(encoder, chats), chats, strict=True)
    ]


def encode_turns(
    encoder: ResponseEncoder, chats: Sequence[RenderedChat], max_length: int
) -> list[EncodedTurns | str]:
    """Tokenise conversations, and find the tokens of their responses.

    The end of a turn is the first control token behind its response, before the
    next one; behind the last response EOS stands in if there is none.

    Args:
        encoder: Made by `response_encoder`.
        chats: Made by `rendering.render_chat`.
        max_length: Most tokens of a conversation.

    Returns:
        One encoding a conversation, or the reason why it cannot be used.

    Raises:
        TokenizerError: As `encode_responses`.
    """
    encoded: list[EncodedTurns | str] = []
    for tokens, chat in zip(_tokenise(encoder, chats), chats, strict=True):
        placed = tokens if isinstance(tokens, str) else _place(encoder, tokens, chat, max_length)
        encoded.append(placed if isinstance(placed, str) else placed.turns)
    return encoded


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    offsets: list[tuple[int, int]]


def _tokenise(encoder: ResponseEncoder, chats: Sequence[RenderedChat]) -> list[_Tokens | str]:
    texts = [chat.text for chat in chats]
    typed = [_typed_spans(encoder, chat, text) for chat, text in zip(chats, texts, strict=True)]
    plain = encoder.backend.encode_batch(
        [text for text, spans in zip(texts, typed, strict=True) if not spans], add_special_tokens=False
    )
    encodings = iter([_Tokens(encoding.ids, encoding.offsets) for encoding in plain])
    tokens: list[_Tokens | str] = []
    for text, spans in zip(texts, typed, strict=True):
        try:
            tokens.append(_encode_literally(encoder, text, spans) if spans else next(encodings))
        except _UnreadableError:
            tokens.append(WRITTEN_CONTROL)
    return tokens


@dataclass(frozen=True)
class _Placed:
    turns: EncodedTurns
    lead: int  # ids in front of the text's own
    last: int  # the last token of the last response, among the text's own


def _place(encoder: ResponseEncoder, tokens: _Tokens, chat: RenderedChat, max_length: int) -> _Placed | str:
    ids = np.array(tokens.ids, dtype=np.int64)
    start, end = np.array(tokens.offsets, dtype=np.int64).reshape(-1, 2).T
    control = np.isin(ids, list(encoder.control_ids))
    owned = []
    for lo, hi in chat.spans:
        # some control tokens swallow the blanks beside them: the blanks are the response's, the token is not
        own = (end > lo) & (start < hi) & ~(control & ((start < lo) | (end > hi)))
        if not own.any():
            return NO_TOKENS
        first, last = np.flatnonzero(own)[[0, -1]]
        owned.append((int(first), int(last)))

    scored = [np.arange(first, last + 1) for first, last in owned]
    for (_, last), (following, _) in pairwise(owned):
        scored.append(last + 1 + np.flatnonzero(control[last + 1 : following])[:1])
    behind = owned[-1][1] + 1
    enders = np.flatnonzero(control[behind:])
    eos_at = behind + int(enders[0]) if enders.size else behind
    eos_id = ids[eos_at] if enders.size else _eos_id(encoder)

    lead = _lead(encoder, chat.segments[0], owned[0][0])
    if lead is None:
        return NO_CONTEXT
    positions = np.unique(np.concatenate([*scored, [eos_at]])) + len(lead)
    positions = positions[positions < max_length]
    if not positions.size:
        return PROMPT_TOO_LONG
    whole = np.concatenate([np.array(lead, dtype=np.int64), ids[:eos_at], [eos_id]])
    ended = len(lead) + eos_at < max_length
    return _Placed(
        EncodedTurns(whole[: positions[-1] + 1], positions, ended), lead=len(lead), last=owned[-1][1]
    )


def _response(
    encoder: ResponseEncoder, tokens: _Tokens, chat: RenderedChat, max_length: int
) -> EncodedResponse | str:
    placed = _place(encoder, tokens, chat, max_length)
    if isinstance(placed, str):
        return placed
    turns, (response,), ((lo, hi),) = placed.turns, chat.responses, chat.spans
    at = (turns.positions[:-1] if turns.ended else turns.positions) - placed.lead
    start, end = np.array(tokens.offsets, dtype=np.int64)[at].T
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
        piece = _encode_piece(backend, text[lo:hi], first=lo == 0)
        if i % 2 and encoder.backend.token_to_id(text[lo:hi]) in piece.ids:
            raise _UnreadableError
        ids += piece.ids
        offsets += [(lo + start, lo + end) for start, end in piece.offsets]
    return _Tokens(ids, offsets)


class _UnreadableError(Exception):
    """The vocabulary has a control token's spelling as an ordinary piece too, like Unigram's."""


def _encode_piece(backend: "Tokenizer", piece: str, *, first: bool) -> _Tokens:
    """Tokenise a piece as it stands in the text: SentencePiece puts a blank before the first word only."""
    newline = backend.encode("\n", add_special_tokens=False).ids
    led = backend.encode("\n" + piece, add_special_tokens=False)
    behind = led.offsets[len(newline) :]
    if first or led.ids[: len(newline)] != newline or any(start < 1 for start, _ in behind):
        alone = backend.encode(piece, add_special_tokens=False)
        return _Tokens(alone.ids, alone.offsets)
    return _Tokens(led.ids[len(newline) :], [(start - 1, end - 1) for start, end in behind])


def bos_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """What a tokenizer puts in front of a plain text."""
    whole = tokenizer.encode("a")
    bare = tokenizer.encode("a", add_special_tokens=False)
    places = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    return tuple(whole[: places[0]]) if places else ()


def _offset_backend(tokenizer: "PreTrainedTokenizerBase", *, literal: bool) -> "Tokenizer":
    """A copy whose offsets cover blanks too (post-processors trim them) and that never truncates."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = Tokenizer.from_str(
        json.dumps({**state, "post_processor": None, "truncation": None, "padding": None})
    )
    backend.encode_special_tokens = literal
    return backend
