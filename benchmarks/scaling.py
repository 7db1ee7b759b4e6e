"""`sepo-annotate` for growing numbers of rows, and with two processes.

    python benchmarks/scaling.py [--rows 1000 10000 100000] [--shared-rows 6000] [--rounds 3] [--json FILE]

The demo's rows are repeated, each with its own number, so that no text is scored once for several rows.
Growing: a Llama with a few thousand random parameters, so that row handling dominates. Shared: the demo's
models, one process with one thread on one core compared with two processes on two cores, interleaved. Needs
Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speed import table, write_json
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

DEMO = Path(__file__).parent.parent / "demo"


def write_rows(path: Path, number: int) -> str:
    """Write the demo's pairs, numbered."""
    lines = (DEMO / "pairs.jsonl").read_text().splitlines()
    with path.open("w") as file:
        for row in range(number):
            pair = json.loads(lines[row % len(lines)])
            for *_, last in (pair["prompt"], pair["chosen"], pair["rejected"]):
                last["content"] = f"{row}. {last['content']}"
            file.write(json.dumps(pair) + "\n")
    return str(path)


def save_tiny_models(folder: Path) -> tuple[str, str]:
    """An oracle and a reference with the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "oracle")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    for name in ("oracle", "ref"):
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "oracle"), str(folder / "ref")


def start(models: tuple[str, str], data: str, output: Path, core: int | None = None, *options: str) -> Any:
    """Start a process of the command, on one core if given."""
    command = [sys.executable, "-m", "sepo_cli.annotate", "--oracle", models[0], "--ref", models[1]]
    command += ["--dataset", data, "--output", str(output), "--device", "cpu", *options]
    prefix = [] if core is None else ["taskset", "--cpu-list", str(core)]
    return subprocess.Popen([*prefix, *command], stdout=subprocess.DEVNULL)


def watch(process: Any) -> tuple[float, float]:
    """Peak memory of a process in MB, without and with mapped files."""
    anonymous = resident = 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        sizes = {name: value for name, _, value in (line.partition(":") for line in status.splitlines())}
        if "RssAnon" in sizes:
            anonymous = max(anonymous, int(sizes["RssAnon"].split()[0]) / 1024)
            resident = max(resident, int(sizes["VmHWM"].split()[0]) / 1024)
        time.sleep(0.02)
    assert process.wait() == 0
    return anonymous, resident


def growing(folder: Path, numbers: Sequence[int]) -> list[dict[str, float]]:
    """Seconds and memory for each number of rows; the first run has a single row."""
    models = save_tiny_models(folder)
    found = []
    for number in (1, *numbers):
        data = write_rows(folder / f"{number}.jsonl", number)
        began = time.monotonic()
        anonymous, resident = watch(start(models, data, folder / f"out-{number}"))
        seconds = time.monotonic() - began
        found.append({"rows": number, "seconds": seconds, "anonymous_mb": anonymous, "resident_mb": resident})
        print(found[-1], flush=True)
    return found


def shared(folder: Path, number: int, rounds: int) -> dict[str, list[float]]:
    """Seconds with one process and with two, each on its own core."""
    os.environ["OMP_NUM_THREADS"] = "1"
    models = (str(DEMO / "oracle"), str(DEMO / "reference"))
    data = write_rows(folder / "shared.jsonl", number)
    first, second, *_ = sorted(os.sched_getaffinity(0))
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for round_number in range(rounds):
        for name, cores in (("one", [first]), ("two", [first, second])):
            output = folder / f"{name}-{round_number}"
            began = time.monotonic()
            processes = [
                start(models, data, output, core, "--shard", f"{i}/{len(cores)}")
                for i, core in enumerate(cores)
            ]
            assert [process.wait() for process in processes] == [0] * len(cores)
            assert (output / "sepo_manifest.json").exists()
            seconds[name].append(time.monotonic() - began)
            print(name, seconds[name][-1], flush=True)
    return seconds


def main() -> None:
    """Print two tables and write the requested files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--shared-rows", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_HOME"] = place
        grown = growing(Path(place), options.rows)
        took = shared(Path(place), options.shared_rows, options.rounds)
    at_start = grown[0]["seconds"]
    print(f"\nA run of one row takes {at_start:.1f} s.\n")
    header = ["rows", "seconds", "seconds per 1k rows, beyond those", "peak memory, MB", "with mapped files"]
    print(
        table(
            header,
            [
                [
                    f"{run['rows']:,}",
                    f"{run['seconds']:.1f}",
                    f"{1000 * (run['seconds'] - at_start) / run['rows']:.2f}",
                    f"{run['anonymous_mb']:.0f}",
                    f"{run['resident_mb']:.0f}",
                ]
                for run in grown[1:]
            ],
        )
    )
    ratios = [one / two for one, two in zip(took["one"], took["two"], strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    one, two = (statistics.median(took[name]) for name in ("one", "two"))
    print(
        f"\n{options.shared_rows:,} rows with the demo's models: one process on one core {one:.1f} s, "
        f"two on two {two:.1f} s; {statistics.median(ratios):.2f}× (rounds: {each})"
    )
    if options.json:
        write_json(options.json, {"growing": grown, "shared": took})


if __name__ == "__main__":
    main()
