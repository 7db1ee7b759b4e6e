"""Strings that break tokenizers, projected between all ordered pairs of real tokenizers: what fails.

    python benchmarks/nasty_projection.py STRINGS.jsonl TOKENIZER_FOLDER…

The file has a ``text`` a line. Rewards are random, heavy-tailed, the same at every run.
A projection fails if a bound is out of order, a token is unknown, the sum moves by more
than 1e-9 of the sum of |reward|, a share of a mask leaves [0, 1], or equal spans do not
give the rewards and the mask back bit for bit.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from sepo_data.encoding import EncodedResponse, encode_responses, response_encoder
from sepo_data.projection import TICKS, Bounds, partition, project, project_mask
from sepo_data.rendering import Rendering
from sepo_data.text_files import DataFile, read_text_files


def bounds_of(folder: Path, texts: list[str]) -> list[Bounds | str]:
    """Bounds of each text's tokens behind a prompt, or the reason why it has none."""
    encoder = response_encoder(AutoTokenizer.from_pretrained(folder), chat_template=False)
    items = [(Rendering(prefix="Repeat:\n", suffix=""), text) for text in texts]
    return [
        partition(found.token_start, found.token_end) if isinstance(found, EncodedResponse) else found
        for found in encode_responses(encoder, items, max_length=10**6)
    ]


def failures(source: Bounds, target: Bounds, length: int, rng: np.random.Generator) -> list[str]:
    """What does not hold for one text and one ordered pair."""
    rewards = rng.standard_t(3, size=source.size - 1)
    mask = rng.random(rewards.size) < 0.3
    found, share = project(rewards, source, target), project_mask(mask, source, target)
    checks = {
        "cover": all(
            (np.diff(b) > 0).all() and (b[0], b[-1]) == (0, length * TICKS) for b in (source, target)
        ),
        "known": not np.isnan(found).any() and not np.isnan(share).any(),
        "conservation": abs(found.sum() - rewards.sum()) <= 1e-9 * np.abs(rewards).sum(),
        "shares": bool(share.min() >= 0 and share.max() <= 1),
        "identity": not np.array_equal(source, target)
        or (found.tobytes() == rewards.tobytes() and (share == mask).all()),
    }
    return [name for name, holds in checks.items() if not holds]


def main(strings: Path, folders: list[Path]) -> None:
    """Print what has no tokens, then one line for all pairs."""
    rows, _ = read_text_files([DataFile(strings.name, strings)])  # lone surrogates are repaired here as there
    texts = rows["text"][:]
    found = {folder.name: bounds_of(folder, texts) for folder in folders}
    for name, all_bounds in found.items():
        reasons = Counter(bounds for bounds in all_bounds if isinstance(bounds, str))
        print(f"{name}: {len(texts) - reasons.total()} of {len(texts)} strings; left out: {dict(reasons)}")
    counts: Counter[str] = Counter()
    for oracle, policy in itertools.product(found, repeat=2):
        rng = np.random.default_rng(0)
        for text, source, target in zip(texts, found[oracle], found[policy], strict=True):
            if isinstance(source, str) or isinstance(target, str):
                continue
            counts["projections"] += 1
            counts["same tokenizer"] += oracle == policy
            counts["equal spans"] += oracle != policy and np.array_equal(source, target)
            for failure in failures(source, target, len(text), rng):
                counts["failures"] += 1
                print(f"{oracle} -> {policy}, {failure}: {text[:60]!r}")
    print(
        f"{counts['projections']:,} projections, {counts['same tokenizer']:,} onto the same tokenizer and "
        f"{counts['equal spans']:,} onto another with equal spans; {counts['failures']} failures"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
