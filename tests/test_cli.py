"""Tests of the commands as people run them: exit codes, one-line errors, config, signals, the demo's path."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_pair import pairs, save_pair, write_jsonl
from tiny_tokenizers import tiny_tokenizer

from cli import annotate as annotation
from cli import inspection, main

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


COMMANDS = {"annotate": annotation.main, "inspection": inspection.main, "main": main.main}


def command(module: str, *arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(COMMANDS[module], [str(argument) for argument in arguments], env=environment)


def annotate(models: tuple[str, str], data: object, *arguments: object, **environment: str) -> Result:
    return command(
        "annotate", "--oracle", models[0], "--ref", models[1], "--dataset", data, *arguments, **environment
    )


def assert_one_line(found: Result, code: int, *parts: str) -> None:
    assert found.exit_code == code, found.stderr
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    last = found.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in last


def test_a_run_reports_and_ends_with_the_folder(tmp_path: Path, models: tuple[str, str]) -> None:
    data = write_jsonl(
        tmp_path / "prefs.jsonl", [*pairs(9), {**pairs(1)[0], "rejected": pairs(1)[0]["chosen"]}]
    )
    found = annotate(models, data, "--output", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == "annotated 9 of 10 rows; dropped 1: 1 chosen equals rejected"
    assert any(line.startswith("reward accuracy ") for line in lines)
    assert re.fullmatch(rf"saved to {tmp_path / 'out'} in (\d+ min )?\d+ s", lines[-2])
    assert lines[-1] == f"next: sepo inspect {tmp_path / 'out'}"

    shown = command("inspection", tmp_path / "out", "--row", 1)
    assert shown.exit_code == 0, shown.stderr
    assert "[" in shown.stdout
    assert "train: 9 pairs" in shown.stdout
    assert_one_line(command("inspection", tmp_path / "out", "--row", 9), 1, "no row 9, it has 9")


def test_flags_win_over_the_environment_which_wins_over_the_config(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(3))
    config = tmp_path / "run.yaml"
    config.write_text("ratio: 0.5\nchosen-ratio: 0.6\nrejected_ratio: 0.7\nmax-length: 77\n")

    def manifest(name: str, *arguments: object, **environment: str) -> dict[str, dict[str, float]]:
        output = tmp_path / name
        found = annotate(models, data, "--config", config, "--output", output, *arguments, **environment)
        assert found.exit_code == 0, found.stderr
        return dict(json.loads((output / "sepo_manifest.json").read_text()))

    plain = manifest("config")
    assert plain["selection"]["chosen_ratio"] == 0.6
    assert plain["selection"]["rejected_ratio"] == 0.7
    assert plain["scoring"]["max_length"] == 77
    environment = {"SEPO_ANNOTATE_CHOSEN_RATIO": "0.8", "SEPO_ANNOTATE_REJECTED_RATIO": "0.9"}
    mixed = manifest("all", "--rejected-ratio", 1.0, **environment)
    assert mixed["selection"]["chosen_ratio"] == 0.8
    assert mixed["selection"]["rejected_ratio"] == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rato: 0.3\n", "unknown options: rato"),
        ("- a\n", "must contain options"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_config_that_is_not_one_is_a_usage_error(
    tmp_path: Path, models: tuple[str, str], content: str, message: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(content)
    found = annotate(models, "x", "--config", config)
    assert_one_line(found, 2, message)


@pytest.mark.parametrize(
    "arguments",
    [["--ratio", "0"], ["--ratio", "30"], ["--shard", "4/4"], ["--batch-tokens", "few"], ["--nonsense"]],
)
def test_wrong_usage_exits_2(models: tuple[str, str], arguments: list[str]) -> None:
    assert_one_line(annotate(models, "x", *arguments), 2, "Error: ", "--help")
    assert annotate(models, "x", *arguments).stderr.count("\n") == 1


def test_bad_input_is_one_line_and_exit_1(tmp_path: Path, models: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(3))
    assert_one_line(annotate(models, tmp_path / "none.jsonl"), 1, "none.jsonl", "no such file")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    assert_one_line(annotate(models, broken), 1, "line 2")
    truncated = tmp_path / "truncated.parquet"
    truncated.write_bytes(b"PAR1 half of a file")
    assert_one_line(annotate(models, truncated), 1, "truncated.parquet")
    single = write_jsonl(tmp_path / "single.jsonl", [{"text": "no pair"}])
    assert_one_line(annotate(models, single), 1, 'no column "chosen"', "--chosen-column")
    assert_one_line(annotate((models[0], str(tmp_path)), data), 1, str(tmp_path))
    assert_one_line(annotate((models[0], models[0]), data, "--output", tmp_path / "o"), 1, "0")
    (tmp_path / "file").write_text("")
    assert_one_line(annotate(models, data, "--output", tmp_path / "file" / "out"), 1, "cannot be written")
    assert_one_line(
        annotate(models, data, "--push-to-hub", "someone-else/x", "--output", tmp_path / "p"), 1, "x"
    )
    assert not (tmp_path / "p").exists()


def test_a_dry_run_says_what_a_run_would_be_and_writes_nothing(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", [*pairs(9), {**pairs(1)[0], "chosen": []}])
    found = annotate(models, data, "--output", tmp_path / "out", "--dry-run")
    assert found.exit_code == 0, found.stderr
    assert "prefs.jsonl: 10 rows, about " in found.stdout
    assert "would drop 1: 1 empty response" in found.stdout
    assert "GiB" in found.stdout
    assert not (tmp_path / "out").exists()


def test_shards_and_merge_from_the_command_line(tmp_path: Path, models: tuple[str, str]) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(300))
    first = annotate(models, data, "--output", tmp_path / "out", "--shard", "0/2")
    assert first.stdout.startswith("this shard is done; other shards have to score 1 more chunk.")
    assert_one_line(
        command("main", "merge", tmp_path / "out"), 1, "chunks are missing, 1 of 2 (rows 256-299)"
    )
    last = annotate(models, data, "--output", tmp_path / "out", "--shard", "1/2")
    assert last.stdout.startswith("annotated 300 of 300 rows")
    merged = command("main", "merge", tmp_path / "out").stdout.splitlines()
    assert merged[:-2] == last.stdout.splitlines()[:-2]  # but for how long it took


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_chunk_and_says_how_to_go_on(
    tmp_path: Path, models: tuple[str, str], number: signal.Signals, code: int
) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(4000))
    arguments = [
        "--oracle",
        models[0],
        "--ref",
        models[1],
        "--dataset",
        data,
        "--output",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.annotate", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    work = tmp_path / "out" / "_work"
    while not list(work.glob("*.rows")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert f"Resume with: sepo annotate --oracle {models[0]}" in stderr
    chunks = sorted(path.name for path in work.iterdir())
    assert all(".tmp" not in name for name in chunks)
    assert 2 <= len(chunks) < 17  # run.json, and at least the chunk in hand


def test_the_group_lists_its_commands() -> None:
    found = command("main", "--help")
    assert found.exit_code == 0
    for name in ("annotate", "inspect", "merge", "push"):
        assert name in found.stdout


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    found = annotate(
        models, write_jsonl(folder / "prefs.jsonl", pairs(9)), "--output", folder / "out", "--ratio", 0.5
    )
    assert found.exit_code == 0, found.stderr
    return folder / "out"


def test_a_row_is_shown_on_a_policys_tokens_and_its_transfer_measured(
    tmp_path: Path, models: tuple[str, str], annotated: Path
) -> None:
    plain = command("inspection", annotated, "--row", 2).stdout
    same = command("inspection", annotated, "--row", 2, "--tokenizer", models[0])
    assert same.exit_code == 0, same.stderr
    before, pointer = plain.strip().rsplit("\n", 1)
    assert pointer == f"next: sepo report {annotated} --row 2"
    assert same.stdout.startswith(before)  # what it showed before stays
    shown = same.stdout.removeprefix(f"{before}\n").splitlines()
    assert shown[1] == f"on the tokens of {models[0]}, row 2"
    by_oracle = [line.split(": ", 1)[1] for line in plain.splitlines() if " nats): " in line]
    by_policy = [line.split(": ", 1)[1] for line in shown if " tokens): " in line]
    assert by_policy == by_oracle  # the dataset's own ratio, and the oracle's own tokens
    assert "9 of 9 rows can be trained on" in shown
    assert sum("100.0% are one of the oracle's" in line for line in shown) == 2
    assert not any(line.startswith("warning") for line in shown)

    tiny_tokenizer("wordpiece").save_pretrained(tmp_path / "policy")  # a tokenizer alone, without a model
    other = command("inspection", annotated, "--row", 2, "--tokenizer", tmp_path / "policy")
    assert other.exit_code == 0, other.stderr
    assert "9 of 9 rows can be trained on" in other.stdout
    assert "are its unknown token" in other.stdout  # it was trained without emoji
    by_other = [line.split(": ", 1)[1] for line in other.stdout.splitlines() if " tokens): " in line]
    assert len(by_other) == 2
    assert by_other != by_oracle  # marked on its own tokens


def test_a_row_that_a_policy_cannot_read_is_reported(models: tuple[str, str], annotated: Path) -> None:
    found = command("inspection", annotated, "--tokenizer", models[0], "--max-length", 3)
    assert found.exit_code == 0, found.stderr
    assert "cannot be trained on: prompt longer than the maximum length" in found.stdout
    assert "0 of 9 rows can be trained on; dropped 9: 9 prompt longer" in found.stdout
    assert "warning: 9 of 9 rows are lost" in found.stdout


def test_a_policy_without_a_usable_tokenizer_is_one_line(tmp_path: Path, annotated: Path) -> None:
    missing = command("inspection", annotated, "--tokenizer", tmp_path / "nowhere")
    assert_one_line(missing, 1, f"{tmp_path / 'nowhere'}: no such folder")
    assert_one_line(command("inspection", annotated, "--tokenizer", tmp_path), 1, "no tokenizer.json in it")
    bad = command("inspection", annotated, "--tokenizer", tmp_path, "--max-length", 0)
    assert_one_line(bad, 2, "--max-length")


def test_a_policy_without_a_template_is_shown_as_it_would_be_trained(tmp_path: Path, annotated: Path) -> None:
    tiny_tokenizer(template=None).save_pretrained(tmp_path / "base")
    shown = command("inspection", annotated, "--tokenizer", tmp_path / "base")
    assert shown.exit_code == 0, shown.output
    assert "rows can be trained on" in shown.stdout
