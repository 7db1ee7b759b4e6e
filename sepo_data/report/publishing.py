"""Push an annotated dataset with its page, and with two of the charts in its card."""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..annotated import publishing
from ..annotated.publishing import annotated_files
from ..errors import SettingsError
from .charts import charts
from .drawing import png
from .html import write_page
from .page import dataset_page, measured
from .rows import ROWS, rows_shown

log = logging.getLogger("sepo")

PAGE = "report.html"
_SHOWN = ("margins", "carried")  # of the charts: does the oracle know the order, and what do 30% carry
_BEFORE = "\n## Columns\n"  # the place in the card


def push_annotated(folder: Path, repo_id: str, *, private: bool = False, no_report: bool = False) -> str:
    """Push a finished folder of ``sepo-annotate`` in one commit: data, card and manifest, page and charts.

    Data files of an earlier push that the folder does not have are deleted in the same commit. A folder
    that is already there makes no second commit. The folder itself stays as it is.

    Args:
        folder: What ``sepo-annotate`` or ``sepo merge`` has written.
        repo_id: ``user/name`` or ``organization/name``; created if it does not exist.
        private: Create it private, and refuse one that is public; so is done anyway if the source of the
            dataset is private or gated.
        no_report: Leave out the page, and the charts of the card.

    Returns:
        The SHA of the commit that holds the folder, for ``load_annotated(repo_id, revision=sha)``.

    Raises:
        OutputError: If the folder is not finished.
        SchemaError: If its data does not keep the contract of an annotated dataset.
        HubError: If the Hub refuses, or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as work:
        pictures: Mapping[str, Path] = {}
        if not no_report:
            annotated_files(folder)  # a folder that cannot be pushed is refused before anything is drawn
            try:
                pictures = _pictures(folder, Path(work))
            except SettingsError as error:
                log.warning("pushed without its page and charts: %s", error)
        return publishing.push_annotated(folder, repo_id, private=private, pictures=pictures)


def _pictures(folder: Path, work: Path) -> dict[str, Path]:
    """Page, charts, and the card that shows them, by path in the repository."""
    annotated, found = measured(str(folder))
    write_page(work / PAGE, dataset_page(annotated, found, rows_shown(found.margins, ROWS)))
    made, lines = {PAGE: work / PAGE, "README.md": work / "README.md"}, ["", "## Charts", ""]
    for chart in charts(found, annotated.manifest.selection):
        if chart.name in _SHOWN:
            name = f"charts/{chart.name}.png"
            made[name] = work / f"{chart.name}.png"
            made[name].write_bytes(png(chart))
            lines += [f"![{chart.title}. {chart.says}]({name})", "", chart.says, ""]
    lines.append(f"More charts, and rows as heat maps: [{PAGE}]({PAGE}), one file to download and open.\n")
    before, place, behind = (folder / "README.md").read_text("utf-8").partition(_BEFORE)
    made["README.md"].write_text(before + "\n".join(lines) + place + behind, "utf-8")
    return made
