"""``sepo-annotate --executor``: the shards of a run as tasks of datatrove, here, on Ray or under SLURM.

A task is one plain process, ``sepo-annotate --shard i/n``. datatrove starts the tasks, keeps
their logs and marks the complete ones; before each start the marks are synchronised with
the chunks of the run, so a task runs again if and only if one of its chunks is missing.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger as task_log
from datatrove.utils.stats import PipelineStats

from sepo_data.errors import OutputError, SettingsError
from sepo_data.files import writing
from sepo_data.runs.folder import Run, chunk_ranges, is_done

log = logging.getLogger("sepo")

PR_SET_PDEATHSIG = 1
SLURM_DEFAULTS: dict[str, object] = {
    "job_name": "sepo",
    "gpus_per_task": 1,
    "cpus_per_task": 4,
    "mem_per_cpu_gb": 8,
    "qos": None,
    "env_command": f'export PATH="{Path(sys.executable).parent}:$PATH"',
}

RAY_DEFAULTS: dict[str, object] = {"cpus_per_task": 1, "mem_per_cpu_gb": 0, "gpus_per_task": 0}


class AnnotateShard(PipelineStep):  # type: ignore[misc]
    """Run one shard in its own process, which frees its memory and GPU when it exits."""

    name = "shard"
    type = "sepo-annotate"

    def __init__(self, config: Path) -> None:
        super().__init__()
        self.config = str(config)

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        """Exits with 1 if the process fails; an exception would print datatrove's traceback."""
        command = [sys.executable, "-m", "sepo_cli.annotate", "--config", self.config]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SEPO_ANNOTATE_")}
        shard = f"{rank}/{world_size}"
        with subprocess.Popen(
            [*command, "--shard", shard],
            env=environment,
            preexec_fn=_end_with_parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                task_log.info(line.rstrip())
        if process.returncode:
            task_log.error(f"shard {shard} ended with exit code {process.returncode}")
            sys.exit(1)


def _end_with_parent() -> None:
    """Send SIGTERM when the parent dies, so no shard outlives a killed run. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class _Local(LocalPipelineExecutor):  # type: ignore[misc]
    """Gives a task its rank among the running ones, and keeps the others running when one fails."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        if self.workers > 1:  # this is a process of datatrove's pool
            _end_with_parent()
            os.environ["LOCAL_RANK"] = str(local_rank)
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)
        except SystemExit:
            return PipelineStats()  # it is logged, and its mark stays missing


class _Ray(RayPipelineExecutor):  # type: ignore[misc]
    """A task is an actor; it and its shard end together, and a failure is an error that Ray can send."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        _end_with_parent()  # this is a process of the actor's pool
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)
        except SystemExit as error:  # the pool would wait for ever
            raise RuntimeError(f"task {rank} failed") from error


class _Slurm(SlurmPipelineExecutor):  # type: ignore[misc]
    """Without the final job that aggregates datatrove's statistics."""

    def launch_merge_stats(self) -> None:
        """Nothing to aggregate."""


def run_here(run: Run, options: Mapping[str, object], tasks: int | None, workers: int) -> None:
    """Run the tasks on this machine and wait for them.

    Args:
        run: The run.
        options: Of ``sepo-annotate``, by name.
        tasks: Number of shards; None: as many as workers.
        workers: How many at once.

    Raises:
        OutputError: If a task failed.
    """
    tasks = tasks or workers
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    folder = _task_folder(run)
    step = AnnotateShard(_write_config(folder, options))
    _wait_for(_Local([step], tasks=tasks, workers=workers, logging_dir=str(folder)), run, tasks)


