"""Tests of the main path: numbers, contract, resuming and the report of a run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from annotated import with_rule
from nasty import NASTY
from tiny_pair import pairs, save_pair, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from sepo_data import (
    AnnotateSettings,
    ModelError,
    OutputError,
    PreferenceError,
    Progress,
    ScoringError,
    SepoError,
    SettingsError,
    TokenizerError,
    annotate,
    select_tokens,
    validate,
)
from sepo_data.planning import plan

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


def run(
    tmp_path: Path, models: tuple[str, str], rows: list[dict[str, Any]], **settings: Any
) -> datasets.Dataset:
    """Annotate rows, validate the result, and read it without sepo."""
    data = write_jsonl(tmp_path / "prefs.jsonl", rows)
    output = tmp_path / "out"
    report = annotate(data, *models, AnnotateSettings(output=output, **with_rule(**settings)))
    assert report.manifest is not None
    dataset = datasets.load_dataset(str(output))["train"]
    validate(dataset)
    assert len(dataset) == report.manifest.counts.annotated
    return dataset


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "sepo_manifest.json").read_text()))


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with the hash of its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_rewards_are_the_difference_of_two_plain_forwards(tmp_path: Path, models: tuple[str, str]) -> None:
    rows = pairs(6)
    dataset = run(tmp_path, models, rows, store_logps=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(models[0])
    for row, source in zip(dataset, rows, strict=True):
        for side in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template([*source["prompt"], *source[side]], return_dict=False)
            ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
            count = len(row[f"{side}_token_rewards"]) + 1
            logps = []
            for folder in models:
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
                with torch.no_grad():
                    all_logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
                logps.append(all_logps[range(len(ids) - 1), ids[1:]][-count:].numpy())
            rewards = [*row[f"{side}_token_rewards"], row[f"{side}_eos_reward"]]
            np.testing.assert_allclose(rewards, logps[0] - logps[1], atol=1e-4)
            np.testing.assert_allclose(row[f"{side}_token_oracle_logps"], logps[0][:-1], atol=1e-4)
            np.testing.assert_allclose(row[f"{side}_token_ref_logps"], logps[1][:-1], atol=1e-4)
            assert row[f"{side}_reward"] == pytest.approx(sum(rewards), abs=1e-5)


def test_masks_select_the_extreme_rewards_with_the_end_of_the_turn_among_them(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    dataset = run(tmp_path, models, pairs(20), chosen_ratio=0.4, rejected_ratio=0.1)
    ends = 0
    for row in dataset:
        for side, ratio in (("chosen", 0.4), ("rejected", 0.1)):
            rewards = np.array([*row[f"{side}_token_rewards"], row[f"{side}_eos_reward"]], np.float32)
            expected = select_tokens(rewards, ratio, highest=side == "chosen").tolist()
            assert [*row[f"{side}_token_mask"], row[f"{side}_eos_mask"]] == expected
            ends += expected[-1]
    assert ends > 0


def test_source_columns_pass_through_and_spans_slice_the_text(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    rows = pairs(5)
    dataset = run(tmp_path, models, rows)
    for row, source in zip(dataset, rows, strict=True):
        assert {name: row[name] for name in source} == source
        text = row["chosen"][-1]["content"]
        starts, ends = row["chosen_token_start"], row["chosen_token_end"]
        pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
        if starts[1:] == ends[:-1]:  # no two tokens share a character
            assert "".join(pieces) == text
        assert "".join(dict.fromkeys("".join(pieces))) == "".join(dict.fromkeys(text))


def test_nasty_responses_come_through_whole(tmp_path: Path, models: tuple[str, str]) -> None:
    texts = [text for text in NASTY if text.strip()]  # others are no responses
    rows = [{"prompt": "Say it.", "chosen": text, "rejected": f"not {text}"} for text in texts]
    dataset = run(tmp_path, models, rows, max_length=20_000)
    assert dataset["chosen"][:] == texts
    for row in dataset:
        assert row["chosen_token_end"][-1] == len(row["chosen"])
        assert row["chosen_eos_reward"] is not None


def test_lone_surrogates_are_replaced_and_counted(tmp_path: Path, models: tuple[str, str]) -> None:
    rows = [{"prompt": "Say it.", "chosen": "bad \ud83d high", "rejected": "good"}]
    dataset = run(tmp_path, models, rows)
    assert dataset[0]["chosen"] == "bad \ufffd high"
    assert manifest_of(tmp_path / "out")["counts"]["notes"] == {"lone surrogates replaced": 1}


def test_what_cannot_be_used_is_dropped_counted_and_listed(tmp_path: Path, models: tuple[str, str]) -> None:
    good = {"prompt": "Say it.", "chosen": "Paris", "rejected": "Rome"}
    rows: list[dict[str, Any]] = [
        good,
        {**good, "chosen": ""},
        {**good, "rejected": "Paris"},
        {**good, "prompt": "long " * 100},
        good | {"chosen": "a<|im_end|>b"},
        {**good, "chosen": None},
    ]
    dataset = run(tmp_path, models, rows, max_length=200)
    assert len(dataset) == 2
    manifest = manifest_of(tmp_path / "out")
    assert manifest["dropped_rows"] == {
        "empty response": [1, 5],
        "chosen equals rejected": [2],
        "prompt longer than the maximum length": [3],
    }
    assert manifest["counts"]["rows"] == 6
    assert manifest["counts"]["annotated"] == 2
    assert manifest["counts"]["notes"] == {"responses that write out control tokens, encoded as text": 1}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2 annotated of 6; dropped 1: chosen equals rejected; dropped 2: empty response" in card


def test_a_long_response_is_cut_and_its_end_is_null(tmp_path: Path, models: tuple[str, str]) -> None:
    rows = [{"prompt": "Say it.", "chosen": "Paris " * 20_000, "rejected": "Rome"}]
    (row,) = run(tmp_path, models, rows, max_length=64)
    assert row["chosen_eos_reward"] is None
    assert row["chosen_eos_mask"] is None
    assert 0 < row["chosen_token_end"][-1] < 120_000
    assert len(row["chosen"]) == 120_000
    assert manifest_of(tmp_path / "out")["health"]["chosen"]["truncated"] == 1


@pytest.mark.parametrize("selection", ["mass", "random", "all"])
def test_other_rules_are_recorded_and_applied(
    tmp_path: Path, models: tuple[str, str], selection: str
) -> None:
    dataset = run(tmp_path, models, pairs(5), rule=selection, chosen_ratio=0.5, seed=7)
    shares = [np.mean([*row["chosen_token_mask"], row["chosen_eos_mask"]]) for row in dataset]
    assert (np.mean(shares) == 1.0) == (selection == "all")
    recorded = manifest_of(tmp_path / "out")["selection"]
    assert recorded["rule"] == selection
    assert recorded["seed"] == (7 if selection == "random" else None)


def test_repeated_responses_get_equal_rewards_and_others_of_the_same_shape_do_not(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    rows = [
        {"prompt": "Say it.", "chosen": chosen, "rejected": rejected}
        for chosen, rejected in (("abc", "xyz"), ("bca", "abc"), ("abc", "zyx"))
    ]
    dataset = run(tmp_path, models, rows)
    chosen, rejected = dataset["chosen_token_rewards"][:], dataset["rejected_token_rewards"][:]
    assert chosen[0] == chosen[2] == rejected[1]
    assert len({tuple(rewards) for rewards in [*chosen, *rejected]}) == 4


def test_batching_moves_no_reward(tmp_path: Path, models: tuple[str, str]) -> None:
    tables = []
    for name, tokens in (("small", 32), ("large", 4096)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, models, pairs(40), batch_tokens=tokens)
        tables.append(pq.read_table(tmp_path / name / "out" / "data").to_pydict())
    for column in ("chosen_token_rewards", "rejected_token_rewards"):
        for first, second in zip(tables[0][column], tables[1][column], strict=True):
            np.testing.assert_allclose(first, second, atol=1e-5)


def test_another_dataset_in_a_folder_of_the_same_name_is_not_taken_from_a_cache(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    masks = []
    for name, ratio in (("a", 0.2), ("b", 0.9)):
        (tmp_path / name).mkdir()
        masks.append(run(tmp_path / name, models, pairs(5), chosen_ratio=ratio)["chosen_token_mask"][:])
    assert masks[0] != masks[1]


def test_the_same_call_again_does_nothing(tmp_path: Path, models: tuple[str, str]) -> None:
    run(tmp_path, models, pairs(5))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    run(tmp_path, models, pairs(5))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_shards_and_merge_give_the_bytes_of_one_run(tmp_path: Path, models: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(600))
    annotate(data, *models, AnnotateSettings(output=tmp_path / "whole"))
    for index in (2, 0, 1):
        settings = AnnotateSettings(output=tmp_path / "parts", shard=(index, 3))
        report = annotate(data, *models, settings)
        assert (report.manifest is None, report.missing) == {2: (True, 2), 0: (True, 1), 1: (False, 0)}[index]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path: Path, models: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(600))
    annotate(data, *models, AnnotateSettings(output=tmp_path / "whole"))
    settings = AnnotateSettings(output=tmp_path / "stopped")
    assert annotate(data, *models, settings, stop=lambda: True).manifest is None
    chunks = sorted(path.name for path in (tmp_path / "stopped" / "_work").glob("*.rows"))
    assert chunks == ["train-000000000-000000256.rows"]
    annotate(data, *models, settings)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_progress_adds_up_to_the_rows(tmp_path: Path, models: tuple[str, str]) -> None:
    class Count(Progress):
        rows = done = 0
        advanced = 0.0

        def start(self, rows: int, done: int) -> None:
            self.rows, self.done = rows, done

        def advance(self, rows: float) -> None:
            assert rows > 0
            self.advanced += rows

    data = write_jsonl(tmp_path / "prefs.jsonl", [*pairs(300), *pairs(10)])
    settings = AnnotateSettings(output=tmp_path / "out")
    first, second = Count(), Count()
    annotate(data, *models, settings, progress=first, stop=lambda: True)
    annotate(data, *models, settings, progress=second)
    assert (first.rows, first.done, second.rows, second.done) == (310, 0, 310, 256)
    assert first.advanced == pytest.approx(256)
    assert second.advanced == pytest.approx(54)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"chosen_ratio": 0.2}, r"`chosen_ratio` 0\.3, this run has 0\.2"),
        ({}, {"max_length": 64}, r"`max_length` 2048, this run has 64"),
        ({}, {"dtype": "bfloat16"}, "`dtype` 'float32', this run has 'bfloat16'"),
        ({}, {"chat_template": False}, "need a chat template"),
        ({}, {"store_logps": True}, "`store_logps` False, this run has True"),
        ({}, {"limit": 3}, "`limit` 5, this run has 3"),
    ],
)
def test_a_changed_run_is_refused_with_the_fields_that_differ(
    tmp_path: Path, models: tuple[str, str], first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    run(tmp_path, models, pairs(5), **first)
    with pytest.raises(SepoError, match=message):
        run(tmp_path, models, pairs(5), **second)


def test_a_changed_dataset_or_model_is_refused(tmp_path: Path, models: tuple[str, str]) -> None:
    run(tmp_path, models, pairs(5))
    with pytest.raises(OutputError, match="made with another dataset, or another version of it"):
        run(tmp_path, models, pairs(5, seed=1))
    other = save_pair(tmp_path / "other", noise=0.1)
    with pytest.raises(OutputError, match="made with another oracle, or another version of it"):
        run(tmp_path, (other[0], models[1]), pairs(5))


def test_a_changed_end_token_is_another_run(tmp_path: Path) -> None:
    plain = save_pair(tmp_path / "plain", template=None)
    rows = [{"prompt": "The capital of France", "chosen": " is Paris", "rejected": " is Rome"}]
    run(tmp_path, plain, rows)
    for folder in plain:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = "<|endoftext|>"
        tokenizer.save_pretrained(folder)
    with pytest.raises(OutputError, match="made with another tokenizer, or another version of it"):
        run(tmp_path, plain, rows)


def test_a_licence_may_be_given_to_a_resumed_run(tmp_path: Path, models: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(300))
    settings = AnnotateSettings(output=tmp_path / "out")
    assert annotate(data, *models, settings, stop=lambda: True).stopped
    annotate(data, *models, AnnotateSettings(output=tmp_path / "out", license="mit"))
    assert "\nlicense: mit\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_worker_whose_run_was_merged_by_another_is_done(tmp_path: Path, models: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(300))
    settings = AnnotateSettings(output=tmp_path / "out")

    class Faster(Progress):
        def start(self, rows: int, done: int) -> None:
            annotate(data, *models, settings)  # the other worker does everything in the meantime

    manifest = annotate(data, *models, settings, progress=Faster()).manifest
    assert manifest is not None
    assert manifest.as_dict() == manifest_of(tmp_path / "out")
    assert not (tmp_path / "out" / "_work").exists()


def test_card_and_manifest_say_what_was_done(tmp_path: Path, models: tuple[str, str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_jsonl(source / "train.jsonl", pairs(4))
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage:\n- en\n- zh\n---\n# Pairs\n")
    annotate(str(source), *models, AnnotateSettings(output=tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    from huggingface_hub import DatasetCard

    data = DatasetCard(card).data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["language"] == ["en", "zh"]
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    manifest = manifest_of(tmp_path / "out")
    assert data["sepo"]["fingerprint"] == manifest["fingerprint"]
    assert data["sepo"]["reward_accuracy"] == round(manifest["health"]["accuracy"], 4)
    (shard,) = manifest["shards"]
    path = tmp_path / "out" / shard["file"]
    assert shard["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert shard["rows"] == 4
    assert str(tmp_path) not in card
    assert str(tmp_path) not in json.dumps(manifest)


def test_without_a_licence_none_is_invented_and_one_can_be_given(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    run(tmp_path, models, pairs(4))
    assert "license:" not in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "given").mkdir()
    run(tmp_path / "given", models, pairs(4), license="mit")
    assert "\nlicense: mit\n" in (tmp_path / "given" / "out" / "README.md").read_text()


def test_a_base_model_without_a_template_scores_plain_texts(tmp_path: Path) -> None:
    plain = save_pair(tmp_path / "plain", template=None)
    rows = [{"prompt": "The capital of France", "chosen": " is Paris", "rejected": " is Rome"}]
    dataset = run(tmp_path, plain, rows)
    assert dataset[0]["chosen"] == " is Paris"
    assert manifest_of(tmp_path / "out")["scoring"]["chat_template_sha256"] is None


def test_rendered_prompts_are_refused_with_the_option_that_takes_them(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"prompt": prompt, "chosen": "Hello", "rejected": "Go"}]
    with pytest.raises(
        TokenizerError, match=r"prompts begin with control tokens .* Pass `chat_template=False`"
    ):
        run(tmp_path, models, rows)
    assert not (tmp_path / "out").exists()
    run(tmp_path, models, rows, chat_template=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_told_by_row_side_and_model(
    tmp_path: Path, models: tuple[str, str], value: float
) -> None:
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(models[0])
    with torch.no_grad():
        model.lm_head.weight[5] = value
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(models[0]).save_pretrained(broken)
    with pytest.raises(ScoringError, match=r"row 0: .* chosen response under the oracle is not a finite"):
        run(tmp_path, (str(broken), models[1]), pairs(3))


def test_the_same_model_twice_is_refused(tmp_path: Path, models: tuple[str, str]) -> None:
    with pytest.raises(ModelError, match="0"):
        run(tmp_path, (models[1], models[1]), pairs(3))


def test_a_dataset_with_nothing_usable_says_why(tmp_path: Path, models: tuple[str, str]) -> None:
    rows = [{"prompt": "Say it.", "chosen": "same", "rejected": "same"}] * 3
    with pytest.raises(OutputError, match="no row could be annotated: 3 chosen equals rejected"):
        run(tmp_path, models, rows)
    data = write_jsonl(tmp_path / "prefs.jsonl", rows)
    with pytest.raises(PreferenceError, match="none of 3 rows can be annotated: 3 chosen equals rejected"):
        plan(data, *models, AnnotateSettings(output=tmp_path / "plan"))


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"shard": (3, 3)}, "shard 3/3 does not exist. Count from 0: 0/3 to 2/3"),
        ({"max_length": 0}, "`max_length` must be at least 1, got 0"),
        ({"dtype": "int8"}, '`dtype` "int8" is not one of float32, bfloat16, float16'),
    ):
        with pytest.raises(SettingsError) as raised:
            AnnotateSettings(output=Path("out"), **settings)
        assert message in str(raised.value)


def test_a_plan_counts_what_the_run_then_does(tmp_path: Path, models: tuple[str, str]) -> None:
    rows = [*pairs(30), {**pairs(1)[0], "chosen": [{"role": "assistant", "content": ""}]}]
    data = write_jsonl(tmp_path / "prefs.jsonl", rows)
    settings = AnnotateSettings(output=tmp_path / "out")
    found = plan(data, *models, settings)
    assert not (tmp_path / "out").exists()
    assert (found.rows, found.sampled, found.usable) == (31, 31, 30)
    assert found.dropped == {"empty response": 1}
    assert found.seconds > 0
    assert found.memory_bytes > 2**26
    manifest = annotate(data, *models, settings).manifest
    assert manifest is not None
    scored = manifest.health.chosen.tokens + manifest.health.rejected.tokens
    assert scored < found.tokens < 60 * found.longest


def test_a_dataset_that_is_annotated_already_is_refused(tmp_path: Path, models: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", [{**row, "chosen_token_rewards": [0.5]} for row in pairs(2)])
    with pytest.raises(PreferenceError, match=r"annotated dataset \(chosen_token_rewards\)"):
        annotate(data, *models, AnnotateSettings(output=tmp_path / "out"))
