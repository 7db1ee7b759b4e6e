"""Annotation compared with the authors' way, TRL's precomputed references and the arithmetic floor.

    python benchmarks/annotation_speed.py [--pairs 16] [--rounds 3] [--head 90%] [--json FILE] [--figure FILE]
    python benchmarks/annotation_speed.py --device cuda --dtype bfloat16 --pairs 512

All ways score the same random pairs under the same two random models, interleaved in one process.
Their log-probs are compared first; printed are medians of the ratios over the rounds.

- ours: `logprobs.token_logps` for oracle and reference as `sepo-annotate` prepares them, and the selection.
- authors' way, reimplemented from its description: one response at a time, all logits moved to the CPU, a
  log-softmax over all of them there, and a selection that repeatedly takes the largest reward. Theirs
  also keeps the graph of every forward pass; this one does not.
- TRL 1.16: the code of `precompute_ref_log_probs` itself, batches of 8 pairs in the order of the data, run
  for both models. It keeps only sums over responses, so it yields no token rewards.
- floor: the arithmetic needed for log-probs of all response tokens, with a prompt once per pair, at the
  rate of the fastest matrix product measured in the same run.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands set it

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import (
    HH,
    ULTRAFEEDBACK,
    Lengths,
    RandomPair,
    Shape,
    add_head,
    draw,
    in_turn,
    padded_work,
    random_model,
    random_pairs,
    shapes,
    table,
    unpadded_work,
    useful_work,
    where,
    write_json,
)
from trl_stages import dpo_trainer, trl_batch

from sepo_data.models.loading import BATCH_TOKENS_ACCELERATOR, BATCH_TOKENS_CPU
from sepo_data.models.logprobs import token_logps
from sepo_data.models.packing_check import prepare
from sepo_data.selection import select_tokens

RATIO = 0.3
TRL_PAIRS = 8

Logps = list[np.ndarray]


def ours(oracle: Any, ref: Any, pairs: Sequence[RandomPair], batch_tokens: int) -> Logps:
    """Run what `sepo-annotate` does between tokenising and writing; return the oracle's log-probs."""
    sequences = [sequence for pair in pairs for sequence in pair.sequences]
    found = [token_logps(model, sequences, batch_tokens=batch_tokens) for model in (oracle, ref)]
    for i, (high, low) in enumerate(zip(*found, strict=True)):
        select_tokens(high - low, RATIO, highest=i % 2 == 0)
    return found[0]


@torch.no_grad()
def authors_way(oracle: Any, ref: Any, pairs: Sequence[RandomPair]) -> Logps:
    """One response at a time, all logits on the CPU, a loop for the selection."""
    found = []
    for pair in pairs:
        for response in pair.sequences:
            ids = torch.from_numpy(response.input_ids)
            logps = []
            for model in (oracle, ref):
                logits = model(ids[None].to(model.device)).logits.float().cpu()
                all_logps = logits[0, :-1].log_softmax(-1)
                logps.append(all_logps.gather(-1, ids[1:, None])[:, 0][response.positions - 1])
            rewards = (logps[0] - logps[1]).clone()
            for _ in range(max(1, int(RATIO * len(rewards)))):
                rewards[rewards.argmax()] = -float("inf")
            found.append(logps[0].numpy())
    return found


