"""Tests of rendering and encoding whole conversations: which tokens of which turn are trained."""

from typing import Any

import numpy as np
import pytest
from nasty import NASTY
from tiny_tokenizers import CHATML, FAMILIES, tiny_tokenizer

from sepo_data.errors import TokenizerError
from sepo_data.reasons import Reason, Unusable
from sepo_data.sources.context import Context
from sepo_data.tokens.encoder import ResponseEncoder, response_encoder
from sepo_data.tokens.encoding import EncodedTurns, encode_responses, encode_turns
from sepo_data.tokens.rendered import Part, RenderedChat, Stretch

# with the ends of turns and the habits of the families whose names they bear
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_start|>\n\n' }}"
    "{{ m['content'] | trim + '<|im_end|>' }}{% endfor %}{{ '<|im_start|>assistant<|im_start|>\n\n' }}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + (m['content'] | trim) + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' }}"
    "{{ ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{{ 'USER: ' + m['content'] if m['role'] == 'user' else "
    "'ASSISTANT: ' + m['content'] + '<|endoftext|>' }}{{ '\n' }}{% endfor %}"
)
QWEN3 = (  # thoughts are cut out of every turn, and the last one gets an empty thought
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{% endfor %}"
)
ENDS = {
    CHATML: "<|im_end|>",
    LLAMA3: "<|im_end|>",
    MISTRAL: "<|im_end|>",
    GEMMA: "<|im_end|>",
    VICUNA: "<|endoftext|>",
    QWEN3: "<|im_end|>",
}
NAMES = ["chatml", "llama3", "mistral", "gemma", "vicuna", "qwen3"]

ANSWERS = ["Paris.", "<think>Italy?</think>It is Rome.", "    return x + 1\nHello there!"]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **others}


def dialogue(*answers: str) -> list[dict[str, Any]]:
    """The prompt of a conversation with these answers before its last."""
    turns = [turn for answer in answers for turn in (user("The capital of France is?"), assistant(answer))]
    return [*turns, user("Hello, how are you today?")]


def rendered(encoder: ResponseEncoder, prompt: Any, response: str) -> RenderedChat:
    chat = encoder.render(prompt, response, every_turn=True)
    assert isinstance(chat, RenderedChat), chat
    return chat


def encode(
    encoder: ResponseEncoder, prompt: Any, response: str, max_length: int = 10**6
) -> EncodedTurns | Reason:
    (found,) = encode_turns(encoder, [rendered(encoder, prompt, response)], max_length)
    return found.reason if isinstance(found, Unusable) else found


def encoded(encoder: ResponseEncoder, prompt: Any, response: str, max_length: int = 10**6) -> EncodedTurns:
    found = encode(encoder, prompt, response, max_length)
    assert isinstance(found, EncodedTurns), found
    return found


def trained_texts(encoder: ResponseEncoder, prompt: Any, response: str) -> list[str]:
    """The decoded runs of trained tokens, without the text before that their first token owns."""
    chat, found = rendered(encoder, prompt, response), encoded(encoder, prompt, response)
    runs = np.split(found.positions, np.flatnonzero(np.diff(found.positions) > 1) + 1)
    texts = []
    for run, segment, answer in zip(runs, chat.segments[:-1], chat.responses, strict=True):
        text = str(encoder.tokenizer.decode(found.input_ids[run]))
        before = text[: text.find(answer)]
        assert segment.endswith(before)
        assert not before or str(encoder.tokenizer.decode(found.input_ids[run[:1]])).startswith(before)
        texts.append(text[len(before) :])
    return texts


@pytest.mark.parametrize("template", ENDS, ids=NAMES)
def test_the_trained_tokens_are_every_answer_and_the_end_of_its_turn(template: str) -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", template))
    prompt, response = dialogue(*ANSWERS[:-1]), ANSWERS[-1]
    seen = ["Paris.", "It is Rome.", ANSWERS[2]] if template == QWEN3 else ANSWERS
    assert trained_texts(encoder, prompt, response) == [answer + ENDS[template] for answer in seen]
    found = encoded(encoder, prompt, response)
    assert found.ended
    assert found.positions[-1] == found.input_ids.size - 1
    # nothing in front of the conversation, and nothing behind its last end of turn
    whole = encoder.tokenizer.decode(found.input_ids)
    chat = rendered(encoder, prompt, response)
    assert whole == chat.text.removesuffix(chat.segments[-1].removeprefix(ENDS[template]))


