"""Tests of the census of real tokenizers: it finds no errors here, and detects planted ones."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from nasty import NASTY
from tiny_tokenizers import CHATML, FAMILIES, tiny_tokenizer

from benchmarks.census import context, spelling_of, take, wrong_spans
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.encoding import EncodedResponse, encode_responses
from sepo_data.tokens.rendered import RenderedChat


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "wordpiece"])
def test_no_span_of_any_family_is_wrong(family: str, chat: bool) -> None:
    encoder = response_encoder(tiny_tokenizer(family), chat_template=chat)
    # the tiny SentencePiece has its byte tokens as control tokens, so in a bare prompt "<0x0A>" is one
    census = take(encoder, [text for text in NASTY if len(text) < 500 and "<0x" not in text])
    assert census.wrong == []
    assert census.spans > 1000


def shift(found: EncodedResponse) -> EncodedResponse:
    moved = np.minimum(found.token_end[1:-1], found.token_end[-1] - 1)
    start = np.concatenate((found.token_start[:2], moved))
    return replace(found, token_start=start, token_end=np.append(start[1:], found.token_end[-1]))


PLANTED: dict[str, tuple[Callable[[EncodedResponse], EncodedResponse], str]] = {
    "a cut one character late": (
        lambda found: replace(
            found,
            token_start=found.token_start + (np.arange(found.token_start.size) == 2),
            token_end=found.token_end + (np.arange(found.token_end.size) == 1),
        ),
        "but it starts in",
    ),
    "the spans of the neighbours": (shift, "but it starts in"),
    "a gap": (
        lambda found: replace(
            found, token_start=found.token_start + (np.arange(found.token_start.size) == 2)
        ),
        "do not cover",
    ),
    "the response's end left out": (lambda found: replace(found, token_end=found.token_end - 1), "cover"),
    "the tokens of another place": (
        lambda found: replace(found, positions=found.positions - 1),
        "not the response's",
    ),
    "a token that is not scored": (
        lambda found: replace(
            found,
            positions=np.delete(found.positions, 1),
            token_start=np.delete(found.token_start, 1),
            token_end=np.append(found.token_end[:1] * 0 + found.token_end[1], found.token_end[2:]),
        ),
        "is not scored",
    ),
    "other tokens": (
        lambda found: replace(found, input_ids=np.append(found.input_ids[:-2], found.input_ids[-1])),
        "is in no token",
    ),
    "no end of the turn": (lambda found: replace(found, ended=False), "end of the turn"),
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("template", [CHATML, None])
def test_planted_errors_are_found(planted: str, template: str | None) -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", template))
    response = "Paris and 中文 jumps"
    chat = encoder.render("Say it:", response)
    assert isinstance(chat, RenderedChat)
    (found,) = encode_responses(encoder, [chat], 1000)
    assert isinstance(found, EncodedResponse)
    spelling = spelling_of(encoder.tokenizer)
    prefix, suffix = context(encoder, "Say it:")
    assert wrong_spans(spelling, prefix, response, suffix, found) == []
    plant, line = PLANTED[planted]
    assert any(line in wrong for wrong in wrong_spans(spelling, prefix, response, suffix, plant(found)))
