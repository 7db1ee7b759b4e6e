"""``sepo reselect``: other masks on an annotated dataset."""

from pathlib import Path
from typing import Any

import rich_click as click

from .common import Command, one_line_errors
from .selecting import SELECTION_OPTIONS, selection_change, selection_options


@click.command("reselect", cls=Command)
@click.argument("dataset", metavar="DIR|USER/NAME")
@click.option_panel("Selection", options=[*SELECTION_OPTIONS, "--seed"])
@selection_options
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="For --selection random.")
@click.option_panel("Data", options=["--revision", "--output"])
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a dataset on the Hub.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Becomes the new dataset."
)
@one_line_errors
def main(dataset: str, revision: str | None, output: Path, seed: int | None, **options: Any) -> None:
    """Select tokens of an annotated dataset again, without the oracle.

    The rewards stay as they are. Whatever is not said stays as annotated.

    \b
    Example:
        sepo reselect annotated --selection global --ratio 0.3 --output annotated-global
        sepo reselect me/prefs-sepo --exclude-tokens '\\s+' --output no-blanks
    """
    from sepo_data.annotation import Report
    from sepo_data.reselection import reselect

    from .reports import describe_report
    from .running import quiet_libraries

    quiet_libraries()
    made = reselect(dataset, selection_change(options), output, revision=revision, seed=seed)
    click.echo(describe_report(Report(output, made)))