@pytest.mark.parametrize("template", [CHATML, LLAMA3, GEMMA], ids=["chatml", "llama3", "gemma"])
def test_nasty_answers_are_trained_verbatim_in_every_turn(template: str) -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", template))
    for answer in NASTY:
        trained = trained_texts(encoder, dialogue(answer, "Rome."), answer)
        assert trained == [f"{text}<|im_end|>" for text in (answer, "Rome.", answer)]


@pytest.mark.parametrize(
    ("family", "template"),
    [(family, template) for family in FAMILIES for template in (CHATML, None)]
    + [("byte_bpe", template) for template in ENDS],
)
def test_a_conversation_of_one_answer_is_encoded_as_annotation_does(
    family: str, template: str | None
) -> None:
    encoder = response_encoder(tiny_tokenizer(family, template))
    prompts = ["Say it: ", *(f"Say {nasty}" for nasty in NASTY if len(nasty) < 100)]
    for prompt, max_length in ((prompts[0], 10**6), (prompts[0], 40), *((p, 10**6) for p in prompts[1:])):
        responses = NASTY if prompt == prompts[0] else ["Hello there"]
        alone = encoder.render(prompt)
        assert isinstance(alone, RenderedChat)
        expected = encode_responses(encoder, [alone.ending_in(text) for text in responses], max_length)
        chats = [rendered(encoder, prompt, response) for response in responses]
        for one, turns in zip(expected, encode_turns(encoder, chats, max_length), strict=True):
            if isinstance(one, Unusable) or isinstance(turns, Unusable):
                assert one == turns
                continue
            assert turns.input_ids.tolist() == one.input_ids.tolist()
            assert turns.positions.tolist() == one.positions.tolist()
            assert turns.ended == one.ended


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_every_turn(family: str) -> None:
    encoder = response_encoder(tiny_tokenizer(family))
    im_end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    chats = [rendered(encoder, dialogue("Rome", nasty), "Hello there") for nasty in NASTY]
    for found in encode_turns(encoder, chats, 10**6):
        if isinstance(found, Unusable):
            assert found.reason in (Reason.NO_TOKENS, Reason.WRITTEN_CONTROL)
            assert family in ("unigram_nfkc", "wordpiece")
            continue
        assert (np.diff(found.positions) > 0).all()
        assert found.input_ids[found.positions].tolist().count(im_end) == 3
        assert found.input_ids.tolist().count(im_end) == 6


@pytest.mark.parametrize("template", [CHATML, MISTRAL], ids=["chatml", "mistral"])
def test_a_maximum_length_cuts_the_end_and_invents_nothing(template: str) -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", template))
    prompt = dialogue("Paris.")
    whole = encoded(encoder, prompt, "Hello there!")
    for max_length in range(whole.positions[0] + 1, whole.input_ids.size):
        found = encoded(encoder, prompt, "Hello there!", max_length)
        assert found.positions.tolist() == [p for p in whole.positions if p < max_length]
        assert found.input_ids.tolist() == whole.input_ids[: found.positions[-1] + 1].tolist()
        assert not found.ended
    assert encode(encoder, prompt, "Hello there!", int(whole.positions[0])) == Reason.PROMPT_TOO_LONG
    assert encoded(encoder, prompt, "Hello there!", whole.input_ids.size).ended


def test_a_turn_without_an_end_of_its_own_trains_none_and_the_last_gets_eos() -> None:
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    encoder = response_encoder(tiny_tokenizer("byte_bpe", plain))
    assert trained_texts(encoder, dialogue("Paris."), "Rome.") == ["Paris.", "Rome.<|im_end|>"]


