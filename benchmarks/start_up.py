"""CPU seconds that a command takes before it works: the last commit and an earlier one, in turn.

    python benchmarks/start_up.py COMMIT [--rounds 5] [--json FILE]

User and system time of a process with one thread, so that other processes on the machine count little.
One row is annotated and one step trained with the demo's models: nearly all of it is start-up. The
imports that no annotation can do without are measured in the same rounds.
"""

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from against import commands, cpu_seconds, unpack
from speed import table, write_json

IMPORTS = {
    "import torch": "import torch",
    "import torch, a model of transformers, datasets": (
        "import datasets, torch; from transformers import LlamaForCausalLM"
    ),
}


def starts(folder: Path) -> dict[str, list[str]]:
    """Short commands by name; those that read an annotated dataset find the one that the first makes."""
    annotate, train = (of_one for name, of_one in commands(folder, 1, 1) if name.endswith((" row", " step")))
    made = annotate[-1]
    return {
        "sepo annotate, 1 row": annotate,
        "sepo-train sepo, 1 step": train,
        "sepo inspect": ["sepo_cli.main", "inspect", made],
        "sepo merge": ["sepo_cli.main", "merge", made],
        "sepo --help": ["sepo_cli.main", "--help"],
    }


def main() -> None:
    """Print a table, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    took: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_HOME"] = place
        trees = {name: unpack(name, Path(place) / "trees" / name) for name in (options.commit, "HEAD")}
        for number in range(options.rounds):
            for name, code in IMPORTS.items():
                took[name]["HEAD"].append(cpu_seconds(Path(place), "-c", code))
            for version, tree in trees.items():
                folder = Path(place) / f"{version}-{number}"
                folder.mkdir()
                for name, command in starts(folder).items():
                    took[name][version].append(cpu_seconds(tree, "-m", *command))
                    print(number, version, name, round(took[name][version][-1], 2), flush=True)
    rows = [
        [name, *(f"{statistics.median(found[version]):.1f}" if version in found else "" for version in trees)]
        for name, found in took.items()
    ]
    print("\n" + table(["", *trees], rows))
    if options.json:
        write_json(options.json, took)


if __name__ == "__main__":
    main()
