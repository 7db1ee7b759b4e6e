"""Tests of rendering and encoding together: the tokens of the response and their characters."""

import json
import struct
from typing import Any

import datasets
import numpy as np
import pytest
from nasty import NASTY
from scored_by_hand import letters
from tiny_tokenizers import CHATML, FAMILIES, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sepo_data import TokenizerError
from sepo_data.pieces import Piece, as_given
from sepo_data.projection import clean_spans
from sepo_data.reasons import Reason, Unusable
from sepo_data.sources.preferences import PairColumns
from sepo_data.tokens.encoder import ResponseEncoder, response_encoder
from sepo_data.tokens.encoding import (
    EncodedResponse,
    EncodedTurns,
    encode_responses,
    encode_turns,
    end_of_turn,
)
from sepo_data.tokens.pairs import encode_pairs
from sepo_data.tokens.rendered import Part, RenderedChat, Stretch

EXPLICIT = PairColumns("prompt", "chosen", "rejected")

USER = [{"role": "user", "content": "Say it."}]


def rendered(encoder: ResponseEncoder, prompt: Any, response: str = "") -> RenderedChat:
    chat = encoder.render(prompt, response)
    assert isinstance(chat, RenderedChat), chat
    return chat


def encode(
    encoder: ResponseEncoder, prompt: object, response: str, max_length: int = 10**6
) -> EncodedResponse | Reason:
    (found,) = encode_responses(encoder, [rendered(encoder, prompt, response)], max_length)
    return found.reason if isinstance(found, Unusable) else found


def encoded(
    encoder: ResponseEncoder, prompt: object, response: str, max_length: int = 10**6
) -> EncodedResponse:
    found = encode(encoder, prompt, response, max_length)
    assert isinstance(found, EncodedResponse), found
    return found


def assert_covers(found: EncodedResponse, length: int) -> None:
    start, end = found.token_start, found.token_end
    assert (start[0], end[-1]) == (0, length)
    assert (np.diff(start) >= 0).all()
    assert (np.diff(end) >= 0).all()
    assert (end > start).all()
    assert (start[1:] <= end[:-1]).all()


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_spans_cover_every_nasty_response_in_order(family: str, chat: bool) -> None:
    encoder = response_encoder(tiny_tokenizer(family), chat_template=chat)
    for response in NASTY:
        found = encode(encoder, USER if chat else "Say it:", response)
        if isinstance(found, Reason):
            if found == Reason.WRITTEN_CONTROL:
                assert family == "unigram_nfkc"
                continue
            # lossy normalisers leave no token of blanks and control characters
            assert found == Reason.NO_TOKENS
            assert family in ("unigram_nfkc", "wordpiece"), repr(response)
            assert not any(character.isprintable() and not character.isspace() for character in response)
            continue
        assert_covers(found, len(response))
        assert found.ended
        assert found.positions.size == found.token_start.size + 1
        assert (np.diff(found.positions) > 0).all()
        assert found.positions[0] >= 1
        assert found.positions[-1] == found.input_ids.size - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_cuts_the_response_and_never_invents_the_end_of_the_turn(family: str) -> None:
    encoder = response_encoder(tiny_tokenizer(family))
    whole = encoded(encoder, USER, "The capital of France is Paris.")
    for cut in range(whole.positions[0] + 1, whole.input_ids.size):
        found = encoded(encoder, USER, "The capital of France is Paris.", max_length=cut)
        assert not found.ended
        # the template's own "\n" in front of "<|im_end|>" may stand between the last token and the end
        assert found.input_ids.tolist() == whole.input_ids[: found.input_ids.size].tolist()
        assert found.input_ids.size <= cut
        assert found.positions.size == found.token_start.size
        assert found.token_end[-1] == whole.token_end[found.token_end.size - 1]
        assert_covers(found, found.token_end[-1])


def test_ids_and_positions_are_int64_and_spans_int32() -> None:
    for chat in (True, False):
        found = encoded(response_encoder(tiny_tokenizer(), chat_template=chat), "Say it:", " Paris")
        values = (found.input_ids, found.positions, found.token_start, found.token_end)
        assert [str(value.dtype) for value in values] == ["int64", "int64", "int32", "int32"]


