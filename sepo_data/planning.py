"""The dry run: the cost and dropped rows of an annotation, estimated from a sample."""

import time
from dataclasses import dataclass

from .errors import PreferenceError
from .models.loading import scorers
from .models.placement import peak_memory
from .models.scoring import role_logps
from .reasons import Drops
from .runs.folder import CHUNK_ROWS
from .runs.inputs import Job, prepare
from .settings import AnnotateSettings
from .sources.reading import describe_reading
from .tokens.pairs import EncodedPair, encode_pairs

SAMPLE_ROWS = 10_240
PROBE_PAIRS = 8


@dataclass(frozen=True)
class Plan:
    """The estimate of a run.

    Attributes:
        name: The dataset.
        rows: Source rows that the run would cover.
        sampled: How many of them were read and tokenised, evenly spread.
        usable: How many of those can be annotated.
        dropped: How many of those cannot, by reason.
        tokens: Tokens of prompts and responses of all rows, estimated from the sample.
        longest: Tokens of the longest response with its prompt, in the sample.
        truncated: Responses in the sample that ``max_length`` cuts.
        max_length: Maximum tokens of prompt and response.
        device: Where the probe ran.
        seconds: Estimated time of the whole run.
        memory_bytes: Peak memory of the probe, which includes the longest response.
        push_to_hub: Where the dataset would be pushed to.
        reading: How its columns were read, with the first rows, one line each.
    """

    name: str
    rows: int
    sampled: int
    usable: int
    dropped: dict[str, int]
    tokens: int
    longest: int
    truncated: int
    max_length: int
    device: str
    seconds: float
    memory_bytes: int
    push_to_hub: str | None
    reading: list[str]


def plan(dataset: str, oracle: str, ref: str, settings: AnnotateSettings) -> Plan:
    """Tokenise a sample of the rows, score a few, and extrapolate. Writes nothing.

    Args:
        dataset: As for `annotate.annotate`.
        oracle: As for `annotate.annotate`.
        ref: As for `annotate.annotate`.
        settings: As for `annotate.annotate`.

    Raises:
        SepoError: Anything that would stop the run before or in its first rows.
    """
    job = prepare(dataset, oracle, ref, settings)
    rows = len(job.source.rows)
    pairs, dropped = _sample(job)
    sampled = len(pairs) + sum(dropped.counts.values())
    if not pairs:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.counts.items())
        raise PreferenceError(f"{dataset}: none of {sampled:,} rows can be annotated: {reasons}.")
    pairs.sort(key=_tokens)
    per_token = _seconds_per_token(job, pairs)
    device = str(job.loading.place)
    tokens = round(sum(map(_tokens, pairs)) * rows / sampled)
    return Plan(
        name=job.source.name,
        rows=rows,
        sampled=sampled,
        usable=len(pairs),
        dropped=dropped.counts,
        tokens=tokens,
        longest=max(response.input_ids.size for pair in pairs for response in pair),
        truncated=sum(not response.ended for pair in pairs for response in pair),
        max_length=job.max_length,
        device=device,
        seconds=tokens * per_token,
        memory_bytes=peak_memory(device),
        push_to_hub=settings.push_to_hub,
        reading=describe_reading(job.source, job.columns),
    )


def _sample(job: Job) -> tuple[list[EncodedPair], Drops]:
    """Chunks of rows, evenly spread: the pairs among them, and the rows that are none."""
    rows = len(job.source.rows)
    pairs: list[EncodedPair] = []
    dropped = Drops()
    starts = range(0, rows, CHUNK_ROWS)
    for lo in starts[:: max(1, -(-rows // SAMPLE_ROWS))]:
        hi = min(lo + CHUNK_ROWS, rows)
        encoded = encode_pairs(
            job.source.rows, job.columns, job.encoder, job.max_length, lo, hi, job.settings.reasoning
        )
        pairs += encoded.pairs
        dropped.extend(encoded.dropped)
    return pairs, dropped


def _seconds_per_token(job: Job, by_length: list[EncodedPair]) -> float:
    """Score the longest pairs, and then some of all lengths against the clock."""
    how = job.loading
    budget = job.settings.batch_tokens or how.batch_tokens
    full_batch = max(1, budget // _tokens(by_length[-1]))
    probe = by_length[:: max(1, len(by_length) // max(PROBE_PAIRS, full_batch))]
    seconds = 0.0
    for role, scorer in scorers(job.facts, how, in_turn=job.in_turn):
        # the longest: peak memory, and a warm device
        role_logps(role, scorer, by_length[-full_batch:], budget)
        began = time.perf_counter()
        role_logps(role, scorer, probe, budget)
        seconds += time.perf_counter() - began
        del scorer  # before the next one is loaded
    return seconds / sum(map(_tokens, probe))


def _tokens(pair: EncodedPair) -> int:
    return int(pair.chosen.input_ids.size + pair.rejected.input_ids.size)
