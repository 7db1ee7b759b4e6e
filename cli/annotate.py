"""The ``sepo-annotate`` command."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import rich_click as click

from .common import (
    Command,
    chat_template_options,
    chosen_template,
    column_options,
    config_option,
    one_line_errors,
    read_pairs,
    trust_options,
)

if TYPE_CHECKING:
    from sepo_data.runs.folder import Run as AnnotationRun

RATIO = click.FloatRange(0, 1, min_open=True)


class ShardType(click.ParamType):  # type: ignore[type-arg]
    """``i/n``, counted from 0, or ``auto``."""

    name = "i/n|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int] | Literal["auto"]:
        """Two numbers, the first below the second."""
        if value == "auto":
            return "auto"
        if isinstance(value, tuple):
            return value
        index, _, count = str(value).partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            self.fail(f"{value!r} is not i/n with i from 0 to n-1, for example 0/4.", param, ctx)
        return int(index), int(count)


class BatchTokensType(click.ParamType):  # type: ignore[type-arg]
    """``auto`` or a number."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """None for ``auto``."""
        if value is None or value == "auto":
            return None
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither auto nor a number of tokens.", param, ctx)
        return int(value)


@click.command(
    "annotate", cls=Command, context_settings={"auto_envvar_prefix": "SEPO_ANNOTATE", "show_default": True}
)
@click.option_panel(
    "Models",
    options=[
        "--oracle", "--ref", "--oracle-revision", "--ref-revision", "--base", "--allow-pickle",
        "--trust-remote-code",
    ],
)  # fmt: skip
@click.option(
    "--oracle", required=True, metavar="MODEL", help="DPO-trained model or PEFT adapter, Hub id or folder."
)
@click.option("--ref", required=True, metavar="MODEL", help="What the oracle was trained from.")
@click.option("--oracle-revision", metavar="REV", help="Branch, tag or commit on the Hub.")
@click.option("--ref-revision", metavar="REV", help="Branch, tag or commit on the Hub.")
@click.option("--base", metavar="MODEL", help="Base of an adapter, if not the one that it names.")
@trust_options
@click.option_panel(
    "Data",
    options=[
        "--dataset", "--config-name", "--split", "--revision", "--limit", "--prompt-column",
        "--chosen-column", "--rejected-column", "--system-column", "--tools-column",
        "--truncated-column", "--ignore-columns",
        "--chat-template", "--no-chat-template",
    ],
)  # fmt: skip
@click.option(
    "--dataset",
    required=True,
    metavar="DATA",
    help="Preferences: Hub id, folder, .parquet, .jsonl(.gz), .csv.",
)
@click.option("--split", default="train", metavar="NAME", help="Which split to annotate.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the dataset on the Hub.")
@column_options
@chat_template_options("Jinja file to render prompts with. Default: the oracle's, if it has one.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Annotate the first N rows only.")
@click.option_panel(
    "Selection", options=["--ratio", "--chosen-ratio", "--rejected-ratio", "--selection", "--seed"]
)
@click.option(
    "--ratio", type=RATIO, default=0.3, metavar="R", help="Share of the tokens to select, both sides."
)
@click.option("--chosen-ratio", type=RATIO, metavar="R", help="Share for chosen responses, if it differs.")
@click.option(
    "--rejected-ratio", type=RATIO, metavar="R", help="Share for rejected responses, if it differs."
)
@click.option(
    "--selection",
    type=click.Choice(["ratio", "mass", "random", "all"]),
    default="ratio",
    help="ratio: most extreme rewards; mass: fewest tokens with this share of the positive (negative) ones.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="For --selection random.")
@click.option_panel(
    "Scoring",
    options=["--max-length", "--dtype", "--device", "--batch-tokens", "--sequential", "--store-logps"],
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    default=2048,
    metavar="N",
    help="Most tokens of prompt and response.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps, …")
@click.option("--batch-tokens", type=BatchTokensType(), default="auto", help="Most tokens in a forward pass.")
@click.option(
    "--sequential",
    is_flag=True,
    help="Load oracle and reference one after the other; done anyway where memory does not hold both.",
)
@click.option("--store-logps", is_flag=True, help="Keep the log-probs of both models beside the rewards.")
@click.option_panel("Many processes", options=["--shard", "--executor", "--tasks", "--workers", "--slurm"])
@click.option(
    "--shard",
    type=ShardType(),
    default="0/1",
    help="Do this part only; auto: by SLURM array or torchrun. Who finishes last makes the dataset.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "slurm"]),
    help="Let datatrove run all parts, on this machine or as an array of SLURM jobs.",
)
@click.option(
    "--tasks", type=click.IntRange(min=1), metavar="N", help="How many parts. Default here: workers."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="M",
    help="How many at once. Default: one a GPU here, all on SLURM.",
)
@click.option(
    "--slurm",
    multiple=True,
    metavar="FIELD=VALUE",
    callback=read_pairs,
    help="partition, time and any other option of sbatch.",
)
@click.option_panel(
    "Output",
    options=["--output", "--push-to-hub", "--private", "--license", "--dry-run", "--config"],
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Default: the dataset's name and -sepo."
)
@click.option("--push-to-hub", metavar="USER/NAME", help="Push the finished dataset there, in one commit.")
@click.option("--private", is_flag=True, help="Make the dataset on the Hub private.")
@click.option("--license", metavar="ID", help="Licence for the card, if the source states none.")
@click.option(
    "--dry-run", is_flag=True, help="Measure a few rows, say what a run would cost and drop, write nothing."
)
@config_option
@one_line_errors
def main(oracle: str, ref: str, dataset: str, ratio: float, dry_run: bool, **options: Any) -> None:
    """Score a preference dataset once and save its token rewards.

    The same command goes on where it was stopped. Options may also stand in a YAML
    file (--config) or in the environment (SEPO_ANNOTATE_ORACLE=…); flags win.

    \b
    Example:
        sepo-annotate --oracle me/oracle --ref me/sft --dataset me/prefs
        torchrun --nproc-per-node 8 --no-python sepo-annotate … --shard auto
    """
    from sepo_data.annotation import annotate, begin
    from sepo_data.runs.workers import bind_gpu, num_gpus, own_shard
    from sepo_data.schema import SIDES
    from sepo_data.selection import SelectionRule
    from sepo_data.settings import AnnotateSettings

    from .reports import describe_plan, describe_report
    from .running import Run, quiet_libraries

    quiet_libraries()
    options["output"] = options["output"] or default_output(dataset)
    executor, tasks, workers, slurm = (options.pop(n) for n in ("executor", "tasks", "workers", "slurm"))
    _check_parts(options["shard"], executor, tasks, workers, slurm)
    if options["shard"] == "auto":
        options["shard"] = own_shard(os.environ)
    options["chat_template"] = chosen_template(options["chat_template"], options.pop("no_chat_template"))
    rule, seed = options.pop("selection"), options.pop("seed")
    chosen_ratio, rejected_ratio = (options.pop(f"{side}_ratio") or ratio for side in SIDES)
    selection = SelectionRule(rule, chosen_ratio, rejected_ratio, seed)
    settings = AnnotateSettings(selection=selection, **options)
    if executor is None and settings.device in ("auto", "cuda"):
        bind_gpu(os.environ, num_gpus())
    if dry_run:
        from sepo_data.planning import plan

        click.echo(describe_plan(plan(dataset, oracle, ref, settings)))
        return
    if executor is not None:
        submitted = _run_parts(executor, begin(dataset, oracle, ref, settings)[1], tasks, workers, slurm)
        if submitted is not None:
            click.echo(submitted)
            return
    run = Run()
    try:
        report = annotate(dataset, oracle, ref, settings, progress=run, stop=run.stop.asked)
    finally:
        run.finish()
    if report.stopped:
        run.stop.exit()
    click.echo(describe_report(report))


def _check_parts(
    shard: Any, executor: str | None, tasks: int | None, workers: int | None, slurm: dict[str, str]
) -> None:
    """Options that say nothing, or contradict each other, are mistakes."""
    if executor is None and (tasks or workers):
        raise click.UsageError("--tasks and --workers need --executor.")
    if executor != "slurm" and slurm:
        raise click.UsageError("--slurm needs --executor slurm.")
    if executor is not None and shard != (0, 1):
        raise click.UsageError("--shard is one part, and --executor runs all of them.")
    if executor == "slurm" and tasks is None:
        raise click.UsageError("--executor slurm needs --tasks.")


def _run_parts(
    executor: str, run: "AnnotationRun", tasks: int | None, workers: int | None, slurm: dict[str, str]
) -> str | None:
    """Run the parts of a run that is not finished here, or submit them: then what was submitted."""
    from sepo_data.errors import SettingsError
    from sepo_data.runs.folder import is_finished, missing_chunks
    from sepo_data.runs.workers import num_gpus

    try:
        from .executors import run_here, submit
    except ImportError as error:
        raise SettingsError("--executor needs datatrove. Run pip install datatrove first.") from error
    if is_finished(run) or not missing_chunks(run):  # then the dataset is made here
        return None
    said = _said(run.output)
    if executor == "slurm":
        assert tasks is not None
        return submit(run, said, tasks, workers, slurm)
    run_here(run, said, tasks, workers or num_gpus() or 1)
    return None


def _said(output: Path) -> dict[str, Any]:
    """The options of this command as a config file has them, for processes that do a part of it."""
    context = click.get_current_context()
    assert context is not None
    names = {parameter.name: parameter.opts[0].removeprefix("--") for parameter in context.command.params}
    said = {names[name]: _as_yaml(value) for name, value in context.params.items() if value is not None}
    for name in ("shard", "executor", "tasks", "workers", "slurm", "dry-run"):
        said.pop(name, None)
    return {**said, "output": str(output.absolute())}


def _as_yaml(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return list(value) if isinstance(value, tuple) else value


def default_output(dataset: str) -> Path:
    """A folder in the working directory, named after the dataset."""
    name = dataset.rstrip("/").split("/")[-1]
    for suffix in (".gz", ".jsonl", ".json", ".parquet", ".csv"):
        name = name.removesuffix(suffix)
    return Path(f"{name}-sepo")


if __name__ == "__main__":
    main()
