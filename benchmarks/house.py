"""Measure the architecture: rooms, floors, arrows, circles, and the sizes of modules and functions.

    python benchmarks/house.py

A room is a sub-package or a top-level module of ``sepo_data``, or ``sepo_train`` or ``cli``.
An arrow is an import of one room by another, lazy and type-checking imports included.
"""

import ast
import re
import statistics
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("sepo_data", "sepo_train", "cli")
PARTS = {path.stem for path in (ROOT / "sepo_data").iterdir() if path.suffix == ".py" or path.is_dir()}


def room(name: str) -> str | None:
    """The room of a dotted name; None for other packages."""
    package, *rest = name.split(".")
    if package != "sepo_data":
        return package if package in PACKAGES else None
    return rest[0] if rest and rest[0] in PARTS else "__init__"


def imported(module: str, tree: ast.Module) -> set[str]:
    """Absolute dotted names of everything that a module imports from somewhere."""
    package, names = module.split(".")[:-1], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return names


def circles(graph: dict[str, set[str]]) -> int:
    """The number of circles; each is broken before the next is searched."""
    found = 0
    while True:
        try:
            tuple(TopologicalSorter(graph).static_order())
            return found
        except CycleError as error:
            cycle = error.args[1]
            graph[cycle[1]].discard(cycle[0])
            found += 1


def floors(graph: dict[str, set[str]]) -> int:
    """Rooms on the longest path down, including the lowest room."""
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = 1 + max((height[other] for other in graph.get(name, ())), default=0)
    return max(height.values())


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def main() -> None:
    """Print the figures."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    trees = {path: ast.parse(path.read_text("utf-8")) for path in paths}
    rooms: dict[str, set[str]] = {}
    of_files: dict[str, set[str]] = {}
    for path, module in names.items():
        here = room(module)
        assert here is not None
        found = imported(module, trees[path])
        rooms.setdefault(here, set()).update(
            there for name in found if (there := room(name)) not in (None, here)
        )  # type: ignore[misc]
        spellings = [(name, name.rpartition(".")[0], f"{name}.__init__") for name in found]
        known = (next((name for name in names_ if name in names.values()), None) for names_ in spellings)
        of_files[module] = {name for name in known if name not in (None, module)}  # type: ignore[misc]
    print(f"rooms {len(rooms)}, floors {floors(rooms)}, arrows {sum(map(len, rooms.values()))}")
    print(f"files {len(of_files)}, arrows {sum(map(len, of_files.values()))}, circles {circles(of_files)}")
    sizes = sorted((len(path.read_text("utf-8").splitlines()), names[path]) for path in paths)
    bodies = sorted(
        (body_lines(node), f"{names[path]}.{node.name}")
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    for what, found_sizes in (("module", sizes), ("function body", bodies)):
        lines = [size for size, _ in found_sizes]
        p90 = statistics.quantiles(lines, n=10)[-1]
        largest = ", ".join(f"{name} {size}" for size, name in found_sizes[-6:])
        print(f"{what}: median {statistics.median(lines):.0f}, p90 {p90:.0f}, max {lines[-1]} ({largest})")
    texts = [path.read_text("utf-8") for path in paths]
    any_names = sum(len(re.findall(r"\bAny\b", text)) for text in texts)
    lines_in_all = sum(size for size, _ in sizes)
    print(f"Any: {any_names}, {1000 * any_names / lines_in_all:.1f} per 1,000 of {lines_in_all:,} lines")
    ratio = [names[path] for path, text in zip(paths, texts, strict=True) if re.search(r"chosen_ratio", text)]
    print(f"files that name a ratio: {len(ratio)} ({', '.join(ratio)})")


if __name__ == "__main__":
    main()
