"""Tests that README is true: its commands parse, its Python runs."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        line.strip().split("#")[0].strip()
        for page in PAGES
        for line in re.sub(r"\\\n\s*", "", page).splitlines()
        if re.match(r"    (sepo|sepo-\w+) ", line)
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_docs_has_only_options_that_exist(line: str) -> None:
    words = shlex.split(line)
    words = ["sepo", *words[0].split("-")[1:], *words[1:]]
    command: Any = main.main.commands[words[1]]
    if words[1] == "train":
        command = command.commands[words[2]]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= known, given - known
    required = {
        option.opts[0] for option in command.params if option.required and option.opts[0].startswith("--")
    }
    assert required <= given or "--config" in given


def test_readme_shows_commands_at_all_and_is_short() -> None:
    assert len(COMMANDS) >= 5
    assert len(README.splitlines()) < 120


def test_python_in_the_docs_imports_what_exists() -> None:
    blocks = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    assert len(blocks) >= 3
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module in ("sepo_data", "sepo_train"):
                public = importlib.import_module(node.module).__all__
                assert {alias.name for alias in node.names} <= set(public)


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([\w/.]+\.(?:md|cff|txt))\)", README):
        assert (ROOT / target).exists(), target


def test_make_has_every_target_that_readme_and_ci_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"make (\w+)", README + (ROOT / ".ci" / "run").read_text())
    assert {"demo", "test", "slow", "check", "wheel"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
