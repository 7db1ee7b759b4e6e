"""Tests of the report of how a dataset was read: in the dry run, and if no row is readable."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_pair import write_jsonl

from sepo_data.errors import PreferenceError
from sepo_data.sources.conversations import open_chats
from sepo_data.sources.preferences import Pair, open_pairs
from sepo_data.sources.reading import describe_reading

HI = {"role": "user", "content": "Hi"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_reading_names_columns_changes_and_the_first_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": "human", "value": "Hi"}], "response_a": "a" * 99, "response_b": "b\nc",
         "winner": winner, "steps": "1"}
        for winner in ("model_b", "tie")
    ]  # fmt: skip
    lines = describe_reading(*open_pairs(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert lines == [
        "rows.jsonl: prompt from conversations, chosen from response_a, rejected from response_b; "
        "pairs are response_a and response_b, by winner",
        "changed: 1 conversations in ShareGPT's from and value, read as role and content",
        "changed: 1 conversations whose roles were renamed (human, gpt, model, … to user and assistant)",
        "other columns, copied unchanged: winner, steps",
        f"row 0: prompt [user] 'Hi', chosen [assistant] 'b\\nc', rejected [assistant] '{'a' * 46}…",
        "row 1: dropped, tie: neither response is better",
    ]


def test_unknown_roles_are_named_before_the_run(tmp_path: Path) -> None:
    sides = {side: [{"role": "critic", "content": side}] for side in ("chosen", "rejected")}
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": [HI], **sides}] * 2)
    with pytest.raises(PreferenceError, match=r"none of 2 rows .* Its roles are critic, user; .* assistant"):
        open_pairs(path)
    with pytest.raises(
        PreferenceError, match=r"2 no assistant message.*conversations from messages.* critic"
    ):
        open_chats(write_jsonl(tmp_path / "chats.jsonl", [{"messages": [HI, sides["chosen"][0]]}] * 2))


def test_a_missing_prompt_is_reported_before_the_run(tmp_path: Path) -> None:
    rows = [{"chosen": "a", "rejected": "b", "asked": "Hi"}]
    with pytest.raises(PreferenceError, match=r"1 no common prompt\. .* columns .*asked\. .*`prompt_column`"):
        open_pairs(write_jsonl(tmp_path / "rows.jsonl", rows))


def test_one_row_that_can_be_read_is_enough(tmp_path: Path) -> None:
    rows = [{"prompt": [HI], "chosen": [{"role": role, "content": "a"}], "rejected": [
        {"role": "assistant", "content": "b"}]} for role in ("critic", "critic", "assistant")]  # fmt: skip
    source, columns = open_pairs(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert isinstance(columns.read(source.rows[2]), Pair)
