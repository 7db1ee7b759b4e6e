"""The ``sepo-annotate`` command."""

import os
from pathlib import Path

import rich_click as click

from sepo_data.selection import PER_RESPONSE, RATIO, SelectionRule
from sepo_data.settings import AnnotateSettings

from .common import importing
from .config import CONFIG
from .options import SHARE, command, option, panel
from .parts import PARTS, check_parts, run_parts
from .shared import (
    ALLOW_PICKLE,
    COLUMNS,
    CONFIG_NAME,
    DATA_REVISION,
    DEVICE,
    DTYPE,
    JSON,
    NO_REPORT,
    RATIO_HELP,
    SIDE_RATIOS,
    SPLIT,
    TRUST_REMOTE_CODE,
    chat_template,
    limit,
    max_length,
    push_options,
    reasoning,
    seed,
)


class BatchTokensType(click.ParamType):  # type: ignore[type-arg]
    """``auto`` or a number."""

    name = "auto|N"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """``None`` for ``auto``."""
        if value is None or value == "auto":
            return None
        if not str(value).isdigit() or int(str(value)) < 1:
            self.fail(f"{value!r} is neither auto nor a number of tokens.", param, ctx)
        return int(str(value))


@command(
    "annotate",
    panel(
        "Required",
        option(
            "--oracle", "DPO-trained model or PEFT adapter, Hub id or folder.", required=True, metavar="MODEL"
        ),
        option("--ref", "Reference model.", required=True, metavar="MODEL"),
        option(
            "--dataset",
            "Preferences: Hub id, folder, .parquet, .jsonl(.gz), .csv.",
            required=True,
            metavar="DATA",
        ),
    ),
    panel(
        "Output",
        option(
            "--output",
            "Default: the dataset's name and -sepo.",
            AnnotateSettings,
            required=False,
            metavar="DIR",
            callback=lambda ctx, parameter, output: output or default_output(ctx.params["dataset"]),
        ),
        *push_options("dataset"),
        NO_REPORT,
        option(
            "--dry-run",
            "Estimate the cost and dropped rows from a sample; write nothing.",
            is_flag=True,
        ),
        option(
            "--license", "Licence for the card if the source states none.", AnnotateSettings, metavar="ID"
        ),
        option("--store-logps", "Also store the log-probs of both models.", AnnotateSettings),
    ),
    panel(
        "Selection",
        option("--ratio", RATIO_HELP, type=SHARE, default=RATIO, metavar="R"),
        *SIDE_RATIOS,
        option(
            "--selection",
            "ratio: most extreme rewards; mass: fewest tokens with this share of the positive (negative) "
            "ones.",
            SelectionRule,
            "rule",
            type=click.Choice(PER_RESPONSE),
        ),
        seed(SelectionRule, "For --selection random."),
    ),
    panel(
        "Data",
        SPLIT,
        limit(AnnotateSettings, "Annotate the first N rows only."),
        option("--streaming", "Read a Hub dataset's parquet from there: no copy on disk.", AnnotateSettings),
        CONFIG_NAME,
        DATA_REVISION,
        *COLUMNS,
        *chat_template("Jinja chat template. Default: the oracle's, if it has one."),
    ),
    panel(
        "Scoring",
        max_length(),
        reasoning(AnnotateSettings, "score"),
        DTYPE,
        DEVICE,
        option(
            "--batch-tokens",
            "Maximum tokens per forward pass.",
            AnnotateSettings,
            type=BatchTokensType(),
            default="auto",
        ),
        option(
            "--sequential",
            "Load oracle and reference one after the other; automatic if memory cannot hold both.",
            AnnotateSettings,
        ),
    ),
    panel(
        "Models",
        option(
            "--base", "Base model of an adapter, if not the one it names.", AnnotateSettings, metavar="MODEL"
        ),
        option("--oracle-revision", "Branch, tag or commit on the Hub.", AnnotateSettings, metavar="REV"),
        option("--ref-revision", "Branch, tag or commit on the Hub.", AnnotateSettings, metavar="REV"),
        ALLOW_PICKLE,
        TRUST_REMOTE_CODE,
    ),
    PARTS,
    [CONFIG, JSON],
    settings=AnnotateSettings,
    env="SEPO_ANNOTATE",
)
def main(
    oracle: str,
    ref: str,
    dataset: str,
    dry_run: bool,
    settings: AnnotateSettings,
    executor: str | None,
    tasks: int | None,
    workers: int | None,
    slurm: dict[str, str],
    ray: dict[str, str],
    hf_jobs: dict[str, str],
    as_json: bool,
) -> None:
    """Score a preference dataset once and save its token rewards.

    An interrupted run resumes with the same command. Options can also be set in a YAML
    file (--config) or in the environment (SEPO_ANNOTATE_ORACLE=…); flags win.

    \b
    Example:
        sepo-annotate --oracle me/oracle --ref me/sft --dataset me/prefs
        torchrun --nproc-per-node 8 --no-python sepo-annotate … --shard auto
    """
    from .running import ProgressBar, Stop

    with importing("sepo_data.runs.chunks"):
        from sepo_data.annotation import annotate, begin
        from sepo_data.hub.errors import page_of
        from sepo_data.runs.workers import bind_gpu, num_gpus

        from .ending import plain_fields, saved, show, typed
        from .reports import describe_plan, describe_report, report_facts
    fields = {"slurm": slurm, "ray": ray, "hf-jobs": hf_jobs}
    check_parts(settings.shard, executor, tasks, workers, fields)
    if executor is None and settings.device in ("auto", "cuda"):
        bind_gpu(os.environ, num_gpus())
    if dry_run:
        from sepo_data.planning import plan

        found = plan(dataset, oracle, ref, settings)
        facts = plain_fields(found)
        facts["seconds_estimated"] = facts.pop("seconds")
        show(as_json, describe_plan(found), dry_run=True, **facts)
        return
    if executor is not None:
        submitted = run_parts(executor, begin(dataset, oracle, ref, settings)[1], tasks, workers, fields)
        if submitted is not None:
            show(as_json, [submitted], output=settings.output, finished=False, submitted=submitted)
            return
    run = ProgressBar(Stop("annotate", "chunk"), "row")
    try:
        report = annotate(dataset, oracle, ref, settings, progress=run, stop=run.stop.asked)
    finally:
        run.finish()
    if report.stopped:
        run.stop.exit()
    url = None if report.commit is None else page_of("datasets/", str(settings.push_to_hub))
    following = typed("inspect", report.output) if report.manifest is not None else None
    lines = [*describe_report(report), *saved(report.output, url, following)]
    show(as_json, lines, **report_facts(report), url=url)


def default_output(dataset: str) -> Path:
    """A folder in the working directory, named after the dataset."""
    name = dataset.rstrip("/").split("/")[-1]
    for suffix in (".gz", ".jsonl", ".json", ".parquet", ".csv"):
        name = name.removesuffix(suffix)
    return Path(f"{name}-sepo")


if __name__ == "__main__":
    main()
