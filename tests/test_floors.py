"""Tests of the architecture: allowed imports, light modules, public names, speed of --help.

A room is a sub-package or a top-level module. It imports from lower floors only, and inside a room
no two files import each other in a circle. Every import counts: lazy ones, and those under TYPE_CHECKING.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sepo_data", "sepo_train", "cli")
FLOORS = [
    ["errors", "projection", "pieces", "reasons", "dataset_spec"],
    ["files", "schema", "rules"],
    ["hub", "selection"],
    ["sources", "settings"],
    ["tokens", "annotated"],
    ["models", "projected"],
    ["runs", "generation"],
    ["comparison"],
    ["report"],
    ["annotation", "planning", "verification", "reselection", "exports", "evaluation"],
    ["__init__"],
    ["sepo_train"],
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "transformers"}
HEAVY_ROOMS = {"models", "planning", "verification", "evaluation", "sepo_train"}
HEAVY_FILES = {"sepo_data.runs.chunks", "sepo_data.runs.rounding", "sepo_data.generation.local"}


def files() -> dict[str, Path]:
    """The modules of the project by dotted name; packages as ``sepo_data.hub.__init__``."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def imported(module: str, path: Path) -> Iterator[str]:
    """Everything that a module imports, anywhere in it, as absolute dotted names."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*whole, alias.name]) for alias in node.names)


def room(name: str) -> str | None:
    """The room of a dotted name; None for other packages."""
    package, *rest = name.replace("sepo_cli", "cli").split(".")
    if package != "sepo_data":
        return package if package in PACKAGES else None
    return rest[0] if rest and rest[0] in FLOOR else "__init__"


@pytest.mark.parametrize("module", files())
def test_a_room_imports_lower_floors_only(module: str) -> None:
    here = room(module)
    assert here is not None
    for name in imported(module, files()[module]):
        there = room(name)
        assert there in (None, here) or FLOOR[there] < FLOOR[here], f"{module} imports {name}"


def test_no_two_files_import_each_other_in_a_circle() -> None:
    known = files()
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        names = [[name, name.rpartition(".")[0], f"{name}.__init__"] for name in imported(module, path)]
        found = (next((name for name in spellings if name in known), None) for spellings in names)
        graph[module] = {name for name in found if name not in (None, module)}
    tuple(TopologicalSorter(graph).static_order())


def light_modules() -> list[str]:
    """Everything of ``sepo_data`` outside the rooms that compute with models."""
    return [
        module.removesuffix(".__init__")
        for module in files()
        if room(module) not in {*HEAVY_ROOMS, "cli"} and module not in HEAVY_FILES
    ]


def test_what_computes_no_model_loads_neither_torch_nor_transformers() -> None:
    modules = [*light_modules(), "sepo_data.models.scoring"]
    code = (
        "import importlib, sys\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        f"    assert not {HEAVY!r} & set(sys.modules), module\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["annotate"],
        ["inspection"],
        ["main"],
        ["main", "annotate"],
        ["main", "inspect"],
        ["main", "merge"],
        ["main", "reselect"],
        ["main", "report"],
        ["main", "export"],
        ["main", "generate"],
        ["main", "evaluate"],
        ["main", "verify"],
        ["main", "train", "sepo"],
        ["train", "dpo"],
    ],
)
def test_help_loads_neither_torch_nor_transformers_nor_datasets(command: list[str]) -> None:
    module, *arguments = command
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['sepo', *{arguments!r}, '--help']\n"
        f"try: runpy.run_module('cli.{module}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"heavy = {HEAVY | {'datasets'}!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "Usage" in found.stdout


@pytest.mark.parametrize("package", ["sepo_data", "sepo_train"])
def test_everything_public_exists_and_has_a_docstring(package: str) -> None:
    module = __import__(package)
    assert sorted(module.__all__) == module.__all__
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


def test_an_init_file_is_a_docstring_and_only_the_packages_export() -> None:
    for module, path in files().items():
        if not module.endswith(".__init__"):
            continue
        exporting = module in ("sepo_data.__init__", "sepo_train.__init__")  # lazily, for a quick --help
        exports = {ast.ImportFrom, ast.If, ast.Assign, ast.FunctionDef} if exporting else set()
        tree = ast.parse(path.read_text("utf-8"))
        assert ast.get_docstring(tree), module
        assert {type(node) for node in tree.body} <= {ast.Expr, *exports}, module
