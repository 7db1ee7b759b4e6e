"""A page that is open in the browser, and pages of tables made by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from annotated import manifest

from sepo_data.annotated.manifest import Manifest
from sepo_data.report.page import render_page
from sepo_data.report.rows import stored_rows
from sepo_data.report.statistics import measure


class Opened:
    """A page, its messages and its requests."""

    def __init__(self, browser: Any, path: Path, place: str = "", **context: Any) -> None:
        self.context = browser.new_context(
            reduced_motion="reduce", **{"viewport": {"width": 1200, "height": 800}, **context}
        )
        self.context.set_default_timeout(120_000)  # a machine may have other work
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{path.as_uri()}{place}")

    def masks(self, rule: str, amounts: Sequence[float] = (0.0,)) -> list[list[list[bool]]]:
        """Choose a rule and move its slider; return the selection on both sides for each amount."""
        self.page.select_option("#rule", rule)
        return list(self.page.evaluate(MOVE, [rule, list(amounts)]))


MOVE = """([rule, amounts]) => amounts.map(amount => {
  const slider = document.getElementById("amount");
  if (rule !== "annotated" && rule !== "all") {
    slider.value = amount;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }
  return [...document.querySelectorAll(".response")].map(
    side => [...side.querySelectorAll(".token")].map(token => token.ariaSelected === "true"));
})"""


def page_of(table: pa.Table, folder: Path, made: Manifest | None = None, *, by: str | None = None) -> Path:
    """The page of a table in the schema of an annotated dataset, with all of its rows."""
    import datasets

    rows, found = stored_rows(datasets.Dataset(table), range(table.num_rows)), measure([table], by=by)
    if by is not None:
        places = {group.value: place for place, group in enumerate(found.groups)}
        for row, value in zip(rows, table[by].to_pylist(), strict=True):
            row["group"] = places[str(value)]
    path = folder / "page.html"
    path.write_text(render_page(made or manifest(), found, rows, by=by), "utf-8")
    return path