def run_on_ray(
    run: Run, options: Mapping[str, object], tasks: int, workers: int | None, fields: Mapping[str, str]
) -> None:
    """Run the tasks on a Ray cluster, and wait for them.

    The cluster is that of ``RAY_ADDRESS``, or the one of this machine, which is started if there is
    none. A task whose worker or node dies is started again, three times at most.

    Args:
        run: The run; its folder must be one that all nodes see.
        options: Of ``sepo-annotate``, by name.
        tasks: Number of shards.
        workers: How many at once; None: as many as the cluster has room for.
        fields: Some of datatrove's RayPipelineExecutor.

    Raises:
        SettingsError: If Ray is not there, or a field is wrong.
        OutputError: If a task failed.
    """
    wrong = fields.keys() - RAY_DEFAULTS.keys()
    if wrong:
        raise SettingsError(f"--ray {min(wrong)}=… is none of {', '.join(sorted(RAY_DEFAULTS))}.")
    try:
        numbers = {name: float(value) if "." in value else int(value) for name, value in fields.items()}
    except ValueError as error:
        raise SettingsError(f"--ray: {error}. Give a number.") from error
    try:
        import ray
    except ImportError as error:
        raise SettingsError("--executor ray needs Ray. Run pip install ray first.") from error
    ray.init(log_to_driver=False, logging_level=logging.WARNING, ignore_reinit_error=True)
    gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
    folder = _task_folder(run)
    executor = _Ray(
        [AnnotateShard(_write_config(folder, options))],
        tasks=tasks,
        workers=workers or -1,
        logging_dir=str(folder),
        **{**RAY_DEFAULTS, "gpus_per_task": gpus, **numbers},
    )
    try:
        _wait_for(executor, run, tasks)
    finally:
        ray.shutdown()


def _wait_for(executor: PipelineExecutor, run: Run, tasks: int) -> None:
    mark_complete(executor, run, tasks)
    executor.run()
    check_complete(executor, tasks, f"Their logs are in {Path(executor.logging_dir.path) / 'logs'}")


def check_complete(executor: PipelineExecutor, tasks: int, logs: str) -> None:
    """Refuse a run with failed tasks; ``logs`` says where to look."""
    if failed := executor.get_incomplete_ranks():
        which = ", ".join(map(str, failed[:8]))
        problem = f"{len(failed)} of {tasks} tasks failed ({which})"
        raise OutputError(f"{problem}. {logs}; the same command reruns only these.")


def submit(
    run: Run, options: Mapping[str, object], tasks: int, workers: int | None, slurm: Mapping[str, str]
) -> str:
    """Submit the tasks as a SLURM job array; the last one to finish assembles the dataset.

    Args:
        run: The run.
        options: Of ``sepo-annotate``, by name.
        tasks: Number of shards.
        workers: Tasks at a time; None: no limit of our own.
        slurm: Fields of datatrove's SlurmPipelineExecutor, or options of ``sbatch``.

    Returns:
        What was submitted, as text.

    Raises:
        SettingsError: If a field is missing or wrong.
        OutputError: If ``sbatch`` fails.
    """
    if wrong := {"tasks", "workers"} & slurm.keys():
        raise SettingsError(f"--slurm {min(wrong)}=… is --{min(wrong)} here.")
    known = {*SLURM_DEFAULTS, "partition", "time"}
    named = {name.replace("-", "_"): value for name, value in slurm.items()}
    fields = {name: int(v) if v.isdecimal() else v for name, v in named.items() if name in known}
    if missing := [name for name in ("partition", "time") if name not in fields]:
        raise SettingsError(f"--executor slurm needs --slurm {missing[0]}=…, as sbatch does.")
    folder = _task_folder(run)
    executor = _Slurm(
        [AnnotateShard(_write_config(folder, options))],
        tasks=tasks,
        workers=workers or -1,
        logging_dir=str(folder),
        sbatch_args={name: value for name, value in slurm.items() if name.replace("-", "_") not in known},
        **{**SLURM_DEFAULTS, **fields},
    )
    mark_complete(executor, run, tasks)
    try:
        executor.run()
    except (OSError, subprocess.CalledProcessError) as error:
        raise OutputError(f"sbatch failed ({error}). Run this where sbatch can submit jobs.") from error
    script = folder / "launch_script.slurm"
    return f"submitted job {executor.job_id} ({tasks} tasks, {script}). The last one assembles the dataset."


def _task_folder(run: Run) -> Path:
    """Next to the output, which contains only the dataset in the end."""
    folder = run.output.absolute().with_name(f"{run.output.absolute().name}-tasks")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_config(folder: Path, options: Mapping[str, object]) -> Path:
    path = folder / "annotate.yaml"
    with writing(folder):
        path.write_text(yaml.safe_dump(dict(options), allow_unicode=True), encoding="utf-8")
    return path


def mark_complete(executor: PipelineExecutor, run: Run, tasks: int) -> None:
    """Mark exactly the tasks whose chunks all exist as complete."""
    for rank in range(tasks):
        if all(is_done(run, *chunk) for chunk in chunk_ranges(run.rows, (rank, tasks))):
            executor.mark_rank_as_completed(rank)
        elif executor.is_rank_completed(rank):
            executor.logging_dir.rm(f"completions/{rank:05d}")
