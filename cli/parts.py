"""One run in many parts: ``--shard``, and ``--executor`` that starts all of them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from sepo_data.settings import AnnotateSettings

from .options import COUNT, option, panel
from .shared import read_pairs

if TYPE_CHECKING:
    from sepo_data.runs.folder import Run as AnnotationRun

Fields = dict[str, dict[str, str]]  # fields given on the command line, by executor


class ShardType(click.ParamType):  # type: ignore[type-arg]
    """``i/n``, counted from 0, or ``auto``."""

    name = "i/n|auto"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Two numbers, the first below the second."""
        if value == "auto":
            from sepo_data.errors import SettingsError
            from sepo_data.runs.workers import own_shard

            try:
                return own_shard(os.environ)
            except SettingsError as error:
                self.fail(str(error), param, ctx)
        if isinstance(value, tuple):
            return value
        index, _, count = str(value).partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            self.fail(f"{value!r} is not i/n with i from 0 to n-1, for example 0/4.", param, ctx)
        return int(index), int(count)


PARTS = panel(
    "Many processes",
    option(
        "--shard",
        "Process only this shard; auto: from SLURM or torchrun. The last worker assembles the dataset.",
        AnnotateSettings,
        type=ShardType(),
        multiple=False,
        show_default=False,
    ),
    option(
        "--executor",
        "Run all shards with datatrove: here, on Ray, as a SLURM job array or as Hugging Face Jobs.",
        type=click.Choice(["local", "ray", "slurm", "hf-jobs"]),
    ),
    option("--tasks", "Number of shards. Default locally: workers.", type=COUNT, metavar="N"),
    option(
        "--workers",
        "Shards at a time. Default: one per GPU locally; elsewhere all that fit.",
        type=COUNT,
        metavar="M",
    ),
    option(
        "--slurm",
        "partition, time or any other sbatch option.",
        multiple=True,
        metavar="FIELD=VALUE",
        callback=read_pairs,
    ),
    option(
        "--ray",
        "cpus_per_task, gpus_per_task, mem_per_cpu_gb.",
        multiple=True,
        metavar="FIELD=VALUE",
        callback=read_pairs,
    ),
    option(
        "--hf-jobs",
        "folder, package, flavor, and timeout, namespace, image and others.",
        multiple=True,
        metavar="FIELD=VALUE",
        callback=read_pairs,
    ),
)


def check_parts(
    shard: tuple[int, int],
    executor: str | None,
    tasks: int | None,
    workers: int | None,
    fields: Fields,
) -> None:
    """Options that say nothing, or contradict each other, are mistakes."""
    if executor is None and (tasks or workers):
        raise click.UsageError("--tasks and --workers need --executor.")
    for name, of_other in fields.items():
        if executor != name and of_other:
            raise click.UsageError(f"--{name} needs --executor {name}.")
    if executor is not None and shard != (0, 1):
        raise click.UsageError("--shard is one part, and --executor runs all of them.")
    if executor in fields and tasks is None:
        raise click.UsageError(f"--executor {executor} needs --tasks.")


def run_parts(
    executor: str,
    run: "AnnotationRun",
    tasks: int | None,
    workers: int | None,
    fields: Fields,
) -> str | None:
    """Run the unfinished parts of a run here, or submit them; return what was submitted, if anything."""
    from sepo_data.errors import SettingsError
    from sepo_data.runs.folder import is_finished, missing_chunks
    from sepo_data.runs.workers import num_gpus

    try:
        from .executors import run_here, run_on_ray, submit
    except ImportError as error:
        raise SettingsError("--executor needs datatrove. Run pip install datatrove first.") from error
    if is_finished(run) or not missing_chunks(run):  # then the dataset is made here
        return None
    given = _given(run.output)
    if executor == "local":
        run_here(run, given, tasks, workers or num_gpus() or 1)
        return None
    assert tasks is not None
    if executor == "slurm":
        return submit(run, given, tasks, workers, fields["slurm"])
    if executor == "ray":
        run_on_ray(run, given, tasks, workers, fields["ray"])
        return None
    from .jobs import run_in_jobs

    run_in_jobs(run, given, tasks, workers, fields["hf-jobs"])
    return None


def _given(output: Path) -> dict[str, object]:
    """The options of this command as a config file has them, for processes that do a part of it."""
    context = click.get_current_context()
    assert context is not None
    names = {parameter.name: parameter.opts[0].removeprefix("--") for parameter in context.command.params}
    given = {names[name]: _as_yaml(value) for name, value in context.params.items() if value is not None}
    for name in ("shard", "executor", "tasks", "workers", "slurm", "ray", "hf-jobs", "dry-run", "json"):
        given.pop(name, None)
    return {**given, "output": str(output.absolute())}


def _as_yaml(value: object) -> object:
    if isinstance(value, Path):
        return str(value.absolute())
    return list(value) if isinstance(value, tuple) else value
