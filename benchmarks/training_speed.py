"""A training step of SePO compared with TRL's DPO and SimPO steps and the authors' SePO step.

    python benchmarks/training_speed.py [--pairs 16] [--rounds 2] [--head 90%] [--json FILE] [--figure FILE]
    python benchmarks/training_speed.py --device cuda --dtype bfloat16 --pairs 64

Forward and backward passes over the same random pairs, interleaved in one process, without an optimizer.
30% of the response tokens, drawn at random, are selected. Gradients of ours and of the authors' way, which
compute the same loss, are compared first. Memory is that of the largest batch above weights and gradients.
Ways that keep all logits are left out if these do not fit into memory.

- ours: `collate`, `sequence_logps` and SePO's objective, as the trainer calls them.
- authors' way, reimplemented from its description: all logits of padded pairs, a log-softmax of them, masks.
- TRL 1.16's DPOTrainer with default settings, including the reference's forward pass; CPOTrainer with
  SimPO's loss.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands set it

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from speed import (
    ULTRAFEEDBACK,
    Ids,
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
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from trl_stages import dpo_trainer, simpo_batch, simpo_trainer, trl_batch

from sepo_data.models.batching import row_padding
from sepo_data.models.packing_check import prepare
from sepo_train.batches import Forwards, collate, sequence_logps
from sepo_train.examples import Example, WeightedSequence, selected_only
from sepo_train.objectives import sepo_objective

RATIO = 0.3
EVERYTHING = slice(None)

Selected = list[tuple[Ids, Ids]]  # positions in the chosen and the rejected response


def selection(pairs: Sequence[RandomPair]) -> Selected:
    """Select 30% of each response."""
    random = np.random.default_rng(1)

    def places(size: int) -> Ids:
        return np.sort(random.permutation(size)[: max(1, int(RATIO * size))])

    return [(places(pair.chosen.size), places(pair.rejected.size)) for pair in pairs]


def examples(pairs: Sequence[RandomPair], selected: Selected) -> list[Example]:
    """The pairs as examples of `sepo_train`."""
    found = []
    for row, (pair, places) in enumerate(zip(pairs, selected, strict=True)):
        sides = []
        for response, kept in zip(pair.sequences, places, strict=True):
            weights = np.zeros(response.positions.size, np.float32)
            weights[kept] = 1
            whole = WeightedSequence(response.input_ids, response.positions, weights, weights.size)
            sides.append(selected_only(whole))
        found.append(Example(row, tuple(sides)))
    return found


def ours(model: Any, batches: Sequence[Sequence[Example]], total: int) -> None:
    """Compute the loss as in `StageTrainer.compute_loss`."""
    objective = sepo_objective(1.0, 0.0)
    for batch_examples in batches:
        batch = collate(batch_examples, Forwards(row_padding(model)))
        packed = [part.to(model.device) for part in batch.pop("packed")]
        tensors = {**{name: value.to(model.device) for name, value in batch.items()}, "packed": packed}
        outcome = objective(pad_sequence(sequence_logps(model, tensors), batch_first=True), tensors)
        (outcome.losses.sum() / total).backward()


def authors_way(
    model: Any, batches: Sequence[Sequence[RandomPair]], selected: Sequence[Selected], total: int
) -> None:
    """Compute the loss from all logits with masks."""
    for pairs, places in zip(batches, selected, strict=True):
        rows = [torch.from_numpy(r.input_ids) for pair in pairs for r in pair.sequences]
        ids = pad_sequence(rows, batch_first=True).to(model.device)
        mask = torch.zeros(ids.shape)
        for i, (pair, kept) in enumerate(zip(pairs, places, strict=True)):
            for j in range(2):
                mask[2 * i + j, pair.prompt.size + torch.from_numpy(kept[j])] = 1
        mask = mask[:, 1:].to(model.device)
        lengths = torch.tensor([len(row) for row in rows])
        attention_mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(model.device)
        logits = model(ids, attention_mask=attention_mask).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        means = (logps * mask).sum(-1) / mask.sum(-1)
        (-logsigmoid(means[0::2] - means[1::2]).sum() / total).backward()


def trl_dpo(trainer: Any, batches: Sequence[dict[str, Tensor]]) -> None:
    """The loss of TRL's trainer, including its metrics."""
    trainer.model.train()
    for batch in batches:
        trainer._compute_loss(trainer.model, batch, False).backward()


