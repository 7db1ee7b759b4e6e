"""Microseconds per token of all annotation work outside the models, on one core.

    python benchmarks/host_work.py PAIRS.jsonl.gz TOKENIZER…

Runs the functions of an annotation, chunk by chunk, with random log-probs instead of models.
Every round has a new tokenizer with empty caches. A file of few rows is repeated, each time
with responses of other rows after the prompts, so no text occurs twice. Prompt tokens are counted
once, response tokens if they are scored. CPU time of the process, best of the rounds. The line
of the library is the floor: its time alone, on the same texts.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from transformers import AutoTokenizer

from sepo_data import selection
from sepo_data.annotated.manifest import (
    ModelFacts,
    ModelRevision,
    RunRecord,
    ScoredRows,
    Scoring,
    SourceRecord,
)
from sepo_data.models.scoring import ScoredSide, Scores
from sepo_data.runs.folder import chunk_ranges, open_run, write_chunk
from sepo_data.runs.merging import merge_run
from sepo_data.runs.tables import annotated_table, passthrough_columns
from sepo_data.schema import SCHEMA_VERSION, Side, Sides, annotated_schema, validate
from sepo_data.settings import AnnotateSettings
from sepo_data.sources.opening import Source
from sepo_data.sources.preferences import PairColumns, open_pairs, pair_types
from sepo_data.tokens import encoder, encoding
from sepo_data.tokens.encoder import ResponseEncoder, response_encoder
from sepo_data.tokens.pairs import EncodedPairs, encode_pairs

ROUNDS = 3
PAIRS = 2000
SETTINGS = AnnotateSettings(Path("unused"))
LIBRARY = "tokenise: the library"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{{ '\n' }}{% endfor %}"
)


class Clock:
    """CPU seconds by step; a step inside another one counts only as the inner one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = [0.0]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the enclosed code."""
        self._inside.append(0.0)
        began = time.process_time()
        yield
        spent = time.process_time() - began
        self.seconds[name] += spent - self._inside.pop()
        self._inside[-1] += spent

    def measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function to measure every call."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return function(*args, **kwargs)

        return call


class MeasuredBackend:
    """A fast tokenizer that measures its batches."""

    def __init__(self, backend: Any, clock: Clock) -> None:
        self._backend = backend
        self.encode_batch = clock.measured(LIBRARY, backend.encode_batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def measure_inner_steps(clock: Clock) -> None:
    """Measure functions that are called inside a run."""
    for module, function, name in (
        (encoder, "render", "render"),
        (encoding, "_tokenise", "tokenise: the rest"),
        (encoding, "_response", "place the response's tokens"),
        (selection, "select", "select"),
    ):
        setattr(module, function, clock.measured(name, getattr(module, function)))


def enough_rows(source: Source, columns: PairColumns) -> Source:
    """The source; a short one is repeated with the responses of other rows."""
    order = np.arange(len(source.rows))
    repeats = -(-PAIRS // order.size)
    if repeats == 1:
        return source
    table: pa.Table = source.rows.with_format("arrow")[:]
    responses = table.take(np.concatenate([np.roll(order, i) for i in range(repeats)]))
    table = table.take(np.tile(order, repeats))
    for name in (columns.chosen, columns.rejected):
        table = table.set_column(table.column_names.index(name), name, responses[name])
    return replace(source, rows=datasets.Dataset(table))


def new_encoder(folder: str, clock: Clock) -> ResponseEncoder:
    """A tokenizer with empty caches; one without a chat template gets ChatML."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = CHATML
    encoder = response_encoder(tokenizer)
    measured: Any = MeasuredBackend(encoder.backend, clock)
    return replace(encoder, backend=measured)


def scored_by_chance(encoded: EncodedPairs) -> Scores:
    """Random log-probs for every scored token."""
    rng = np.random.default_rng(0)

    def of(side: Side) -> ScoredSide:
        sizes = [pair[side].positions.size for pair in encoded.pairs]
        return ScoredSide(*([rng.normal(-3, 1, size).astype(np.float32) for size in sizes] for _ in range(2)))

    return Sides.of(of)


def record(source: Source, columns: PairColumns) -> RunRecord:
    """Facts of a run, for its chunks and its card."""
    model = ModelRevision("sha256:0", None)
    read = ScoredRows(source.revision, None, source.split, len(source.rows), dict.fromkeys(columns.names))
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        sepo_version="",
        scoring=Scoring(SCHEMA_VERSION, read, model, model, "", None, "float32", SETTINGS.max_length, False),
        selection=SETTINGS.selection,
        source=SourceRecord(source.name, None, False, {}, False, {}),
        oracle=ModelFacts("m", "sha256:0", None),
        ref=ModelFacts("m", "sha256:0", None),
    )


def one_round(source: Source, columns: PairColumns, encoder: ResponseEncoder, clock: Clock) -> Counter[str]:
    """Annotate the whole source; return its number of pairs and tokens."""
    kept = passthrough_columns(source.schema, columns)
    schema = annotated_schema(kept, pair_types(source, columns), store_logps=False)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(Path(folder) / "out", record(source, columns))
        for lo, hi in chunk_ranges(run.rows):
            with clock.step("read"):
                encoded = encode_pairs(source.rows, columns, encoder, SETTINGS.max_length, lo, hi)
            scored = scored_by_chance(encoded)
            with clock.step("table"):
                table = annotated_table(encoded, scored, schema, SETTINGS.selection)
            with clock.step("validate"):
                validate(table)
            with clock.step("write"):
                write_chunk(run, lo, hi, table, {"dropped": {}, "counts": {}})
            for pair in encoded.pairs:
                counts["prompt"] += int(pair.chosen.positions[0])
                counts["scored"] += pair.chosen.positions.size + pair.rejected.positions.size
            counts["pairs"] += len(encoded.pairs)
        with clock.step("merge"):
            merge_run(run.output)
    return counts


def main(dataset: str, tokenizers: list[str]) -> None:
    """Print one table for each tokenizer."""
    pa.set_cpu_count(1)
    datasets.disable_progress_bars()
    clock = Clock()
    measure_inner_steps(clock)
    source, columns = open_pairs(dataset)
    source = enough_rows(source, columns)
    for folder in tokenizers:
        rounds = []
        for _ in range(ROUNDS):
            encoder = new_encoder(folder, clock)
            clock.seconds.clear()
            counts = one_round(source, columns, encoder, clock)
            rounds.append(dict(clock.seconds))
        best = {name: min(seconds[name] for seconds in rounds) for name in rounds[0]}
        pairs, tokens = counts["pairs"], counts["prompt"] + counts["scored"]
        print(f"\n{Path(dataset).name}, {Path(folder).name}: {pairs:,} pairs, {tokens:,} tokens;", end=" ")
        print(f"a pair has {counts['prompt'] / pairs:.0f} of prompt, {counts['scored'] / pairs:.0f} scored")
        print(f"{'step':30} {'µs/token':>10} {'µs/scored token':>16} {'µs/pair':>10}")
        for name, seconds in (best | {"all": sum(best.values())}).items():
            shares = [seconds / count * 1e6 for count in (tokens, counts["scored"], pairs)]
            print(f"{name:30} {shares[0]:10.2f} {shares[1]:16.2f} {shares[2]:10.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
