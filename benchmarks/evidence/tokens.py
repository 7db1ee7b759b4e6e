"""Measure whether rewards find valued and planted words, and how much falls on blanks and ends of turn.

    python benchmarks/evidence/tokens.py [--output out/evidence]

Reads the annotations of `grid.py`, annotates planted pairs, and writes ``tokens.json`` to the same folder.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from data import read_rows, write_rows
from golds import WORD, valences, valued_words
from grid import command

from sepo_data import load_annotated, select_tokens

SHARES = (0.05, 0.1, 0.3)
GOOD = ("happy", "good", "great", "love", "best", "fun", "nice", "kind")
BAD = ("sad", "bad", "angry", "scared", "hate", "mad", "hurt", "cry")
Spans = list[tuple[int, int]]


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("out/evidence"))
    output = parser.parse_args().output.resolve()
    folder = output / "260K" / "valence"
    full, ended = (folder / "oracles" / name for name in ("full", "with-ends"))
    planted = output / "260K" / "planted"
    if not (planted / "annotated" / "README.md").exists():
        planted.mkdir(parents=True, exist_ok=True)
        write_rows(planted / "pairs.jsonl", list(planted_pairs(read_rows(folder / "report.jsonl"))))
        command(
            "annotate", "--oracle", full / "oracle", "--ref", "demo/policy",
            "--dataset", planted / "pairs.jsonl", "--output", planted / "annotated", "--no-chat-template",
        )  # fmt: skip
    found = {
        "planted": precision(planted / "annotated", lambda row, side: [tuple(row[f"{side}_planted"])]),
        "valued": precision(full / "annotated", right_words),
        "kinds": kinds(full / "annotated"),
        "ends": ends(ended / "annotated"),
    }
    (output / "tokens.json").write_text(json.dumps(found, indent=1))


def planted_pairs(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Replace one word in the middle of each text: by a good one in the chosen, a bad one in the rejected."""
    for number, row in enumerate(rows):
        text = row["rejected"]
        words = [word for word in WORD.finditer(text) if word.end() < len(text)]
        free = [word for word in words if word[0].lower() not in valences()]
        if len(free) < 3:
            continue
        place = free[len(free) // 2]
        pair = {"prompt": row["prompt"], "truncated": True}
        for side, choices in (("chosen", GOOD), ("rejected", BAD)):
            word = choices[number % len(choices)]
            pair[side] = text[: place.start()] + word + text[place.end() :]
            pair[f"{side}_planted"] = [place.start(), place.start() + len(word)]
        yield pair


def right_words(row: dict[str, Any], side: str) -> Spans:
    """The words that decided the label: good ones in the chosen, bad ones in the rejected."""
    sign = 1 if side == "chosen" else -1
    return [(start, end) for start, end, value in valued_words(row[side]) if value * sign > 0]


def precision(annotated: Path, spans: Callable[[dict[str, Any], str], Spans]) -> list[dict[str, Any]]:
    """Share of the selected tokens that lie on the spans, compared with the share of all tokens."""
    rows = load_annotated(str(annotated))["train"]
    found = []
    for side in ("chosen", "rejected"):
        inside, selected = [], {share: [] for share in SHARES}
        for row in rows:
            start, end = np.array(row[f"{side}_token_start"]), np.array(row[f"{side}_token_end"])
            on = np.zeros(start.size, bool)
            for low, high in spans(row, side):
                on |= (start < high) & (end > low)
            inside.append(on)
            rewards = np.array(row[f"{side}_token_rewards"], np.float32)
            for share in SHARES:
                selected[share].append(select_tokens(rewards, share, highest=side == "chosen"))
        on = np.concatenate(inside)
        chance = float(on.mean())
        for share in SHARES:
            mask = np.concatenate(selected[share])
            hit = float(on[mask].mean())
            one = {"precision": hit, "chance": chance, "lift": hit / chance, "recall": float(mask[on].mean())}
            found.append({"side": side, "share": share, **one})
    return found


def kinds(annotated: Path) -> list[dict[str, Any]]:
    """For each kind of token, its share of all tokens, of |reward| and of the selected tokens."""
    rows = load_annotated(str(annotated))["train"]
    found = []
    for side in ("chosen", "rejected"):
        kind, size, mask = [], [], []
        for row in rows:
            spans = zip(row[f"{side}_token_start"], row[f"{side}_token_end"], strict=True)
            kind += [_kind(row[side][start:end]) for start, end in spans]
            size += [abs(reward) for reward in row[f"{side}_token_rewards"]]
            mask += row[f"{side}_token_mask"]
        names, sizes, masks = np.array(kind), np.array(size), np.array(mask, bool)
        for name in ("begins a word", "inside a word", "punctuation", "blank or newline"):
            own = names == name
            found.append(
                {
                    "side": side,
                    "kind": name,
                    "tokens": float(own.mean()),
                    "reward": float(sizes[own].sum() / sizes.sum()),
                    "selected": float(own[masks].mean()),
                }
            )
    return found


def _kind(text: str) -> str:
    if not text.strip():
        return "blank or newline"
    if not any(character.isalnum() for character in text):
        return "punctuation"
    return "begins a word" if text[0].isspace() else "inside a word"


def ends(annotated: Path) -> list[dict[str, Any]]:
    """Mean reward of the end of turn after truncated texts, and the share of responses that select it."""
    rows = load_annotated(str(annotated))["train"]
    return [
        {
            "side": side,
            "reward": float(np.mean(rows[f"{side}_eos_reward"][:])),
            "selected": float(np.mean(rows[f"{side}_eos_mask"][:])),
        }
        for side in ("chosen", "rejected")
    ]


if __name__ == "__main__":
    main()
