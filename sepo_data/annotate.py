"""The main path: a preference dataset in, the same dataset with token rewards and masks out.

For every pair: render the prompt, place the tokens of both responses, take their
log-probs under oracle and reference, subtract (arXiv 2408.13518: log p_oracle -
log p_ref, in nats), select. Work goes chunk by chunk, so a run that stops goes on.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .encoding import ResponseEncoder, response_encoder
from .errors import PreferenceError, TokenizerError
from .health import Health, health_from_dict
from .hub import check_push_target, push_annotated
from .merging import merge_run
from .preferences import Source, open_source, pair_types, read_pair
from .provenance import run_record
from .rendering import ALREADY_RENDERED, TEMPLATE_REFUSES, render
from .rows import encode_rows
from .schema import annotated_schema, annotation_columns, validate
from .scoring import score_rows
from .settings import AnnotateSettings
from .shards import CHUNK_ROWS, Run, chunk_ranges, is_done, is_finished, open_run, write_chunk
from .tables import annotated_table, passing_columns

if TYPE_CHECKING:
    from .checkpoints import PairFacts
    from .models import ModelPair

log = logging.getLogger("sepo")

FIRST_ROWS = 32


class Progress:
    """Who wants to know how far a run is; this one does not."""

    def start(self, rows: int, done: int) -> None:
        """A run over ``rows`` rows begins, ``done`` of them finished earlier."""

    def advance(self, rows: float) -> None:
        """The work of so many rows, or a part of one, was done."""

    def finish(self) -> None:
        """No more chunks will be scored; merging and pushing may follow."""


NO_PROGRESS = Progress()


@dataclass(frozen=True)
class Report:
    """What came of a run.

    Attributes:
        output: The folder.
        manifest: The dataset's manifest; None while chunks are missing.
        commit: Where on the Hub it was pushed to; None if it was not.
        stopped: Whether it was asked to stop before its last chunk.
    """

    output: Path
    manifest: dict[str, Any] | None
    commit: str | None = None
    stopped: bool = False

    @property
    def health(self) -> Health | None:
        """Figures on the oracle; None while chunks are missing."""
        return None if self.manifest is None else health_from_dict(self.manifest["health"])


@dataclass(frozen=True)
class Job:
    """Everything that is settled before weights are loaded."""

    source: Source
    facts: "PairFacts"
    encoder: ResponseEncoder
    settings: AnnotateSettings
    max_length: int


def annotate(
    dataset: str,
    oracle: str,
    ref: str,
    settings: AnnotateSettings,
    *,
    progress: Progress = NO_PROGRESS,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Score a preference dataset once and save its token rewards.

    The output folder is the run's memory: the same call goes on where an earlier
    one stopped, and does nothing where the dataset is complete.

    Args:
        dataset: Preference dataset: Hub id, folder or file.
        oracle: Model trained with DPO, Hub id or folder; a PEFT adapter will do.
        ref: The model that the oracle was trained from.
        settings: Everything else.
        progress: Told how far the run is.
        stop: Asked after every chunk; True ends the run there.

    Returns:
        The folder, and the manifest if the dataset is complete.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    job = prepare(dataset, oracle, ref, settings)
    private = settings.private or job.source.restricted
    if settings.push_to_hub is not None:
        if private and not settings.private:
            log.warning(
                "%s is gated or private, so %s is made private", job.source.name, settings.push_to_hub
            )
        check_push_target(settings.push_to_hub, private=private)
    if "license" not in job.source.card and settings.license is None:
        log.warning("%s states no licence, so the card will have none; --license gives one", job.source.name)
    schema = output_schema(job)
    run = open_run(settings.output, run_record(job.source, job.facts, job.encoder, settings, job.max_length))
    if is_finished(run):
        log.info("%s is complete already", run.output)
    else:
        own = chunk_ranges(run.rows, settings.shard)
        if not own:
            log.warning(
                "no rows belong to shard %d/%d: work is shared in chunks of %d rows",
                *settings.shard,
                CHUNK_ROWS,
            )
        pending = [(lo, hi) for lo, hi in own if not is_done(run, lo, hi)]
        if pending and not _annotate_chunks(job, run, schema, own, pending, progress, stop):
            return Report(run.output, None, stopped=True)
        progress.finish()
    if settings.shard != (0, 1):
        return Report(run.output, None)
    manifest = merge_run(run.output)
    if settings.push_to_hub is None:
        return Report(run.output, manifest)
    return Report(
        run.output, manifest, commit=push_annotated(run.output, settings.push_to_hub, private=private)
    )


def prepare(dataset: str, oracle: str, ref: str, settings: AnnotateSettings) -> Job:
    """Find out everything that can be wrong before weights are loaded.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    from .checkpoints import describe_pair

    source = open_source(
        dataset,
        config=settings.config_name,
        split=settings.split,
        revision=settings.revision,
        prompt_column=settings.prompt_column,
        chosen_column=settings.chosen_column,
        rejected_column=settings.rejected_column,
        limit=settings.limit,
    )
    if taken := sorted(annotation_columns().intersection(source.rows.column_names)):
        raise PreferenceError(
            f"{dataset}: has columns of an annotated dataset already ({', '.join(taken)}). Remove them, or "
            "annotate the dataset that it was made from."
        )
    facts = describe_pair(
        oracle, ref, oracle_revision=settings.oracle_revision, ref_revision=settings.ref_revision
    )
    encoder = response_encoder(facts.tokenizer, chat_template=settings.chat_template)
    max_length = settings.max_length
    if facts.max_context is not None and facts.max_context < max_length:
        max_length = facts.max_context
        log.info("maximum length %d instead of %d: the models read no more", max_length, settings.max_length)
    job = Job(source, facts, encoder, settings, max_length)
    _check_first_rows(job)
    return job


