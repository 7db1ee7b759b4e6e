"""``sepo-annotate --executor hf-jobs``: the shards of a run as Hugging Face Jobs.

A Job sees no disk of ours, and none of another's. So each one scores its shard in a folder of its own
and puts the chunks into a folder of the Hub, from where they come into the run's output here.
"""

import contextlib
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml
from datatrove.executor.jobs import ARRAY_INDEX_ENV_VAR, JobsPipelineExecutor
from datatrove.io import get_datafolder
from huggingface_hub import get_token, run_uv_job

from sepo_data.errors import HubError, SettingsError, first_line
from sepo_data.files import write_atomically, writing
from sepo_data.runs.folder import Run, chunk_ranges, is_done

from .executors import AnnotateShard, check_complete, mark_complete

log = logging.getLogger("sepo")

REQUIRED = ("folder", "package", "flavor")
OPTIONAL = ("timeout", "namespace", "image", "python", "max_retries", "poll_interval")
CHUNKS = "chunks"  # below the folder on the Hub


class AnnotateInJob(AnnotateShard):
    """One shard in a folder of its own, whose chunks go to the Hub."""

    def __init__(self, options: Mapping[str, object], folder: str) -> None:
        super().__init__(Path())
        self.options = dict(options)
        self.folder = folder

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        """Exits with 1 if the process fails, so that the Job has failed."""
        with tempfile.TemporaryDirectory() as folder:
            config, output = Path(folder) / "annotate.yaml", Path(folder) / "out"
            config.write_text(yaml.safe_dump({**self.options, "output": str(output)}), encoding="utf-8")
            self.config = str(config)
            super().run(data, rank, world_size)
            chunks = get_datafolder(f"{self.folder}/{CHUNKS}")
            for path in sorted((output / "_work").glob("*.rows")):
                with chunks.open(path.name, "wb") as file:
                    file.write(path.read_bytes())


class _Jobs(JobsPipelineExecutor):  # type: ignore[misc]
    """Starts datatrove by its command: the Job has it installed, so no script is uploaded for it."""

    def _submit_array_index(self, array_index: int, pik_path: str, token: str) -> str:
        job = run_uv_job(
            "launch_pickled_pipeline",
            script_args=[pik_path],
            dependencies=self.dependencies,
            python=self.python,
            image=self.image,
            env={"HF_HUB_DISABLE_PROGRESS_BARS": "1", ARRAY_INDEX_ENV_VAR: str(array_index)},
            secrets={"HF_TOKEN": token},
            flavor=self.flavor,
            timeout=self.timeout,
            name=f"sepo-annotate-{array_index}",
            namespace=self.namespace,
            token=token,
        )
        log.info("task group %d is Job %s (%s)", array_index, job.id, job.url)
        return str(job.id)

    def _merge_stats(self) -> None:
        """Nothing to add up."""


def run_in_jobs(
    run: Run, options: Mapping[str, object], tasks: int, workers: int | None, given: Mapping[str, str]
) -> None:
    """Run the tasks as Jobs, wait for them, and fetch their chunks.

    Args:
        run: The run.
        options: Of ``sepo-annotate``, by name.
        tasks: Number of shards.
        workers: How many Jobs at once; None: all.
        given: ``folder`` (``hf://…``, for completion markers and chunks), ``package`` (installed by a Job to
            get sepo), ``flavor`` (its hardware), and other fields of datatrove's JobsPipelineExecutor.

    Raises:
        SettingsError: If a field is missing or wrong, or a Job could not see what it needs.
        HubError: If the Hub refuses.
        OutputError: If a task failed, or a chunk is another run's.
    """
    fields = _checked(run, options, tasks, given)
    folder = str(fields.pop("folder"))
    try:
        executor = _Jobs(
            [AnnotateInJob(_pinned(run, options), folder)],
            tasks=tasks,
            workers=workers or -1,
            logging_dir=folder,
            dependencies=[fields.pop("package"), "datatrove[io]>=0.10"],
            **fields,
        )
        executor._ensure_logging_dir_repo()
        _fetch(run, folder)  # of an earlier call
        mark_complete(executor, run, tasks)
        executor.run()
        _fetch(run, folder)
        check_complete(executor, tasks, "Look at the Jobs' logs (hf jobs logs ID)")
    except (OSError, ValueError) as error:  # of the Hub's client
        raise HubError(f"--executor hf-jobs: {first_line(error)}") from error


def _checked(
    run: Run, options: Mapping[str, object], tasks: int, given: Mapping[str, str]
) -> dict[str, object]:
    named = {name.replace("-", "_"): value for name, value in given.items()}
    if wrong := named.keys() - {*REQUIRED, *OPTIONAL}:
        known = ", ".join((*REQUIRED, *OPTIONAL))
        raise SettingsError(f"--hf-jobs {min(wrong)}=… is none of {known}.")
    if missing := [name for name in REQUIRED if name not in named]:
        raise SettingsError(f"--executor hf-jobs needs --hf-jobs {missing[0]}=…, see docs/scaling.md.")
    if not named["folder"].startswith("hf://"):
        raise SettingsError(
            f"--hf-jobs folder={named['folder']} is not on the Hub. Pass hf://buckets/ME/NAME."
        )
    if get_token() is None:
        raise SettingsError("--executor hf-jobs needs a token of the Hub. Run hf auth login first.")
    chunks = len(chunk_ranges(run.rows))
    if not 2 <= tasks <= chunks:
        raise SettingsError(
            f"--tasks must be from 2 to {chunks}, the chunks of 256 rows, got {tasks}. One Job for all needs "
            "no executor: hf jobs uv run."
        )
    scoring = run.record.scoring
    revisions = {
        "oracle": scoring.oracle.revision,
        "ref": scoring.ref.revision,
        "dataset": scoring.source.revision,
    }
    local = [name for name, revision in revisions.items() if revision.startswith("sha256:")]
    if "chat-template" in options:
        local.append("chat-template")
    if local:
        raise SettingsError(
            f"--{local[0]} {options[local[0]]} is on this machine, and a Job does not see it. Push it to the "
            "Hub and name it by its repository."
        )
    return {name: int(value) if value.isdecimal() else value for name, value in named.items()}


def _pinned(run: Run, options: Mapping[str, object]) -> dict[str, object]:
    """What a Job is to do: the commits that this run has found, and no push of its part."""
    scoring = run.record.scoring
    here = ("push-to-hub", "private", "output")
    kept = {name: value for name, value in options.items() if name not in here}
    return {
        **kept,
        "revision": scoring.source.revision,
        "oracle-revision": scoring.oracle.revision,
        "ref-revision": scoring.ref.revision,
    }


def _fetch(run: Run, folder: str) -> None:
    """Download chunks that are missing here; damaged chunks and those of another run do not count."""
    there = get_datafolder(f"{folder}/{CHUNKS}")
    there.fs.invalidate_cache()
    for lo, hi in chunk_ranges(run.rows):
        if is_done(run, lo, hi):
            continue
        path = run.chunk(lo, hi)
        with contextlib.suppress(FileNotFoundError):
            content = there.open(path.name, "rb").read()
            with writing(run.output):
                write_atomically(path, content)
