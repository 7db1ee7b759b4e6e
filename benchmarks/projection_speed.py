"""Tokens per second on one core: projection compared with a plain loop and with tokenising.

    python benchmarks/projection_speed.py PAIRS.jsonl.gz ORACLE_TOKENIZER POLICY_TOKENIZER…

Projects the responses of a preference dataset from the oracle's tokens onto each policy's. All
steps are interleaved over several rounds in one process, and the best round counts. Tokens are the
policy's, rewards are random. Only the texts matter here, so no annotation is needed.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from sepo_data.projection import Bounds, clean_spans, partition, project
from sepo_data.selection import select
from sepo_data.sources.preferences import Pair, open_pairs
from sepo_data.tokens.encoder import ResponseEncoder, response_encoder
from sepo_data.tokens.turns import plain_text

ROUNDS = 7

Offsets = list[tuple[int, int]]
Tokens = tuple[list[int], list[int]]


def responses(dataset: str) -> list[str]:
    """Both responses of every readable pair."""
    source, columns = open_pairs(dataset)
    pairs = (columns.read(row) for row in source.rows)
    return [
        text
        for pair in pairs
        if isinstance(pair, Pair)
        for text in map(plain_text, pair.sides)
        if text is not None
    ]


def offsets(encoder: ResponseEncoder, texts: list[str]) -> list[Offsets]:
    """Offsets of every text, tokenised one by one as in training."""
    return [encoder.backend.encode(text, add_special_tokens=False).offsets for text in texts]


def plain_project(rewards: list[float], source: list[int], target: list[int]) -> list[float]:
    """The projection as a loop with two pointers."""
    found = [0.0] * (len(target) - 1)
    i = j = 0
    while i < len(rewards) and j < len(found):
        lo, hi = max(source[i], target[j]), min(source[i + 1], target[j + 1])
        found[j] += rewards[i] * (hi - lo) / (source[i + 1] - source[i])
        i, j = i + (source[i + 1] == hi), j + (target[j + 1] == hi)
    return found


def plain_partition(tokens: Tokens) -> list[int]:
    """Bounds computed in a loop; tokens that share a character divide it in order."""
    start, end = tokens
    bounds, first, last = [], 0, 0
    for i, begin in enumerate(start):
        while end[first] <= begin:
            first += 1
        last = max(last, i)
        while last < len(start) and start[last] <= begin:
            last += 1
        bounds.append(begin * 720_720 + (i - first) * 720_720 // (last - first))
    return [*bounds, end[-1] * 720_720]


def best_times(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """CPU seconds of this process for each step, best of the rounds."""
    times = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.process_time()
            step()
            times[name] = min(times[name], time.process_time() - began)
    return times


def measure(texts: list[str], oracle: ResponseEncoder, policy: ResponseEncoder) -> None:
    """Print the table for one pair of tokenizers."""
    both = [offsets(encoder, texts) for encoder in (oracle, policy)]
    rows = [(text, a, b) for text, a, b in zip(texts, *both, strict=True) if a and b]
    texts = [text for text, _, _ in rows]
    raw = [np.array(b, dtype=np.int32).T for _, _, b in rows]
    source = [clean_spans(text, *np.array(a, dtype=np.int32).T) for text, a, _ in rows]
    target = [clean_spans(text, *spans) for text, spans in zip(texts, raw, strict=True)]
    rewards = [np.random.default_rng(0).standard_t(3, size=a.size) for a, _ in source]
    bounds = [(partition(*a), partition(*b)) for a, b in zip(source, target, strict=True)]
    lists = [
        (r.tolist(), (a[0].tolist(), a[1].tolist()), (b[0].tolist(), b[1].tolist()))
        for r, a, b in zip(rewards, source, target, strict=True)
    ]
    for r, (a, b), row in zip(rewards, bounds, lists, strict=True):  # the loop does the same work
        plain = plain_project(row[0], plain_partition(row[1]), plain_partition(row[2]))
        np.testing.assert_allclose(project(r, a, b), plain, rtol=0, atol=1e-9 * np.abs(r).sum())

    def carry(r: np.ndarray, a: Bounds, b: Bounds) -> np.ndarray:
        return select(project(r, a, b), "ratio", 0.3, highest=True)

    times = best_times(
        {
            "partition, both sides": lambda: [
                (partition(*a), partition(*b)) for a, b in zip(source, target, strict=True)
            ],
            "project": lambda: [project(r, a, b) for r, (a, b) in zip(rewards, bounds, strict=True)],
            "partition + project + select": lambda: [
                carry(r, partition(*a), partition(*b))
                for r, a, b in zip(rewards, source, target, strict=True)
            ],
            "clean_spans, policy's": lambda: [clean_spans(t, *s) for t, s in zip(texts, raw, strict=True)],
            "clean + partition + project + select": lambda: [
                carry(r, partition(*a), partition(*clean_spans(t, *s)))
                for t, s, r, a in zip(texts, raw, rewards, source, strict=True)
            ],
            "plain loop: partition + project": lambda: [
                plain_project(r, plain_partition(a), plain_partition(b)) for r, a, b in lists
            ],
            "tokenising, policy's": lambda: offsets(policy, texts),
        }
    )
    tokens = sum(spans.shape[1] for spans in raw)
    print(f"{len(rows):,} responses, {tokens:,} policy tokens, {tokens / len(rows):.0f} a response")
    print(f"{'step':38} {'M tokens/s':>10} {'us/response':>12} {'of tokenising':>14}")
    for name, seconds in times.items():
        share = seconds / times["tokenising, policy's"]
        print(f"{name:38} {tokens / seconds / 1e6:10.2f} {seconds / len(rows) * 1e6:12.0f} {share:14.1%}")
    loop, ours = (
        times["plain loop: partition + project"],
        times["partition, both sides"] + times["project"],
    )
    print(f"the plain loop takes {loop / ours:.1f} times as long as partition + project\n", flush=True)


def main(dataset: str, oracle: Path, policies: list[Path]) -> None:
    """Print one table for each policy's tokenizer."""
    texts = [text for text in responses(dataset) if text]
    encoders = [
        response_encoder(AutoTokenizer.from_pretrained(folder), chat_template=False)
        for folder in (oracle, *policies)
    ]
    for policy, encoder in zip(policies, encoders[1:], strict=True):
        print(f"{Path(dataset).name}: {oracle.name} -> {policy.name}")
        measure(texts, encoders[0], encoder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]])
