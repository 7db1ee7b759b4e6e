"""Tests of tool calls: what a template prints of them is what the file has, whatever types its rows mix."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pair import save_pair, write_jsonl
from tiny_tokenizers import CHATML, tiny_tokenizer

from sepo_data import AnnotateSettings, annotate, load_annotated, project_row
from sepo_data.comparison import compare_annotations
from sepo_data.sources.arrow_cache import KEPT_AS_JSON
from sepo_data.sources.conversations import open_chats
from sepo_data.sources.preferences import open_pairs
from sepo_data.sources.shapes import ARGUMENTS, CALLED, RESULTS
from sepo_data.tokens.chats import encode_chats
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import encode_pairs

Row = dict[str, Any]
PRINTING = "{% if tools %}{{ tools | tojson + '\n' }}{% endif %}" + CHATML.replace(
    "m['content'] +", "(m.content or '') + ((m.tool_calls or '') | tojson) +"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def calls(arguments: object, **more: object) -> Row:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}, **more}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def says(text: str) -> Row:
    return {"role": "assistant", "content": text}


def pair_of(arguments: object) -> Row:
    prompt = [user("Hi"), calls(arguments), {"role": "tool", "content": "4"}]
    return {"prompt": prompt, "chosen": [says("a")], "rejected": [says("b")]}


def written(path: Path, rows: list[Row]) -> str:
    """A file of rows: JSON lines, or parquet as pyarrow makes it."""
    if path.suffix == ".jsonl":
        return write_jsonl(path, rows)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def texts(data: str) -> list[str]:
    """What the chosen sides are rendered and encoded to."""
    encoder = response_encoder(tiny_tokenizer("byte_bpe", PRINTING))
    source, columns = open_pairs(data)
    found = encode_pairs(source.rows, columns, encoder, 4096, 0, len(source.rows))
    return [str(encoder.tokenizer.decode(pair.chosen.input_ids)) for pair in found.pairs]


def directly(rows: list[Row]) -> list[str]:
    """What the template itself makes of the rows as Python has them."""
    tokenizer = tiny_tokenizer("byte_bpe", PRINTING)
    found = []
    for row in rows:
        chat = [*row["prompt"], *row["chosen"]]
        encoded: Any = tokenizer.apply_chat_template(chat, tools=row.get("tools"))
        found.append(str(tokenizer.decode(encoded["input_ids"])).removesuffix("\n"))
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        [{"n": 1}, {"n": "one"}],
        [{"x": [1]}, {"x": {"a": 1}}],
        [{}, {"n": 1}],
        [{}, {}],
        [{"a": 1, "b": 2}, {"b": 1, "a": 2}],
        [{"a": None, "b": 2}, {"a": 1, "b": 2}],
        [{"a": 1}, {"b": None}],
        [{"n": 1}, {"n": 0.5}],
        [{"x": [{"a": 1}, {"b": [2, "c"]}]}, {"x": []}],
        [{"n": 2**70}, {"n": 1}],
        [[1], {"n": 1}],
    ],
    ids=str,
)
def test_arguments_are_what_the_row_has(tmp_path: Path, arguments: list[object]) -> None:
    rows = [pair_of(one) for one in arguments]
    assert texts(write_jsonl(tmp_path / "rows.jsonl", rows)) == directly(rows)


def test_arguments_of_one_type_need_no_json(tmp_path: Path) -> None:
    rows = [pair_of({"a": 1, "b": "x"}), pair_of({"a": 2, "b": "y"})]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    source, columns = open_pairs(data)
    assert pa.types.is_struct(source.schema.field(str(columns.prompt)).type.value_type)
    assert KEPT_AS_JSON not in source.repairs
    assert texts(data) == directly(rows)


def test_arguments_as_text_in_one_row_are_read_as_the_object_of_the_other(tmp_path: Path) -> None:
    rows = [pair_of({"n": 1}), pair_of('{"n": "one"}')]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert texts(data) == directly([pair_of({"n": 1}), pair_of({"n": "one"})])
    assert open_pairs(data)[0].repairs[ARGUMENTS] == 1


def test_arguments_that_are_text_in_all_rows_stay_text_as_trl_gives_them(tmp_path: Path) -> None:
    rows = [pair_of('{"n": 1}'), pair_of('{"n": "one"}')]
    assert texts(write_jsonl(tmp_path / "rows.jsonl", rows)) == directly(rows)


def test_calls_that_differ_from_side_to_side_of_a_row(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [user("Hi"), calls({"a": 1, "b": 2}), {"role": "tool", "content": "4"}],
            "chosen": [calls({"b": 1, "a": 2}), {"role": "tool", "content": "4"}, says("a")],
            "rejected": [says("b")],
        }
        for _ in range(2)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert texts(data) == directly(rows)
    tiny = save_pair(tmp_path / "models", template=PRINTING)
    annotate(data, *tiny, AnnotateSettings(tmp_path / "out"))
    kept = load_annotated(str(tmp_path / "out"))["train"][0]
    assert list(kept["prompt"][1]["tool_calls"][0]["function"]["arguments"]) == ["a", "b"]
    assert list(kept["chosen"][0]["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]


@pytest.mark.parametrize("more", [[1, "x"], [{"a": 1}, ["b"]], [{}, {}]], ids=str)
def test_other_fields_of_messages_may_mix_types(tmp_path: Path, more: list[object]) -> None:
    rows = [pair_of({"n": 1}) for _ in more]
    for row, value in zip(rows, more, strict=True):
        row["chosen"][0]["meta"] = value
        row["prompt"][0]["meta"] = value
    assert texts(write_jsonl(tmp_path / "rows.jsonl", rows)) == directly(rows)


def test_content_in_parts_in_one_row_and_text_in_the_other(tmp_path: Path) -> None:
    rows = [pair_of({"n": 1}), pair_of({"n": "one"})]
    mixed = json.loads(json.dumps(rows))
    mixed[1]["prompt"][0]["content"] = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    mixed[1]["chosen"][0]["content"] = [{"type": "text", "text": "a"}]
    assert texts(write_jsonl(tmp_path / "rows.jsonl", mixed)) == directly(rows)


def test_schemas_of_tools_are_what_the_row_has(tmp_path: Path) -> None:
    def tool(default: object) -> Row:
        parameters = {"type": "object", "properties": {"n": {"default": default, "enum": [1, "a", None]}}}
        return {"type": "function", "function": {"name": "f", "parameters": parameters}}

    rows = [{**pair_of({"n": 1}), "tools": [tool(default)]} for default in (1, "one", None, [2])]
    assert texts(write_jsonl(tmp_path / "mixed.jsonl", rows)) == directly(rows)
    order = [{"name": "f", "type": "function"}, {"type": "function", "name": "f"}]
    rows = [{**pair_of({"n": 1}), "tools": [one]} for one in order]
    assert texts(write_jsonl(tmp_path / "order.jsonl", rows)) == directly(rows)


def test_a_parquet_file_s_structs_are_read_without_the_nulls_that_fill_them(tmp_path: Path) -> None:
    rows = [pair_of({"a": 1}), pair_of({"b": "x"})]
    assert texts(written(tmp_path / "rows.parquet", rows)) == directly(rows)


def test_a_parquet_file_that_datasets_wrote_from_mixed_rows(tmp_path: Path) -> None:
    rows = [pair_of({"n": 1}), pair_of({"n": "one", "m": None})]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = datasets.load_dataset("json", data_files=data, split="train")
    made.to_parquet(tmp_path / "rows.parquet")
    assert texts(str(tmp_path / "rows.parquet")) == directly(rows)


def test_a_parquet_file_with_whole_conversations_as_json(tmp_path: Path) -> None:
    rows = [pair_of({"n": 1}), pair_of({"n": "one", "m": None})]
    table = {
        name: pa.array([json.dumps(row[name]) for row in rows], pa.string()).cast(pa.json_())
        for name in ("prompt", "chosen", "rejected")
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    assert texts(str(tmp_path / "rows.parquet")) == directly(rows)


def test_conversations_for_fine_tuning(tmp_path: Path) -> None:
    rows = [
        {"messages": [user("Hi"), calls(arguments), {"role": "tool", "content": "4"}, says("a")]}
        for arguments in ({"n": 1, "m": None}, {"n": "one"}, {})
    ]
    encoder = response_encoder(tiny_tokenizer("byte_bpe", PRINTING))
    source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", rows))
    found = encode_chats(source.rows, columns, encoder, 4096, 0, len(rows)).chats
    expected = directly([{"prompt": row["messages"], "chosen": []} for row in rows])
    assert [encoder.tokenizer.decode(chat.input_ids) for chat in found] == expected


def test_an_annotation_has_them_for_everyone_who_reads_it(tmp_path: Path) -> None:
    rows = [pair_of({"n": 1, "m": None}), pair_of({"n": "one"}), pair_of({})]
    tiny = save_pair(tmp_path / "models", template=PRINTING)
    annotate(write_jsonl(tmp_path / "rows.jsonl", rows), *tiny, AnnotateSettings(tmp_path / "out"))
    kept = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in rows]
    annotated = load_annotated(str(tmp_path / "out"))["train"]
    assert compare_annotations(annotated, annotated).pairs == 3
    assert texts(str(tmp_path / "out")) == directly(rows)
    tokenizer = tiny_tokenizer("byte_bpe", PRINTING)
    for row in annotated.to_list():
        assert project_row(row, tokenizer).chosen.token_rewards.tolist() == row["chosen_token_rewards"]


def test_a_row_of_python_has_the_nulls_of_its_json_and_not_those_of_its_type(tmp_path: Path) -> None:
    tiny = save_pair(tmp_path / "models", template=PRINTING)
    for name, arguments in (("json", [{"n": 1, "m": None}]), ("type", [{"n": 1}, {"m": 2}])):
        rows = list(map(pair_of, arguments))
        annotate(write_jsonl(tmp_path / "rows.jsonl", rows), *tiny, AnnotateSettings(tmp_path / name))
        annotated = load_annotated(str(tmp_path / name))["train"]
        tokenizer = tiny_tokenizer("byte_bpe", PRINTING)
        found = [tokenizer.decode(project_row(row, tokenizer).chosen.input_ids) for row in annotated]
        assert found == [text.removesuffix("\n") for text in directly(rows)]


@pytest.mark.parametrize(
    "result", [{"n": 1, "m": None}, [{"n": 1}, {"m": 2}], {"text": "4", "unit": "C"}, {}]
)
def test_a_result_given_as_an_object_is_its_json(tmp_path: Path, result: object) -> None:
    rows = [pair_of({"n": 1}), pair_of({"n": 2})]
    rows[0]["prompt"][2]["content"] = result
    source, _ = open_pairs(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert source.repairs[RESULTS] == 1
    rows[0]["prompt"][2]["content"] = json.dumps(result)
    assert texts(str(tmp_path / "rows.jsonl")) == directly(rows)


def test_a_result_given_in_parts_is_their_text(tmp_path: Path) -> None:
    rows = [pair_of({"n": 1})]
    rows[0]["prompt"][2]["content"] = [{"type": "text", "text": "4"}]
    assert texts(write_jsonl(tmp_path / "rows.jsonl", rows)) == directly([pair_of({"n": 1})])


@pytest.mark.parametrize("roles", [("function_call", "observation"), ("tool_call", "tool_response")])
@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
def test_calls_in_turns_of_their_own_are_the_assistant_s(
    tmp_path: Path, roles: tuple[str, str], names: tuple[str, str]
) -> None:
    def given(arguments: object) -> Row:
        text = json.dumps({"name": "f", "arguments": arguments})
        turns = [("user", "Hi"), (roles[0], text), (roles[1], "4")]
        sides = {
            side: [dict(zip(names, ("assistant", side[0]), strict=True))] for side in ("chosen", "rejected")
        }
        return {"prompt": [dict(zip(names, turn, strict=True)) for turn in turns], **sides}

    def meant(arguments: object) -> Row:
        return {**pair_of(arguments), "chosen": [says("c")], "rejected": [says("r")]}

    mixed: list[object] = [{"n": 1}, {"n": "one"}]
    data = write_jsonl(tmp_path / "rows.jsonl", [given(one) for one in mixed])
    assert texts(data) == directly([meant(one) for one in mixed])
    assert open_pairs(data)[0].repairs[CALLED] == 2


def test_calls_stored_as_text_are_read_as_calls(tmp_path: Path) -> None:
    rows = [pair_of({"n": 1}), pair_of({"n": 2})]
    stored = json.loads(json.dumps(rows))
    for row in stored:
        row["prompt"][1]["tool_calls"] = json.dumps(row["prompt"][1]["tool_calls"])
    assert texts(write_jsonl(tmp_path / "rows.jsonl", stored)) == directly(rows)


def test_a_table_that_datasets_made_of_untyped_messages(tmp_path: Path) -> None:
    rows = [pair_of({"n": 1}), pair_of({"n": "it's"})]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    datasets.load_dataset("json", data_files=data, split="train").to_csv(tmp_path / "rows.csv")
    assert texts(str(tmp_path / "rows.csv")) == directly(rows)
