"""Tests of the three stages and of ``sepo-train``, from the command line to a model that others can load."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hub_server import HubServer
from safetensors.torch import load_file
from tiny_models import save_tiny_adapter
from tiny_pair import pairs, save_pair, write_jsonl
from tiny_tokenizers import tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cli.main import main
from sepo_data import AnnotateSettings, Progress, SettingsError, annotate
from sepo_data.selection import SelectionRule
from sepo_train import DpoSettings, SepoSettings, train_dpo, train_sepo
from sepo_train.arguments import training_arguments
from sepo_train.examples import Example, WeightedSequence, hold_out
from sepo_train.folder import RECORD_NAME, alone

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def prefs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_jsonl(tmp_path_factory.mktemp("data") / "prefs.jsonl", pairs(24))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str], prefs: str) -> str:
    output = tmp_path_factory.mktemp("annotated") / "out"
    annotate(prefs, *models, AnnotateSettings(output=output, selection=SelectionRule("ratio", 0.4, 0.2)))
    return str(output)


def save_policy(folder: Path, family: str, **changes: Any) -> str:
    """A policy whose tokenizer is of another family than the oracle's."""
    tokenizer = tiny_tokenizer(family)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    torch.manual_seed(1)
    config = LlamaConfig(**{**size, **changes})
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def invoke_sepo(policy: str, dataset: str, output_dir: Path, *arguments: object) -> Result:
    return invoke("sepo", "--policy", policy, "--dataset", dataset, "--output", output_dir, *arguments)


def last_line(result: Result) -> str:
    assert not isinstance(result.exception, Exception), result.exception
    return result.stderr.strip().splitlines()[-1]


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RECORD_NAME).read_text())
    return found