def trl_simpo(trainer: Any, batches: Sequence[dict[str, Any]]) -> None:
    """As above."""
    for batch in batches:
        loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
        loss.backward()


def measure(
    shape: Shape, lengths: Lengths, micro: int, number: int, rounds: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Compare all ways on one shape, one distribution of lengths and one micro-batch."""
    pairs = random_pairs(number, lengths, shape.vocabulary)
    selected = selection(pairs)
    starts = range(0, number, micro)
    batches = [pairs[i : i + micro] for i in starts]
    places = [selected[i : i + micro] for i in starts]
    ready = examples(pairs, selected)
    ours_batches = [ready[i : i + micro] for i in starts]
    packed = random_model(shape, 0, device, dtype)
    assert prepare(packed, 2048)
    dpo = dpo_trainer(random_model(shape, 0, device, dtype), random_model(shape, 1, device, dtype))
    dpo_batches = [trl_batch(dpo, batch) for batch in batches]
    steps: dict[str, Callable[[slice], None]] = {
        "ours": lambda which: ours(packed, ours_batches[which], number),
        "TRL DPO": lambda which: trl_dpo(dpo, dpo_batches[which]),
    }
    models = [packed, dpo.model]
    if all_logits_fit(shape, batches, device):
        usual = random_model(shape, 0, device, dtype)
        simpo = simpo_trainer(random_model(shape, 0, device, dtype))
        simpo_batches = [simpo_batch(batch, device) for batch in batches]
        steps |= {
            "authors": lambda which: authors_way(usual, batches[which], places[which], number),
            "TRL SimPO": lambda which: trl_simpo(simpo, simpo_batches[which]),
        }
        models += [usual, simpo.model]
    for model in models:  # gradients are allocated before memory is measured
        for weights in model.parameters():
            weights.grad = torch.zeros_like(weights)
    off = None
    if "authors" in steps:
        steps["ours"](EVERYTHING)
        steps["authors"](EVERYTHING)
        off = relative_difference(gradient(packed), gradient(usual))
    unpadded = np.argmax([useful_work(batch).tokens for batch in batches])
    padded = np.argmax([padded_work([batch], logits="all").tokens for batch in batches])
    timing = in_turn(
        {name: partial(step, EVERYTHING) for name, step in steps.items()},
        rounds,
        shape,
        device,
        dtype,
        largest={
            name: partial(step, only(unpadded if name == "ours" else padded)) for name, step in steps.items()
        },
    )
    least = useful_work(pairs, selected)
    whole = padded_work(batches, logits="all")
    return {
        "head": shape.head,
        "lengths": lengths.name,
        "micro_batch": micro,
        "pairs": number,
        **timing.as_dict(),
        "time": {name: timing.ratio("ours", name) for name in steps if name != "ours"},
        "memory": {name: timing.peaks["ours"] / peak for name, peak in timing.peaks.items()},
        "gradient_difference": off,
        "share_of_matrix_rate": timing.share("ours", 3 * least.flops(shape)),
        # forward and backward are 3 forward passes, DPO's reference is a fourth
        "arithmetic": {
            "TRL DPO": 3 * least.flops(shape) / (4 * whole.flops(shape)),
            "authors": least.flops(shape) / whole.flops(shape),
        },
        "comes_from": reasons(shape, batches, pairs, selected),
    }


def only(number: Any) -> slice:
    """One batch."""
    return slice(int(number), int(number) + 1)


def all_logits_fit(shape: Shape, batches: Sequence[Sequence[RandomPair]], device: str) -> bool:
    """Whether several copies of all logits of a batch fit into the memory of this machine."""
    most = max(padded_work([batch], logits="all").logits for batch in batches)
    total = torch.cuda.mem_get_info()[1] if device == "cuda" else psutil.virtual_memory().total
    return most * shape.vocabulary * 4 * 5 < total  # logits, log-softmax, both gradients, one spare


def reasons(
    shape: Shape, batches: Sequence[Sequence[RandomPair]], pairs: Sequence[RandomPair], selected: Selected
) -> dict[str, float]:
    """How much each measure saves of the arithmetic of a DPO step, cumulatively."""
    whole = padded_work(batches, logits="all")
    unpadded = unpadded_work(pairs)
    shared = useful_work(pairs)
    every_logit = useful_work(pairs)
    every_logit.logits = unpadded.logits
    least = useful_work(pairs, selected)
    steps = {
        "no reference": (4 * whole.flops(shape), 3 * whole.flops(shape)),
        "no padding": (3 * whole.flops(shape), 3 * unpadded.flops(shape)),
        "prompt once": (3 * unpadded.flops(shape), 3 * every_logit.flops(shape)),
        "head at responses": (3 * every_logit.flops(shape), 3 * shared.flops(shape)),
        "head at the selected": (3 * shared.flops(shape), 3 * least.flops(shape)),
    }
    return {name: (after - before) / (4 * whole.flops(shape)) for name, (before, after) in steps.items()}


def gradient(model: Any) -> Tensor:
    """All gradients, flattened."""
    return torch.cat([weights.grad.double().flatten() for weights in model.parameters()])


def relative_difference(found: Tensor, right: Tensor) -> float:
    """Relative L2 distance."""
    return float((found - right).norm() / right.norm())


def main() -> None:
    """Measure, print, and write the requested files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
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
        for lengths, micro in ((ULTRAFEEDBACK, 4), (ULTRAFEEDBACK, 1)):
            results.append(
                measure(shape, lengths, micro, options.pairs, options.rounds, options.device, dtype)
            )
            print(report(results[-1:]), flush=True)
            save(options, place, results)
    print(f"\n{place}; {options.pairs} pairs, {options.rounds} rounds")
    print(f"\n{report(results)}\n\n{origins(results)}")


def save(options: argparse.Namespace, place: str, results: Sequence[dict[str, Any]]) -> None:
    """Write the requested files with the results so far."""
    if options.json:
        write_json(options.json, {"machine": place, "results": results})
    if options.figure:
        bars = {
            f"{r['head']}, {r['lengths'].split('-')[0]}, {r['micro_batch']}": {
                **{
                    name: r["time"]["TRL DPO"] / r["time"][name]
                    for name in ("authors", "TRL SimPO")
                    if name in r["time"]
                },
                "ours": r["time"]["TRL DPO"],
            }
            for r in results
        }
        draw(options.figure, f"A training step, {place}", bars, "time, TRL's DPO = 1")


def report(results: Sequence[dict[str, Any]]) -> str:
    """Format the table of time and memory."""
    header = [
        "head", "lengths", "pairs at once", "against TRL DPO: time / memory (arithmetic)",
        "against TRL SimPO", "against the authors (arithmetic)", "share of the matrix rate",
        "peak MiB", "gradient difference",
    ]  # fmt: skip
    rows = []
    for r in results:
        peaks, counted = r["peak_mib"], r["arithmetic"]
        ratio = {name: f"{r['time'][name]:.2f}× / {r['memory'][name]:.2f}×" for name in r["time"]}
        against_authors = "–"
        if "authors" in ratio:
            against_authors = f"{ratio['authors']} ({counted['authors']:.2f}×)"
        rows.append(
            [
                r["head"],
                r["lengths"],
                r["micro_batch"],
                f"{ratio['TRL DPO']} ({counted['TRL DPO']:.2f}×)",
                ratio.get("TRL SimPO", "–"),
                against_authors,
                f"{r['share_of_matrix_rate']:.0%} of {statistics.median(r['matrix_gflops']):.0f} GF/s",
                ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()),
                "–" if r["gradient_difference"] is None else f"{r['gradient_difference']:.1e}",
            ]
        )
    return table(header, rows)


def origins(results: Sequence[dict[str, Any]]) -> str:
    """Format where the saving against DPO comes from, as shares of the arithmetic of a DPO step."""
    names = list(results[0]["comes_from"])
    rows = [
        [r["head"], r["lengths"], r["micro_batch"], *(f"{r['comes_from'][name]:+.0%}" for name in names)]
        for r in results
    ]
    return table(["head", "lengths", "pairs at once", *names], rows)


if __name__ == "__main__":
    main()