def test_a_response_without_its_end_is_one_that_the_length_cuts_there() -> None:
    encoder = response_encoder(tiny_tokenizer())
    whole = encoded(encoder, USER, "The capital of France is Paris.")
    cut = encoded(encoder, USER, "The capital of France is Paris.", int(whole.positions[-1]))
    np.testing.assert_equal(vars(whole.without_end()), vars(cut))
    assert cut.without_end() is cut
    chat = rendered(encoder, USER, "Paris.")
    (whole_turns,) = encode_turns(encoder, [chat], 10**6)
    assert isinstance(whole_turns, EncodedTurns)
    (cut_turns,) = encode_turns(encoder, [chat], int(whole_turns.positions[-1]))
    assert isinstance(cut_turns, EncodedTurns)
    np.testing.assert_equal(vars(whole_turns.without_end()), vars(cut_turns))
    assert cut_turns.without_end() is cut_turns


@pytest.mark.parametrize(
    ("template", "bos", "end"),
    [
        (CHATML, "<|endoftext|>", "<|im_end|>"),
        (CHATML.replace("<|im_end|>", "<|endoftext|>"), "<|endoftext|>", "<|endoftext|>"),
        ("{{ messages[-1]['content'] }}<|im_start|>", "<|endoftext|>", "<|im_start|>"),
        ("{{ messages[-1]['content'] }}<|im_start|>", None, None),  # nothing is before the response
        ("{{ messages[0]['content'] }}<|im_end|>", "<|endoftext|>", None),  # without the response
        (None, "<|endoftext|>", None),
    ],
)
def test_the_end_of_a_turn_is_the_template_s(template: str | None, bos: str | None, end: str | None) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token=bos, eos_token="<|im_end|>"
    )
    tokenizer.chat_template = template
    found = end_of_turn(response_encoder(tokenizer))
    assert found == (tokenizer.convert_tokens_to_ids(end) if end else None)


def test_a_prompt_that_fills_the_length_leaves_no_pair() -> None:
    encoder = response_encoder(tiny_tokenizer())
    first = encoded(encoder, USER, "Paris").positions[0]
    assert encode(encoder, USER, "Paris", max_length=int(first)) == Reason.PROMPT_TOO_LONG
    assert isinstance(encode(encoder, USER, "Paris", max_length=int(first) + 1), EncodedResponse)


def test_the_tokens_are_those_of_the_rendered_conversation() -> None:
    tokenizer = tiny_tokenizer()
    encoder = response_encoder(tokenizer)
    found = encoded(encoder, USER, "Hello world!")
    conversation = [*USER, {"role": "assistant", "content": "Hello world!"}]
    whole = tokenizer.apply_chat_template(conversation, return_dict=False)
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert [*found.input_ids.tolist(), *newline] == whole
    assert tokenizer.decode(found.input_ids[found.positions]) == "Hello world!<|im_end|>"


def test_a_token_over_the_seam_is_the_responses() -> None:
    # "\n" of the template and "\n" of the response are one token if the vocabulary has "\n\n"
    base = tiny_tokenizer("byte_bpe_nfc_trimmed")
    encoder = response_encoder(base)
    seam = encoded(encoder, USER, "\n\n    return x + 1")
    assert_covers(seam, len("\n\n    return x + 1"))
    plain = response_encoder(base, chat_template=False)
    # "Fran" + "ce" tokenise together as in "France": the token that owns the c belongs to the response
    found = encoded(plain, "The capital of Fran", "ce is")
    texts = [str(base.decode(int(found.input_ids[p]))) for p in found.positions[:-1]]
    assert "".join(texts).endswith("ce is")
    assert found.token_start[0] == 0


def test_templates_that_trim_do_not_touch_the_response() -> None:
    trimming = CHATML.replace("m['content']", "(m['content'] | trim)")
    encoder = response_encoder(tiny_tokenizer("byte_bpe", trimming))
    response = "  two blanks around  "
    assert_covers(encoded(encoder, USER, response), len(response))


@pytest.mark.parametrize("chat_template", [True, False])
def test_blanks_at_either_end_of_prompt_and_response_are_kept(chat_template: bool) -> None:
    tokenizer, response = tiny_tokenizer(), " \n  Paris \n"
    prompt = "  \n Say it: " if chat_template else "  \n Say it:"  # else a token lies over the seam
    encoder = response_encoder(tokenizer, chat_template=chat_template)
    asked = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" if chat_template else prompt
    assert rendered(encoder, prompt, response).segments[0] == asked
    found = encoded(encoder, prompt, response)
    ids = found.input_ids[found.positions[: found.token_start.size]]
    assert tokenizer.decode(ids.tolist()) == response