def weights_of(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat([weights.detach().flatten() for weights in model.parameters()])


FAST = ("--batch-size", 4, "--learning-rate", 0.01)


def test_the_whole_pipeline_runs_from_base_model_to_a_policy_with_another_vocabulary(
    tmp_path: Path, models: tuple[str, str], prefs: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = models[1]
    ref, oracle, policy = (tmp_path / name for name in ("ref", "oracle", "policy"))
    result = invoke("sft", "--model", base, "--dataset", prefs, "--side", "chosen", "--output", ref, *FAST)
    assert result.exit_code == 0, result.output
    result = invoke("dpo", "--model", ref, "--dataset", prefs, "--output", oracle, "--epochs", 4, *FAST)
    assert result.exit_code == 0, result.output
    runner = CliRunner()
    annotation = tmp_path / "annotated"
    flags = ["--oracle", oracle, "--ref", ref, "--dataset", prefs, "--output", annotation]
    result = runner.invoke(main, ["annotate", *map(str, flags)])
    assert result.exit_code == 0, result.output
    assert "reward accuracy 100.0%" in result.stdout  # an oracle knows the pairs that it was trained on

    other = save_policy(tmp_path / "other", "sentencepiece_bpe")
    result = invoke(
        "sepo", "--policy", other, "--dataset", annotation, "--output", policy,
        "--epochs", 4, "--eval-fraction", 0.25, *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "of the tokens one to one" in caplog.text
    assert f"saved to {policy} in " in result.stdout
    record = record_of(policy)
    assert record["rows"] == {"used": 18, "held_out": 6, "dropped": {}, "notes": {}}
    figures = record["figures"]
    assert figures["end"]["loss"] < figures["start"]["loss"]
    assert figures["end"]["margin"] > figures["start"]["margin"]
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert tokenizer.chat_template == tiny_tokenizer("sentencepiece_bpe").chat_template
    assert not torch.equal(weights_of(policy), weights_of(Path(other)))
    assert not (policy / "training_args.bin").exists()
    assert "sepo" in (policy / "README.md").read_text()


def test_a_policy_with_the_oracles_tokenizer_trains_on_the_stored_masks(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    by_sum = train_sepo(models[1], annotated, SepoSettings(output_dir=tmp_path / "sum", batch_size=4))
    carried = train_sepo(
        models[1],
        annotated,
        SepoSettings(output_dir=tmp_path / "carried", batch_size=4, projection="majority"),
    )
    assert by_sum.record is not None
    assert by_sum.record["settings"]["chosen_ratio"] == 0.4  # as annotated
    assert by_sum.record["settings"]["rejected_ratio"] == 0.2
    assert carried.record is not None
    assert torch.equal(weights_of(by_sum.output_dir), weights_of(carried.output_dir))


@pytest.mark.parametrize(
    "options",
    [
        ("--ratio", 0.9),
        ("--chosen-ratio", 0.9),
        ("--selection", "random"),
        ("--selection", "all"),
        ("--selection", "mass"),
        ("--selection", "global"),
        ("--selection", "threshold", "--threshold", 0.1),
        ("--exclude-tokens", r"\s.*", "--exclude-tokens", "^$"),
        ("--ratio-by", "id=0:1,1:1,2:1"),
        ("--weights", "rewards"),
        ("--weights", "tis"),
        ("--weights", "tgdpo"),
        ("--weights", "signed"),
        ("--pair-weight", "margin"),
        ("--loss", "dpo"),
        ("--scale", 2.5),
        ("--margin", 1.0),
        ("--seed", 1),
    ],
)
def test_every_option_of_the_loss_changes_what_is_trained(
    tmp_path: Path, models: tuple[str, str], annotated: str, options: tuple[object, ...]
) -> None:
    trained = []
    for name, extra in (("plain", ()), ("changed", options)):
        result = invoke(
            "sepo",
            "--policy",
            models[1],
            "--dataset",
            annotated,
            "--output",
            tmp_path / name,
            *FAST,
            *extra,
        )
        assert result.exit_code == 0, result.output
        trained.append(weights_of(tmp_path / name))
    assert not torch.equal(*trained)


def test_dpo_starts_at_log_2_and_keeps_the_reference_log_probs(
    tmp_path: Path, models: tuple[str, str], prefs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def first_loss(name: str, model: str = models[1], **changes: Any) -> float:
        report = train_dpo(
            model,
            prefs,
            DpoSettings(
                output_dir=tmp_path / name, batch_size=4, learning_rate=1e-9, eval_fraction=0.5, **changes
            ),
        )
        assert report.record is not None
        return float(report.record["figures"]["start"]["loss"])

    assert first_loss("one") == pytest.approx(np.log(2), abs=1e-5)
    # another model, another precision: not what is in the cache
    assert first_loss("other", models[0]) == pytest.approx(np.log(2), abs=1e-5)
    assert first_loss("bf16", training_arguments={"bf16": "true"}) == pytest.approx(np.log(2), abs=1e-3)
    for other in (tmp_path / "cache" / "sepo").glob("ref-*.npy"):
        other.unlink()
    assert first_loss("again") == pytest.approx(np.log(2), abs=1e-5)
    (kept,) = (tmp_path / "cache" / "sepo").glob("ref-*.npy")
    np.save(kept, np.load(kept) - [2.0, 0.0])  # chosen responses less likely than they are
    # read, not computed: beta 0.1 and 2 nats make the margin 0.2, and log(1 + e^-0.2) = 0.5981389
    assert first_loss("two") == pytest.approx(0.5981389, abs=1e-5)
    kept.write_bytes(kept.read_bytes()[:100])  # damaged, and so computed again
    assert first_loss("three") == pytest.approx(np.log(2), abs=1e-5)


def test_dpo_on_key_tokens_is_dpo_where_all_are_selected(
    tmp_path: Path, models: tuple[str, str], prefs: str, annotated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    same: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "beta": 0.5, "eval_fraction": 0.2}
    whole = train_dpo(models[1], prefs, DpoSettings(output_dir=tmp_path / "dpo", **same))
    found = {}
    for name, ratio in (("all", 1.0), ("key", 0.3)):
        settings = SepoSettings(
            output_dir=tmp_path / name, loss="dpo", chosen_ratio=ratio, rejected_ratio=ratio, **same
        )
        report = train_sepo(models[1], annotated, settings)
        assert report.record is not None
        found[name] = report.record["figures"]
        assert found[name]["start"]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert whole.record is not None
    assert found["all"]["end"]["loss"] == pytest.approx(whole.record["figures"]["end"]["loss"], abs=1e-5)
    torch.testing.assert_close(weights_of(tmp_path / "all"), weights_of(tmp_path / "dpo"), rtol=0, atol=1e-5)
    assert not torch.equal(weights_of(tmp_path / "key"), weights_of(tmp_path / "all"))


def test_fraction_and_seed_choose_the_rows_of_an_oracle(
    tmp_path: Path, models: tuple[str, str], prefs: str
) -> None:
    trained = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = DpoSettings(output_dir=tmp_path / name, batch_size=4, fraction=0.25, seed=seed)
        report = train_dpo(models[1], prefs, settings)
        assert report.record is not None
        assert report.record["rows"]["used"] == 6
        trained[name] = weights_of(tmp_path / name)
    assert torch.equal(trained["a"], trained["b"])
    assert not torch.equal(trained["a"], trained["c"])


def test_sft_trains_on_conversations_from_the_command_line(tmp_path: Path, models: tuple[str, str]) -> None:
    turns = [
        {"role": "user", "content": "Say Paris."},
        {"role": "assistant", "content": "Paris Paris"},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": "Paris"},
    ]
    chats = write_jsonl(tmp_path / "chats.jsonl", [{"messages": turns}] * 8 + [{"messages": turns[:1]}])
    result = invoke(
        "sft",
        "--model",
        models[1],
        "--dataset",
        chats,
        "--output",
        tmp_path / "ref",
        *FAST,
        "--epochs",
        10,
    )
    assert result.exit_code == 0, result.output
    assert "trained on 8 rows; dropped 1: 1 no assistant message" in result.stdout
    figures = record_of(tmp_path / "ref")["figures"]
    assert figures["end"]["loss"] < 0.5 * figures["start"]["loss"]


def test_lora_leaves_an_adapter_that_annotates(tmp_path: Path, models: tuple[str, str], prefs: str) -> None:
    oracle = tmp_path / "oracle"
    result = invoke(
        "dpo", "--model", models[1], "--dataset", prefs, "--output", oracle, "--lora-rank", 4, *FAST
    )
    assert result.exit_code == 0, result.output
    assert (oracle / "adapter_model.safetensors").exists()
    assert not (oracle / "model.safetensors").exists()
    report = annotate(prefs, str(oracle), models[1], AnnotateSettings(output=tmp_path / "out"))
    assert report.manifest is not None
    # and trains further as it is
    again = tmp_path / "again"
    result = invoke("dpo", "--model", oracle, "--dataset", prefs, "--output", again, *FAST)
    assert result.exit_code == 0, result.output
    assert (again / "adapter_model.safetensors").exists()
    result = invoke(
        "dpo", "--model", oracle, "--dataset", prefs, "--output", tmp_path / "x", "--lora-rank", 4, *FAST
    )
    assert "is already an adapter" in last_line(result)


def test_the_same_command_does_nothing_to_a_finished_model(
    tmp_path: Path, models: tuple[str, str], annotated: str, caplog: pytest.LogCaptureFixture
) -> None:
    command = (
        "sepo",
        "--policy",
        models[1],
        "--dataset",
        annotated,
        "--output",
        tmp_path / "policy",
        *FAST,
    )
    first = invoke(*command)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "policy").iterdir()}
    second = invoke(*command)
    assert second.exit_code == 0
    assert "is already complete" in caplog.text
    said = [[line for line in one.stdout.splitlines() if "saved to" not in line] for one in (first, second)]
    assert said[0] == said[1]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "policy").iterdir()} == before


def test_a_killed_run_resumes_and_ends_in_the_same_weights(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    settings: dict[str, Any] = {
        "batch_size": 2,
        "learning_rate": 0.01,
        "training_arguments": {"save_steps": "3"},
    }
    whole = train_sepo(models[1], annotated, SepoSettings(output_dir=tmp_path / "whole", **settings))
    calls = iter(range(100))

    def killed() -> bool:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train_sepo(models[1], annotated, SepoSettings(output_dir=tmp_path / "parts", **settings), stop=killed)
    # a checkpoint that a kill left half-written is not taken up
    half = tmp_path / "parts" / "checkpoint-9"
    shutil.copytree(tmp_path / "parts" / "checkpoint-6", half)
    (half / "trainer_state.json").unlink()
    report = train_sepo(models[1], annotated, SepoSettings(output_dir=tmp_path / "parts", **settings))
    assert report.record is not None
    assert torch.equal(weights_of(whole.output_dir), weights_of(report.output_dir))


def test_sigterm_saves_a_checkpoint_and_the_same_command_resumes(
    tmp_path: Path, models: tuple[str, str], annotated: str, caplog: pytest.LogCaptureFixture
) -> None:
    command = [
        sys.executable, "-m", "cli.train", "sepo", "--policy", models[1], "--dataset", annotated,
        "--output", str(tmp_path / "policy"), "--batch-size", "2", "--epochs", "40",
        "--learning-rate", "1e-4", "--set", "logging_steps=1",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGTERM)
            break
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    assert "Resume with: sepo train sepo" in stderr
    assert list((tmp_path / "policy").glob("checkpoint-*"))
    result = invoke_sepo(
        models[1], annotated, tmp_path / "policy", "--batch-size", 2, "--epochs", 40,
        "--learning-rate", "1e-4", "--set", "logging_steps=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "resuming from" in caplog.text


Check = Callable[[Path, tuple[str, str], str, str], tuple[tuple[object, ...], str]]


def refused(*extra: object, stage: str = "sepo", dataset: str | None = None) -> Check:
    def arguments(tmp_path: Path, models: tuple[str, str], annotated: str, prefs: str) -> Any:
        data = dataset or (annotated if stage == "sepo" else prefs)
        model = ("--policy" if stage == "sepo" else "--model", models[1])
        return (stage, *model, "--dataset", data, "--output", tmp_path / "new", *extra)

    return arguments


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (refused("--ratio", 0), 2, "0 is not in the range"),
        (refused("--ratio", 1.5), 2, "1.5 is not in the range"),
        (refused("--dataset", "nowhere/at-all"), 1, "nowhere/at-all"),
        (refused("--set", "weight_dekay=1"), 1, "Did you mean weight_decay?"),
        (refused("--set", "weight_decay=much"), 1, "weight_decay"),
        (refused("--set", "weight_decay"), 2, "is not field=value"),
        (refused("--set", "output_dir=x"), 1, "use --output"),
        (refused("--projection", "majority", "--ratio", 0.3), 1, "carries the masks of the dataset"),
        (refused("--threshold", 0.5), 1, "a threshold has no effect with ratio"),
        (refused("--exclude-tokens", "("), 1, "neither a token id nor a regular expression"),
        (refused("--ratio-by", "id=0:1.5"), 1, 'ratio of "0" must be in (0, 1]'),
        (refused("--ratio-by", "id=many:0.5"), 1, 'has "many" in column id'),
        (refused("--ratio-by", "topic=many:0.5"), 1, "no column topic"),
        (refused("--selection", "threshold", "--threshold", 1e6), 1, "no token selected on a side"),
        (refused("--exclude-tokens", r"(?s).*"), 1, "no token selected on a side"),
        (refused("--pair-weight", "margin", stage="dpo"), 1, "no column chosen_reward"),
        (refused("--max-length", 4), 1, "prompt longer than the maximum length"),
        (refused("--split", "test"), 1, 'no split "test"'),
        (refused("--learning-rate", 0, stage="dpo"), 2, "0 is not in the range"),
        (refused(stage="sft"), 1, "--side chosen"),
        (refused("--eval-fraction", 0.99, "--fraction", 0.05, stage="dpo"), 1, "leave none to train on"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    tmp_path: Path,
    models: tuple[str, str],
    annotated: str,
    prefs: str,
    arguments: Check,
    code: int,
    said: str,
) -> None:
    result = invoke(*arguments(tmp_path, models, annotated, prefs))
    assert result.exit_code == code, result.output
    assert said in last_line(result)
    assert not list(tmp_path.glob("new/*.safetensors"))


def test_a_dataset_that_is_not_annotated_is_refused(
    tmp_path: Path, models: tuple[str, str], prefs: str
) -> None:
    result = invoke(
        "sepo", "--policy", models[1], "--dataset", Path(prefs).parent, "--output", tmp_path / "p"
    )
    assert result.exit_code == 1
    assert "not an annotated dataset" in last_line(result)


def test_a_newer_schema_is_refused_with_what_to_upgrade(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(annotated, newer)
    manifest = json.loads((newer / "sepo_manifest.json").read_text())
    (newer / "sepo_manifest.json").write_text(json.dumps({**manifest, "schema_version": "2.0"}))
    result = invoke("sepo", "--policy", models[1], "--dataset", newer, "--output", tmp_path / "p")
    assert result.exit_code == 1
    assert "schema version 2.0" in last_line(result)
    assert "pip install -U sepo" in last_line(result)


def test_a_folder_of_another_run_is_refused_with_what_differs(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    command = ("sepo", "--policy", models[1], "--dataset", annotated, "--output", tmp_path / "p", *FAST)
    assert invoke(*command).exit_code == 0
    result = invoke(*command, "--scale", 2)
    assert result.exit_code == 1
    assert "--scale 1.0, this run has 2.0" in last_line(result)
    result = invoke(*command, "--set", "weight_decay=0.5")
    assert "made with --set weight_decay None, this run has '0.5'" in last_line(result)


def test_a_folder_with_something_else_in_it_is_refused(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.tex").touch()
    result = invoke_sepo(models[1], annotated, tmp_path / "p", *FAST)
    assert result.exit_code == 1
    assert "contains thesis.tex, but no run of sepo" in last_line(result)


def test_a_policy_without_offsets_is_refused(tmp_path: Path, annotated: str) -> None:
    from transformers import ByT5Tokenizer

    policy = save_policy(tmp_path / "policy", "byte_bpe", vocab_size=400)
    (tmp_path / "policy" / "tokenizer.json").unlink()
    ByT5Tokenizer().save_pretrained(policy)
    result = invoke("sepo", "--policy", policy, "--dataset", annotated, "--output", tmp_path / "p", *FAST)
    assert result.exit_code == 1
    assert "ByT5Tokenizer reports no character offsets" in last_line(result)


def test_a_short_context_drops_the_prompts_that_do_not_fit(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    policy = save_policy(tmp_path / "policy", "byte_bpe", max_position_embeddings=24)
    result = invoke("sepo", "--policy", policy, "--dataset", annotated, "--output", tmp_path / "p", *FAST)
    assert result.exit_code == 0, result.output
    assert "prompt longer than the maximum length" in result.stdout
    assert 0 < record_of(tmp_path / "p")["rows"]["used"] < 24


def test_an_adapter_can_be_the_start_of_stage_three(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    adapter = save_tiny_adapter(tmp_path / "adapter", Path(models[1]))
    result = invoke("sepo", "--policy", adapter, "--dataset", annotated, "--output", tmp_path / "p", *FAST)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p" / "adapter_model.safetensors").exists()


def test_two_processes_give_the_loss_curve_of_one_with_twice_the_batch(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    def curve(name: str, launcher: list[str], micro_batch_size: int) -> list[dict[str, float]]:
        command = [
            *launcher, "-m", "cli.train", "sepo", "--policy", models[1], "--dataset", annotated,
            "--output", str(tmp_path / name), "--batch-size", "4",
            "--micro-batch-size", str(micro_batch_size), "--learning-rate", "0.01",
            "--epochs", "2", "--fraction", "0.875", "--eval-fraction", "0.24", "--set", "logging_steps=1",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        state = tmp_path / name / "trainer_state.json"
        history: list[dict[str, float]] = json.loads(state.read_text())["log_history"]
        return history

    one = curve("one", [sys.executable], 4)
    two = curve(
        "two", [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], 2
    )
    assert len(one) == len(two) > 10
    for single, double in zip(one, two, strict=True):
        for name in ("loss", "margin", "accuracy", "eval_loss", "eval_margin", "eval_logps/chosen_all"):
            assert (name in single) == (name in double)
            if name in single:
                assert double[name] == pytest.approx(single[name], rel=1e-4, abs=1e-5), name
    torch.testing.assert_close(
        weights_of(tmp_path / "one"), weights_of(tmp_path / "two"), rtol=1e-3, atol=1e-4
    )


def test_a_base_model_gets_a_template_for_messages_and_keeps_it(
    tmp_path: Path, prefs: str, annotated: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_policy(tmp_path / "base", "byte_bpe")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    for stage in (
        ("sft", "--model", base, "--dataset", prefs, "--side", "chosen"),
        ("sepo", "--policy", base, "--dataset", annotated),
    ):
        output = tmp_path / stage[0]
        result = invoke(*stage, "--output", output, *FAST)
        assert result.exit_code == 0, result.output
        assert "has no chat template and the data holds messages" in caplog.text
        tokenizer = AutoTokenizer.from_pretrained(output)
        said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert said == "<|user|>\nHi<|im_end|>\n"  # the end-of-sequence token of this tokenizer
        caplog.clear()


def test_a_template_from_a_file_is_used_and_saved(
    tmp_path: Path, models: tuple[str, str], prefs: str
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}")
    result = invoke(
        "sft", "--model", models[1], "--dataset", prefs, "--side", "chosen", "--output", tmp_path / "ref",
        "--chat-template", template, *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert AutoTokenizer.from_pretrained(tmp_path / "ref").chat_template == template.read_text()


def test_texts_need_no_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = save_policy(tmp_path / "base", "byte_bpe")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    rows = [{"prompt": "Say", "chosen": f" Paris {i}", "rejected": f" Rome {i}"} for i in range(8)]
    texts = write_jsonl(tmp_path / "texts.jsonl", rows)
    result = invoke("dpo", "--model", base, "--dataset", texts, "--output", tmp_path / "oracle", *FAST)
    assert result.exit_code == 0, result.output
    assert "chat template" not in caplog.text
    assert AutoTokenizer.from_pretrained(tmp_path / "oracle").chat_template is None


def test_a_batch_that_does_not_fit_is_refused_with_what_to_lower(
    tmp_path: Path, models: tuple[str, str], annotated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("sepo_train.batches.batch_logps", full)
    result = invoke_sepo(models[1], annotated, tmp_path / "p", *FAST)
    assert result.exit_code == 1
    assert "a batch of 2 does not fit into memory. Lower --micro-batch-size" in last_line(result)


def test_a_model_is_pushed_in_one_commit_and_loads_from_the_hub(
    tmp_path: Path, models: tuple[str, str], annotated: str, hub: HubServer, repo_id: str
) -> None:
    command = (
        "sepo", "--policy", models[1], "--dataset", annotated, "--output", tmp_path / "p",
        "--push-to-hub", repo_id, "--private", *FAST,
    )  # fmt: skip
    first = invoke(*command)
    assert first.exit_code == 0, first.output
    saved, url, curves, following = first.stdout.strip().splitlines()[-4:]
    assert saved.startswith(f"saved to {tmp_path / 'p'} in ")
    assert url == f"pushed to {hub.url}/{repo_id}"
    assert curves == f"curves: sepo report {tmp_path / 'p'}"
    assert following.startswith(f"next: sepo evaluate --model {tmp_path / 'p'} --ref {models[1]} ")
    commit = hub.repos["model", repo_id].head
    model = AutoModelForCausalLM.from_pretrained(repo_id, revision=commit)
    pushed = torch.cat([weights.detach().flatten() for weights in model.parameters()])
    assert torch.equal(pushed, weights_of(tmp_path / "p"))
    # a finished model is pushed by the same command without another commit
    assert url in invoke(*command).stdout
    assert hub.repos["model", repo_id].head == commit


def test_a_push_that_cannot_work_is_refused_before_the_training(
    tmp_path: Path, models: tuple[str, str], annotated: str, hub: HubServer
) -> None:
    result = invoke_sepo(
        models[1], annotated, tmp_path / "p", "--push-to-hub", "somebody-else/policy", *FAST,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "no right to write there" in last_line(result)
    assert not list((tmp_path / "p").glob("checkpoint-*"))


def test_a_batch_is_shared_evenly_by_processes_and_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SepoSettings(output_dir=tmp_path, batch_size=6, micro_batch_size=4)
    arguments = training_arguments(settings)  # 4 does not divide 6, so 3 at once
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (3, 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SettingsError, match="batch size 6 cannot be divided among 4 processes"):
        training_arguments(settings)


@pytest.mark.parametrize("steps", [3, 15])
def test_weights_that_are_no_numbers_are_never_a_finished_model(
    tmp_path: Path, models: tuple[str, str], annotated: str, steps: int
) -> None:
    policy = tmp_path / "policy"
    result = invoke_sepo(
        models[1], annotated, policy, "--batch-size", 4,
        "--learning-rate", "1e30", "--epochs", 5, "--max-steps", steps, "--set", "max_grad_norm=0",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "Lower --learning-rate" in last_line(result)
    assert record_of(policy)["finished"] is False
    # nothing was kept that a better rate could not replace
    result = invoke_sepo(models[1], annotated, policy, *FAST)
    assert result.exit_code == 0, result.output


def test_figures_at_the_end_are_those_of_the_last_step(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    result = invoke_sepo(models[1], annotated, tmp_path / "p", *FAST)
    assert result.exit_code == 0
    figures = record_of(tmp_path / "p")["figures"]
    assert figures["end"]["loss"] < figures["start"]["loss"]


def test_options_that_train_the_same_may_change_on_the_way(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    stops = iter([False, False, True])
    settings = SepoSettings(output_dir=tmp_path / "p", batch_size=4, learning_rate=0.01)
    stopped = train_sepo(models[1], annotated, settings, stop=lambda: next(stops))
    assert stopped.record is None
    result = invoke_sepo(
        models[1], annotated, tmp_path / "p", *FAST,
        "--set", "save_steps=2", "--set", "dataloader_num_workers=0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    # what a failed start leaves keeps nobody out
    failed = invoke_sepo(
        models[1], annotated, tmp_path / "q", *FAST,
        "--set", "eval_strategy=steps",
    )  # fmt: skip
    assert failed.exit_code == 1
    result = invoke_sepo(models[1], annotated, tmp_path / "q", *FAST)
    assert result.exit_code == 0, result.output


def test_two_runs_cannot_be_in_one_folder(tmp_path: Path, models: tuple[str, str], annotated: str) -> None:
    policy = tmp_path / "policy"
    with alone(policy, may_write=True):
        result = invoke_sepo(models[1], annotated, policy, *FAST)
    assert result.exit_code == 1
    assert "another process is training there" in last_line(result)
    assert invoke_sepo(models[1], annotated, policy, *FAST).exit_code == 0


def test_held_out_rows_are_drawn_by_the_seed_and_keep_their_prompts_together(tmp_path: Path) -> None:
    def example(row: int, prompt: int) -> Example:
        sequence = WeightedSequence(
            np.array([prompt, row], np.int32), np.array([1], np.int32), np.ones(1, np.float32), length=1
        )
        return Example(row, (sequence, sequence))

    examples = [example(row, row // 3) for row in range(30)]  # three pairs a prompt
    drawn = set()
    for seed in range(4):
        settings = SepoSettings(output_dir=tmp_path, eval_fraction=0.2, seed=seed)
        train, held_out = hold_out(examples, settings)
        assert len(held_out) == 6
        assert sorted(item.row for item in (*train, *held_out)) == list(range(30))
        assert not {item.row // 3 for item in train} & {item.row // 3 for item in held_out}
        drawn.add(tuple(item.row for item in held_out))
    assert len(drawn) > 1


def test_16_bits_are_for_the_base_of_an_adapter(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    command = ("sepo", "--policy", models[1], "--dataset", annotated, *FAST, "--dtype", "bfloat16")
    result = invoke(*command, "--output", tmp_path / "whole")
    assert result.exit_code == 1
    assert "round to nothing in bfloat16" in last_line(result)
    first, second = tmp_path / "first", tmp_path / "second"
    assert invoke(*command, "--output", first, "--lora-rank", 2).exit_code == 0
    further = ("sepo", "--policy", first, "--dataset", annotated, *FAST, "--dtype", "bfloat16")
    result = invoke(*further, "--output", second, "--seed", 1)
    assert result.exit_code == 0, result.output
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert all(weights.dtype == torch.float32 for weights in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_generation_stops_where_the_training_ends_a_turn(tmp_path: Path, prefs: str) -> None:
    base = save_policy(tmp_path / "base", "byte_bpe")
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}<|im_start|>{{ m.content }}<|endoftext|>{% endfor %}")
    result = invoke(
        "sft", "--model", base, "--dataset", prefs, "--side", "chosen", "--output", tmp_path / "ref",
        "--chat-template", template, *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ref")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ref")
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") in model.generation_config.eos_token_id
    assert model.config.use_cache


def test_the_default_template_begins_like_the_tokenizers_own_texts(tmp_path: Path, prefs: str) -> None:
    base = save_policy(tmp_path / "base", "byte_bpe")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(base)
    result = invoke(
        "sft",
        "--model",
        base,
        "--dataset",
        prefs,
        "--side",
        "chosen",
        "--output",
        tmp_path / "ref",
        *FAST,
    )
    assert result.exit_code == 0, result.output
    said = AutoTokenizer.from_pretrained(tmp_path / "ref").apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
    assert said == "<|endoftext|><|user|>\nHi<|im_end|>\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--set", "hub_token=hf_secret"), "use --push-to-hub; the token comes from"),
        (("--seed", 2**32), "seed must be in [0, 2**32)"),
        (("--epochs", "inf"), "--epochs must be a finite number"),
        (("--margin", "nan"), "margin must be a finite number"),
        (("--scale", "inf"), "scale must be a finite number"),
    ],
)
def test_numbers_and_secrets_out_of_place_are_refused(
    tmp_path: Path, models: tuple[str, str], annotated: str, flags: tuple[object, ...], said: str
) -> None:
    result = invoke_sepo(models[1], annotated, tmp_path / "p", *flags)
    assert result.exit_code == 1
    assert said in last_line(result)


def test_a_broken_template_file_is_named_with_its_line(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    result = invoke_sepo(
        models[1], annotated, tmp_path / "p", "--chat-template", broken,
    )  # fmt: skip
    assert result.exit_code == 1
    assert f"{broken}, line 2:" in last_line(result)


def test_output_folders_that_are_files_are_refused(
    tmp_path: Path, models: tuple[str, str], prefs: str
) -> None:
    result = invoke("sepo", "--policy", models[1], "--dataset", prefs, "--output", tmp_path / "p")
    assert "a file, not an annotated dataset. Annotate it with sepo-annotate" in last_line(result)
    (tmp_path / "taken").touch()
    result = invoke("dpo", "--model", models[1], "--dataset", prefs, "--output", tmp_path / "taken", *FAST)
    assert "is a file. Choose another --output" in last_line(result)


def test_a_mapping_in_a_config_file_sets_training_arguments(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("batch-size: 4\nset:\n  weight_decay: 0.5\nmax-steps: 1\n")
    result = invoke(
        "sepo",
        "--policy",
        models[1],
        "--dataset",
        annotated,
        "--output",
        tmp_path / "p",
        "--config",
        config,
    )
    assert result.exit_code == 0, result.output
    assert record_of(tmp_path / "p")["training"]["weight_decay"] == 0.5
    assert record_of(tmp_path / "p")["training"]["max_steps"] == 1


def test_one_prompt_for_all_rows_still_leaves_some_to_hold_out(tmp_path: Path) -> None:
    sequence = WeightedSequence(
        np.array([7, 8], np.int32), np.array([1], np.int32), np.ones(1, np.float32), length=1
    )
    settings = SepoSettings(output_dir=tmp_path, eval_fraction=0.25)
    train, held_out = hold_out([Example(row, (sequence, sequence)) for row in range(8)], settings)
    assert (len(train), len(held_out)) == (6, 2)


def test_even_the_only_step_of_a_short_run_trains_and_is_called_short(
    tmp_path: Path, models: tuple[str, str], annotated: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = invoke_sepo(models[1], annotated, tmp_path / "p", "--learning-rate", 0.01)
    assert result.exit_code == 0, result.output
    assert not torch.equal(weights_of(tmp_path / "p"), weights_of(Path(models[1])))
    assert "with 1 step hardly anything is learned. Lower `batch_size` (128 now)" in caplog.text
    assert "->" not in result.stdout  # one step has no before and after


def test_options_from_the_environment_are_called_like_the_flags(
    tmp_path: Path, models: tuple[str, str], annotated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEPO_TRAIN_SEPO_SET", "warmup_steps=1 weight_decay=0.5")
    monkeypatch.setenv("SEPO_TRAIN_SEPO_MAX_STEPS", "1")
    monkeypatch.setenv("SEPO_TRAIN_SEPO_EPOCHS", "3")
    assert invoke_sepo(models[1], annotated, tmp_path / "p", *FAST).exit_code == 0
    training = record_of(tmp_path / "p")["training"]
    assert (training["max_steps"], training["weight_decay"], training["num_train_epochs"]) == (1, 0.5, 3)


def test_a_template_that_leaves_the_messages_out_is_refused(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    template = tmp_path / "hello.jinja"
    template.write_text("hello")
    result = invoke_sepo(models[1], annotated, tmp_path / "p", "--chat-template", template)
    assert result.exit_code == 1
    assert "does not write out what the messages say" in last_line(result)


def test_whoever_may_read_the_card_may_read_the_weights(
    tmp_path: Path, models: tuple[str, str], annotated: str
) -> None:
    assert invoke_sepo(models[1], annotated, tmp_path / "p", *FAST).exit_code == 0
    modes = {(tmp_path / "p" / name).stat().st_mode for name in ("README.md", "model.safetensors")}
    assert len(modes) == 1


def test_a_model_and_a_dataset_that_moved_are_the_same_run(
    tmp_path: Path, models: tuple[str, str], annotated: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(models[1], tmp_path / "renamed")
    shutil.copytree(annotated, tmp_path / "moved")
    assert invoke_sepo(models[1], annotated, tmp_path / "p", *FAST).exit_code == 0
    result = invoke_sepo(str(tmp_path / "renamed"), str(tmp_path / "moved"), tmp_path / "p", *FAST)
    assert result.exit_code == 0, result.output
    assert "is already complete" in caplog.text


def rates(folder: Path) -> list[float]:
    """The learning rate of every step that was logged."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["learning_rate"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("kept", [True, False])
def test_more_epochs_continue_a_finished_run_and_fewer_are_refused(
    tmp_path: Path, models: tuple[str, str], annotated: str, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    options = [*FAST, "--set", "logging_steps=1", *(["--set", "save_total_limit=1"] if kept else [])]
    policy = tmp_path / "p"
    assert invoke_sepo(models[1], annotated, policy, *options).exit_code == 0
    assert bool(list(policy.glob("checkpoint-*"))) is kept
    before = weights_of(policy)
    caplog.clear()
    longer = invoke_sepo(models[1], annotated, policy, "--epochs", 2, *options)
    assert longer.exit_code == 0, longer.output
    assert "resuming from" in caplog.text
    assert ("the optimizer starts anew at step 6" in caplog.text) is not kept
    assert not torch.equal(weights_of(policy), before)
    assert record_of(policy)["training"]["num_train_epochs"] == 2
    # six steps of the first run, whose schedule ended, and six more where a schedule over all twelve is
    assert len(rates(policy)) == 12
    assert rates(policy)[6] == pytest.approx(0.005, rel=0.15)
    shorter = invoke_sepo(models[1], annotated, policy, "--epochs", 1, *options)
    assert shorter.exit_code == 1
    assert "was made with --epochs 2.0, this run has 1.0" in last_line(shorter)
    steps = invoke_sepo(models[1], annotated, policy, "--max-steps", 20, "--epochs", 2, *options)
    assert "--max-steps -1, this run has 20" in last_line(steps)


def test_a_killed_continuation_resumes_too(tmp_path: Path, models: tuple[str, str], annotated: str) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.01, "output_dir": tmp_path / "p"}
    train_sepo(models[1], annotated, SepoSettings(max_steps=3, **settings))
    train_sepo(models[1], annotated, SepoSettings(max_steps=6, **settings), stop=lambda: True)
    assert record_of(tmp_path / "p")["finished"] is False
    train_sepo(models[1], annotated, SepoSettings(max_steps=6, **settings))
    assert record_of(tmp_path / "p")["finished"] is True
    assert json.loads((tmp_path / "p" / "trainer_state.json").read_text())["global_step"] == 6


@pytest.mark.parametrize("stage", ["sft", "dpo", "sepo"])
def test_a_dry_run_says_what_a_run_would_be_and_writes_nothing(
    tmp_path: Path, models: tuple[str, str], prefs: str, annotated: str, stage: str
) -> None:
    dataset = annotated if stage == "sepo" else prefs
    command = [stage, "--model", models[1], "--dataset", dataset, "--output", tmp_path / "p", *FAST]
    command += ["--side", "chosen"] if stage == "sft" else []
    found = invoke(*command, "--epochs", 2, "--eval-fraction", 0.25, "--dry-run")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert "18 examples, 6 examples for evaluation; " in lines[0]
    assert lines[1] == "no rows would be dropped"
    assert lines[2] == "10 steps of 4 examples"
    assert "on cpu, peak memory about " in lines[3]
    assert not (tmp_path / "p").exists()
    plan = json.loads(invoke(*command, "--max-steps", 7, "--dry-run", "--json").stdout)
    assert (plan["steps"], plan["examples"], plan["dropped"]) == (7, 24, {})
    assert plan["seconds_estimated"] > 0


def test_progress_is_told_of_every_step(tmp_path: Path, models: tuple[str, str], annotated: str) -> None:
    class Told(Progress):
        """Everything it was told."""

        def __init__(self) -> None:
            self.said: list[object] = []

        def start(self, rows: int, done: int) -> None:
            self.said.append((rows, done))

        def advance(self, rows: float) -> None:
            self.said.append(rows)

        def finish(self) -> None:
            self.said.append("finished")

    told = Told()
    settings = SepoSettings(output_dir=tmp_path / "p", batch_size=4, max_steps=3)
    train_sepo(models[1], annotated, settings, progress=told)
    assert told.said == [(3, 0), 1, 1, 1, "finished"]


def test_without_a_terminal_a_line_is_logged_now_and_then(
    tmp_path: Path,
    models: tuple[str, str],
    annotated: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("cli.running.LOG_EVERY_S", 0)
    assert invoke_sepo(models[1], annotated, tmp_path / "p", *FAST).exit_code == 0
    line = re.compile(r"3 of 6 steps, [\d.]+ steps/s, \d\d:\d\d left")
    assert sum(bool(line.fullmatch(message)) for message in caplog.messages) == 1