def output_schema(job: Job) -> pa.Schema:
    """The Arrow schema of the dataset that a job makes."""
    source = job.source.rows.features.arrow_schema
    passing = [source.field(name) for name in passing_columns(source.names, job.source.columns)]
    return annotated_schema(pa.schema(passing), pair_types(job.source), store_logps=job.settings.store_logps)


def load_models(job: Job) -> "ModelPair":
    """Load the weights of oracle and reference.

    Raises:
        ModelError: If they cannot be loaded, or are one and the same.
    """
    from .models import load_pair

    return load_pair(job.facts, dtype=job.settings.dtype, device=job.settings.device, longest=job.max_length)


def _annotate_chunks(
    job: Job,
    run: Run,
    schema: pa.Schema,
    own: Sequence[tuple[int, int]],
    pending: Sequence[tuple[int, int]],
    progress: Progress,
    stop: Callable[[], bool],
) -> bool:
    """Annotate the pending chunks; False if asked to stop before the last one."""
    encode = partial(encode_rows, job.source, job.encoder, job.max_length)
    with ThreadPoolExecutor(max_workers=1) as beside:  # the next chunk is tokenised while this one is scored
        following = beside.submit(encode, *pending[0])
        models = load_models(job)
        rows = sum(hi - lo for lo, hi in own)
        progress.start(rows, rows - sum(hi - lo for lo, hi in pending))
        for done, (lo, hi) in enumerate(pending, start=1):
            encoded = following.result()
            if done < len(pending):
                following = beside.submit(encode, *pending[done])
            on_share = partial(_advance, progress, hi - lo)
            if not encoded.pairs:
                on_share(1.0)
            scored = score_rows(models, encoded.pairs, job.settings.batch_tokens, on_share)
            table = annotated_table(encoded, scored, schema, job.settings)
            validate(table)
            write_chunk(run, lo, hi, table, {"dropped": encoded.dropped, "counts": encoded.counts})
            if done < len(pending) and stop():
                return False
    return True


def _advance(progress: Progress, rows: int, share: float) -> None:
    progress.advance(rows * share)


def _check_first_rows(job: Job) -> None:
    """Refuse at once what would be wrong, or be refused by the template, in nearly every row."""
    reasons = []
    for content in job.source.rows.select(range(min(FIRST_ROWS, len(job.source.rows)))):
        pair = read_pair(content, job.source.columns)
        if isinstance(pair, str):
            continue
        rendering = render(
            job.encoder.tokenizer, pair.prompt, job.encoder.control, chat_template=job.encoder.chat_template
        )
        reasons.append(rendering if isinstance(rendering, str) else None)
    if reasons and 2 * reasons.count(ALREADY_RENDERED) > len(reasons):
        raise TokenizerError(
            f"{job.source.name}: prompts begin with a control token of the tokenizer, so they were rendered "
            "before. Pass --no-chat-template to use them as they are."
        )
    if reasons and 2 * reasons.count(TEMPLATE_REFUSES) > len(reasons):
        raise TokenizerError(
            f"{job.source.name}: the oracle's chat template refuses most of the first conversations. Look at "
            "its roles and their order, or take an oracle with another template."
        )
