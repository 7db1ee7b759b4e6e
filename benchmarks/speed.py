"""Shared by the speed benchmarks: shapes, lengths, counted arithmetic, interleaved rounds, the figure."""

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights; ``head`` is the share of its matrices that is the head."""

    head: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


# head shares of TinyLlama-1.1B, Qwen2.5-0.5B, and a tiny model with a large vocabulary
CPU_SHAPES = (
    Shape("6%", 1024, 2816, 3, 16, 4, 2048),
    Shape("27%", 1024, 2816, 3, 16, 4, 12288),
    Shape("90%", 256, 704, 6, 4, 2, 151936),
)
CUDA_SHAPES = (
    Shape("6%, 1.1B", 2048, 5632, 22, 32, 4, 32000),
    Shape("27%, 0.5B", 896, 4864, 24, 14, 2, 151936),
)

LONGEST = 1536


def add_head(parser: argparse.ArgumentParser) -> None:
    """Let the caller measure the shapes of one head only."""
    heads = [shape.head for shape in CPU_SHAPES + CUDA_SHAPES]
    parser.add_argument("--head", choices=heads, help="default: all of the device")


def shapes(device: str, head: str | None) -> list[Shape]:
    """The shapes to measure on a device, or the one with this head."""
    return [shape for shape in (CPU_SHAPES if device == "cpu" else CUDA_SHAPES) if head in (None, shape.head)]


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in tokens: means, and spreads of the logarithm."""

    name: str
    prompt: float
    prompt_spread: float
    response: float
    response_spread: float


ULTRAFEEDBACK = Lengths("UltraFeedback-like", 245, 0.9, 275, 0.6)
HH = Lengths("HH-RLHF-like", 219, 0.7, 75, 0.8)


@dataclass(frozen=True)
class Response:
    """A response in its context, as in annotation and training."""

    input_ids: Ids
    positions: Ids


@dataclass(frozen=True)
class RandomPair:
    """Random tokens of a prompt and its two responses."""

    prompt: Ids
    chosen: Ids
    rejected: Ids

    @property
    def sequences(self) -> tuple[Response, Response]:
        """Both responses after the prompt."""
        first, second = (self._sequence(response) for response in (self.chosen, self.rejected))
        return first, second

    def _sequence(self, response: Ids) -> Response:
        ids = np.concatenate([self.prompt, response])
        return Response(ids, np.arange(self.prompt.size, ids.size))


def random_pairs(number: int, lengths: Lengths, vocabulary: int, seed: int = 0) -> list[RandomPair]:
    """Pairs whose lengths are quantiles of the distribution, so few represent it; in random order."""
    random = np.random.default_rng(seed)
    prompts = _quantiles(number, lengths.prompt, lengths.prompt_spread)
    responses = _quantiles(2 * number, lengths.response, lengths.response_spread)
    random.shuffle(prompts)
    random.shuffle(responses)

    def tokens(size: int) -> Ids:
        return random.integers(0, vocabulary, size)

    return [
        RandomPair(tokens(prompts[i]), tokens(responses[2 * i]), tokens(responses[2 * i + 1]))
        for i in range(number)
    ]


def _quantiles(number: int, mean: float, spread: float) -> Ids:
    normal = statistics.NormalDist(np.log(mean) - spread**2 / 2, spread)
    sizes = [np.exp(normal.inv_cdf((i + 0.5) / number)) for i in range(number)]
    return np.clip(np.round(sizes), 4, LONGEST).astype(np.int64)


def random_model(shape: Shape, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A Llama of a shape in eval mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=2 * LONGEST,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype)
    torch.nn.Module.eval(model)
    return model


@dataclass
class Work:
    """Work to compute a batch: tokens in the layers, rows of logits, query-key pairs of attention."""

    tokens: int = 0
    logits: int = 0
    attended: int = 0

    def flops(self, shape: Shape) -> float:
        """FLOPs of a forward pass; a multiply-add counts as 2."""
        kv = shape.hidden * shape.kv_heads // shape.heads
        layer = 2 * shape.hidden**2 + 2 * shape.hidden * kv + 3 * shape.hidden * shape.intermediate
        head = shape.hidden * shape.vocabulary
        attention = 2 * shape.layers * shape.hidden * self.attended  # scores and weighted sum of values
        return 2.0 * (shape.layers * layer * self.tokens + head * self.logits + attention)


def useful_work(pairs: Sequence[RandomPair], read: Sequence[tuple[Ids, Ids]] | None = None) -> Work:
    """The minimum for log-probs of responses: a prompt once, no token after the last one read.

    Args:
        pairs: The pairs.
        read: Positions of the read tokens in each response; None: all.
    """
    work = Work()
    for i, pair in enumerate(pairs):
        prompt = pair.prompt.size
        work.tokens += prompt
        work.attended += prompt * (prompt + 1) // 2
        for j, response in enumerate((pair.chosen, pair.rejected)):
            places = np.arange(response.size) if read is None else read[i][j]
            seen = int(places[-1])  # response tokens before the last one read
            work.tokens += seen
            work.logits += places.size
            work.attended += seen * prompt + seen * (seen + 1) // 2
    return work


