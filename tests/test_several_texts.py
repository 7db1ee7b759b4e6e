"""Tests of responses that are several texts, from annotation to a policy of another vocabulary."""

import json
import re
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_pair import save_pair, write_jsonl
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.main import main
from sepo_data import AnnotateSettings, SchemaError, annotate, load_annotated, project_row, validate
from sepo_data.annotated.manifest import read_manifest
from sepo_data.exports.exporting import export
from sepo_data.exports.settings import ExportSettings
from sepo_data.pieces import one_text, piece_text
from sepo_data.reasons import Reason
from sepo_data.schema import SIDES, Side
from sepo_data.selection import SelectionRule
from sepo_data.settings import ProjectionSettings
from sepo_data.verification import verify

# Qwen3's habits: reasoning from its field or a block, an empty block where there is none, calls as JSON
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set content = m.content or '' %}"
    "{% if m.role == 'assistant' %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if thought or loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ content }}{% for call in m.tool_calls or [] %}"
    "{{ '\n<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALL = {"function": {"name": "tide", "arguments": {"harbour": "Rome"}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(content: str, **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **others}


BLOCK = "<think>\nThe capital?\n</think>\n\nIt is Paris."
ROWS: list[dict[str, Any]] = [
    {"prompt": [user("Capital?")], "chosen": [says(BLOCK)], "rejected": [says("Rome.")]},
    {
        "prompt": [user("Capital?")],
        "chosen": [says("Paris.", reasoning_content="It is in France.")],
        "rejected": [says("Rome.", reasoning_content="A dog.")],
    },
    {
        "prompt": [user("Tide?")],
        "chosen": [says("I look.", tool_calls=[CALL]), user("And?"), says("Quick.")],
        "rejected": [says("No."), user("And?"), says("A dog jumps.")],
    },
    {"prompt": [user("Tide?")], "chosen": [says("", tool_calls=[CALL])], "rejected": [says("A dog.")]},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"), template=TEMPLATE)


def of_mixed_types(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with a field in its messages that is a number in one row and a text in another."""
    mixed = {"seed": number if number % 2 else str(number)}
    return {name: [{**message, **mixed} for message in messages] for name, messages in row.items()}


@pytest.fixture(scope="module", params=["messages of one type", "messages as JSON"])
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, str], request: pytest.FixtureRequest
) -> Path:
    place = tmp_path_factory.mktemp("annotated")
    as_json = request.param == "messages as JSON"
    rows = [of_mixed_types(row, i) for i, row in enumerate(ROWS)] if as_json else ROWS
    annotate(write_jsonl(place / "rows.jsonl", rows), *tiny, AnnotateSettings(place / "out"))
    assert ("Json" in str(load_annotated(str(place / "out"))["train"].features["chosen"])) == as_json
    return place / "out"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", load_annotated(str(folder))["train"].to_list())


def texts(row: dict[str, Any], side: Side) -> list[tuple[str, str]]:
    places = (row[f"{side}_token_message"], row[f"{side}_token_field"])
    whole = one_text(row[side], row[f"{side}_token_start"], row[f"{side}_token_end"], *places)
    return [(piece.field, piece_text(row[side], piece)) for piece in whole.pieces]


def test_rewards_are_those_of_the_whole_conversation_s_own_rendering(
    folder: Path, tiny: tuple[str, str]
) -> None:
    oracle, ref = (AutoModelForCausalLM.from_pretrained(name).eval() for name in tiny)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny[0])
    for given, row in zip(ROWS, rows_of(folder), strict=True):
        for side in SIDES:
            text = tokenizer.apply_chat_template([*given["prompt"], *given[side]], tokenize=False)
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids = torch.tensor([encoded["input_ids"]])
            with torch.no_grad():
                logps = [model(ids).logits[0, :-1].log_softmax(-1) for model in (oracle, ref)]
            rewards = (logps[0] - logps[1]).gather(1, ids[0, 1:, None])[:, 0].tolist()
            expected, seen = 0.0, 0
            for field, said in texts(row, side):
                said = re.sub(r"^\[|\]$", "", said) if field == "tool_calls" else said
                lo = text.index(said, seen)
                seen = hi = lo + len(said)
                if field == "tool_calls":  # with the markup around it
                    lo, hi = lo - len("\n<tool_call>"), hi + len("</tool_call>")
                own = [
                    i for i, (start, end) in enumerate(encoded["offset_mapping"]) if end > lo and start < hi
                ]
                expected += sum(rewards[i - 1] for i in own)
            assert sum(row[f"{side}_token_rewards"]) == pytest.approx(expected, abs=1e-4)


def test_the_columns_say_which_text_a_token_is_in(folder: Path) -> None:
    block, field, agent, silent = rows_of(folder)
    assert block["chosen_token_message"] is None  # one text: the content of the last message
    assert texts(block, "chosen") == [("content", BLOCK)]
    assert texts(field, "chosen") == [("reasoning_content", "It is in France."), ("content", "Paris.")]
    call = '[{"name": "tide", "arguments": {"harbour": "Rome"}}]'
    assert texts(agent, "chosen") == [("content", "I look."), ("tool_calls", call), ("content", "Quick.")]
    assert sorted(set(agent["chosen_token_message"])) == [0, 2]
    assert texts(agent, "rejected") == [("content", "No."), ("content", "A dog jumps.")]
    assert texts(silent, "chosen") == [("tool_calls", call)]
    assert read_manifest(folder, "it").schema_version == "1.1"
    validate(load_annotated(str(folder)))


def test_a_dataset_of_single_texts_has_no_such_columns(tmp_path: Path, tiny: tuple[str, str]) -> None:
    annotate(write_jsonl(tmp_path / "rows.jsonl", ROWS[:1]), *tiny, AnnotateSettings(tmp_path / "out"))
    assert "chosen_token_message" not in rows_of(tmp_path / "out")[0]


def test_the_oracle_s_tokenizer_gets_rewards_and_masks_back(folder: Path, tiny: tuple[str, str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny[0])
    for row in rows_of(folder):
        pair = project_row(row, tokenizer)
        for side in SIDES:
            assert pair[side].token_rewards.tolist() == row[f"{side}_token_rewards"]
            assert pair[side].token_mask.tolist() == row[f"{side}_token_mask"]
            assert pair[side].eos_reward == row[f"{side}_eos_reward"]


@pytest.mark.parametrize("family", ["sentencepiece_bpe", "byte_bpe_nfc_trimmed"])
def test_another_tokenizer_gets_every_reward(folder: Path, family: str) -> None:
    tokenizer = tiny_tokenizer(family, TEMPLATE)
    for row in rows_of(folder):
        pair = project_row(row, tokenizer)
        for side in SIDES:
            total = sum(row[f"{side}_token_rewards"])
            assert float(pair[side].token_rewards.sum()) == pytest.approx(total, abs=1e-5)
            assert not np.isnan(pair[side].token_rewards).any()


def test_a_template_that_knows_no_reasoning_and_no_tools_gets_the_rest(folder: Path) -> None:
    block, field, agent, _ = rows_of(folder)
    pair = project_row(field, tiny_tokenizer())
    fields = np.array(field["chosen_token_field"])
    rewards = np.array(field["chosen_token_rewards"])
    assert float(pair.chosen.token_rewards.sum()) == pytest.approx(float(rewards[fields == "content"].sum()))
    assert pair.chosen.dropped_reward == pytest.approx(float(np.abs(rewards[fields != "content"]).sum()))
    assert float(project_row(block, tiny_tokenizer()).chosen.token_rewards.sum()) == pytest.approx(
        sum(block["chosen_token_rewards"]), abs=1e-5
    )
    words = np.array(agent["chosen_token_rewards"])[np.array(agent["chosen_token_field"]) == "content"]
    assert float(project_row(agent, tiny_tokenizer()).chosen.token_rewards.sum()) == pytest.approx(
        float(words.sum()), abs=1e-5
    )


def test_skipped_reasoning_is_context_and_never_selected(tmp_path: Path, tiny: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS[:2])
    annotate(data, *tiny, AnnotateSettings(tmp_path / "out", reasoning="skip"))
    rows = rows_of(tmp_path / "out")
    assert rows[0]["chosen_token_start"][0] == BLOCK.index("It is Paris.")
    assert "chosen_token_field" not in rows[1]
    assert verify(str(tmp_path / "out"), *tiny).holds
    everything = ProjectionSettings(SelectionRule("all"))
    for row in rows:
        pair = project_row(row, AutoTokenizer.from_pretrained(tiny[0]), everything)
        known = ~np.isnan(pair.chosen.token_rewards)
        assert pair.chosen.token_rewards[known].tolist() == row["chosen_token_rewards"]
        assert pair.chosen.token_mask.tolist() == known.tolist()


def test_skipping_in_training_keeps_the_answer_s_rewards(folder: Path, tiny: tuple[str, str]) -> None:
    block, field, _, _ = rows_of(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny[0])
    for row, answer in ((block, "It is Paris."), (field, "Paris.")):
        side = project_row(row, tokenizer, ProjectionSettings(reasoning="skip")).chosen
        size = side.token_rewards.size
        assert tokenizer.decode(side.token_ids) == answer
        assert side.token_rewards == pytest.approx(row["chosen_token_rewards"][-size:])


def test_refused_reasoning_drops_its_rows(tmp_path: Path, tiny: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    annotate(data, *tiny, AnnotateSettings(tmp_path / "out", reasoning="refuse"))
    assert read_manifest(tmp_path / "out", "it").counts.dropped == {Reason.HAS_REASONING: 2}


def test_verify_scores_them_again(folder: Path, tiny: tuple[str, str]) -> None:
    found = verify(str(folder), *tiny)
    assert found.holds
    assert found.rows == len(ROWS)


def test_inspect_shows_all_texts(folder: Path) -> None:
    for row, said in ((1, "It is in France."), (2, "tide")):
        shown = CliRunner().invoke(main, ["inspect", str(folder), "--row", str(row)])
        assert shown.exit_code == 0
        assert said in re.sub(r"[\[\]]", "", shown.output)


def test_an_export_of_texts_leaves_them_out_and_counts_them(folder: Path, tmp_path: Path) -> None:
    report = export(str(folder), ExportSettings("axolotl-spans", tmp_path / "out"))
    assert report.dropped == {Reason.SEVERAL_TEXTS: 3}


def test_places_that_do_not_exist_break_the_contract(folder: Path) -> None:
    rows = load_annotated(str(folder))["train"]
    broken = json.loads(json.dumps(rows.to_list()))
    broken[2]["chosen_token_message"][0] = 7
    with pytest.raises(SchemaError, match='row 2, column "chosen_token_field": does not say'):
        validate(datasets.Dataset.from_list(broken, features=rows.features))
