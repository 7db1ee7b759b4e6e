"""Tests of a row on the terminal: brackets, colours of rewards, and lines as wide as the terminal."""

import os
import re
from typing import Any

import pytest
from click.testing import CliRunner

from cli.ending import show
from cli.options import command
from cli.rows import _cells, describe_row

ROW: dict[str, Any] = {
    "prompt": "Capital of France?",
    "chosen": "It is Paris.",
    "chosen_token_start": [0, 2, 5, 11],
    "chosen_token_end": [2, 5, 11, 12],
    "chosen_token_rewards": [0.0, -0.5, 2.0, 1.0],
    "chosen_token_mask": [False, False, True, True],
    "chosen_eos_reward": 0.1,
    "chosen_eos_mask": False,
    "chosen_reward": 2.6,
    "rejected": "Lyon\u200d 中文",
    "rejected_token_start": [0, 4],
    "rejected_token_end": [4, 8],
    "rejected_token_rewards": [-2.0, 0.2],
    "rejected_token_mask": [True, False],
    "rejected_eos_reward": None,
    "rejected_eos_mask": None,
    "rejected_reward": -1.8,
}


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_selected_tokens_are_in_brackets_and_the_largest_rewards_next_to_them() -> None:
    lines = plain(describe_row(ROW, 7)).splitlines()
    assert lines[:3] == ["row 7", "prompt: Capital of France?", "chosen (+2.60 nats): It is [Paris.]"]
    assert lines[3] == "  highest: ␣Paris +2.00, . +1.00, end of turn +0.10, It +0.00, ␣is -0.50"
    assert lines[4].startswith("rejected (-1.80 nats): [Lyon]")
    assert lines[4].endswith(" … (cut)")
    assert lines[5].startswith("  lowest: Lyon -2.00, ")


def test_tokens_are_coloured_by_their_rewards() -> None:
    shown = describe_row(ROW, 7)

    for text, colour in (("Paris", 111), ("Lyon", 215), (".", 153), (" is", 230)):
        assert f"\x1b[30m\x1b[48;5;{colour}m{text}\x1b[0m" in shown, text
    assert ": It\x1b[" in shown.replace("\x1b[0m ", " ")  # near 0: no colour


@pytest.mark.parametrize("width", [20, 40])
def test_lines_are_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((width, 24)))
    text = "word " * 30
    starts = list(range(0, 150, 5))
    side = {"token_start": starts, "token_end": [start + 5 for start in starts],
            "token_rewards": [0.1] * 30, "token_mask": [True, False] * 15}  # fmt: skip
    row = ROW | {"chosen": text} | {f"chosen_{name}": values for name, values in side.items()}
    lines = plain(describe_row(row, 0)).splitlines()
    assert width - 8 < max(_cells([(line.rstrip(), {})]) for line in lines) <= width
    assert sum(line.count("[word") for line in lines) == 15
    assert _cells([("中a\u0301", {})]) == 3


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    @command("row", [])
    def row() -> None:
        """Show a row."""
        show(False, [describe_row(ROW, 0)])

    coloured = CliRunner().invoke(row, color=True).stdout
    assert "\x1b[" in coloured
    assert CliRunner().invoke(row, color=True, env={"NO_COLOR": "1"}).stdout == plain(coloured)
    assert CliRunner().invoke(row).stdout == plain(coloured)  # a pipe
