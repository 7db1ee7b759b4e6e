"""Tests of what commands import, and how."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_pair import pairs, save_pair, write_jsonl

from cli.common import importing
from sepo_data import AnnotateSettings, annotate

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``pairs.jsonl``, ``oracle``, ``ref`` and what they make, ``annotated``."""
    folder = tmp_path_factory.mktemp("start")
    save_pair(folder)
    data = write_jsonl(folder / "pairs.jsonl", pairs(8))
    annotate(data, str(folder / "oracle"), str(folder / "ref"), AnnotateSettings(folder / "annotated"))
    return folder


def python(code: str, folder: Path = ROOT) -> str:
    """What a fresh process prints on its last line."""
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("inspect annotated", "torch transformers"),
        ("merge annotated", "torch transformers datasets"),
        ("reselect annotated --ratio 0.2 --output other", "torch transformers"),
        ("diff annotated annotated", "torch transformers"),
        ("export annotated --to axolotl-spans --output exported", "torch transformers"),
        ("annotate --oracle oracle --ref ref --dataset pairs.jsonl", "peft transformers.trainer trl"),
    ],
)
def test_a_command_loads_only_what_it_computes_with(folder: Path, command: str, without: str) -> None:
    code = (
        "from cli.main import main\n"
        f"sys.argv = ['sepo', *{command.split()!r}]\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print(sorted(set({without.split()!r}) & set(sys.modules)))\n"
    )
    assert python(code, folder) == "[]"


def test_garbage_is_collected_again_after_imports_even_those_that_fail() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing("sepo_data.no_such_module"):
        pass
    assert gc.isenabled()
    assert gc.get_freeze_count()


def test_modules_are_frozen_once_a_process() -> None:
    code = (
        "import gc\n"
        "from cli.common import importing\n"
        "with importing(): pass\n"
        "kept, before = [[] for _ in range(10_000)], gc.get_freeze_count()\n"
        "with importing(): pass\n"
        "print(before > 10_000, gc.get_freeze_count() <= before)\n"
    )
    assert python(code) == "True True"


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_no_bars_of_transformers_in_a_log_file(loaded: str) -> None:
    load = "from transformers.utils import logging\n"
    code = (
        f"{load if loaded == 'before' else ''}"
        "from cli.common import importing\n"
        "with importing(): pass\n"
        f"{load if loaded == 'after' else ''}"
        "print(logging.is_progress_bar_enabled())\n"
    )
    assert python(code) == "False"
