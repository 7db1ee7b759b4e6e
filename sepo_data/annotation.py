"""The main path: a preference dataset in, the same dataset with token rewards and masks out.

For every pair: render the prompt, locate the tokens of both responses, compute their
log-probs under oracle and reference, subtract (arXiv 2408.13518: log p_oracle -
log p_ref, in nats), select. Work proceeds chunk by chunk, so an interrupted run can resume.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .annotated.health import Health
from .annotated.manifest import Manifest
from .annotated.publishing import ANNOTATED
from .hub.pushing import check_push_target
from .report.publishing import push_annotated
from .runs.folder import (
    CHUNK_ROWS,
    Run,
    chunk_ranges,
    is_done,
    is_finished,
    missing_chunks,
    open_run,
)
from .runs.inputs import Job, output_schema, prepare
from .runs.merging import merge_run
from .runs.progress import NO_PROGRESS, Progress
from .runs.provenance import run_record
from .settings import AnnotateSettings

log = logging.getLogger("sepo")


@dataclass(frozen=True)
class Report:
    """The result of a run.

    Attributes:
        output: The folder.
        manifest: The dataset's manifest; None while chunks are missing.
        commit: Commit of the pushed dataset on the Hub; None if it was not pushed.
        stopped: Whether it was asked to stop before its last chunk.
        missing: Chunks that other shards have not written yet.
    """

    output: Path
    manifest: Manifest | None
    commit: str | None = None
    stopped: bool = False
    missing: int = 0

    @property
    def health(self) -> Health | None:
        """Metrics of the oracle; None while chunks are missing."""
        return None if self.manifest is None else self.manifest.health


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

    The output folder remembers the run: the same call resumes where an earlier
    one stopped, and does nothing if the dataset is complete.

    Args:
        dataset: Preference dataset: Hub id, folder or file.
        oracle: Model trained with DPO, Hub id or folder; may be a PEFT adapter.
        ref: The model that the oracle was trained from.
        settings: Everything else.
        progress: Told how far the run is.
        stop: Asked after every chunk; True ends the run there.

    Returns:
        The folder, and the manifest if the dataset is complete.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    job, run = begin(dataset, oracle, ref, settings)
    if is_finished(run):
        log.info("%s is already complete", run.output)
    else:
        own = chunk_ranges(run.rows, settings.shard)
        if not own:
            log.warning(
                "no rows belong to shard %d/%d: work is shared in chunks of %d rows",
                *settings.shard,
                CHUNK_ROWS,
            )
        pending = [chunk for chunk in own if not is_done(run, *chunk)]
        if pending:
            from .runs.chunks import Work, annotate_chunks  # loads torch

            work = Work(job, run, output_schema(job), own, progress, stop)
            if not annotate_chunks(work, pending):
                return Report(run.output, None, stopped=True)
        progress.finish()
        missing = missing_chunks(run)
        if missing and not is_finished(run):  # else another worker has assembled the dataset
            return Report(run.output, None, missing=len(missing))
    manifest = merge_run(run.output)  # the last worker does it for all shards
    if settings.push_to_hub is None:
        return Report(run.output, manifest)
    private = settings.private or job.source.restricted
    commit = push_annotated(run.output, settings.push_to_hub, private=private, no_report=settings.no_report)
    return Report(run.output, manifest, commit=commit)


def begin(dataset: str, oracle: str, ref: str, settings: AnnotateSettings) -> tuple[Job, Run]:
    """Check everything that can be wrong before weights are loaded, and open the output folder.

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
        check_push_target(settings.push_to_hub, ANNOTATED, private=private)
    if "license" not in job.source.card and settings.license is None:
        log.warning("%s states no licence, so the card will have none; `license` gives one", job.source.name)
    record = run_record(job.source, job.columns, job.facts, job.encoder, settings, job.max_length)
    return job, open_run(settings.output, record)
