"""Tests of conversations and texts in the shapes that people store them in."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_pair import write_jsonl

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.errors import PreferenceError
from sepo_data.reasons import Reason, Unusable
from sepo_data.sources import shapes
from sepo_data.sources.conversations import Chat, open_chats
from sepo_data.sources.opening import Source
from sepo_data.sources.pair_layouts import UNDOUBLED
from sepo_data.sources.preferences import Pair, PairColumns, open_pairs

Row = dict[str, Any]
SYSTEM = {"role": "system", "content": "Be brief."}
HI = {"role": "user", "content": "Hi"}
A, B = ({"role": "assistant", "content": text} for text in "ab")
PAIR = Pair([HI], [A], [B])
TEXTS = Pair("Hi", "a", "b")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def opened(folder: Path, *rows: Row, **options: Any) -> tuple[Source, PairColumns]:
    return open_pairs(write_jsonl(folder / "rows.jsonl", list(rows)), DatasetSpec(**options))


def pairs(folder: Path, *rows: Row, **options: Any) -> list[Pair | Reason]:
    source, columns = opened(folder, *rows, **options)
    found = map(columns.read, source.rows)
    return [pair.reason if isinstance(pair, Unusable) else pair for pair in found]


def renamed(*messages: Row) -> list[Row]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[one["role"]], "value": one["content"]} for one in messages]


def in_parts(*messages: Row) -> list[Row]:
    return [
        {**one, "content": [{"type": "text", "text": letter} for letter in one["content"]]}
        for one in messages
    ]


# Each is the pair: user "Hi", assistant "a" against assistant "b" -------------------------------------------

WHOLE: dict[str, Any] = {
    "ShareGPT": renamed,
    "other roles": lambda *ms: [{**m, "role": {"user": "Human"}.get(m["role"], "model")} for m in ms],
    "parts": in_parts,
    "texts": lambda *ms: [{"role": m["role"], "text": m["content"]} for m in ms],
    "speakers": lambda *ms: [{"speaker": m["role"], "text": m["content"]} for m in ms],
    "JSON": lambda *ms: json.dumps(ms, indent=1),
    "Python": lambda *ms: str(list(ms)),
    "NumPy": lambda *ms: str(np.array(ms, dtype=object)),
    "NumPy's repr": lambda *ms: repr(np.array(ms, dtype=object)),
    "JSON of JSON": lambda *ms: json.dumps(json.dumps(ms)),
    "keys of both": lambda *ms: [*renamed(*ms[:1]), *({**m, "from": None, "value": None} for m in ms[1:])],
    "JSON of ShareGPT": lambda *ms: json.dumps(renamed(*ms)),
    "lists side by side": lambda *ms: {key: [m[key] for m in ms] for key in ("role", "content")},
    "in an object": lambda *ms: {"messages": list(ms)},
    "JSON of an object": lambda *ms: json.dumps({"conversations": renamed(*ms)}),
}


@pytest.mark.parametrize("shape", WHOLE)
def test_whole_conversations_are_read_in_every_shape(tmp_path: Path, shape: str) -> None:
    sides = {"chosen": WHOLE[shape](HI, A), "rejected": WHOLE[shape](HI, B)}
    assert pairs(tmp_path, sides) == [PAIR]
    assert pairs(tmp_path, {"prompt": "Hi", **sides}) == [PAIR]
    assert pairs(tmp_path, {"question": "Hi", **sides}) == [PAIR]
    assert pairs(tmp_path, {"prompt": WHOLE[shape](HI), **sides}) == [PAIR]
    assert pairs(tmp_path, {"prompt": [SYSTEM, HI], **sides}) == [Pair([SYSTEM, HI], [A], [B])]


@pytest.mark.parametrize("shape", WHOLE)
def test_answers_alone_are_read_in_every_shape(tmp_path: Path, shape: str) -> None:
    sides = {"chosen": WHOLE[shape](A), "rejected": WHOLE[shape](B)}
    for name in ("prompt", "messages", "conversations", "question", "context"):
        assert pairs(tmp_path, {name: WHOLE[shape](HI), **sides}) == [PAIR]
    assert pairs(tmp_path, {"prompt": "Hi", **sides}) == [PAIR]


@pytest.mark.parametrize("shape", WHOLE)
def test_conversations_of_fine_tuning_are_read_in_every_shape(tmp_path: Path, shape: str) -> None:
    for row in (
        {"messages": WHOLE[shape](HI, A)},
        {"conversations": WHOLE[shape](HI, A), "id": 1},
        {"prompt": WHOLE[shape](HI), "completion": WHOLE[shape](A)},
        {"prompt": "Hi", "completion": WHOLE[shape](A)},
        {"prompt": WHOLE[shape](HI), "completion": "a"},
        {"messages": [{"input": "Hi", "output": "a"}]},
    ):
        source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", [row]))
        assert columns.read(source.rows[0]) == Chat([HI], [A])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": ["a"], "rejected": ["b"]},
        {"prompt": ["Hi"], "chosen": "a", "rejected": "b"},
        {"prompt": "Hi", "chosen": '["a"]', "rejected": "['b']"},
        {"prompt": "Hi", "chosen": {"text": "a", "score": 5}, "rejected": {"text": "b", "score": 1}},
        {"question": "Hi", "accepted": "a", "rejected": "b"},
        {"instruction": "Hi", "input": "", "chosen": "a", "rejected": "b"},
        {"instruction": "Hi", "chosen_response": "a", "rejected_response": "b"},
    ],
)
def test_texts_are_read_in_every_shape(tmp_path: Path, row: Row) -> None:
    assert pairs(tmp_path, row) == [TEXTS]


def test_an_instruction_is_followed_by_its_input(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "Hi", "chosen": "a", "rejected": "b"}
    assert pairs(tmp_path, row) == [Pair("Translate.\nHi", "a", "b")]
    chat = {"instruction": "Translate.", "input": "Hi", "output": "a"}
    source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", [chat]))
    assert columns.read(source.rows[0]) == Chat("Translate.\nHi", "a")


def test_a_conversation_with_a_text_answers_in_place_of_its_last_message(tmp_path: Path) -> None:
    assert pairs(tmp_path, {"chosen": [HI, A], "rejected": "b"}) == [PAIR]
    assert pairs(tmp_path, {"prompt": [HI], "chosen": "a", "rejected": "b"}) == [PAIR]


@pytest.mark.parametrize("rejected", ["b", [B]], ids=["two texts", "a text and messages"])
def test_a_row_to_convert_without_a_response_or_a_prompt_is_dropped(tmp_path: Path, rejected: object) -> None:
    row = {"prompt": [HI], "chosen": "a", "rejected": rejected}
    assert pairs(tmp_path, row, {**row, "chosen": ""}, {**row, "rejected": None}, {**row, "prompt": []}) == [
        PAIR,
        Reason.EMPTY_RESPONSE,
        Reason.EMPTY_RESPONSE,
        Reason.PROMPT_MISSING,
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"prompt": [HI], "chosen": "", "rejected": "b"},
            r"1 empty response\. .* columns are prompt, chosen, rej",
        ),
        (
            {"prompt": "p", "response_a": "a", "response_b": "b", "score_a": 1, "score_b": 1},
            r"1 tie: .* columns are prompt, response_a, response_b, score_a, score_b\.",
        ),
    ],
    ids=["empty", "ties"],
)
def test_a_dataset_of_which_no_row_can_be_converted_is_refused(
    tmp_path: Path, row: Row, problem: str
) -> None:
    with pytest.raises(PreferenceError, match=f"none of 1 rows can be read: {problem}"):
        opened(tmp_path, row)


def test_exchanges_given_as_lists_of_texts_are_conversations(tmp_path: Path) -> None:
    given = {"prompt": ["Hi", "And?"], "chosen": ["Ho", "a"], "rejected": ["Ho", "b"]}
    turns = [HI, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "And?"}]
    # one row alone would be a file that holds columns
    assert pairs(tmp_path, given, given) == 2 * [Pair(turns, [A], [B])]
    assert pairs(tmp_path, {name: json.dumps(texts) for name, texts in given.items()}) == [
        Pair(turns, [A], [B])
    ]


def test_openai_s_preference_files_are_read(tmp_path: Path) -> None:
    row: dict[str, Any] = {"input": {"messages": [HI]}, "preferred_output": [A], "non_preferred_output": [B]}
    assert pairs(tmp_path, row) == [PAIR]
    row["input"]["tools"] = [{"type": "function"}]
    with pytest.raises(PreferenceError, match="tools stand inside the conversation's object"):
        pairs(tmp_path, row)


# Prompts that stand there twice -----------------------------------------------------------------------------


def test_messages_of_the_prompt_that_the_sides_repeat_are_not_doubled(tmp_path: Path) -> None:
    more = {"role": "user", "content": "More"}
    for prompt, turns, joined in (
        ([SYSTEM, HI], [HI], [SYSTEM, HI]),
        ([HI], [SYSTEM, HI], [SYSTEM, HI]),
        ([SYSTEM], [HI], [SYSTEM, HI]),
        ([HI, A, more], [more], [HI, A, more]),
        ([{**HI, "content": "Hi \n"}], [HI], [HI]),
    ):
        row = {"prompt": prompt, "chosen": [*turns, A], "rejected": [*turns, B]}
        assert pairs(tmp_path, row) == [Pair(joined, [A], [B])]
    asks_else = {"prompt": [HI], "chosen": [more, A], "rejected": [more, B]}
    assert pairs(tmp_path, asks_else, {**asks_else, "prompt": [more]})[0] == Reason.PROMPT_DISAGREES


def test_texts_that_repeat_the_prompt_lose_it(tmp_path: Path) -> None:
    asked = "Name a tree that floats."
    rows = [
        {"prompt": asked, "chosen": f"{asked}\nCork {i}.", "rejected": f"{asked}\nLead {i}."} for i in "12"
    ]
    assert pairs(tmp_path, *rows) == [Pair(f"{asked}\n", f"Cork {i}.", f"Lead {i}.") for i in "12"]
    assert opened(tmp_path, *rows)[0].repairs == {UNDOUBLED: 2}


def test_answers_that_begin_like_a_short_or_a_lone_prompt_keep_their_beginning(tmp_path: Path) -> None:
    short = {"prompt": "Oak", "chosen": "Oak is a tree", "rejected": "Oak is a stone"}
    assert pairs(tmp_path, short) == [Pair("Oak", "Oak is a tree", "Oak is a stone")]
    others = [{"prompt": f"Name the tree {i}.", "chosen": "a", "rejected": "b"} for i in range(9)]
    quoted = {"prompt": "Say after me.", "chosen": "Say after me. a", "rejected": "Say after me. b"}
    assert pairs(tmp_path, quoted, *others)[0] == Pair("Say after me.", "Say after me. a", "Say after me. b")


def test_a_prompt_column_of_transcripts_belongs_to_them(tmp_path: Path) -> None:
    start = "\n\nHuman: Name a tree.\n\nAssistant: "
    for prompt in ("Name a tree.", start.strip(), start):
        row = {"prompt": prompt, "chosen": f"{start}Oak", "rejected": f"{start}Ore"}
        assert pairs(tmp_path, row)[0] in (Pair(start, "Oak", "Ore"), Pair(start.lstrip(), "Oak", "Ore"))


# What stays as it is, and what is dropped -------------------------------------------------------------------


def test_an_answer_that_is_json_stays_text(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": f'["{i}"]', "rejected": f'{{"a": {i}}}'} for i in range(4)]
    assert pairs(tmp_path, *rows) == [Pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows]


def test_a_lone_conversation_among_texts_is_dropped_never_scored(tmp_path: Path) -> None:
    plain = [{"prompt": "p", "chosen": f"a{i}", "rejected": "b"} for i in range(3)]
    odd = {"prompt": "p", "chosen": json.dumps([A]), "rejected": "b"}
    assert pairs(tmp_path, *plain, odd)[3] == Reason.DUMPED
    dumped = [{"chosen": json.dumps([HI, A]), "rejected": json.dumps([HI, B])} for _ in range(3)]
    assert pairs(tmp_path, *dumped, {**dumped[0], "chosen": "[{cut"})[3] == Reason.NOT_A_CONVERSATION


@pytest.mark.parametrize("where", ["prompt", "chosen"])
def test_a_conversation_dumped_into_a_prompt_or_a_message_is_refused_or_dropped(
    tmp_path: Path, where: str
) -> None:
    plain = [{"prompt": [HI], "chosen": [A], "rejected": [B]} for _ in range(3)]
    odd = dict(plain[0])
    odd[where] = [{**odd[where][0], "content": json.dumps([{"type": "text", "text": "What?"}])}]
    assert pairs(tmp_path, *plain, odd)[3] == Reason.DUMPED
    with pytest.raises(PreferenceError, match=r"none of 1 rows can be read: 1 text is .* stored as text"):
        opened(tmp_path, odd)
    texts = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    twice = {**texts[0], where: json.dumps(json.dumps([HI]))}
    assert pairs(tmp_path, *texts, twice)[3] == Reason.DUMPED


def test_a_completion_dumped_as_text_is_not_trained_on(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": text} for text in ("a", "b", json.dumps([A]))]
    source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [columns.read(row) for row in source.rows][2] == Unusable(Reason.DUMPED)


def test_lists_of_texts_without_roles_are_refused(tmp_path: Path) -> None:
    for prompt in ({}, {"prompt": "Hi"}):
        with pytest.raises(PreferenceError, match='"chosen" holds lists of texts, and nothing says whose'):
            opened(tmp_path, *[{**prompt, "chosen": ["Hi", "a"], "rejected": ["Hi", "b"]}] * 2)


def test_a_prompt_that_is_the_whole_conversation_loses_its_answer(tmp_path: Path) -> None:
    for sides in ({"chosen": "a", "rejected": "b"}, {"chosen": A, "rejected": B}):
        assert pairs(tmp_path, {"messages": [HI, A], **sides}) == [PAIR]
    assert pairs(tmp_path, {"prompt": [HI, B], "chosen": [A], "rejected": [B]}) == [PAIR]


def test_texts_that_hold_the_prompt_after_other_text_are_refused(tmp_path: Path) -> None:
    asked = "Name a tree that floats."
    row = {"prompt": asked, **{side: f"Question: {asked}\nAnswer: {side}" for side in ("chosen", "rejected")}}
    with pytest.raises(
        PreferenceError, match='"chosen" and "rejected" hold "prompt" again, after other text'
    ):
        opened(tmp_path, row)
    others = [{"prompt": asked, "chosen": f"{i}", "rejected": "b"} for i in range(3)]
    assert pairs(tmp_path, row, *others)[0] == Pair(row["prompt"], row["chosen"], row["rejected"])


@pytest.mark.parametrize("name", ["input", "context", "instruction"])
def test_a_text_that_the_prompt_lacks_is_refused(tmp_path: Path, name: str) -> None:
    row = {"prompt": "Translate:  the\ntree", "chosen": "a", "rejected": "b"}
    pair = Pair(row["prompt"], "a", "b")
    for inside in ("the tree", "", None):
        assert pairs(tmp_path, {**row, name: inside}) == [pair]
    with pytest.raises(PreferenceError, match=f'"{name}" may belong to .* pass `ignore_columns={name}`'):
        opened(tmp_path, {**row, name: "the stone"})
    assert pairs(tmp_path, {**row, name: "the stone"}, ignore_columns=(name,)) == [pair]
    chat = {"prompt": "Translate.", "completion": "a", name: "the stone"}
    with pytest.raises(PreferenceError, match=f'"{name}" may belong to the prompt, and "prompt" lacks'):
        open_chats(write_jsonl(tmp_path / "chats.jsonl", [chat]))


def test_two_system_texts_are_refused(tmp_path: Path) -> None:
    row = {"system": "S", "system_prompt": "T", "prompt": "Hi", "chosen": "a", "rejected": "b"}
    with pytest.raises(PreferenceError, match=r"each of system and system_prompt may be .* `system_column`"):
        opened(tmp_path, row)
    for options in ({"system_column": "system"}, {"ignore_columns": ("system_prompt",)}):
        found = pairs(tmp_path, row, **options)[0]
        assert isinstance(found, Pair)
        assert found.context.system == "S"


def test_a_message_with_an_image_is_dropped(tmp_path: Path) -> None:
    seen = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image", "text": None}]}
    rows = [{"prompt": [message], "chosen": [A], "rejected": [B]} for message in (in_parts(HI)[0], seen)]
    assert pairs(tmp_path, *rows) == [PAIR, Reason.NOT_TEXT_PART]


@pytest.mark.parametrize(
    ("content", "role", "advice"),
    [
        ([{"type": "image", "text": None}], "assistant", "take the other parts out of the messages"),
        ({"answer": "a"}, "assistant", "Give each message a content that is text"),
        ("a", "answer", "Its roles are answer, user; .* Give the messages the roles user and assistant"),
    ],
)
def test_rows_that_cannot_be_read_name_their_columns_and_what_to_change(
    tmp_path: Path, content: Any, role: str, advice: str
) -> None:
    sides = {side: [{"role": role, "content": content}] for side in ("chosen", "rejected")}
    with pytest.raises(PreferenceError, match=f"its columns are prompt, chosen, rejected.*{advice}"):
        opened(tmp_path, {"prompt": [HI], **sides})


def test_other_columns_and_row_numbers_stay_and_repairs_are_counted(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"conversations": renamed(HI), "chosen": renamed(A)[0], "rejected": renamed(B)[0], "id": i}
        for i in range(3)
    ]
    rows[1]["conversations"] = [{"from": None, "value": "x"}]
    source, columns = opened(tmp_path, *rows)
    assert [type(columns.read(row)) for row in source.rows] == [Pair, Unusable, Pair]
    assert source.rows["id"][:] == [0, 1, 2]
    assert source.repairs == {shapes.RENAMED: 2, shapes.SHAREGPT: 2}
    assert source.origins == {"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"}


def test_unknown_objects_are_refused_with_their_fields(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": {"text": "a", "answer": "b"}, "rejected": {"text": "c", "answer": "d"}}
    with pytest.raises(PreferenceError, match="struct<text: string, answer: string>"):
        opened(tmp_path, row)


MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(min_size=1)}),
    min_size=1,
    max_size=4,
)


@given(messages=MESSAGES, shape=st.sampled_from(["JSON", "Python", "NumPy", "ShareGPT", "in an object"]))
def test_every_shape_gives_back_the_messages(messages: list[Row], shape: str) -> None:
    assert shapes.conversation(WHOLE[shape](*messages), set()) == messages
