"""Annotation and training of the last commit against those of an earlier one, in turn.

    python benchmarks/against.py COMMIT [--rows 2000] [--steps 60] [--rounds 3] [--json FILE]

Both versions run the same commands with the demo's models, each in a process with one thread. What is
measured is its CPU time, which other work on the machine disturbs less than the clock. Runs of one row and
of one step show the start-up. Ratios, last commit to earlier one, are medians over the rounds. The token
columns that the two write are compared as well.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import datasets
from scaling import DEMO, write_rows
from speed import table, write_json

ROOT = Path(__file__).parent.parent


def unpack(commit: str, folder: Path) -> Path:
    """The tree of a commit, with the name under which the commands are installed."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    (folder / "sepo_cli").symlink_to("cli")
    return folder


def commands(folder: Path, rows: int, steps: int) -> Iterator[tuple[str, list[str]]]:
    """What both versions run, by name; the training reads what was annotated before it."""
    for name, number in (("annotate, 1 row", 1), ("annotate", rows)):
        pairs, output = write_rows(folder / f"{number}.jsonl", number), str(folder / f"annotated-{number}")
        models = ["--oracle", str(DEMO / "oracle"), "--ref", str(DEMO / "reference")]
        yield name, ["sepo_cli.annotate", *models, "--dataset", pairs, "--output", output]
    for name, number in (("train sepo, 1 step", 1), ("train sepo", steps)):
        output, batch = str(folder / f"policy-{number}"), ["--batch-size", "16", "--micro-batch-size", "16"]
        data = ["--policy", str(DEMO / "policy"), "--dataset", str(folder / f"annotated-{rows}")]
        length = ["--set", f"max_steps={number}", "--output-dir", output]
        yield name, ["sepo_cli.train", "sepo", *data, *batch, *length]


def cpu_seconds(tree: Path, *arguments: str) -> float:
    """CPU time of a Python process with one thread that finds the packages of a tree."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-P", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print a table, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    took: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_HOME"] = place
        trees = {name: unpack(name, Path(place) / "trees" / name) for name in (options.commit, "HEAD")}
        for number in range(options.rounds):
            folders = {name: Path(place) / f"{number}-{name}" for name in trees}
            for folder in folders.values():
                folder.mkdir()
            ways = {name: commands(folder, options.rows, options.steps) for name, folder in folders.items()}
            for steps in zip(*ways.values(), strict=True):
                for (name, tree), (what, command) in zip(trees.items(), steps, strict=True):
                    took[what][name].append(cpu_seconds(tree, "-m", *command))
                    print(what, name, f"{took[what][name][-1]:.1f} s", flush=True)
        rewards = [
            datasets.load_dataset(str(folder / f"annotated-{options.rows}"), split="train").to_dict()
            for folder in folders.values()
        ]
    columns = [name for name in rewards[0] if "_token_" in name]
    same = all(rewards[0][name] == rewards[1][name] for name in columns)
    lines = []
    for what, by_tree in took.items():
        ratios = [new / old for old, new in zip(*by_tree.values(), strict=True)]
        old, new = (statistics.median(values) for values in by_tree.values())
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append([what, f"{old:.1f}", f"{new:.1f}", f"{statistics.median(ratios):.2f}", each])
    print("\n" + table(["command", f"{options.commit}, CPU s", "HEAD, CPU s", "ratio", "rounds"], lines))
    print(f"\nToken columns of {options.rows:,} rows are {'the same' if same else 'NOT the same'} in both.")
    if options.json:
        write_json(options.json, took)


if __name__ == "__main__":
    main()
