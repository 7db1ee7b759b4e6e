"""Tests of the house itself: who may import whom, what is public, and how quick --help is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["sepo_data", "sepo_train", "cli"]  # each may import those before it
LIGHT = [
    "errors",
    "schema",
    "preferences",
    "selection",
    "projection",
    "shards",
    "health",
    "settings",
    "sources",
    "manifest",
    "merging",
    "comparison",
]
HEAVY = {"torch", "transformers"}


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it; relative imports count as their package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(path.parent.name if node.level else str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_those_below_it(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"sepo_cli"} - {layer}
    for path in (ROOT / layer).glob("*.py"):
        assert not imports(path) & above, path


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_neither_torch_nor_transformers(module: str) -> None:
    assert not imports(ROOT / "sepo_data" / f"{module}.py") & HEAVY
    code = f"import sys, sepo_data.{module}; sys.exit(bool({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    [["annotate"], ["inspection"], ["main"], ["main", "annotate"], ["main", "inspect"], ["main", "merge"]],
)
def test_help_loads_neither_torch_nor_transformers_nor_datasets(command: list[str]) -> None:
    module, *arguments = command
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['sepo', *{arguments!r}, '--help']\n"
        f"try: runpy.run_module('cli.{module}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"heavy = {HEAVY | {'datasets', 'pyarrow'}!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "Usage" in found.stdout


def test_everything_public_exists_and_has_a_docstring() -> None:
    import sepo_data

    assert sorted(sepo_data.__all__) == sepo_data.__all__
    for name in sepo_data.__all__:
        assert getattr(sepo_data, name).__doc__, name


def test_the_init_files_hold_public_names_and_nothing_else() -> None:
    for package in LAYERS:
        path = ROOT / package / "__init__.py"
        if path.exists():
            kinds = {type(node) for node in ast.parse(path.read_text()).body}
            assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.If}, path
