"""`sepo report` for growing datasets: seconds, peak memory, page size, and load time in Chromium.

    python benchmarks/report_scaling.py [--rows 1000 100000 1000000] [--characters 160] [--json FILE]

A thousand numbered pairs of the demo, with shortened responses, are annotated by a Llama with random weights.
Larger datasets repeat these rows, written and merged by the library as a run of that size. Needs Linux and
`make browser`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
from playwright.sync_api import sync_playwright
from scaling import save_tiny_models, watch
from speed import write_json

from sepo_data import AnnotateSettings, annotate
from sepo_data.annotated.manifest import Manifest, RunRecord
from sepo_data.annotated.opening import open_annotated
from sepo_data.runs.folder import chunk_ranges, open_run, write_chunk
from sepo_data.runs.merging import merge_run

PAIRS = Path(__file__).parent.parent / "demo" / "pairs.jsonl"
ANNOTATED = 1000  # rows; a larger dataset repeats them
READY = (
    "document.querySelector('#row .token') && performance.getEntriesByName('first-contentful-paint').length"
)
TIMES = """() => {
  const [first] = performance.getEntriesByName('first-contentful-paint');
  const [page] = performance.getEntriesByType('navigation');
  return {painted_s: first.startTime / 1000, ready_s: page.domContentLoadedEventEnd / 1000};
}"""


def annotated_rows(folder: Path, characters: int) -> tuple[Manifest, pa.Table]:
    """Annotate a thousand rows."""
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    with (folder / "pairs.jsonl").open("w") as file:
        for row in range(ANNOTATED):
            pair = {side: pairs[row % len(pairs)][side] for side in ("prompt", "chosen", "rejected")}
            for side, messages in pair.items():
                text = messages[-1]["content"]
                pair[side] = [{**messages[-1], "content": text if side == "prompt" else text[:characters]}]
            file.write(json.dumps({"id": row, **pair}) + "\n")
    oracle, ref = save_tiny_models(folder)
    output = folder / "annotated"
    annotate(str(folder / "pairs.jsonl"), oracle, ref, AnnotateSettings(output=output, device="cpu"))
    opened = open_annotated(str(output))
    table = next(iter(opened.splits.values())).with_format("arrow")[:]
    return opened.manifest, table


def repeated(table: pa.Table, lo: int, hi: int) -> pa.Table:
    """Rows ``lo`` to ``hi`` of the repeated table, each with its number as its id."""
    parts = list[pa.Table]()
    at = lo
    while at < hi:
        begin = at % table.num_rows
        parts.append(table.slice(begin, min(hi - at, table.num_rows - begin)))
        at += parts[-1].num_rows
    rows = pa.concat_tables(parts).combine_chunks()
    place = rows.schema.get_field_index("id")
    return rows.set_column(
        place, rows.schema.field(place), pa.array(range(lo, hi), rows.schema.field(place).type)
    )


def write_dataset(folder: Path, rows: int, made: Manifest, table: pa.Table) -> Path:
    """Make an annotated dataset of this many rows."""
    scoring = replace(made.scoring, source=replace(made.scoring.source, rows=rows))
    record = RunRecord(
        **{one.name: getattr(made, one.name) for one in fields(RunRecord)} | {"scoring": scoring}
    )
    run = open_run(folder / f"{rows}", record)
    for lo, hi in chunk_ranges(rows):
        write_chunk(run, lo, hi, repeated(table, lo, hi), {"dropped": {}, "counts": {}})
    merge_run(run.output)
    return run.output


def in_chromium(page_file: Path) -> Iterator[dict[str, float]]:
    """Seconds until first paint and until the first row is shown, for three visits."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for _ in range(3):
            page = chromium.new_page(viewport={"width": 1200, "height": 800})
            page.goto(page_file.as_uri())
            page.wait_for_function(READY)
            yield page.evaluate(TIMES)
        chromium.close()


def measure(dataset: Path, rows: int) -> dict[str, float]:
    """Measure one line of the table; a new process with an empty cache makes the report."""
    page_file = dataset / "report.html"
    command = [sys.executable, "-m", "sepo_cli.main", "report", str(dataset)]
    environment = {**os.environ, "HF_HOME": str(dataset / "cache")}
    began, before = time.monotonic(), os.times()
    anonymous, resident = watch(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    seconds, spent = time.monotonic() - began, os.times()
    seen = list(in_chromium(page_file))
    return {
        "rows": rows,
        "dataset_mb": sum(path.stat().st_size for path in dataset.glob("data/*")) / 1e6,
        "seconds": seconds,
        "cpu_seconds": spent.children_user
        + spent.children_system
        - before.children_user
        - before.children_system,
        "anonymous_mb": anonymous,
        "resident_mb": resident,
        "page_mb": page_file.stat().st_size / 1e6,
        **{name: statistics.median(times[name] for times in seen) for name in ("painted_s", "ready_s")},
    }


def main() -> None:
    """Print a line for each number of rows and write the requested files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--characters", type=int, default=160)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        made, table = annotated_rows(Path(name), options.characters)
        print(
            f"{(made.health.chosen.tokens + made.health.rejected.tokens) / ANNOTATED:.0f} tokens per pair",
            flush=True,
        )
        for rows in options.rows:
            dataset = write_dataset(Path(name), rows, made, table)
            found.append(measure(dataset, rows))
            print({name: round(value, 2) for name, value in found[-1].items()}, flush=True)
            shutil.rmtree(dataset)
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
