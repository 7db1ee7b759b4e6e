"""Push an annotated dataset with its report, and with two of the charts in its card."""

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
# charts for the card: is the oracle accurate, and what do the selected tokens carry?
_SHOWN = ("margins", "carried")
_BEFORE = "\n## Columns\n"  # charts are inserted before this heading of the card


def push_annotated(folder: Path, repo_id: str, *, private: bool = False, no_report: bool = False) -> str:
    """Push a finished folder of ``sepo-annotate`` in one commit: data, card and manifest, page and charts.

    Data files of an earlier push that the folder does not contain are deleted in the same commit. Pushing an
    unchanged folder makes no commit. The folder itself is not modified.

    Args:
        folder: Folder written by ``sepo-annotate`` or ``sepo merge``.
        repo_id: ``user/name`` or ``organization/name``; created if it does not exist.
        private: Create a private repository, and refuse an existing public one; always done if the source
            of the dataset is private or gated.
        no_report: Push without the report and the charts of the card.

    Returns:
        The SHA of the commit that holds the folder, for ``load_annotated(repo_id, revision=sha)``.

    Raises:
        OutputError: If the folder is not finished.
        SchemaError: If its data violates the contract of an annotated dataset.
        HubError: If the Hub refuses the push or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as work:
        pictures: Mapping[str, Path] = {}
        if not no_report:
            annotated_files(folder)  # refuses a bad folder before anything is drawn
            try:
                pictures = _pictures(folder, Path(work))
            except SettingsError as error:
                log.warning("pushing without report and charts: %s", error)
        return publishing.push_annotated(folder, repo_id, private=private, pictures=pictures)


def _pictures(folder: Path, work: Path) -> dict[str, Path]:
    """Report, charts and the card that shows them, by path in the repository."""
    annotated, found = measured(str(folder))
    write_page(work / PAGE, dataset_page(annotated, found, rows_shown(found.margins, ROWS)))
    made, lines = {PAGE: work / PAGE, "README.md": work / "README.md"}, ["", "## Charts", ""]
    for chart in charts(found, annotated.manifest.selection):
        if chart.name in _SHOWN:
            name = f"charts/{chart.name}.png"
            made[name] = work / f"{chart.name}.png"
            made[name].write_bytes(png(chart))
            lines += [f"![{chart.title}. {chart.caption}]({name})", "", chart.caption, ""]
    lines.append(
        f"More charts, and rows as heat maps: [{PAGE}]({PAGE}); download it and open it in a browser.\n"
    )
    before, place, after = (folder / "README.md").read_text("utf-8").partition(_BEFORE)
    made["README.md"].write_text(before + "\n".join(lines) + place + after, "utf-8")
    return made