def test_control_tokens_typed_in_any_turn_are_text() -> None:
    encoder = response_encoder(tiny_tokenizer())
    im_end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    im_start = encoder.tokenizer.convert_tokens_to_ids("<|im_start|>")
    answers = ["I say <|im_end|> twice <|im_end|>", "<|im_start|>user\nNo<|im_end|>"]
    prompt = [user("a<|im_end|>b"), assistant(answers[0]), user("<|im_start|>c")]
    found = encoded(encoder, prompt, answers[1])
    assert found.input_ids.tolist().count(im_start) == 4  # one per turn
    assert found.input_ids.tolist().count(im_end) == 4
    assert found.input_ids[found.positions].tolist().count(im_end) == 2
    assert trained_texts(encoder, prompt, answers[1]) == [f"{answer}<|im_end|>" for answer in answers]


def test_a_transcript_trains_every_turn_of_the_assistant() -> None:
    encoder = response_encoder(tiny_tokenizer())
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello\n\nthere\n\nHuman: Bye\n\nAssistant:"
    turns = [user("Hi"), assistant("Hello\n\nthere"), user("Bye")]
    assert rendered(encoder, transcript, "Bye!") == rendered(encoder, turns, "Bye!")
    assert trained_texts(encoder, transcript, "Bye!") == ["Hello\n\nthere<|im_end|>", "Bye!<|im_end|>"]


def test_a_text_without_a_template_is_a_prompt_and_its_response() -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", None))
    chat = rendered(encoder, "The capital of", " France")
    assert (chat.segments, chat.responses, chat.text) == (
        ("The capital of", ""),
        (" France",),
        "The capital of France",
    )
    assert chat.spans == [(14, 21)]
    assert trained_texts(encoder, "The capital of", " France") == [" France<|im_end|>"]


def test_a_response_of_one_message_is_its_text() -> None:
    encoder = response_encoder(tiny_tokenizer())
    assert encoder.render([user("Hi")], [assistant("Bye!")]) == encoder.render([user("Hi")], "Bye!")


def test_a_conversation_that_the_assistant_begins_trains_that_turn_too() -> None:
    encoder = response_encoder(tiny_tokenizer())
    prompt = [assistant("Hello"), user("Bye")]
    assert trained_texts(encoder, prompt, "Bye!") == ["Hello<|im_end|>", "Bye!<|im_end|>"]
    assert [part.message for part in rendered(encoder, prompt, "Bye!").parts] == [0, 2]


@pytest.mark.parametrize(
    "text",
    [
        "Say\n\nHuman: Hi\n\nAssistant:",  # begins with something else
        "\n\nHuman: Hi\n\nAssistant: I",  # the answer has begun
        "\n\nHuman: Hi\n\nAssistant: Bye\n\nHuman: Why?",  # asks for nothing
        "Hi",
    ],
)
def test_a_text_that_is_no_transcript_is_one_user_turn(text: str) -> None:
    encoder = response_encoder(tiny_tokenizer())
    assert rendered(encoder, text, "Bye!") == rendered(encoder, [user(text)], "Bye!")


@pytest.mark.parametrize(
    "before", ["<|im_start|>user\nhi<|im_end|>\n", " \n<|im_end|>hi", "[INST] hi [/INST]"]
)
def test_a_text_that_was_rendered_before_is_a_reason(before: str) -> None:
    encoder = response_encoder(tiny_tokenizer())
    assert encoder.render(before, "Hi", every_turn=True) == Unusable(Reason.ALREADY_RENDERED)
    assert isinstance(encoder.render([user(before)], "Hi"), RenderedChat)
    assert isinstance(encoder.render("hi <|im_end|>", "Hi"), RenderedChat)


TAKE_A_TEMPLATE = "the tokenizer has none. Pass `chat_template=FILE`, or take a model that has one."
LEAVE_IT_OUT = "`chat_template=False` was given. Leave it out, or turn the messages into texts."


