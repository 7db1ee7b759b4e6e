"""Tests of reasoning, tool calls and several turns: the tokens are those of the template's own rendering.

The templates are those that TRL ships for training, on one tokenizer that knows their control tokens.
"""

import copy
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl
from tiny_tokenizers import tiny_tokenizer
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from sepo_data.pieces import piece_text
from sepo_data.reasons import Reason, Unusable
from sepo_data.settings import Reasoning
from sepo_data.tokens.encoder import ResponseEncoder, response_encoder
from sepo_data.tokens.encoding import EncodedResponse, EncodedTurns, encode_responses, encode_turns
from sepo_data.tokens.rendered import RenderedChat

Messages = list[dict[str, Any]]

CONTROL = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|call|>", "<|return|>", "<|end|>"]
CONTROL += [
    "<|message|>",
    "<|channel|>",
    "<|start|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
]
PROMPT: Messages = [{"role": "user", "content": "The capital of France?"}]
CALLS = [{"type": "function", "function": {"name": "tide", "arguments": {"harbour": "Brest", "days": 3}}}]
JSON_CALLS = '[{"name": "tide", "arguments": {"harbour": "Brest", "days": 3}}]'
RESULT = {"role": "tool", "name": "tide", "content": "4.1 m"}


def says(content: str, **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **others}


BLOCKS = {
    "block": "<think>\nItaly?\n</think>\n\nIt is Paris.",
    "tight block": "<think>Italy?</think>It is Paris.",
    "block never opened": "Italy?\n</think>\n\nIt is Paris.",
    "empty block": "<think>\n\n</think>\n\nIt is Paris.",
    "block alone": "<think>\nItaly?\n</think>",
}
SIDES: dict[str, Messages] = {
    **{name: [says(content)] for name, content in BLOCKS.items()},
    "field": [says("It is Paris.", reasoning_content="Italy?")],
    "call": [says("", tool_calls=CALLS)],
    "words and call": [says("I look.", tool_calls=CALLS)],
    "reasoning and call": [says("", reasoning_content="Where?", tool_calls=CALLS)],
    "agent": [says("I look.", tool_calls=CALLS), RESULT, says("4.1 m.")],
    "silent agent": [says("", tool_calls=CALLS), RESULT, says("4.1 m.")],
    "two turns": [says(BLOCKS["block"]), {"role": "user", "content": "Why?"}, says(BLOCKS["block"])],
}
TEMPLATES = ["qwen3", "qwen3_5_think", "qwen3_8", "qwen2_5", "glm4moe", "nemotron_3_nano", "lfm2_2_5"]
TEMPLATES += ["deepseek_r1_distill", "llama3", "llama3_1", "gptoss"]


@cache
def encoder_of(template: str) -> ResponseEncoder:
    tokenizer: PreTrainedTokenizerFast = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken(t, special=True) for t in CONTROL]})
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / f"{template}.jinja").read_text("utf-8")
    return response_encoder(tokenizer)


def own_rendering(encoder: ResponseEncoder, messages: Messages) -> str | None:
    """The template's own rendering of the whole conversation; None if it refuses."""
    template = encoder.tokenizer.get_chat_template()
    dates = {"%d": "26", "%b": "Jul", "%Y": "2024", "%m": "07"}
    try:
        text = encoder.tokenizer.apply_chat_template(copy.deepcopy(messages), tokenize=False)
    except Exception:
        return None
    if "strftime_now" in template:
        text = re.sub(r"\d\d \w\w\w \d{4}", f"{dates['%d']} {dates['%b']} {dates['%Y']}", str(text))
        text = re.sub(r"\d{4}-\d\d-\d\d", f"{dates['%Y']}-{dates['%m']}-{dates['%d']}", text)
    return str(text)


def rendered(encoder: ResponseEncoder, side: str | Messages, **options: Any) -> RenderedChat | Reason:
    found = encoder.render(PROMPT, copy.deepcopy(side), **options)
    return found.reason if isinstance(found, Unusable) else found


def encoded(encoder: ResponseEncoder, side: str | Messages, **options: Any) -> EncodedResponse:
    chat = rendered(encoder, side, **options)
    assert isinstance(chat, RenderedChat), chat
    (found,) = encode_responses(encoder, [chat], 10**6)
    assert isinstance(found, EncodedResponse), found
    return found


