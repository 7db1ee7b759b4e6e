"""Tests of reading pairs: every format, every reason for dropping a row, every refusal of a dataset."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.errors import PreferenceError
from sepo_data.reasons import Reason, Unusable
from sepo_data.schema import PAIR_COLUMNS
from sepo_data.sources.opening import Source
from sepo_data.sources.preferences import Pair, PairColumns, open_pairs, pair_types

EXPLICIT = PairColumns("prompt", "chosen", "rejected")

TRANSCRIPTS = {side: f"\n\nHuman: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}
IMPLICIT = PairColumns(None, "chosen", "rejected")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def system(text: str | None) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str | None) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **others}


def read(row: dict[str, Any], columns: PairColumns) -> Pair | Reason:
    found = columns.read(row)
    return found.reason if isinstance(found, Unusable) else found


def explicit(prompt: Any, chosen: Any, rejected: Any) -> Pair | Reason:
    return read({"prompt": prompt, "chosen": chosen, "rejected": rejected}, EXPLICIT)


def implicit(chosen: Any, rejected: Any) -> Pair | Reason:
    return read({"chosen": chosen, "rejected": rejected}, IMPLICIT)


def write_rows(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def opened(folder: Path, *rows: dict[str, Any], **options: Any) -> tuple[Source, PairColumns]:
    return open_pairs(write_rows(folder / "prefs.jsonl", *rows), DatasetSpec(**options))


# Formats ----------------------------------------------------------------------------------------------------


def test_texts_with_a_prompt_column_are_taken_as_they_are() -> None:
    assert explicit(" Hi ", "a\r\n", " \u2028b\0") == Pair(" Hi ", "a\r\n", " \u2028b\0")


def test_messages_with_a_prompt_column_are_taken_as_they_are() -> None:
    prompt = [system("Be kind."), user("Hi")]
    pair = explicit(prompt, [assistant("a")], [assistant("b")])
    assert pair == Pair(prompt, [assistant("a")], [assistant("b")])


def test_turns_before_the_last_message_of_chosen_and_rejected_go_to_the_end_of_the_prompt() -> None:
    pair = explicit([system("s")], [user("Hi"), assistant("a")], [user("Hi"), assistant("b")])
    assert pair == Pair([system("s"), user("Hi")], [assistant("a")], [assistant("b")])


def test_a_prompt_that_the_conversations_repeat_is_not_doubled() -> None:
    pair = explicit([user("Hi")], [user("Hi"), assistant("a")], [user("Hi"), assistant("b")])
    assert pair == Pair([user("Hi")], [assistant("a")], [assistant("b")])


def test_of_whole_conversations_the_last_assistant_message_is_the_response() -> None:
    turns = [system("s"), user("1"), assistant("2"), user("3")]
    pair = implicit([*turns, assistant("a")], [*turns, assistant("b")])
    assert pair == Pair(turns, [assistant("a")], [assistant("b")])


def test_the_hybrid_takes_its_prompt_from_the_conversations() -> None:
    turns = [system("s"), user("Hi"), assistant("Hello"), user("Who are you?")]
    for prompt in ("Hi", "Who are you?", " Hi\n"):
        pair = explicit(prompt, [*turns, assistant("a")], [*turns, assistant("b")])
        assert pair == Pair(turns, [assistant("a")], [assistant("b")])


def test_the_hybrid_with_lone_answers_makes_the_text_prompt_a_user_turn() -> None:
    assert explicit("Hi", [assistant("a")], [assistant("b")]) == Pair(
        [user("Hi")], [assistant("a")], [assistant("b")]
    )


def test_a_transcript_is_split_after_the_last_common_turn_not_at_the_common_prefix() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Name?\n\nAssistant:"
    # the responses share "I am ", which stays with them
    assert implicit(f"{start} I am Ann", f"{start} I am Bob") == Pair(f"{start} ", "I am Ann", "I am Bob")


def test_the_space_after_assistant_is_the_prompt_s_only_if_both_sides_have_it() -> None:
    start = "\n\nHuman: Hi\n\nAssistant:"
    assert implicit(f"{start} a", f"{start}b") == Pair(start, " a", "b")
    assert implicit(f"{start}  a", f"{start} b") == Pair(f"{start} ", " a", "b")


TEXT = st.text(st.sampled_from("ab \n:é") | st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: "Human:" not in text and "Assistant:" not in text
)


@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), chosen=TEXT, rejected=TEXT)
def test_prompt_and_response_of_a_transcript_give_back_the_text(
    turns: list[tuple[str, str]], chosen: str, rejected: str
) -> None:
    start = "".join(f"\n\nHuman: {asked}\n\nAssistant: {said}" for asked, said in turns[:-1])
    start += f"\n\nHuman: {turns[-1][0]}\n\nAssistant: "
    pair = implicit(start + chosen, start + rejected)
    if not (chosen.strip() and rejected.strip()):
        assert pair == Reason.EMPTY_RESPONSE
    elif chosen == rejected:
        assert pair == Reason.SAME_RESPONSE
    else:
        assert pair == Pair(start, chosen, rejected)


@given(chosen=TEXT, rejected=TEXT, earlier=TEXT)
def test_transcripts_that_part_before_the_last_turn_have_no_common_prompt(
    chosen: str, rejected: str, earlier: str
) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: "
    longer = f"{start}{earlier}\n\nHuman: And?\n\nAssistant: {chosen}"
    assert implicit(longer, start + rejected) == Reason.NO_COMMON_PROMPT
    assert implicit(start + rejected, longer) == Reason.NO_COMMON_PROMPT


# Rows that give no pair -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "empty", ["", " \n", None, [], [assistant("")], [assistant(" \n")], [assistant(None)]]
)
def test_a_row_with_an_empty_response_is_dropped(empty: Any) -> None:
    other: Any = [assistant("b")] if isinstance(empty, list) else "b"
    prompt: Any = [user("Hi")] if isinstance(empty, list) else "Hi"
    assert explicit(prompt, empty, other) == Reason.EMPTY_RESPONSE
    assert explicit(prompt, other, empty) == Reason.EMPTY_RESPONSE


def test_a_transcript_that_ends_with_assistant_has_an_empty_response() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: "
    assert implicit(start, f"{start}b") == Reason.EMPTY_RESPONSE


@pytest.mark.parametrize("missing", ["", None, []])
def test_a_row_without_a_prompt_is_dropped(missing: Any) -> None:
    assert explicit(missing, "a", "b") == Reason.PROMPT_MISSING
    assert (
        explicit(missing, [user("Hi"), assistant("a")], [user("Hi"), assistant("b")]) == Reason.PROMPT_MISSING
    )
    assert implicit([assistant("a")], [assistant("b")]) == Reason.PROMPT_MISSING


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([user("Hi"), assistant("a")], [user("Ho"), assistant("b")]),
        ([user("Hi"), assistant("a")], [assistant("b")]),
        ([user("Hi"), assistant("a")], [system("Hi"), assistant("b")]),
        ([{**user("Hi"), "name": "Ann"}, assistant("a")], [{**user("Hi"), "name": "Bob"}, assistant("b")]),
        ("no turns at all", "in these texts"),
        ("\n\nHuman: Hi\n\nAssistant: a", "\n\nHuman: Ho\n\nAssistant: b"),
        ("\n\nHuman: Hi\n\nAssistant: a\n\nAssistant: c", "\n\nHuman: Hi\n\nAssistant: b"),
    ],
)
def test_a_row_whose_sides_begin_differently_is_dropped(chosen: Any, rejected: Any) -> None:
    assert implicit(chosen, rejected) == Reason.NO_COMMON_PROMPT


def test_a_null_key_makes_no_difference_between_prompts() -> None:
    chosen = [{**user("Hi"), "name": None}, assistant("a")]
    assert implicit(chosen, [user("Hi"), assistant("b")]) == Pair(chosen[:1], chosen[1:], [assistant("b")])


def test_a_hybrid_whose_prompt_no_user_says_is_dropped() -> None:
    sides = (
        [user("Hi"), assistant("Ho"), user("Hm"), assistant("a")],
        [user("Hi"), assistant("Ho"), user("Hm")],
    )
    assert explicit("Ho", sides[0], [*sides[1], assistant("b")]) == Reason.PROMPT_DISAGREES
    assert (
        explicit("s", [system("s"), assistant("a")], [system("s"), assistant("b")]) == Reason.PROMPT_DISAGREES
    )


def test_a_tie_is_dropped() -> None:
    assert explicit("Hi", "a", "a") == Reason.SAME_RESPONSE
    assert (
        implicit([user("Hi"), assistant("a")], [user("Hi"), assistant("a", name="x")]) == Reason.SAME_RESPONSE
    )


def test_a_conversation_that_the_user_ends_is_dropped() -> None:
    assert implicit([user("Hi"), assistant("a")], [user("Hi"), user("b")]) == Reason.LAST_NOT_ASSISTANT


def test_messages_without_text_or_role_are_dropped() -> None:
    good = [user("Hi"), assistant("b")]
    assert implicit([user(None), assistant("a")], good) == Reason.CONTENT_NOT_TEXT
    assert implicit([{**user(None), "name": "Ann"}, assistant("a")], good) == Reason.CONTENT_NOT_TEXT
    assert (
        implicit([{**user("Hi"), "content": [{"text": "Hi"}]}, assistant("a")], good)
        == Reason.CONTENT_NOT_TEXT
    )
    assert implicit([user("Hi"), {"role": None, "content": "a"}], good) == Reason.ROLE_MISSING
    assert implicit([None, assistant("a")], good) == Reason.ROLE_MISSING
    assert explicit([user(None)], [assistant("a")], [assistant("b")]) == Reason.CONTENT_NOT_TEXT


def test_a_turn_that_only_calls_tools_may_have_no_content() -> None:
    turns = [
        user("Time?"),
        assistant(None, tool_calls=[{"name": "clock"}]),
        {"role": "tool", "content": "12"},
    ]
    assert implicit([*turns, assistant("a")], [*turns, assistant("b")]) == Pair(
        turns, [assistant("a")], [assistant("b")]
    )


# Columns and types ------------------------------------------------------------------------------------------


def test_columns_are_found_by_their_usual_names_or_named(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert opened(tmp_path, row)[1] == EXPLICIT
    assert opened(tmp_path, TRANSCRIPTS)[1] == IMPLICIT
    named = {"question": "p", "response1": "a", "response-2": "b"}
    source, columns = opened(
        tmp_path, named, prompt_column="question", chosen_column="response1", rejected_column="response-2"
    )
    assert columns.read(source.rows[0]) == Pair("p", "a", "b")
    source, columns = opened(tmp_path, row, chosen_column="rejected", rejected_column="chosen")
    assert columns.read(source.rows[0]) == Pair("p", "b", "a")


def test_texts_are_stored_as_text(tmp_path: Path) -> None:
    types = pair_types(*opened(tmp_path, TRANSCRIPTS))
    assert types == dict.fromkeys(PAIR_COLUMNS, pa.string())


def test_messages_are_stored_with_all_the_fields_of_the_source(tmp_path: Path) -> None:
    text = pa.string()
    named = pa.struct({"content": text, "role": text, "name": text})
    plain = pa.struct({"role": text, "content": text})
    chosen = [{"content": "Hi", "role": "user", "name": "Ann"}, {"content": "a", "role": "assistant"}]
    plain_chosen = [user("Hi"), assistant("a")]
    shapes: tuple[dict[str, Any], ...] = ({"prompt": "Hi"}, {})
    for row in shapes:  # the hybrid, and without a prompt column
        hybrid = {**row, "chosen": chosen, "rejected": [user("Hi"), assistant("b")]}
        types = pair_types(*opened(tmp_path, hybrid, {**hybrid, "chosen": plain_chosen}))
        assert types == {"prompt": pa.list_(named), "chosen": pa.list_(named), "rejected": pa.list_(plain)}
    answer = {"content": "a", "role": "assistant", "name": "Ann"}
    row = {"prompt": [user("Hi")], "chosen": [answer], "rejected": [assistant("b")]}
    both = pa.struct({"role": text, "content": text, "name": text})  # may hold turns from either column
    assert pair_types(*opened(tmp_path, row))["prompt"] == pa.list_(both)


def test_every_pair_fits_the_types_it_is_stored_in(tmp_path: Path) -> None:
    turns = [system("s"), {**user("Hi"), "name": "Ann"}]
    source, columns = opened(
        tmp_path, {"chosen": [*turns, assistant("a")], "rejected": [*turns, assistant("b")]}
    )
    pair = columns.read(source.rows[0])
    assert isinstance(pair, Pair)
    stored = pa.array([pair.prompt], pair_types(source, columns)["prompt"]).to_pylist()
    assert stored == [[{**system("s"), "name": None}, turns[1]]]


# Datasets that are refused ----------------------------------------------------------------------------------

PLAIN_SIDES = {"chosen": "a", "rejected": "b"}
PLAIN = {"prompt": "p", **PLAIN_SIDES}


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "a"}, {}, r'no column "chosen"\. Its columns are text; name .* `chosen_column`\.$'),
        ({"chosen": "a", "b": "b"}, {}, 'no column "rejected"'),
        (PLAIN, {"prompt_column": "question"}, 'no column "question".*`prompt_column`'),
        ({**PLAIN, "chosen": 3}, {}, 'column "chosen" is int64. It must be text, or a list of messages'),
        ({**PLAIN, "rejected": None}, {}, 'column "rejected" is null'),
        ({**PLAIN, "chosen": [3]}, {}, 'column "chosen" is list<item: int64>'),
        ({**PLAIN, "chosen": [{"speaker": "gpt", "said": "a"}]}, {}, 'column "chosen" is list<.*speaker'),
        ({**PLAIN, "chosen": {"text": 3}}, {}, 'column "chosen" is struct<text: int64>'),
        (PLAIN, {"chosen_column": "chosen.text"}, '"chosen.text", .*Pass `chosen_column=chosen`'),
        (
            {**PLAIN_SIDES, "query": "q", "problem": "p"},
            {},
            "any of its columns query, problem. .*`prompt",
        ),
        ({**PLAIN, "q": "p"}, {"prompt_column": "q"}, 'column "prompt" would be overwritten by "q"'),
        ({**PLAIN, "q": "p"}, {"chosen_column": "q"}, 'column "chosen" would be overwritten by "q"'),
        ({"a": "a", "b": "b"}, {"chosen_column": "a", "rejected_column": "a"}, "must be three columns"),
    ],
)
def test_columns_that_hold_no_pair_are_refused(
    tmp_path: Path, row: dict[str, Any], options: dict[str, str], message: str
) -> None:
    with pytest.raises(PreferenceError, match=message) as refusal:
        opened(tmp_path, row, **options)
    assert str(refusal.value).startswith(str(tmp_path / "prefs.jsonl"))
    assert "\n" not in str(refusal.value)


def test_messages_of_untyped_json_are_read(tmp_path: Path) -> None:
    untyped = datasets.Json()
    features = datasets.Features(chosen=datasets.List(untyped), rejected=datasets.List(untyped))
    sides = {"chosen": [[user("Hi"), assistant("a")]], "rejected": [[user("Hi"), assistant("b")]]}
    datasets.Dataset.from_dict(sides, features=features).save_to_disk(tmp_path / "saved")
    source, columns = open_pairs(str(tmp_path / "saved"))
    assert columns.read(source.rows[0]) == Pair([user("Hi")], [assistant("a")], [assistant("b")])


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match='split "train" has no rows'):
        open_pairs(write_rows(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("function_call", {"name": "weather"}, Reason.FUNCTION_CALL),
        ("reasoning_content", [{"text": "Look."}], Reason.CONTENT_NOT_TEXT),
    ],
)
def test_what_no_template_writes_is_a_reason(key: str, value: Any, reason: Reason) -> None:
    more = assistant("It rains.", **{key: value})
    less = assistant("It snows.", **{key: None})
    assert explicit([user("Weather?")], [more], [less]) == reason
    assert explicit([user("Weather?")], [less], [more]) == reason
    assert isinstance(explicit([user("Weather?")], [less], [assistant("It rains.")]), Pair)
