"""``sepo reselect``: change the masks of an annotated dataset."""

from pathlib import Path

from sepo_data.selection import SelectionRule
from sepo_data.settings import AnnotateSettings, SelectionChange

from .common import importing
from .options import command, option, panel
from .shared import DATA_REVISION, JSON, SELECTION, annotated_argument, seed


@command(
    "reselect",
    annotated_argument(),
    panel("Required", option("--output", "Folder of the new dataset.", AnnotateSettings, metavar="DIR")),
    panel("Selection", *SELECTION, seed(SelectionRule, "For --selection random.", default=None)),
    panel("Data", DATA_REVISION),
    [JSON],
    settings=SelectionChange,
)
def main(
    dataset: str,
    output: Path,
    seed: int | None,
    revision: str | None,
    settings: SelectionChange,
    as_json: bool,
) -> None:
    """Select tokens of an annotated dataset again, without the oracle.

    Rewards stay the same. Options that you leave out keep their annotated values.

    \b
    Example:
        sepo reselect annotated --selection global --ratio 0.3 --output annotated-global
        sepo reselect me/prefs-sepo --exclude-tokens '\\s+' --output no-blanks
    """
    with importing():
        from sepo_data.annotation import Report
        from sepo_data.reselection import reselect

        from .ending import saved, show, typed
        from .reports import describe_report, report_facts
    made = reselect(dataset, settings, output, revision=revision, seed=seed)
    report = Report(output, made)
    lines = [*describe_report(report), *saved(output, None, typed("inspect", output))]
    show(as_json, lines, **report_facts(report), url=None)
