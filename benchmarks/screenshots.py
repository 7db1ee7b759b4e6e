"""Take the screenshots of `docs/report.md`: ``python benchmarks/screenshots.py out/demo``.

Takes the folder of ``make demo``, and needs Debian's Chromium, which ``make browser`` installs.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from sepo_data.report.page import report

DOCS = Path(__file__).parent.parent / "docs"


def main(dataset: str) -> None:
    """Write ``docs/report_charts.png`` (light) and ``docs/report_rows.png`` (dark)."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = report(dataset, Path(folder) / "report.html")
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 1180}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.screenshot(path=DOCS / "report_charts.png")
        page = chromium.new_page(
            viewport={"width": 1200, "height": 680}, color_scheme="dark", reduced_motion="reduce"
        )
        page.goto(f"{page_file.as_uri()}#row-13")
        page.locator(".response").nth(1).locator(".token").nth(9).hover()
        page.screenshot(path=DOCS / "report_rows.png")
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1])
