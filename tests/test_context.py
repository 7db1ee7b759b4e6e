"""Tests of what a chat template gets besides the messages: tools, keywords, a system text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from scored_by_hand import scored
from tiny_pair import save_pair, write_jsonl
from tiny_tokenizers import CHATML, tiny_tokenizer
from trl import data_utils

from sepo_data import AnnotateSettings, PreferenceError, TokenizerError, annotate, load_annotated, project_row
from sepo_data.annotated.manifest import read_manifest
from sepo_data.dataset_spec import DatasetSpec
from sepo_data.projected.pairs import project_rows
from sepo_data.reasons import Reason, Unusable
from sepo_data.settings import ProjectionSettings
from sepo_data.sources.context import NO_CONTEXT, Context, ContextColumns
from sepo_data.sources.conversations import open_chats
from sepo_data.sources.preferences import Pair, open_pairs
from sepo_data.tokens import pairs as tokens_pairs
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import encode_pairs
from sepo_data.tokens.probing import Conversation
from sepo_data.tokens.rendered import RenderedChat

TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% if thoughtful is defined and not thoughtful %}{{ 'Be quick. ' }}"
    "{% endif %}" + CHATML
)
CONTEXT = ContextColumns("system", "tools", "chat_template_kwargs")
HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}
OTHER = {"type": "function", "function": {"name": "moon", "description": "Its phase."}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pair_row(**columns: Any) -> dict[str, Any]:
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    return {"prompt": HI, **sides, **columns}


def opened(folder: Path, *rows: dict[str, Any], **options: Any) -> tuple[datasets.Dataset, Any]:
    source, columns = open_pairs(write_jsonl(folder / "rows.jsonl", list(rows)), DatasetSpec(**options))
    return source.rows, columns


@pytest.mark.parametrize("as_text", [False, True])
def test_a_prompt_is_rendered_as_trl_renders_it(tmp_path: Path, as_text: bool) -> None:
    given: list[dict[str, Any]] = [
        {"tools": [TOOL], "chat_template_kwargs": {"thoughtful": False}},
        {"tools": None, "chat_template_kwargs": {"thoughtful": True, "documents": [{"text": "d"}]}},
        {"tools": [OTHER, TOOL], "chat_template_kwargs": None},
    ]
    written = [
        {name: json.dumps(value) if as_text and value is not None else value for name, value in one.items()}
        for one in given
    ]
    rows, columns = opened(tmp_path, *(pair_row(**one) for one in written))
    tokenizer = tiny_tokenizer("byte_bpe", TEMPLATE)
    for row, one in zip(rows, given, strict=True):
        pair = columns.read(row)
        assert isinstance(pair, Pair)
        ours = response_encoder(tokenizer).render(pair.prompt, "chosen", pair.context)
        assert isinstance(ours, RenderedChat)
        example: dict[str, Any] = {**pair_row(), "chat_template_kwargs": one["chat_template_kwargs"] or {}}
        theirs = data_utils.apply_chat_template(example, tokenizer, tools=one["tools"])
        assert ours.text == theirs["prompt"] + theirs["chosen"]
        last = ours.text
    assert "tide" in last
    assert "moon" in last


@pytest.mark.parametrize("prompt", ["Hi", HI])
def test_a_system_column_is_the_first_turn(prompt: Any) -> None:
    encoder = response_encoder(tiny_tokenizer())
    found = encoder.render(prompt, "Hello", Context(system="Be kind."))
    assert found == encoder.render([{"role": "system", "content": "Be kind."}, *HI], "Hello")
    assert found == encoder.render(
        [{"role": "system", "content": "Be kind."}, *HI], "Hello", Context("Be kind.")
    )
    other = encoder.render([{"role": "system", "content": "Be rude."}, *HI], "Hello", Context("Be kind."))
    assert other == Unusable(Reason.SYSTEM_DISAGREES)


def test_control_tokens_typed_in_a_tool_are_text() -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", TEMPLATE))
    found = encoder.render(HI, "Hello", Context(tools=[{**OTHER, "name": "<|im_end|>"}]))
    assert isinstance(found, RenderedChat)
    ((start, end),) = found.typed[0]
    assert found.segments[0][start:end] == "<|im_end|>"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tools": "[{"}, Reason.CONTEXT_NOT_JSON),
        ({"tools": "7"}, Reason.CONTEXT_NOT_JSON),
        ({"tools": ["search", "tide"]}, Reason.CONTEXT_NOT_JSON),
        ({"chat_template_kwargs": "[1]"}, Reason.CONTEXT_NOT_JSON),
        ({"chat_template_kwargs": {"add_generation_prompt": True}}, Reason.RESERVED_KEYWORD),
    ],
)
def test_what_no_template_can_be_given_costs_the_row(row: dict[str, Any], reason: Reason) -> None:
    nothing = dict.fromkeys(("system", "tools", "chat_template_kwargs"))
    assert CONTEXT.read(nothing | row) == Unusable(reason)
    assert CONTEXT.read({"system": "", "tools": " ", "chat_template_kwargs": {}}) == NO_CONTEXT


def test_a_column_of_another_kind_stops_the_run_or_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match=r'"tools" is int64, no list of .*`ignore_columns=tools` to'):
        opened(tmp_path, pair_row(tools=3))
    _, columns = opened(tmp_path, pair_row(tools=3), ignore_columns=("tools",))
    assert columns.context.items() == []
    with pytest.raises(PreferenceError, match=r'no column "functions".*`tools_column`'):
        opened(tmp_path, pair_row(), tools_column="functions")
    with pytest.raises(PreferenceError, match='"tools" would be overwritten by "functions"'):
        opened(tmp_path, pair_row(functions="[]", tools="[]"), tools_column="functions")


def test_conversations_are_given_them_too(tmp_path: Path) -> None:
    row = {
        "messages": [*HI, {"role": "assistant", "content": "Hello"}],
        "tools": [TOOL],
        "system": "Be kind.",
    }
    source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", [row]))
    chat = columns.read(source.rows[0])
    assert not isinstance(chat, Unusable)
    assert (chat.context.system, chat.context.tools) == ("Be kind.", [TOOL])


def losing(**lost: Any) -> Any:
    """`Conversation.rendered` that loses something of the context."""
    given = Conversation.rendered
    return lambda self, *args, **options: given(
        replace(self, context=replace(self.context, **lost)), *args, **options
    )


KEYWORDS = [{"chat_template_kwargs": {"thoughtful": one}} for one in (True, False)]
PROMPT_ALONE = (tokens_pairs, "repr", lambda key: repr(key[0]))  # a prompt is rendered once for all contexts


@pytest.mark.parametrize(
    ("fault", "columns"),
    [
        ((Conversation, "rendered", losing(template_kwargs={})), KEYWORDS),
        ((Conversation, "rendered", losing(tools=None)), [{**KEYWORDS[1], "tools": [TOOL]}]),
        ((ContextColumns, "read", lambda *_: NO_CONTEXT), [{"system": "Be kind."}]),
        (PROMPT_ALONE, KEYWORDS),
    ],
)
def test_a_run_that_loses_what_a_row_gives_its_template_stops(
    fault: Any, columns: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, found = opened(tmp_path, *(pair_row(**one) for one in columns))
    encoder = response_encoder(tiny_tokenizer("byte_bpe", TEMPLATE))
    encode_pairs(rows, found, encoder, 1000, 0, len(rows))
    where, name, planted = fault
    monkeypatch.setattr(where, name, planted, raising=False)
    with pytest.raises(TokenizerError, match=rf"row {len(rows) - 1}: the prompt .* not the one for its"):
        encode_pairs(rows, found, encoder, 1000, 0, len(rows))


def test_an_annotated_dataset_holds_what_its_prompts_used(tmp_path: Path) -> None:
    oracle, ref = save_pair(tmp_path / "models", template=TEMPLATE)
    rows = [pair_row(functions=[TOOL], system="Be kind.", note=i) for i in range(3)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = AnnotateSettings(tmp_path / "out", tools_column="functions", ignore_columns=("note",))
    annotate(data, oracle, ref, settings)
    found = load_annotated(str(tmp_path / "out"))["train"]
    assert {"system", "tools"} <= set(found.column_names)
    assert not {"functions", "note"} & set(found.column_names)
    columns = read_manifest(tmp_path / "out", "out").scoring.source.columns
    assert columns == {name: name for name in ("prompt", "chosen", "rejected", "system")} | {
        "tools": "functions"
    }
    without = annotate(data, oracle, ref, AnnotateSettings(tmp_path / "b", ignore_columns=("system",)))
    assert without.manifest is not None
    other = load_annotated(str(tmp_path / "b"))["train"]
    assert other["chosen_token_rewards"][:] != found["chosen_token_rewards"][:]


def test_a_policy_is_given_what_the_oracle_was_given() -> None:
    tokenizer = tiny_tokenizer("byte_bpe", TEMPLATE)
    rows = scored([pair_row(id=0)] * 2, tokenizer, AnnotateSettings(Path()))
    rows = rows.add_column("tools", [json.dumps([TOOL]), None])
    encoder = response_encoder(tokenizer)
    with_tools, without = project_rows(rows, encoder, ProjectionSettings(), 0, 2).pairs
    assert "tide" in tokenizer.decode(with_tools.chosen.input_ids)
    assert "tide" not in tokenizer.decode(without.chosen.input_ids)
    for row, pair in zip(rows, (with_tools, without), strict=True):
        alone = project_row(row, tokenizer)
        assert alone.chosen.input_ids.tolist() == pair.chosen.input_ids.tolist()