def trained(encoder: ResponseEncoder, side: Messages) -> str:
    chat = rendered(encoder, side, every_turn=True)
    assert isinstance(chat, RenderedChat), chat
    (found,) = encode_turns(encoder, [chat], 10**6)
    assert isinstance(found, EncodedTurns), found
    gaps = np.flatnonzero(np.diff(found.positions) > 1) + 1
    return " … ".join(
        str(encoder.tokenizer.decode(found.input_ids[run])) for run in np.split(found.positions, gaps)
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_ids_are_those_of_the_template_s_own_rendering(template: str, side: str) -> None:
    encoder = encoder_of(template)
    own = own_rendering(encoder, [*PROMPT, *SIDES[side]])
    choices: list[tuple[bool, Reasoning]] = [(False, "score"), (True, "score"), (False, "skip")]
    for every_turn, reasoning in choices:
        chat = rendered(encoder, SIDES[side], every_turn=every_turn, reasoning=reasoning)
        if not isinstance(chat, RenderedChat):
            no_answer = side == "block alone" and reasoning == "skip"
            left_out = template in ("deepseek_r1_distill", "llama3") and chat == Reason.LEFT_OUT
            twice = template == "gptoss" and side in ("agent", "reasoning and call")
            assert own is None or no_answer or left_out or twice, chat
            continue
        assert chat.text == own
    if isinstance(rendered(encoder, SIDES[side]), RenderedChat):
        found = encoded(encoder, SIDES[side])
        ids = encoder.tokenizer.encode(str(own), add_special_tokens=False)
        size = found.input_ids.size - found.ended  # EOS stands in where the template writes no end of turn
        assert found.input_ids[:size].tolist() == ids[:size]
        assert [piece_text(SIDES[side], piece)[piece.begins :] for piece in found.pieces] == split(found)


def split(found: EncodedResponse) -> list[str]:
    ends = np.cumsum([0, *(piece.size for piece in found.pieces)])
    return [found.text[lo:hi] for lo, hi in pairwise(ends)]


def scored(found: EncodedResponse) -> list[tuple[int, str, str]]:
    """Message, field and text of each piece."""
    return [
        (piece.message, piece.field, text) for piece, text in zip(found.pieces, split(found), strict=True)
    ]


def test_every_text_after_the_prompt_is_scored() -> None:
    encoder = encoder_of("qwen3")
    side = [says("I look.", reasoning_content="Where?", tool_calls=CALLS), RESULT, says("4.1 m.")]
    assert scored(encoded(encoder, side)) == [
        (0, "reasoning_content", "Where?"),
        (0, "content", "I look."),
        (0, "tool_calls", JSON_CALLS),
        (2, "content", "4.1 m."),
    ]
    skipped = encoded(encoder, side, reasoning="skip")
    assert [field for _, field, _ in scored(skipped)] == ["content", "tool_calls", "content"]
    assert skipped.input_ids.tolist() == encoded(encoder, side).input_ids.tolist()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_scored_with_its_answer_or_skipped(name: str) -> None:
    encoder, content = encoder_of("qwen3"), BLOCKS[name]
    assert scored(encoded(encoder, content)) == [(0, "content", content)]
    assert scored(encoded(encoder, [says(content)])) == [(0, "content", content)]
    assert rendered(encoder, content, reasoning="refuse") == Reason.HAS_REASONING
    if name != "block alone":
        found = encoded(encoder, content, reasoning="skip")
        assert scored(found) == [(0, "content", "It is Paris.")]
        assert found.pieces[0].begins == len(content) - len("It is Paris.")
        assert found.input_ids.tolist() == encoded(encoder, content).input_ids.tolist()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("side", SIDES)
def test_spans_cover_every_text_in_order(template: str, side: str) -> None:
    chat = rendered(encoder_of(template), SIDES[side])
    if isinstance(chat, RenderedChat):
        found = encoded(encoder_of(template), SIDES[side])
        assert found.token_start[0] == 0
        assert found.token_end[-1] == len(found.text)
        assert (found.token_end > found.token_start).all()
        assert (np.diff(found.token_start) >= 0).all()
        assert (found.token_start[1:] <= found.token_end[:-1]).all()


def test_a_token_lies_on_its_own_characters() -> None:
    encoder = encoder_of("qwen3")
    for side in ("block", "field"):
        found = encoded(encoder, SIDES[side])
        for at, start, end in zip(found.positions, found.token_start, found.token_end, strict=False):
            token = str(encoder.tokenizer.decode(found.input_ids[[at]]))
            if token.isalpha() and token in found.text:
                assert found.text[start:end] == token


def test_conversations_train_whole_turns() -> None:
    call = '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Brest", "days": 3}}\n</tool_call>'
    encoder = encoder_of("qwen3")
    assert trained(encoder, SIDES["silent agent"]) == f"{call}<|im_end|> … 4.1 m.<|im_end|>"
    assert trained(encoder, SIDES["agent"]) == f"I look.\n{call}<|im_end|> … 4.1 m.<|im_end|>"
    assert trained(encoder, SIDES["field"]) == f"{BLOCKS['block']}<|im_end|>"
    assert trained(encoder, SIDES["block"]) == f"{BLOCKS['block']}<|im_end|>"
    # the template cuts the reasoning out of a turn that a user answers
    assert trained(encoder, SIDES["two turns"]) == f"It is Paris.<|im_end|> … {BLOCKS['block']}<|im_end|>"


def test_what_a_template_would_cut_up_is_a_reason() -> None:
    twice = "<think>\na\n</think>\n\nb<think>\nc\n</think>\n\nd"
    assert rendered(encoder_of("qwen3"), twice) == Reason.ODD_REASONING
    assert rendered(encoder_of("qwen3"), f"Well. {BLOCKS['block']}") == Reason.ODD_REASONING
    assert scored(encoded(encoder_of("qwen2_5"), twice)) == [(0, "content", twice)]


def test_control_tokens_typed_in_reasoning_and_calls_are_text() -> None:
    encoder = encoder_of("qwen3")
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    typed = [{"function": {"name": "tide", "arguments": {"harbour": "<|im_end|>"}}}]
    for side in (
        [says("a", reasoning_content="b<|im_end|>")],
        [says("<think>\nb<|im_end|>\n</think>\n\na")],
        [says("a", tool_calls=typed)],
    ):
        for reasoning in ("score", "skip"):
            found = encoded(encoder, side, reasoning=reasoning)
            assert found.input_ids.tolist().count(end) == 2