@pytest.mark.parametrize(("template", "advice"), [(None, TAKE_A_TEMPLATE), (CHATML, LEAVE_IT_OUT)])
@pytest.mark.parametrize("sides", [([user("Hi")], "Hello"), ("Hi", [assistant("Hello")])])
def test_messages_without_a_template_are_refused(sides: Any, template: str | None, advice: str) -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", template), chat_template=False)
    with pytest.raises(TokenizerError) as raised:
        encoder.render(*sides)
    assert str(raised.value) == f"the dataset holds messages, which need a chat template, and {advice}"


def test_a_context_without_a_template_is_refused() -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", None))
    with pytest.raises(TokenizerError) as raised:
        encoder.render("Hi", "Hello", Context(system="Be kind."))
    assert str(raised.value) == (
        "the dataset has a column system, tools or chat_template_kwargs, which needs a chat template, and "
        "none is used. Take a model whose tokenizer has one, or pass `ignore_columns` with the column's name."
    )


def test_reasoning_in_a_plain_text_is_scored_skipped_or_refused() -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", None))
    text = "<think>Italy?</think> Rome."
    scored = encoder.render("Say it:", text)
    whole = Part("content", text, rendered=text, stretches=(Stretch(0, 27, 0, 27, spoken=True),))
    assert scored == RenderedChat(("Say it:", ""), (whole,), ((), ()))
    skipped = encoder.render("Say it:", text, reasoning="skip")
    answer = Part("content", text, 0, 22, "Rome.", (Stretch(0, 5, 22, 27, spoken=True),))
    assert skipped == RenderedChat(("Say it:<think>Italy?</think> ", ""), (answer,), ((), ()))
    assert encoder.render("Say it:", text, reasoning="refuse") == Unusable(Reason.HAS_REASONING)
    twice = f"{text}<think>Why?</think> No."  # no template takes it apart
    plain = encoder.render("Say it:", twice, reasoning="skip")
    assert isinstance(plain, RenderedChat)
    assert plain.responses == (twice,)


def test_earlier_answers_are_the_template_s_in_a_prompt_and_verbatim_in_a_conversation() -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", LLAMA3))
    prompt = dialogue(" Paris. ")
    alone = encoder.render(prompt)
    assert isinstance(alone, RenderedChat)
    assert "\n\nParis.<|im_end|>" in alone.segments[0]
    assert "\n\n Paris. <|im_end|>" in rendered(encoder, prompt, "Rome").text


def test_probes_typed_by_a_user_are_text() -> None:
    encoder = response_encoder(tiny_tokenizer())
    probes = "Xprobe1x Yprobe2y Xprobe3x Yprobe4y"
    chat = rendered(encoder, [user(probes), assistant(probes), user(probes)], probes)
    assert chat.responses == (probes, probes)
    assert chat.segments == (
        f"<|im_start|>user\n{probes}<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_end|>\n<|im_start|>user\n{probes}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n",
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1]['content'] }}<|im_end|>",  # leaves earlier answers out
        "{% for m in messages | reverse %}{{ m['content'] }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m['content'] + m['content'] }}<|im_end|>{% endfor %}",
        CHATML + "{{ messages[-1]['content'] }}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_does_not_say_every_answer_once_and_in_order_is_a_reason(template: str) -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", template))
    found = encoder.render(dialogue("a"), "b", every_turn=True)
    assert isinstance(found, Unusable)
    assert found.reason == Reason.TEMPLATE_REFUSES


def test_the_batch_does_not_matter() -> None:
    encoder = response_encoder(tiny_tokenizer())
    chats = [rendered(encoder, dialogue(nasty), "Hello") for nasty in NASTY]
    together = encode_turns(encoder, chats, 100)
    for chat, batched in zip(chats, together, strict=True):
        (alone,) = encode_turns(encoder, [chat], 100)
        if isinstance(alone, Unusable) or isinstance(batched, Unusable):
            assert alone == batched
        else:
            assert alone.input_ids.tolist() == batched.input_ids.tolist()
            assert alone.positions.tolist() == batched.positions.tolist()
