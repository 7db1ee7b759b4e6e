"""The data: prompts sampled from the reference, four continuations each, the best paired with the worst."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from golds import GOLDS
from stories import Stories, first_sentence, sampled

SAMPLES = 4
STORY = 80  # tokens, enough for a first sentence


def make_data(reference: Stories, folder: Path, sizes: dict[str, int], new_tokens: int) -> None:
    """Write ``prompts.json``, the prompts of each split, and ``GOLD/SPLIT.jsonl``, their pairs.

    Existing files are kept. Every continuation is truncated at the same length and marked ``truncated``.
    """
    if (folder / "prompts.json").exists():
        return
    prompts = _prompts(reference, sum(sizes.values()))
    answers = [_continuations(reference, prompts, new_tokens, seed) for seed in range(SAMPLES)]
    splits, first = {}, 0
    for split, size in sizes.items():
        splits[split] = prompts[first : first + size]
        for gold in GOLDS:
            (folder / gold).mkdir(parents=True, exist_ok=True)
            rows = [
                pair
                for i in range(first, first + size)
                if (pair := best_against_worst(prompts[i], [one[i] for one in answers], gold))
            ]
            write_rows(folder / gold / f"{split}.jsonl", rows)
        first += size
    (folder / "prompts.json").write_text(json.dumps(splits))


def best_against_worst(prompt: str, answers: Sequence[str], gold: str) -> dict[str, Any] | None:
    """Pair the best answer with the worst; None if all have the same gold."""
    values = [GOLDS[gold](answer) for answer in answers]
    best, worst = int(np.argmax(values)), int(np.argmin(values))
    if values[best] == values[worst]:
        return None
    return {"prompt": prompt, "chosen": answers[best], "rejected": answers[worst], "truncated": True}


def flipped(rows: Sequence[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """Swap the sides of a share of the pairs."""
    swap = np.random.default_rng(0).permutation(len(rows)) < share * len(rows)
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if is_swapped else row
        for row, is_swapped in zip(rows, swap, strict=True)
    ]


def other_prompts(files: Sequence[str]) -> list[str]:
    """Out-of-distribution prompts: first sentences of questions to assistants, from the demo's data."""
    found: dict[str, None] = {}
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            asked = [json.loads(line)["prompt"] for line in lines]
        texts = (turns if isinstance(turns, str) else turns[-1]["content"] for turns in asked)
        sentences = (re.match(r"[ -~]{25,120}?[.?](?=\s|$)", text.strip()) for text in texts)
        found |= dict.fromkeys(sentence[0] for sentence in sentences if sentence)
    return list(found)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _prompts(reference: Stories, number: int) -> list[str]:
    """Sample distinct first sentences of the reference's own stories."""
    found: dict[str, None] = {}
    size = reference.batch(STORY)
    seed = 1000
    while len(found) < number:
        new, _ = sampled(reference, [reference.encode("")] * size, STORY, seed)
        seed += 1
        texts = (reference.tokenizer.decode(ids) for ids in new.tolist())
        found |= dict.fromkeys(sentence for text in texts if (sentence := first_sentence(str(text))))
    return list(found)[:number]


def _continuations(reference: Stories, prompts: Sequence[str], new_tokens: int, seed: int) -> list[str]:
    encoded = [reference.encode(prompt) for prompt in prompts]
    size = reference.batch(new_tokens)
    texts = []
    for first in range(0, len(encoded), size):
        batch = encoded[first : first + size]
        new, _ = sampled(reference, batch, new_tokens, 1_000_000 * (seed + 1) + first)
        texts += [
            reference.continuation(prompt, ids) for prompt, ids in zip(batch, new.tolist(), strict=True)
        ]
    return texts
