"""How TF32, bfloat16 and float16 change token rewards and the selected 30%, for rewards of several sizes.

    python benchmarks/precision.py MODEL PAIRS.jsonl.gz [--pairs 32] [--device cpu|cuda] [--json FILE]

The reference is the model; the oracles are the same model with noise of several sizes in its weights, so
their rewards differ in spread. Both are rounded to bfloat16 first, as most checkpoints are stored,
so only the rounding of the computation is measured. All are scored as in `sepo-annotate` and
compared by `sepo_data.precision`, as a run compares its own rows. A second table shows what other batch
sizes change in each precision. Without a CUDA device TF32 is emulated:
inputs and weights of every linear layer are rounded to 10 bits, products are float32.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from speed import table, where, write_json
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from sepo_data.annotated.precision import Precision
from sepo_data.models.loading import BATCH_TOKENS_CPU, ModelPair, Scorer, matmul_precision
from sepo_data.models.packing_check import prepare
from sepo_data.models.scoring import Scores, score_rows
from sepo_data.runs.rounding import compare
from sepo_data.schema import SIDES
from sepo_data.settings import AnnotateSettings
from sepo_data.sources.preferences import open_pairs
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import EncodedPair, encode_pairs

SETTINGS = AnnotateSettings(Path("unused"))
NOISES = (0.003, 0.01, 0.03, 0.1)  # of a weight's standard deviation
BATCHES = (128, 8192)  # tokens; a CPU's usual ones are 2,048
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def read_pairs(data: str, folder: str, number: int) -> list[EncodedPair]:
    """The first usable pairs of a dataset."""
    encoder = response_encoder(AutoTokenizer.from_pretrained(folder))
    source, columns = open_pairs(data)
    return encode_pairs(source.rows, columns, encoder, 1024, 0, min(4 * number, len(source.rows))).pairs[
        :number
    ]


def with_noise(model: Any, noise: float) -> Any:
    """A copy with noise in its weights, rounded to bfloat16."""
    torch.manual_seed(0)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weights in changed.parameters():
            weights += noise * weights.std() * torch.randn_like(weights)
            weights.copy_(weights.bfloat16().float())
    return changed


def score(
    oracle: Any,
    ref: Any,
    pairs: Sequence[EncodedPair],
    dtype: torch.dtype,
    device: str,
    batch_tokens: int | None = None,
) -> Scores:
    """Log-probs under both models in a precision."""
    models = [copy.deepcopy(model).to(device, dtype) for model in (oracle, ref)]
    for model in models:
        prepare(model, 1024)
    oracle_scorer, ref_scorer = (Scorer(model, nullcontext, BATCH_TOKENS_CPU) for model in models)
    return score_rows(ModelPair(oracle_scorer, ref_scorer), pairs, batch_tokens)


def other_batches(oracle: Any, ref: Any, pairs: Sequence[EncodedPair], device: str) -> list[dict[str, Any]]:
    """How other batch sizes change the results of each precision."""
    found = []
    for name, dtype in DTYPES.items():
        with matmul_precision("highest"):
            usual = score(oracle, ref, pairs, dtype, device)
            for batch_tokens in BATCHES:
                other = score(oracle, ref, pairs, dtype, device, batch_tokens)
                largest = max(
                    float(abs(ours - theirs).max())
                    for side in SIDES
                    for ours, theirs in zip(other[side].rewards, usual[side].rewards, strict=True)
                )
                measured = compare(pairs, usual, other, SETTINGS.selection).as_dict()
                found.append(
                    {"computed_in": name, "batch_tokens": batch_tokens, "largest": largest, **measured}
                )
    return found


@contextmanager
def tf32(device: str) -> Iterator[None]:
    """Compute float32 products in TF32, emulated on a CPU."""
    if device == "cuda":
        with matmul_precision("high"):
            yield
        return
    exact = nn.functional.linear

    def rounded(values: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        return exact(ten_bits(values), ten_bits(weights), bias)

    nn.functional.linear = rounded  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.linear = exact


def ten_bits(values: Tensor) -> Tensor:
    """Round to TF32's 10 mantissa bits (float32 has 23), to nearest, ties to even."""
    bits = values.view(torch.int32)
    last_kept = (bits >> 13) & 1
    return ((bits + 0xFFF + last_kept) & ~0x1FFF).view(torch.float32)


def main() -> None:
    """Print a table and write the requested files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pairs = read_pairs(options.data, options.model, options.pairs)
    ref = with_noise(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval(), 0.0)
    results: list[dict[str, Any]] = []
    for noise in NOISES:
        oracle = with_noise(ref, noise)
        with matmul_precision("highest"):
            exact = score(oracle, ref, pairs, torch.float32, options.device)
        for name in ("TF32", "float16", "bfloat16"):
            with tf32(options.device) if name == "TF32" else nullcontext():
                found = score(oracle, ref, pairs, DTYPES.get(name, torch.float32), options.device)
            measured = compare(pairs, exact, found, SETTINGS.selection)
            results.append({"noise_in_weights": noise, "computed_in": name, **measured.as_dict()})
            print(name, measured, flush=True)
    batches = other_batches(with_noise(ref, NOISES[2]), ref, pairs, options.device)
    place = where(options.device, torch.float32).removesuffix(", float32").removesuffix(", TF32")
    print(f"\n{place}; {len(pairs)} pairs, {results[0]['tokens']:,} response tokens\n\n{report(results)}")
    lines = [
        [
            r["computed_in"],
            r["batch_tokens"],
            f"{r['largest']:.1e}",
            f"{r['noise']:.1e}",
            f"{r['overlap']:.2%}",
        ]
        for r in batches
    ]
    print(
        "\n" + table(["computed in", "tokens a batch", "largest difference, nats", "noise", "overlap"], lines)
    )
    if options.json:
        write_json(options.json, {"machine": place, "results": results, "batches": batches})


def report(results: Sequence[dict[str, Any]]) -> str:
    """One line for each size of rewards."""
    names = list(dict.fromkeys(r["computed_in"] for r in results))
    rows = []
    for noise in NOISES:
        found = {
            r["computed_in"]: Precision(**{k: r[k] for k in Precision.__dataclass_fields__})
            for r in results
            if r["noise_in_weights"] == noise
        }
        spread = next(iter(found.values())).reward_spread
        cells = [f"{found[name].noise:.4f}, {found[name].overlap:.1%}" for name in names]
        rows.append([f"{spread:.3f}", *cells])
    return table(["rewards' standard deviation, nats", *(f"{name}: noise, overlap" for name in names)], rows)


if __name__ == "__main__":
    main()
