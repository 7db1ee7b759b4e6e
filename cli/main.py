"""The group ``sepo``: all commands under one name, and those that finish a sharded run."""

from importlib.metadata import version
from pathlib import Path

import rich_click as click

from . import annotate, checking, evaluate, export, generate, inspection, report, reselect, train
from .common import Group
from .options import command, panel
from .shared import JSON, NO_REPORT, push_options

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group(cls=Group)
@click.command_panel(
    "Make a dataset", commands=["annotate", "inspect", "report", "reselect", "merge", "push"]
)
@click.command_panel("Train and evaluate", commands=["train", "evaluate", "generate", "export"])
@click.command_panel("Check", commands=["verify", "diff"])
@click.version_option(version("sepo"))
def main() -> None:
    """Turn preference data into token-weighted datasets."""


@command("merge", [click.RichArgument(["output"], type=FOLDER, metavar="DIR")], [JSON])
def merge(output: Path, as_json: bool) -> None:
    """Assemble the dataset in DIR from its shards, if the last worker did not."""
    from sepo_data.annotation import Report
    from sepo_data.runs.merging import merge_run

    from .ending import saved, show, typed
    from .reports import describe_report, report_facts

    report = Report(output, merge_run(output))
    lines = [*describe_report(report), *saved(output, None, typed("inspect", output))]
    show(as_json, lines, **report_facts(report), url=None)


@command(
    "push",
    [
        click.RichArgument(["folder"], type=FOLDER, metavar="DIR"),
        click.RichArgument(["repository"], metavar="USER/NAME"),
    ],
    panel("Hub", push_options("repository")[1], NO_REPORT),
    [JSON],
)
def push(folder: Path, repository: str, private: bool, no_report: bool, as_json: bool) -> None:
    """Push the annotated dataset or trained model in DIR to the Hub, in one commit."""
    from sepo_data import push_annotated
    from sepo_data.hub.errors import page_of
    from sepo_data.schema import MANIFEST_NAME

    from .ending import show

    prefix = "datasets/"
    if not (folder / MANIFEST_NAME).exists():
        from sepo_train.folder import RECORD_NAME
        from sepo_train.publishing import push_model

        prefix = "" if (folder / RECORD_NAME).exists() else prefix
    if prefix:
        commit = push_annotated(folder, repository, private=private, no_report=no_report)
    else:
        commit = push_model(folder, repository, private=private)
    url = page_of(prefix, repository)
    show(as_json, [f"pushed to {url}"], folder=folder, url=url, commit=commit)


for one in (
    annotate.main,
    train.main,
    inspection.main,
    checking.verify,
    checking.diff,
    reselect.main,
    report.main,
    export.main,
    generate.main,
    evaluate.main,
    merge,
    push,
):
    main.add_command(one)

if __name__ == "__main__":
    main()