def test_one_blank_after_a_speaker_belongs_to_the_transcript() -> None:
    encoder = response_encoder(tiny_tokenizer())
    turns = [
        {"role": "user", "content": "  Hi \n"},
        {"role": "assistant", "content": "\tHello"},
        {"role": "user", "content": "Bye"},
    ]
    transcript = "\n\nHuman:   Hi \n\n\nAssistant: \tHello\n\nHuman: Bye\n\nAssistant:"
    assert rendered(encoder, transcript) == rendered(encoder, turns)


def test_a_template_that_says_the_date_says_the_same_every_day() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}\n{% if strftime_now is defined %}{% endif %}" + CHATML
    encoder = response_encoder(tiny_tokenizer("byte_bpe", dated))
    assert rendered(encoder, USER).segments[0].startswith("26 Jul 2024\n<|im_start|>")


def test_a_text_prompt_becomes_one_user_turn() -> None:
    encoder = response_encoder(tiny_tokenizer())
    assert rendered(encoder, "Say it.") == rendered(encoder, USER)


def test_a_transcript_becomes_its_turns() -> None:
    encoder = response_encoder(tiny_tokenizer())
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello\n\nthere"},
        {"role": "user", "content": "Bye"},
    ]
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello\n\nthere\n\nHuman: Bye\n\nAssistant:"
    assert rendered(encoder, transcript) == rendered(encoder, turns)
    assert rendered(encoder, transcript + " ") == rendered(encoder, turns)