def trl_precompute(trainer: Any, batches: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """Summed log-probs of chosen and rejected responses, under oracle and reference."""
    return [
        torch.stack(trainer.compute_ref_log_probs(model, batch))
        for model in (trainer.model, trainer.ref_model)
        for batch in batches
    ]


def measure(
    shape: Shape, lengths: Lengths, number: int, rounds: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Compare all ways on one shape and one distribution of lengths."""
    pairs = random_pairs(number, lengths, shape.vocabulary)
    usual = [random_model(shape, seed, device, dtype) for seed in (0, 1)]
    packed = [random_model(shape, seed, device, dtype) for seed in (0, 1)]
    assert all(prepare(model, 2048) for model in packed)
    trainer = dpo_trainer(*(random_model(shape, seed, device, dtype) for seed in (0, 1)))
    batches = [trl_batch(trainer, pairs[i : i + TRL_PAIRS]) for i in range(0, number, TRL_PAIRS)]
    batch_tokens = (
        BATCH_TOKENS_CPU if device == "cpu" else BATCH_TOKENS_ACCELERATOR[str(dtype).removeprefix("torch.")]  # type: ignore[index]
    )
    variants: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(*packed, pairs, batch_tokens),
        "ours, padded": lambda: ours(*usual, pairs, batch_tokens),
        "authors": lambda: authors_way(*usual, pairs),
        "TRL": lambda: trl_precompute(trainer, batches),
    }
    off = compare(variants, number)
    timing = in_turn(variants, rounds, shape, device, dtype)
    least = useful_work(pairs)
    trl_pairs = [pairs[i : i + TRL_PAIRS] for i in range(0, number, TRL_PAIRS)]
    computed = {
        "ours": least,
        "authors": unpadded_work(pairs),
        "TRL": padded_work(trl_pairs, logits="all" if device == "cpu" else "responses"),
    }
    return {
        "head": shape.head,
        "lengths": lengths.name,
        "prompt_mean": float(np.mean([pair.prompt.size for pair in pairs])),
        "response_mean": float(np.mean([r.size for pair in pairs for r in (pair.chosen, pair.rejected)])),
        "pairs": number,
        **timing.as_dict(),
        "pairs_per_second": number / statistics.median(timing.seconds["ours"]),
        "times_as_fast_as": {name: timing.ratio(name, "ours") for name in variants if name != "ours"},
        "largest_difference_nats": off,
        "share_of_matrix_rate": timing.share("ours", 2 * least.flops(shape)),
        "tokens": {name: work.tokens for name, work in computed.items()},
        "logits": {name: work.logits for name, work in computed.items()},
        "times_the_arithmetic": {
            name: work.flops(shape) / least.flops(shape) for name, work in computed.items()
        },
    }


def compare(variants: dict[str, Callable[[], Any]], number: int) -> float:
    """Largest difference from the authors' way, per token; for TRL, of sums under both models."""
    right = variants["authors"]()
    sums = [float(np.sum(values, dtype=np.float64)) for values in right]
    by_trl = torch.cat([chunk.cpu() for chunk in variants["TRL"]()], dim=1)[:, :number].double()
    theirs = np.array([[sums[2 * i] for i in range(number)], [sums[2 * i + 1] for i in range(number)]])
    assert np.allclose(by_trl.numpy(), theirs, rtol=3e-3), "TRL's sums differ"
    return max(
        float(np.abs(ours - plain).max())
        for name in ("ours", "ours, padded")
        for ours, plain in zip(variants[name](), right, strict=True)
    )


def main() -> None:
    """Measure, print, and write the requested files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add_head(parser)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if options.device == "cuda":
        torch.set_float32_matmul_precision("high")
    place = where(options.device, dtype)
    results: list[dict[str, Any]] = []
    for shape in shapes(options.device, options.head):
        for lengths in (ULTRAFEEDBACK, HH):
            results.append(measure(shape, lengths, options.pairs, options.rounds, options.device, dtype))
            print(report(results[-1:]), flush=True)
            save(options, place, results)
    print(f"\n{place}; {options.pairs} pairs, {options.rounds} rounds\n\n{report(results)}")


def save(options: argparse.Namespace, place: str, results: Sequence[dict[str, Any]]) -> None:
    """Write the requested files with the results so far."""
    if options.json:
        write_json(options.json, {"machine": place, "results": results})
    if options.figure:
        bars = {f"{r['head']}, {r['lengths'].removesuffix('-like')}": r["times_as_fast_as"] for r in results}
        draw(options.figure, f"Annotation, {place}", bars, "times as fast as")


def report(results: Sequence[dict[str, Any]]) -> str:
    """Format the table."""
    header = [
        "head", "lengths (prompt, response)", "pairs/s", "against the authors' way", "against TRL",
        "share of the matrix rate", "against our padded path",
        "arithmetic: authors, TRL", "peak MiB: ours, authors, TRL",
        "largest difference, nats",
    ]  # fmt: skip
    rows = []
    for r in results:
        faster, peaks, times = r["times_as_fast_as"], r["peak_mib"], r["times_the_arithmetic"]
        rows.append(
            [
                r["head"],
                f"{r['lengths']} ({r['prompt_mean']:.0f}, {r['response_mean']:.0f})",
                f"{r['pairs_per_second']:.2f}",
                f"{faster['authors']:.2f}×",
                f"{faster['TRL']:.2f}×",
                f"{r['share_of_matrix_rate']:.0%} of {statistics.median(r['matrix_gflops']):.0f} GF/s",
                f"{faster['ours, padded']:.2f}×",
                f"{times['authors']:.2f}×, {times['TRL']:.2f}×",
                f"{peaks['ours']:.0f}, {peaks['authors']:.0f}, {peaks['TRL']:.0f}",
                f"{r['largest_difference_nats']:.1e}",
            ]
        )
    return table(header, rows)


if __name__ == "__main__":
    main()
