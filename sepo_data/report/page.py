"""The report of an annotated dataset: one self-contained HTML file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from markupsafe import Markup

from ..annotated.annotations import ROWS_AT_ONCE, other_columns
from ..annotated.manifest import Manifest
from ..annotated.opening import Annotated, open_annotated
from ..errors import SettingsError
from .charts import charts
from .html import render, write_page
from .layers import Layer, add_layers, against_layer, policy_layer
from .rows import ROWS, StoredRow, rows_shown, stored_rows
from .statistics import Statistics, measure

if TYPE_CHECKING:
    import datasets

FREQUENT = 60  # tokens listed for each side


def report(
    dataset: str,
    output: Path | None = None,
    *,
    rows: int = ROWS,
    wanted: Sequence[int] = (),
    by: str | None = None,
    revision: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    against: str | None = None,
) -> Path:
    """Write the report of an annotated dataset.

    Args:
        dataset: Hub id or folder.
        output: The file; None: ``report.html``, in a local dataset's folder, else in the working directory.
        rows: Number of rows to show, see `rows_shown`; the statistics cover all rows.
        wanted: Numbers of further rows to show.
        by: A column whose groups are compared.
        revision: Branch, tag or commit of a dataset on the Hub.
        tokenizer: Hub id or folder of a policy whose tokens are shown below the oracle's.
        trust_remote_code: Run Python code that comes with the tokenizer.
        against: Hub id or folder of another annotation of the same pairs, shown below this one.

    Returns:
        The path of the file.

    Raises:
        SepoError: One of its subclasses, see `errors`.
    """
    folder = Path(dataset).expanduser()
    path = output or (folder if folder.is_dir() else Path()) / "report.html"
    annotated, found = measured(dataset, by=by, revision=revision)
    numbers = rows_shown(found.margins, rows, wanted)
    layers = []
    if tokenizer is not None:
        layers.append(policy_layer(annotated, numbers, tokenizer, trust_remote_code=trust_remote_code))
    if against is not None:
        layers.append(against_layer(annotated, numbers, against))
    page = dataset_page(annotated, found, numbers, by=by, layers=layers)
    write_page(path, page)
    return path


def measured(
    dataset: str, *, by: str | None = None, revision: str | None = None
) -> tuple[Annotated, Statistics]:
    """Open an annotated dataset and measure all of its rows, see `report`."""
    annotated = open_annotated(dataset, revision=revision)
    split = next(iter(annotated.splits.values()))
    if by is not None:
        _check_column(split, by)
    return annotated, measure(split.with_format("arrow").iter(ROWS_AT_ONCE), by=by)


def dataset_page(
    annotated: Annotated,
    found: Statistics,
    numbers: Sequence[int],
    *,
    by: str | None = None,
    layers: Sequence[Layer] = (),
) -> str:
    """Render the page of a dataset from `measured` with the given rows, see `report`."""
    split = next(iter(annotated.splits.values()))
    shown = stored_rows(split, numbers)
    if by is not None:
        places = {group.value: place for place, group in enumerate(found.groups)}
        for row in shown:
            row["group"] = places[str(split[row["row"]][by])]
    add_layers(shown, layers)
    return render_page(annotated.manifest, found, shown, by=by, layers=layers)


def render_page(
    manifest: Manifest,
    found: Statistics,
    rows: list[StoredRow],
    *,
    by: str | None = None,
    layers: Sequence[Layer] = (),
) -> str:
    """Render the page as HTML.

    Args:
        manifest: Manifest of the dataset.
        found: Statistics of all of its rows.
        rows: The rows to show, from `stored_rows`.
        by: The column by which ``found`` is grouped.
        layers: Lines of tokens to show below the oracle's.

    Raises:
        SettingsError: If matplotlib is not installed.
    """
    data = {"rows": rows, "scale": found.scale, "ratio": manifest.selection.ratio("chosen")}
    return render(
        "dataset.html.j2",
        scripts=["rows.js"],
        charts=charts(found, manifest.selection),
        m=manifest,
        s=found,
        health=found.health,
        warnings=manifest.warnings(),
        selection=[
            (name, value) for name, value in manifest.selection.as_dict().items() if value is not None
        ],
        frequent=FREQUENT,
        by=by,
        layers=layers,
        ticks=_ticks(found.scale),
        data=Markup(_json(data)),
    )


def _check_column(rows: "datasets.Dataset", column: str) -> None:
    if column not in rows.column_names:
        columns = ", ".join(other_columns(rows.column_names)) or "none"
        raise SettingsError(f"no column {column}. Correct `by`; the source has {columns}.")
    if pa.types.is_nested(rows.features.arrow_schema.field(column).type):
        raise SettingsError(
            f"column {column} holds lists. Give `by` a column with few values, such as a category."
        )


def _json(value: object) -> str:
    """ASCII JSON that no HTML parser mistakes for a tag."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _ticks(scale: float) -> list[str]:
    """Labels of the heat map's legend: five rewards in nats."""
    shown = [f"{part * scale:+.2g}".replace("-", "−") for part in (-1, -0.5, 0.5, 1)]
    return [f"≤ {shown[0]}", shown[1], "0", shown[2], f"≥ {shown[3]}"]
