"""Tests of responses that were cut when they were generated: no end of turn is scored after them."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tiny_pair import save_pair, write_jsonl
from tiny_tokenizers import CHATML, tiny_tokenizer

from sepo_data import AnnotateSettings, PreferenceError, annotate, load_annotated, project_row
from sepo_data.annotated.manifest import read_manifest
from sepo_data.dataset_spec import DatasetSpec
from sepo_data.sources.conversations import open_chats
from sepo_data.sources.preferences import open_pairs
from sepo_data.tokens.chats import encode_chats
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import CUT_AT_SOURCE
from sepo_data.verification import verify


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def text_pair(**columns: Any) -> dict[str, Any]:
    return {"prompt": "Hi", "chosen": "one two", "rejected": "three", **columns}


@pytest.mark.parametrize(
    ("columns", "options", "cut"),
    [
        ({"truncated": True}, {}, (True, True)),
        ({"truncated": None}, {}, (False, False)),
        ({"chosen_truncated": True, "rejected_truncated": False}, {}, (True, False)),
        ({"chosen_finish_reason": "stop", "rejected_finish_reason": "length"}, {}, (False, True)),
        ({"rejected_truncated": True, "finish_reason": "length"}, {}, (True, True)),
        ({"rejected_stop": "max_tokens", "chosen_stop": "stop"}, {"truncated_column": "stop"}, (False, True)),
        ({"truncated": True}, {"ignore_columns": ("truncated",)}, (False, False)),
        ({}, {}, (False, False)),
    ],
)
def test_the_usual_columns_say_which_responses_were_cut(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], cut: tuple[bool, bool]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [text_pair(**columns)])
    source, found = open_pairs(data, DatasetSpec(**options))
    assert tuple(found.read(source.rows[0]).cut) == cut  # type: ignore[union-attr]


def test_a_column_that_cannot_say_it_stops_the_run(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [text_pair(truncated=0.5)])
    with pytest.raises(PreferenceError, match=r"truncated.*double.*`ignore_columns=truncated`"):
        open_pairs(data)
    with pytest.raises(PreferenceError, match=r'no column "cut"'):
        open_pairs(data, DatasetSpec(truncated_column="cut"))


def test_no_end_is_scored_after_a_cut_response(tmp_path: Path) -> None:
    oracle, ref = save_pair(tmp_path / "models", template=CHATML)
    plain = write_jsonl(tmp_path / "plain.jsonl", [text_pair()] * 3)
    marked = write_jsonl(tmp_path / "marked.jsonl", [text_pair(chosen_truncated=i != 1) for i in range(3)])
    annotate(plain, oracle, ref, AnnotateSettings(tmp_path / "plain"))
    annotate(marked, oracle, ref, AnnotateSettings(tmp_path / "marked"))
    before = load_annotated(str(tmp_path / "plain"))["train"]
    after = load_annotated(str(tmp_path / "marked"))["train"]
    assert [end is None for end in after["chosen_eos_reward"]] == [True, False, True]
    assert None not in after["rejected_eos_reward"]
    for row, same in zip(after, before, strict=True):
        np.testing.assert_allclose(row["chosen_token_rewards"], same["chosen_token_rewards"], atol=1e-4)
    made = read_manifest(tmp_path / "marked", "marked")
    assert made.counts.notes[CUT_AT_SOURCE] == 2
    assert made.scoring.source.columns["chosen_truncated"] == "chosen_truncated"
    again = verify(str(tmp_path / "marked"), oracle=oracle, ref=ref)
    assert (again.moved, again.equal_masks) == (0, 1.0)
    policy = project_row(after[0], tiny_tokenizer(template=CHATML))
    assert policy.chosen.eos_mask is False


def test_a_conversation_that_was_cut_does_not_teach_to_end(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": "one two", "finish_reason": why} for why in ("length", "stop")]
    source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", rows))
    encoder = response_encoder(tiny_tokenizer(template=CHATML))
    cut, whole = encode_chats(source.rows, columns, encoder, 99, 0, 2).chats
    assert cut.positions.tolist() == whole.positions.tolist()[:-1]
    assert cut.input_ids.size == whole.input_ids.size - 1