def unpadded_work(pairs: Sequence[RandomPair]) -> Work:
    """Work of scoring one response at a time with all logits."""
    sizes = [response.input_ids.size for pair in pairs for response in pair.sequences]
    return Work(sum(sizes), sum(sizes), sum(size * (size + 1) // 2 for size in sizes))


def padded_work(batches: Sequence[Sequence[RandomPair]], *, logits: str) -> Work:
    """Work of padded batches, chosen and rejected together; ``logits``: all, responses."""
    work = Work()
    for batch in batches:
        sizes = [pair.prompt.size + r.size for pair in batch for r in (pair.chosen, pair.rejected)]
        work.tokens += len(sizes) * max(sizes)
        work.attended += len(sizes) * max(sizes) * (max(sizes) + 1) // 2
        responses = sum(r.size for pair in batch for r in (pair.chosen, pair.rejected))
        work.logits += len(sizes) * max(sizes) if logits == "all" else responses
    return work


@torch.inference_mode()
def matrix_rate(shape: Shape, device: str, dtype: torch.dtype) -> float:
    """Best rate of a matrix product of the shape's sizes, in FLOP per second."""
    best = 0.0
    few, many, times = (1024, 4096, 1) if device == "cpu" else (16384, 32768, 20)  # a launch is not free
    for rows, inner, columns in (
        (few, shape.hidden, shape.intermediate),
        (few, shape.intermediate, shape.hidden),
        (many, shape.hidden, shape.intermediate),
        (few, shape.hidden, min(shape.vocabulary, 32768)),
    ):
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(columns, inner, device=device, dtype=dtype)

        def products(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            for _ in range(times):
                torch.nn.functional.linear(left, right)

        for _ in range(4):
            best = max(best, 2.0 * rows * inner * columns * times / timed(products, device))
    return best


def timed(function: Callable[[], object], device: str) -> float:
    """Wall-clock seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Peak memory of a call above what was allocated before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return 1024 * int(line.split()[1])


@dataclass(frozen=True)
class Timing:
    """Timings of interleaved variants, so that a busy machine affects all of them.

    Attributes:
        seconds: Seconds of each variant, per round.
        rates: Rates of the matrix product in FLOP per second, per round.
        peaks: Peak memory of each variant, in bytes.
    """

    seconds: dict[str, list[float]]
    rates: list[float]
    peaks: dict[str, int]

    def ratio(self, name: str, other: str) -> float:
        """Ratio of the times of two variants, median of the rounds."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def share(self, name: str, flops: float) -> float:
        """Share of the matrix rate that a variant reached with this arithmetic, median of the rounds."""
        pairs = zip(self.seconds[name], self.rates, strict=True)
        return statistics.median(flops / seconds / rate for seconds, rate in pairs)

    def as_dict(self) -> dict[str, Any]:
        """Convert to JSON."""
        return {
            "seconds": self.seconds,
            "matrix_gflops": [rate / 1e9 for rate in self.rates],
            "peak_mib": {name: value / 2**20 for name, value in self.peaks.items()},
        }


def in_turn(
    variants: dict[str, Callable[[], object]],
    rounds: int,
    shape: Shape,
    device: str,
    dtype: torch.dtype,
    largest: dict[str, Callable[[], object]] | None = None,
) -> Timing:
    """Time the variants and a matrix product, interleaved; measuring memory first warms up.

    Args:
        variants: Functions to time, by name.
        rounds: Number of rounds.
        shape: Shape of the matrix product.
        device: Device of the matrix product.
        dtype: Dtype of the matrix product.
        largest: The part of each variant that takes the most memory; None: all of it.
    """
    peaks = {name: peak_bytes(run, device) for name, run in (largest or variants).items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    rates = []
    for _ in range(rounds):
        for name, run in variants.items():
            seconds[name].append(timed(run, device))
        rates.append(matrix_rate(shape, device, dtype))
    return Timing(seconds, rates, peaks)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def where(device: str, dtype: torch.dtype) -> str:
    """Describe the machine."""
    if device == "cuda":
        tf32 = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
        return f"{torch.cuda.get_device_name()}, {'TF32' if tf32 else str(dtype).removeprefix('torch.')}"
    return f"CPU, {torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}"


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write one file per run."""
    path.write_text(json.dumps(results, indent=1) + "\n")


def draw(path: Path, title: str, bars: dict[str, dict[str, float]], label: str) -> None:
    """Draw grouped bars; all groups have the same names."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "sepo", "font.size": 9})
    from matplotlib import pyplot as plt

    names = list(next(iter(bars.values())))
    figure, axes = plt.subplots(figsize=(8, 3.2))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [group + (i - (len(names) - 1) / 2) * width for group in range(len(bars))]
        heights = [group.get(name, 0.0) for group in bars.values()]
        drawn = axes.bar(places, heights, width, label=name)
        axes.bar_label(drawn, fmt="%.2f", fontsize=7)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