def test_control_tokens_written_in_a_message_are_text() -> None:
    tokenizer = tiny_tokenizer()
    encoder = response_encoder(tokenizer)
    im_end, im_start = map(tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|im_start|>"))
    prompt = [{"role": "system", "content": "a <|im_start|> b"}, {"role": "user", "content": "x<|im_end|>y"}]
    found = encoded(encoder, prompt, "I say <|im_end|> twice <|im_end|>")
    # three turns begin, two end, and the third ends at the end: nothing that was typed counts
    assert found.input_ids.tolist().count(im_start) == 3
    assert found.input_ids.tolist().count(im_end) == 3
    assert found.positions[-1] == found.input_ids.size - 1
    assert tokenizer.decode(found.input_ids[found.positions[:-1]]) == "I say <|im_end|> twice <|im_end|>"


@pytest.mark.parametrize("literal", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_twin_that_shares_the_vocabulary_tokenises_as_a_copy_of_the_file(
    family: str, literal: bool
) -> None:
    tokenizer = tiny_tokenizer(family)
    tokenizer.add_tokens(["added", AddedToken("<pad>", special=True, normalized=False)])
    encoder = response_encoder(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    copy = Tokenizer.from_str(json.dumps({**state, "post_processor": None}))
    copy.encode_special_tokens = literal
    twin = encoder.literal_backend if literal else encoder.backend
    for text in [*NASTY, "an added<pad> one", "".join(copy.get_vocab())]:
        by_twin, by_copy = (one.encode(text, add_special_tokens=False) for one in (twin, copy))
        assert (by_twin.ids, by_twin.offsets) == (by_copy.ids, by_copy.offsets)


def swallowing_tokenizer() -> PreTrainedTokenizerFast:
    """Like Phi-3's: control tokens swallow the blanks after them, and every section gets a leading blank."""
    backend = Tokenizer.from_str(tiny_tokenizer("sentencepiece_bpe").backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    backend.add_special_tokens([AddedToken("<|turn|>", rstrip=True, special=True)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", extra_special_tokens=["<|turn|>"]
    )
    tokenizer.chat_template = "{% for m in messages %}<|turn|>\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    return tokenizer


@pytest.mark.parametrize("family", [*FAMILIES, "swallowing"])
def test_a_response_that_writes_out_a_control_token_has_the_prompt_of_any_other(family: str) -> None:
    encoder = response_encoder(swallowing_tokenizer() if family == "swallowing" else tiny_tokenizer(family))
    plain = encoded(encoder, USER, "Hello there")
    typed = encode(encoder, USER, "Hello there <|im_end|> world")
    if typed == Reason.WRITTEN_CONTROL:
        assert family == "unigram_nfkc"
        return
    assert isinstance(typed, EncodedResponse)
    start = plain.positions[0]
    assert typed.positions[0] == start
    assert typed.input_ids[:start].tolist() == plain.input_ids[:start].tolist()
    im_end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert typed.input_ids[start:].tolist().count(im_end) == 1
    assert_covers(typed, len("Hello there <|im_end|> world"))


def assert_tokens_are_those_of_the_whole_text(
    encoder: ResponseEncoder, chat: RenderedChat, responses: list[str]
) -> None:
    prefix, suffix = chat.segments
    chats = [chat.ending_in(response) for response in responses]
    for found, response in zip(encode_responses(encoder, chats, 10**6), responses, strict=True):
        assert isinstance(found, EncodedResponse), (chat, response, found)
        text = prefix + response + suffix
        whole = encoder.backend.encode(text, add_special_tokens=False)
        lead = len(encoder.bos_ids)
        eos = [] if suffix else [encoder.tokenizer.eos_token_id]
        assert found.input_ids[lead:].tolist() == [*whole.ids, *eos][: found.input_ids.size - lead]
        at = found.positions[:-1] - lead
        spans = np.array(whole.offsets)[at] - len(prefix)
        for ours, theirs in zip(
            (found.token_start, found.token_end), clean_spans(response, *spans.T), strict=True
        ):
            assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("family", [*FAMILIES, "swallowing"])
def test_a_prompt_is_tokenised_once_to_the_tokens_of_the_whole_text(family: str) -> None:
    encoder = response_encoder(swallowing_tokenizer() if family == "swallowing" else tiny_tokenizer(family))
    for content in NASTY:
        chat = rendered(encoder, [*USER, {"role": "assistant", "content": content}, *USER])
        if not any(chat.typed):
            assert_tokens_are_those_of_the_whole_text(encoder, chat, ["Hello  there", " 中文字 Paris\n"])


@pytest.mark.parametrize("family", [*FAMILIES, "swallowing"])
@pytest.mark.parametrize(
    "prompt",
    [
        "hi <|im_start|> user",
        "hi  <|greedy|> user",  # takes the blanks in front of it
        "hi<|alone|> user",  # is text, where a word stands beside it
        "<|alone|>word|> user",  # the same
        "hi<<|im_start|> user",  # "<<" comes first and leaves no control token
        "hi<|im_start|>",  # with the response's "H" it is one token
        "hi <|normalised|> user",  # found in what the normaliser made of the text
    ],
)
def test_a_prompt_is_cut_only_where_that_changes_no_token(family: str, prompt: str) -> None:
    base = swallowing_tokenizer() if family == "swallowing" else tiny_tokenizer(family)
    backend = Tokenizer.from_str(base.backend_tokenizer.to_str())
    backend.add_special_tokens(
        [
            AddedToken("<|greedy|>", lstrip=True, normalized=False),
            AddedToken("<|alone|>", single_word=True, normalized=False),
            AddedToken("word|>", normalized=False),
            AddedToken("<|normalised|>", normalized=True),
        ]
    )
    backend.add_tokens([AddedToken("<<", normalized=False), AddedToken("i<|im_start|>H", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    encoder = response_encoder(tokenizer)
    assert_tokens_are_those_of_the_whole_text(
        encoder, RenderedChat((prompt, ""), (Part("content", ""),), ((), ())), ["Hello there", "How are you?"]
    )


def test_pairs_of_one_prompt_are_encoded_as_each_alone() -> None:
    pairs = [("one", "Paris", "Rome"), ("two", "Rome", "Paris"), ("one", "Rome.", "Paris")]
    names = ("prompt", "chosen", "rejected")
    rows = datasets.Dataset.from_list([dict(zip(names, pair, strict=True)) for pair in pairs])
    encoder = response_encoder(tiny_tokenizer())
    together = encode_pairs(rows, EXPLICIT, encoder, 100, 0, 3).pairs
    for row, pair in enumerate(together):
        (alone,) = encode_pairs(rows, EXPLICIT, encoder, 100, row, row + 1).pairs
        for one, other in ((pair.chosen, alone.chosen), (pair.rejected, alone.rejected)):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert one.positions.tolist() == other.positions.tolist()


def test_a_control_token_that_appears_over_the_seam_is_text() -> None:
    encoder = response_encoder(tiny_tokenizer(), chat_template=False)
    found = encoded(encoder, "a <|im_e", "nd|> b")
    im_end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert found.input_ids.tolist().count(im_end) == 1
    assert found.input_ids[-1] == im_end
    assert_covers(found, len("nd|> b"))


def test_unknown_characters_are_the_responses() -> None:
    encoder = response_encoder(tiny_tokenizer("wordpiece"), chat_template=False)
    found = encoded(encoder, "see ☃", "☃☃ dog")
    assert_covers(found, len("☃☃ dog"))
    assert found.token_start.size == 2


def test_a_template_that_cuts_messages_up_does_not_turn_text_into_control_tokens() -> None:
    halving = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
    tokenizer = tiny_tokenizer("byte_bpe", halving)
    prompt = [
        {"role": "user", "content": "<|im_start|> a </think> b <|im_end|> c"},
        {"role": "user", "content": "d <|im_end|> e"},
    ]
    chat = rendered(response_encoder(tokenizer), prompt)
    assert [chat.segments[0][start:end] for start, end in chat.typed[0]] == ["<|im_end|>", "<|im_end|>"]


def test_templates_see_no_nulls_that_only_the_column_has() -> None:
    printing = "{{ messages[0] | tojson }}" + CHATML
    encoder = response_encoder(tiny_tokenizer("byte_bpe", printing))
    call = {"name": "weather", "arguments": {"city": "Rome", "unit": None}}
    prompt = [{"role": "user", "content": "Hi", "name": None, "tool_calls": [call]}]
    (head, *_) = rendered(encoder, as_given(prompt)).segments
    assert '"arguments": {"city": "Rome"}' in head
    assert "null" not in head


def test_templates_see_the_nulls_that_were_written() -> None:
    printing = "{{ messages[0] | tojson }}" + CHATML
    encoder = response_encoder(tiny_tokenizer("byte_bpe", printing))
    call = {"name": "weather", "arguments": {"unit": None, "city": "Rome"}}
    prompt = [json.dumps({"role": "user", "content": "Hi", "name": None, "tool_calls": [call]})]
    (head, *_) = rendered(encoder, as_given(prompt)).segments
    assert '"content": "Hi", "tool_calls": [{"name": "weather", "arguments": {"unit": null, "city"' in head


def test_a_prompt_that_was_rendered_before_is_refused() -> None:
    encoder = response_encoder(tiny_tokenizer())
    before = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert encoder.render(before) == Unusable(Reason.ALREADY_RENDERED)
    plain = response_encoder(tiny_tokenizer(), chat_template=False)
    im_start = encoder.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert encoded(plain, before, "Hello").input_ids.tolist().count(im_start) == 2


def test_a_conversation_that_the_template_refuses_is_a_reason() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    tokenizer = tiny_tokenizer("byte_bpe", strict)
    system = [{"role": "system", "content": "Be kind."}, *USER]
    assert response_encoder(tokenizer).render(system) == Unusable(Reason.TEMPLATE_REFUSES, "no system")


def test_a_template_that_hides_the_response_is_a_reason() -> None:
    tokenizer = tiny_tokenizer("byte_bpe", "{{ messages[0]['content'] }}<|im_end|>")
    assert response_encoder(tokenizer).render(USER) == Unusable(Reason.TEMPLATE_REFUSES)


def test_messages_without_a_template_are_refused() -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", None))
    with pytest.raises(TokenizerError, match="need a chat template"):
        encoder.render(USER)


def test_plain_texts_get_the_bos_that_the_tokenizer_adds_once() -> None:
    base = tiny_tokenizer("sentencepiece_bpe", None)
    backend = Tokenizer.from_str(base.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", base.bos_token_id)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    encoder = response_encoder(tokenizer)
    for prompt in ("Say it:", "<|endoftext|>Say it:"):
        found = encoded(encoder, prompt, " Hello")
        assert found.input_ids.tolist().count(base.bos_token_id) == 1
        assert found.input_ids[0] == base.bos_token_id
    assert encoded(encoder, "Say it:", " Hello").input_ids[:-1].tolist() == tokenizer.encode("Say it: Hello")


def test_a_response_with_nothing_in_front_follows_the_bos_or_cannot_be_scored() -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", None))
    found = encoded(encoder, "", "Hello world! Hello")
    assert found.positions[:2].tolist() == [1, 2]
    assert found.input_ids[0] == encoder.tokenizer.bos_token_id
    without = PreTrainedTokenizerFast(
        tokenizer_object=encoder.tokenizer.backend_tokenizer, eos_token="<|im_end|>"
    )
    assert encode(response_encoder(without), "", "Hello") == Reason.NO_CONTEXT


def test_without_an_end_of_turn_the_tokenizer_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    with pytest.raises(TokenizerError) as raised:
        encode(response_encoder(tokenizer), "Say it:", "Hello")
    assert str(raised.value) == (
        "nothing ends a turn: the chat template writes no control token after a response and the tokenizer "
        "has no eos_token. Set eos_token in tokenizer_config.json."
    )


def test_markup_owns_what_it_replaces_and_the_rest_itself() -> None:
    # of "pqabrstop" the template writes "xyz" for "pq", "ab" and "st" as they are, "uv" for "r", "w" for "op"
    stretches = (
        Stretch(0, 3, 0, 2, spoken=False),
        Stretch(3, 5, 2, 4, spoken=True),
        Stretch(5, 7, 4, 5, spoken=False),
        Stretch(7, 9, 5, 7, spoken=False),
        Stretch(9, 10, 7, 9, spoken=False),
    )
    part = Part("content", "pqabrstop", rendered="xyzabuvstw", stretches=stretches)
    chat = RenderedChat(("ii", ""), (part,), ((), ()))
    encoder = response_encoder(letters())
    (found,) = encode_responses(encoder, [chat], 100)
    assert isinstance(found, EncodedResponse)
    owned = [(0, 2)] * 3 + [(2, 3), (3, 4)] + [(4, 5)] * 2 + [(5, 6), (6, 7), (7, 9)]
    assert list(zip(found.token_start.tolist(), found.token_end.tolist(), strict=True)) == owned
    # tokens over an edge, and one that is of the prompt in part
    (found,) = encode_responses(response_encoder(letters("ix", "za", "bu", "tw")), [chat], 100)
    assert isinstance(found, EncodedResponse)
    owned = [(0, 2)] * 2 + [(0, 3), (3, 5), (4, 5), (5, 6), (6, 9)]
    assert list(zip(found.token_start.tolist(), found.token_end.tolist(), strict=True)) == owned


def test_spans_count_from_the_first_character_that_is_scored() -> None:
    part = Part("content", "pqabc", begins=2).followed_by("abc", 5, spoken=True)
    chat = RenderedChat(("ipq", ""), (part,), ((), ()))
    (found,) = encode_responses(response_encoder(letters()), [chat], 100)
    assert isinstance(found, EncodedResponse)
    assert (found.text, found.pieces) == ("abc", (Piece(0, "content", 2, 3),))
    spans = list(zip(found.token_start.tolist(), found.token_end.tolist(), strict=True))
    assert spans == [(0, 1), (1, 2), (2, 3)]


def test_several_texts_are_counted_as_one_and_a_shared_token_is_the_first_s() -> None:
    # "abc" is one token, of the first text and the only one of the second
    texts = [
        ("reasoning", "xab", 0, 1),
        ("content", "c", 0, 0),
        ("content", "dxe", 1, 0),
        ("content", "f", 2, 0),
    ]
    parts = tuple(
        Part(field, text, message, begins).followed_by(text[begins:], len(text), spoken=True)
        for field, text, message, begins in texts
    )
    chat = RenderedChat(("i", "", "", "q", ""), parts, ((),) * 5)
    encoder = response_encoder(letters("abc"))
    pieces = (Piece(0, "reasoning", 1, 2), Piece(1, "content", 0, 3), Piece(2, "content", 0, 1))
    for size, seen, spans in (
        (100, 3, [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)]),
        (5, 2, [(0, 2), (2, 3), (3, 4), (4, 5)]),  # i, abc, d, x, e
        (4, 2, [(0, 2), (2, 3), (3, 4)]),
        (2, 1, [(0, 2)]),
    ):
        (found,) = encode_responses(encoder, [chat], size)
        assert isinstance(found, EncodedResponse)
        assert list(zip(found.token_start.tolist(), found.token_end.tolist(), strict=True)) == spans
        assert found.pieces == pieces[:seen]
        assert found.text == "abdxef"[: sum(piece.size for piece in found.pieces)]
        assert found.ended == (size == 100)
        # the ids: i, abc, d, x, e, q, f and the end; q lies between two texts
        assert found.positions.tolist() == [1, 2, 3, 4, 6, 7][: len(spans) + found.ended]


def test_between_two_texts_of_a_turn_all_is_trained_and_between_turns_the_first_control_token() -> None:
    tokenizer = letters()
    end = tokenizer.eos_token
    first, second, third = (
        Part("content", text, message).followed_by(text, len(text), spoken=True)
        for text, message in (("ab", 0), ("c", 0), ("de", 2))
    )
    between = f"x{end}{end}y"
    chat = RenderedChat(("ij", "kl", between, f"z{end}{end}"), (first, second, third), ((),) * 4)
    (found,) = encode_turns(response_encoder(tokenizer), [chat], 100)
    assert isinstance(found, EncodedTurns)
    # ij ab kl c x <eos> <eos> y de z <eos> <eos>: 17 tokens, the last of which is not read
    assert found.positions.tolist() == [2, 3, 4, 5, 6, 8, 11, 12, 14]
    assert found.input_ids.size == 15
    assert found.ended
    (scored,) = encode_responses(response_encoder(tokenizer), [chat], 100)  # its own tokens only
    assert isinstance(scored, EncodedResponse)
    assert scored.positions.tolist() == [2, 3, 6, 11, 12, 14]


def test_a_tokenizer_without_offsets_is_refused_by_name() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(TokenizerError, match="ByT5Tokenizer reports no character offsets"):
        response_encoder(ByT5Tokenizer())


def test_control_tokens_that_swallow_blanks_do_not_take_the_responses_tokens() -> None:
    backend = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<|greedy|>", lstrip=True, rstrip=True, special=True)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", extra_special_tokens=["<|greedy|>"]
    )
    tokenizer.chat_template = "{{ messages[0]['content'] }}<|greedy|>{{ messages[1]['content'] }}<|greedy|>"
    found = encoded(response_encoder(tokenizer), USER, "  Hello  ")
    assert_covers(found, len("  Hello  "))
    greedy = tokenizer.convert_tokens_to_ids("<|greedy|>")
    assert found.input_ids[found.positions].tolist().count(greedy) == 1
    assert found.input_ids[found.positions[-1]] == greedy


def deleting_rules() -> normalizers.Precompiled:
    """A SentencePiece normaliser with one rule, to delete DEL: a double array of 256 units, then the text."""
    units = [0] * 256
    units[0] = 1 << 10  # the root: its children are at 1 ^ byte
    units[1 ^ 0x7F] = 0x7F | 1 << 8 | 2 << 10  # the byte, "a rule ends here", and where its text's place is
    return normalizers.Precompiled(struct.pack("<257I", 4 * len(units), *units) + b"\0")


@pytest.mark.parametrize("family", ["unigram_nfkc", "sentencepiece_bpe"])
def test_characters_that_are_deleted_at_the_start_of_a_text_move_no_span(family: str) -> None:
    backend = Tokenizer.from_str(tiny_tokenizer(family).backend_tokenizer.to_str())
    backend.normalizer = deleting_rules()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    encoder = response_encoder(tokenizer, chat_template=False)
    response = " quick fox" if family == "unigram_nfkc" else " quick <|im_end|> fox"  # encoded in pieces
    for prompt in ("", "<|im_start|>", "<|im_end|>Say it<|im_start|>"):  # behind each a text begins anew
        plain = encoded(encoder, prompt + "The", response)
        deleted = encoded(encoder, f"{prompt}\x7f\x7fThe", response)
        assert deleted.token_start.tolist() == plain.token_start.tolist()
        assert deleted.token_end.tolist() == plain.token_end.tolist()
        assert deleted.input_ids.tolist() == plain.input_ids.tolist()
        assert_covers(encoded(encoder, prompt, "\x7fThe"), len("\x7fThe"))
