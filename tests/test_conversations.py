"""Tests of conversations for fine-tuning: every format, every reason for dropping a row, every refusal."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_tokenizers import tiny_tokenizer

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.errors import PreferenceError, SettingsError, TokenizerError
from sepo_data.reasons import Reason, Unusable
from sepo_data.sources.conversations import Chat, ChatColumns, open_chats
from sepo_data.sources.preferences import open_pairs
from sepo_data.tokens.chats import CUT, SHORTENED, EncodedChats, encode_chats
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import WRITTEN_OUT, encode_pairs

HI, BYE = ({"role": "user", "content": text} for text in ("Hi", "Bye"))
HELLO, GOODBYE = ({"role": "assistant", "content": text} for text in ("Hello", "Goodbye"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


Opened = tuple[datasets.Dataset, ChatColumns]


def opened(folder: Path, *rows: dict[str, Any], side: Any = None, **options: Any) -> Opened:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source, columns = open_chats(str(path), DatasetSpec(**options), side)
    return source.rows, columns


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> list[Chat | Reason]:
    source, columns = opened(folder, *rows, **options)
    found = map(columns.read, source)
    return [chat.reason if isinstance(chat, Unusable) else chat for chat in found]


def trained(chats: Opened, max_length: int = 10**6) -> tuple[list[list[str]], EncodedChats]:
    """The decoded trained tokens of each conversation, split after each end of a turn."""
    encoder = response_encoder(tiny_tokenizer())
    found = encode_chats(*chats, encoder, max_length, 0, len(chats[0]))
    texts = [str(encoder.tokenizer.decode(chat.input_ids[chat.positions])) for chat in found.chats]
    return [text.split("<|im_end|>") for text in texts], found


# Formats ----------------------------------------------------------------------------------------------------


def test_two_responses_of_a_row_are_refused_by_name(tmp_path: Path) -> None:
    row = {"instruction": "Hi", "output": "Hello", "response": "Bye"}
    with pytest.raises(
        PreferenceError, match=r"may be in any of its columns response, output\. .*`ignore_columns`"
    ):
        opened(tmp_path, row)
    assert read(tmp_path, row, ignore_columns=("response",)) == [Chat("Hi", "Hello")]
    assert read(tmp_path, {"problem": "Hi", "solution": "Hello", "answer": "5"}) == [Chat("Hi", "Hello")]


def test_conversations_without_an_answer_are_refused_with_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match=r"Its roles are user; .* Give the answers the role assistant"):
        opened(tmp_path, {"messages": [HI]})


def test_messages_are_trained_up_to_the_last_of_the_assistant(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"messages": [HI, HELLO, BYE, GOODBYE]}, {"messages": [HI, HELLO, BYE]}]
    assert read(tmp_path, *rows) == [
        Chat([HI, HELLO, BYE], [GOODBYE]),
        Chat([HI], [HELLO], shortened=True),
    ]
    texts, found = trained(opened(tmp_path, *rows))
    assert texts == [["Hello", "Goodbye", ""], ["Hello", ""]]
    assert found.counts == {SHORTENED: 1}


def test_messages_win_over_the_columns_next_to_them(tmp_path: Path) -> None:
    # as ultrachat_200k and ultrafeedback_binarized have them
    row = {"prompt": "Hi", "prompt_id": "7f", "messages": [HI, HELLO], "chosen": [HI, GOODBYE]}
    row["rejected"], row["completion"] = [HI, BYE], "Never"
    assert read(tmp_path, row) == [Chat([HI], [HELLO])]


def test_a_prompt_and_a_completion_are_texts_or_messages(tmp_path: Path) -> None:
    assert read(tmp_path, {"prompt": "Hi ", "completion": " Hello"}) == [Chat("Hi ", " Hello")]
    row: dict[str, Any] = {"prompt": [HI, HELLO, BYE], "completion": [GOODBYE]}
    assert read(tmp_path, row) == [Chat([HI, HELLO, BYE], [GOODBYE])]
    assert trained(opened(tmp_path, row))[0] == [["Hello", "Goodbye", ""]]


@pytest.mark.parametrize(("side", "response"), [("chosen", "Hello"), ("rejected", "Go")])
def test_a_side_of_a_preference_dataset_ends_its_prompt(tmp_path: Path, side: str, response: str) -> None:
    text = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go", "messages": [HI, GOODBYE]}
    assert read(tmp_path, text, side=side) == [Chat("Hi", response)]
    whole = {"chosen": [HI, HELLO], "rejected": [HI, {"role": "assistant", "content": "Go"}]}
    assert read(tmp_path, whole, side=side) == [Chat([HI], [{"role": "assistant", "content": response}])]
    named = {"q": "Hi", "good": "Hello", "bad": "Go"}
    options = {"prompt_column": "q", "chosen_column": "good", "rejected_column": "bad"}
    assert read(tmp_path, named, side=side, **options) == [Chat("Hi", response)]


def test_every_turn_of_a_transcript_is_trained(tmp_path: Path) -> None:
    shared = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant: "
    row = {"chosen": shared + "Goodbye", "rejected": shared + "Go"}
    assert trained(opened(tmp_path, row, side="chosen"))[0] == [["Hello", "Goodbye", ""]]


def test_a_pair_of_one_turn_is_encoded_as_annotation_does(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "chosen": "Hello <|im_end|>", "rejected": "Go"},
        {"prompt": "Say <|im_start|>", "chosen": "\n", "rejected": " "},
    ]
    source = opened(tmp_path, *rows, side="chosen")
    pairs, columns = open_pairs(str(tmp_path / "chats.jsonl"))
    for encoder in (response_encoder(tiny_tokenizer()), response_encoder(tiny_tokenizer(template=None))):
        chats = encode_chats(*source, encoder, 100, 0, 2).chats
        for chat, pair in zip(
            chats, encode_pairs(pairs.rows, columns, encoder, 100, 0, 2).pairs, strict=True
        ):
            assert chat.row == pair.row
            assert chat.input_ids.tolist() == pair.chosen.input_ids.tolist()
            assert chat.positions.tolist() == pair.chosen.positions.tolist()


# Rows that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, Reason.NO_ASSISTANT),
        ([], Reason.NO_ASSISTANT),
        ([HI, BYE], Reason.NO_ASSISTANT),
        ([HI, {"role": "assistant", "content": ""}], Reason.EMPTY_RESPONSE),
        ([HI, {"role": "assistant", "content": None}, BYE, GOODBYE], Reason.EMPTY_RESPONSE),
        ([{"role": "user", "content": None}, HELLO], Reason.CONTENT_NOT_TEXT),
        ([{"role": None, "content": "Hi"}, HELLO], Reason.ROLE_MISSING),
        ([HI, None, HELLO], Reason.ROLE_MISSING),
        ([HI, {**HELLO, "function_call": {"name": "tide"}}, BYE, GOODBYE], Reason.FUNCTION_CALL),
        ([HI, {**HELLO, "reasoning": ["Hm."]}, BYE, GOODBYE], Reason.CONTENT_NOT_TEXT),
    ],
)
def test_a_conversation_that_cannot_be_trained_whole_is_dropped(
    tmp_path: Path, messages: Any, reason: str
) -> None:
    dropped, kept = read(tmp_path, {"messages": messages}, {"messages": [HI, HELLO]})
    assert dropped == reason
    assert isinstance(kept, Chat)


def test_a_completion_needs_its_prompt_and_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Hi", "completion": ""},
        {"prompt": None, "completion": "Hello"},
    ]
    assert read(tmp_path, *rows) == [Reason.EMPTY_RESPONSE, Reason.PROMPT_MISSING]


def test_a_pair_that_annotation_drops_is_dropped(tmp_path: Path) -> None:
    assert read(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "a"}, side="chosen") == [
        Reason.SAME_RESPONSE
    ]


def test_rows_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    long = {"role": "assistant", "content": "The capital of France is Paris. " * 40}
    source = opened(
        tmp_path,
        {"messages": [HI, BYE]},
        {"messages": [HI, long, BYE, GOODBYE]},
        {"messages": [{"role": "user", "content": "Hello world! " * 100}, HELLO]},
        {"messages": [HI, {"role": "assistant", "content": "a <|im_end|> b"}, BYE, GOODBYE]},
    )
    texts, found = trained(source, max_length=100)
    assert found.dropped == {Reason.NO_ASSISTANT: [0], Reason.PROMPT_TOO_LONG: [2]}
    assert [chat.row for chat in found.chats] == [1, 3]
    assert found.counts == {CUT: 1, WRITTEN_OUT: 1}
    assert found.chats[0].input_ids.size == 100
    assert long["content"].startswith(texts[0][0])


def test_a_range_of_rows_gives_the_same_chats(tmp_path: Path) -> None:
    source = opened(tmp_path, *({"messages": [HI, HELLO, BYE, GOODBYE][: i + 1]} for i in range(4)))
    encoder = response_encoder(tiny_tokenizer())
    whole, part = encode_chats(*source, encoder, 100, 0, 4), encode_chats(*source, encoder, 100, 2, 4)
    assert [chat.row for chat in part.chats] == [2, 3]
    for one, other in zip(whole.chats[1:], part.chats, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()


def test_a_conversation_that_the_template_refuses_is_dropped(tmp_path: Path) -> None:
    strict = (
        "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}{{ messages[-1]['content'] }}"
    )
    source = opened(tmp_path, {"messages": [{"role": "system", "content": "Be kind."}, HI, HELLO]})
    encoder = response_encoder(tiny_tokenizer("byte_bpe", strict))
    assert encode_chats(*source, encoder, 100, 0, 1).dropped == {Reason.TEMPLATE_REFUSES: [0]}


# Datasets that cannot be used -------------------------------------------------------------------------------


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    source = opened(tmp_path, {"messages": [HI, HELLO]})
    with pytest.raises(TokenizerError, match="need a chat template"):
        encode_chats(*source, response_encoder(tiny_tokenizer(template=None)), 100, 0, 1)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"text": "Hi"}, {}, "no conversations in its columns text. Rename them to messages"),
        ({"chosen": "a", "rejected": "b"}, {}, "columns chosen, rejected. .* add `side=chosen`"),
        ({"messages": "Hi"}, {}, '"messages" is string. Make messages a list of objects'),
        ({"messages": [{"speaker": "Ann"}]}, {}, '"messages" is list<.*speaker: string.*Make messages'),
        ({"question": "q", "problem": "p", "answer": "a"}, {}, "in any of its columns question, problem"),
        ({"prompt": 1, "completion": 2}, {}, '"prompt" is int64, "completion" is int64'),
        ({"messages": [HI, HELLO]}, {"side": "chosen"}, 'no column "chosen"'),
    ],
)
def test_a_dataset_without_conversations_is_refused(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PreferenceError, match=said) as refusal:
        opened(tmp_path, row, **options)
    assert "\n" not in str(refusal.value)


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match='split "train" has no rows'):
        opened(tmp_path)


def test_settings_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='side must be one of chosen, rejected, got "best"'):
        opened(tmp_path, {"chosen": "a", "rejected": "b"}, side="best")
    with pytest.raises(SettingsError, match=r"`chosen_column=good` .*Add `side=chosen`"):
        opened(tmp_path, {"messages": [HI, HELLO]}, chosen_column="good")
