"""Tests of the page of a training run and of the verdict, against figures by hand; no model is trained."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from cli.reports import describe_training
from sepo_train.figures import run_figures, run_warnings, verdict
from sepo_train.folder import RECORD_NAME, TRAINER_STATE
from sepo_train.model_card import render_card
from sepo_train.run_report import report_run


def logged(step: int, loss: float, *, held_out: bool, chosen: float = -2.0) -> dict[str, float]:
    found = {"loss": loss, "accuracy": 0.5 + step / 100, "margin": step / 10, "logps/chosen": chosen,
             "logps/rejected": -3.0, "drift/chosen": chosen + 2.0}  # fmt: skip
    if held_out:
        return {"step": step, **{f"eval_{name}": value for name, value in found.items()}}
    return {"step": step, **found, "learning_rate": 1e-5, "grad_norm": 3.0, "tokens_per_second": 1234.0}


def history(*losses: float, chosen: float = -2.0) -> list[dict[str, float]]:
    """An evaluation every ten steps with these losses, and training batches whose loss is half of them."""
    found = []
    for i, loss in enumerate(losses):
        found += [logged(10 * i, loss, held_out=True, chosen=chosen if i else -2.0)]
        found += [logged(10 * i + 1, loss / 2, held_out=False)]
    return [*found, {"step": 10 * len(losses), "train_loss": 0.5, "train_runtime": 3.0}]


def record(entries: list[dict[str, float]], **changes: Any) -> Any:
    return {
        "sepo_version": "0.1.0",
        "stage": "dpo",
        "model": {"name": "me/base", "revision": "a" * 40, "base": None, "on_hub": True},
        "dataset": {"name": "me/prefs", "revision": "b" * 40, "config": None, "split": "train",
                    "on_hub": True, "card": {}, "restricted": False},
        "settings": {"beta": 0.1, "max_length": 256, "lora_rank": None},
        "training": {"learning_rate": 1e-5, "batch_size": 16, "set": {"optim": "adamw_torch"}},
        "rows": {"used": 90, "held_out": 10, "dropped": {"empty response": 2}, "notes": {}},
        "transfer": None,
        "figures": run_figures(entries, held_out=True),
        "environment": {"torch": "2.13.0"},
        "finished": True,
        **changes,
    }  # fmt: skip


def save(folder: Path, facts: dict[str, Any], entries: list[dict[str, float]], place: str = "") -> None:
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / RECORD_NAME).write_text(json.dumps(facts))
    state = {"log_history": entries, "max_steps": 40, "global_step": 20}
    (folder / place / TRAINER_STATE).write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("losses", "how", "warned"),
    [
        ((0.6931, 0.6), "better on the eval rows: loss 0.6931 -> 0.6000, accuracy 50.0% -> 60.0%", None),
        ((0.6931, 0.9), "worse on the eval rows", "the eval loss rose from 0.6931 to 0.9000"),
        ((0.6931, 0.6932), "unchanged on the eval rows", None),
        ((0.7, 0.5, 0.6), "better on the eval rows", "lowest at step 10 (0.5000) and has risen to 0.6000"),
    ],
)
def test_the_verdict_says_what_became_of_the_eval_loss(
    losses: tuple[float, ...], how: str, warned: str | None
) -> None:
    figures = run_figures(history(*losses), held_out=True)
    assert verdict(figures).startswith(how)
    warnings = run_warnings(figures)
    assert (warnings == []) if warned is None else (warned in warnings[0])


def test_a_collapse_is_warned_of_and_a_run_without_eval_rows_is_not_judged() -> None:
    figures = run_figures(history(0.7, 0.5, chosen=-3.5), held_out=True)
    (warning,) = run_warnings(figures)
    assert "chosen responses are 1.5 nats less likely than at the start: the model collapses" in warning
    figures = run_figures(history(0.7, 0.5), held_out=False)
    expected = "unknown: no rows were held out; on the training batches loss 0.3500 -> 0.2500"
    assert verdict(figures) == expected
    assert verdict({}) == verdict(run_figures([], held_out=True)) == ""


def test_summary_card_and_page_end_in_the_same_verdict(tmp_path: Path) -> None:
    entries = history(0.6931, 0.8, 0.9)
    facts = record(entries)
    expected = "worse on the eval rows: loss 0.6931 -> 0.9000, accuracy 50.0% -> 70.0%"
    lines = describe_training(facts)
    assert lines[-1] == f"verdict: {expected}"
    assert lines[-2].startswith("warning: the eval loss rose")
    card = render_card(facts, is_adapter=False)
    assert f"**Verdict:** {expected}." in card
    assert "aligned" not in card
    assert "| `max_length` | 256 |" in card
    save(tmp_path / "oracle", facts, entries)
    found = CliRunner().invoke(main, ["report", str(tmp_path / "oracle")], catch_exceptions=False)
    page = Path(found.output.strip()).read_text("utf-8")
    assert found.output.strip() == str(tmp_path / "oracle" / "report.html")
    assert "<strong>Worse on the eval rows</strong> loss 0.6931 → 0.9000" in page
    for title in ("Loss", "Accuracy", "Margin", "Log-probs", "Learning rate", "Gradient norm", "Speed"):
        assert f"<h3>{title}" in page, title
    assert "Tokens per second 1,234 at step 1" in page
    assert "Training 0.3466 at step 1, 0.4500 at step 21; eval 0.6931 at step 0" in page
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)[0]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_a_margin_that_rounds_to_0_has_no_sign_of_its_own(tmp_path: Path) -> None:
    entries = [
        {**entry, "eval_margin": -1e-9} if "eval_margin" in entry else entry for entry in history(1, 2)
    ]
    save(tmp_path, record(entries), entries)
    page = report_run(tmp_path).read_text("utf-8")
    assert "−0.00" not in page
    assert "eval +0.000 at step 0" in page


def test_an_unfinished_run_is_shown_up_to_its_last_step(tmp_path: Path) -> None:
    entries = history(0.6931, 0.6)
    save(tmp_path, record(entries, figures={}, finished=False), entries, "checkpoint-20")
    found = CliRunner().invoke(main, ["report", str(tmp_path)], catch_exceptions=False)
    page = Path(found.output.strip()).read_text("utf-8")
    assert "Step 20 of 40: the run is not finished." in page
    assert "<strong>Better on the eval rows</strong>" in page


def test_names_in_a_record_cannot_become_markup(tmp_path: Path) -> None:
    entries = history(0.6931, 0.6)
    evil = "</script><img src=x onerror=alert(1)>\u202e"
    facts = record(entries, transfer=evil, settings={evil: evil})
    facts["model"]["name"] = facts["dataset"]["name"] = evil
    save(tmp_path, facts, entries)
    CliRunner().invoke(main, ["report", str(tmp_path)], catch_exceptions=False)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<img" not in page
    assert "\u202e" not in page


def test_what_cannot_be_shown_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        found = CliRunner().invoke(main, ["report", str(tmp_path), *arguments])
        assert found.exit_code == 1
        assert found.stderr.count("\n") == 1
        return found.stderr

    (tmp_path / RECORD_NAME).write_text(json.dumps(record([], finished=False)))
    assert "this run has logged no step yet" in refused()
    save(tmp_path, record(history(0.7, 0.6)), history(0.7, 0.6))
    assert "cannot be written" in refused("-o", "/proc/nowhere/page.html")
    assert "is a training run. Leave out --by" in refused("--by", "category")
    (tmp_path / TRAINER_STATE).write_text("{")
    assert "cannot be read" in refused()
