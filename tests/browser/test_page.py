"""Tests of the report's page in Chromium, used like a person would."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from annotated import TEXT, manifest, random_table, side_values
from nasty import NASTY
from opened import Opened, page_of
from test_run_report import history, record, save

from sepo_data import AnnotateSettings, annotate
from sepo_data.report.page import render_page, report
from sepo_data.report.rows import stored_rows
from sepo_data.report.statistics import measure
from sepo_data.schema import SIDES, annotated_schema
from sepo_data.selection import select, select_beyond
from sepo_train.run_report import report_run

ROOT = Path(__file__).parent.parent.parent
RATIOS = [step / 100 for step in range(1, 101, 5)]
EVIL = [
    "</script><script>window.ran = 1</script>", "<!-- <script>window.ran = 1",
    "<img src=x onerror='window.ran = 1'>", "\u202egnihton\u202c", "a\u2066b\u2069", "مرحبا بالعالم",
    "👩\u200d👩\u200d👧\u200d👦", "{{ 7 * 7 }}",
]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the sample."""
    output = tmp_path_factory.mktemp("browser") / "demo"
    settings = AnnotateSettings(output=output, store_logps=True)
    annotate(
        str(ROOT / "demo/pairs.jsonl"), str(ROOT / "demo/oracle"), str(ROOT / "demo/reference"), settings
    )
    return report(str(output))


@pytest.fixture
def opened(browser: Any, demo: Path) -> Iterator[Opened]:
    opened = Opened(browser, demo)
    yield opened
    assert opened.said == []
    assert opened.asked == [demo.as_uri()]
    opened.context.close()


def stored(opened: Opened) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = opened.page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).rows"
    )
    return rows


def check_selection(opened: Opened) -> None:
    """Every rule and ratio on every row, against `selection`."""
    for row in stored(opened):
        rewards = [np.frombuffer(base64.b64decode(row[side]["rewards"]), "<f4") for side in SIDES]
        for rule in ("ratio", "mass"):
            for ratio, masks in zip(RATIOS, opened.masks(rule, RATIOS), strict=True):
                for mask, values, highest in zip(masks, rewards, (True, False), strict=True):
                    expected = select(values, rule, ratio, highest=highest)
                    assert mask == expected.tolist(), (row["row"], rule, ratio, highest)
        (masks,) = opened.masks("threshold", [0.7])
        cutoff = float(opened.page.input_value("#amount"))
        assert masks[0] == select_beyond(rewards[0], cutoff, highest=True).tolist()
        assert masks[1] == select_beyond(rewards[1], -cutoff, highest=False).tolist()
        assert all(mask == [True] * len(mask) for mask in opened.masks("all")[0])
        stored_masks = [[bool(one) for one in base64.b64decode(row[side]["mask"])] for side in SIDES]
        assert opened.masks("annotated") == [stored_masks]
        opened.page.keyboard.press("j")


def test_the_slider_selects_what_sepo_selects(opened: Opened) -> None:
    check_selection(opened)


def test_of_equal_rewards_the_page_selects_the_same_as_sepo(browser: Any, tmp_path: Path) -> None:
    table = random_table(np.random.default_rng(0), 20)
    for side in SIDES:
        at = table.schema.get_field_index(f"{side}_token_rewards")
        coarse = [np.round(row).tolist() for row in table.column(at).to_pylist()]
        table = table.set_column(at, table.schema.field(at), pa.array(coarse, table.schema.field(at).type))
    check_selection(Opened(browser, page_of(table, tmp_path)))


def test_nasty_texts_are_inert_and_shown(browser: Any, tmp_path: Path) -> None:
    content = []
    for text in [*EVIL, *NASTY]:
        values: dict[str, Any] = {"id": 0, "prompt": text, "chosen": text, "rejected": text}
        for side in SIDES:
            values |= {f"{side}_{name}": value for name, value in side_values(text[:2000]).items()}
            values |= {side: text if len(text) <= 2000 else text[:2000]}
        content.append(values)
    schema = annotated_schema(pa.schema({"id": pa.int64()}), TEXT, store_logps=False)
    made = replace(manifest(), source=replace(manifest().source, name=EVIL[0]))
    import datasets

    table = pa.Table.from_pylist(content, schema=schema)
    rows = stored_rows(datasets.Dataset(table), range(table.num_rows))
    rows[0]["chosen"]["text"] = "\ud83d" + rows[0]["chosen"]["text"][1:]  # Arrow holds none, JSON does
    path = tmp_path / "nasty.html"
    path.write_text(render_page(made, measure([table]), rows), "utf-8")
    opened = Opened(browser, path)
    for row in rows:
        shown = opened.page.inner_text(".response").replace("↵", "")
        assert shown, row["row"]
        if row["chosen"]["text"].isascii() and row["chosen"]["text"].isprintable():
            assert row["chosen"]["text"].strip() in shown
        assert not set("\0\u202e\u2066") & set(shown)
        opened.page.keyboard.press("j")
    assert opened.page.evaluate("window.ran") is None
    assert opened.page.evaluate("document.querySelectorAll('img, iframe, object').length") == 0
    assert opened.said == []
    assert opened.asked == [path.as_uri()]


def test_a_response_of_100_000_characters_is_shown(browser: Any, tmp_path: Path) -> None:
    table = random_table(np.random.default_rng(0), 2)
    text, ends = "word " * 20_000, np.arange(5, 100_001, 5)
    values = {
        **side_values("x" * ends.size),
        "token_start": (ends - 5).tolist(),
        "token_end": ends.tolist(),
    }
    values = {"chosen": text, **{f"chosen_{name}": value for name, value in values.items()}}
    content = [{**row, **values} for row in table.to_pylist()]
    opened = Opened(browser, page_of(pa.Table.from_pylist(content, schema=table.schema), tmp_path))
    assert opened.page.locator(".response").first.locator(".token").count() == ends.size + 1
    assert opened.said == []


def test_keys_walk_rows_and_tokens(opened: Opened) -> None:
    where = opened.page.locator("#where")
    assert where.inner_text().startswith("Row 0")
    opened.page.keyboard.press("j")
    opened.page.keyboard.press("j")
    opened.page.keyboard.press("k")
    assert where.inner_text().startswith("Row 1")
    assert opened.page.url.endswith("#row-1")
    opened.page.locator(".response .token").first.focus()
    opened.page.keyboard.press("ArrowRight")
    tip = opened.page.locator("#tip")
    row = stored(opened)[1]["chosen"]
    reward = np.frombuffer(base64.b64decode(row["rewards"]), "<f4")[1]
    assert f"{abs(reward):.3f} nats" in tip.inner_text()
    assert "oracle log-prob" in tip.inner_text()
    opened.page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_hovering_tells_a_token(opened: Opened) -> None:
    opened.page.locator(".response .token").nth(3).hover()
    text = opened.page.locator("#tip").inner_text()
    assert "rank" in text
    assert "selected" in text


def test_a_link_opens_its_row_or_says_that_it_is_not_there(browser: Any, demo: Path) -> None:
    assert Opened(browser, demo, "#row-13").page.inner_text("#where").startswith("Row 13")
    assert "--row 99" in Opened(browser, demo, "#row-99").page.inner_text("#where")


def test_filters_leave_the_rows_that_they_name(opened: Opened) -> None:
    rows = stored(opened)
    page, where = opened.page, opened.page.locator("#where")
    page.select_option("#which", "wrong")
    assert f"of {sum(row['margin'] < 0 for row in rows)} " in where.inner_text()
    assert "wrong order" in where.inner_text()
    page.select_option("#which", "all")
    page.fill("#least", "20")
    page.fill("#most", "40")
    assert f"of {sum(20 <= row['margin'] <= 40 for row in rows)} " in where.inner_text()
    page.fill("#least", "")
    page.fill("#most", "")
    page.fill("#search", "BOOK, STORY")
    assert where.inner_text().startswith("Row 13")
    page.fill("#search", "no row says this")
    assert "No rows match" in page.inner_text("#row")


def test_moving_the_slider_chooses_its_rule(opened: Opened) -> None:
    opened.page.locator("#amount").focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.input_value("#rule") == "ratio"
    assert opened.page.inner_text("#amount-value") == "31%"


def test_tables_sort_by_their_heads(opened: Opened) -> None:
    counts = (
        "[...document.querySelector('.sortable tbody').rows].map(row => Number(row.cells[1].textContent))"
    )
    first = opened.page.evaluate(counts)
    assert first == sorted(first, reverse=True)
    opened.page.get_by_role("button", name="count").first.click()
    assert opened.page.evaluate(counts) == sorted(first)


def test_the_theme_can_be_switched(browser: Any, demo: Path) -> None:
    for scheme in ("light", "dark"):
        opened = Opened(browser, demo, color_scheme=scheme)
        background = "getComputedStyle(document.body).backgroundColor"
        before = opened.page.evaluate(background)
        other = {"light": 2, "dark": 1}[scheme]
        for _ in range(other):
            opened.page.click("#theme")
        assert opened.page.evaluate(background) != before


@pytest.mark.parametrize(("width", "zoom"), [(320, 1), (1200, 4), (3840, 1)])
def test_nothing_is_wider_than_the_window(browser: Any, demo: Path, width: int, zoom: int) -> None:
    opened = Opened(browser, demo, "#row-13", viewport={"width": width // zoom, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_at_a_zoom_of_400_percent_a_tooltip_leaves_its_token_visible(browser: Any, demo: Path) -> None:
    opened = Opened(browser, demo, "#row-13", viewport={"width": 320, "height": 256})
    opened.page.locator(".token").first.focus()
    for _ in range(12):
        for _ in range(3):
            opened.page.keyboard.press("ArrowRight")
        tip = opened.page.locator("#tip").bounding_box()
        token = opened.page.locator(".token:focus").bounding_box()
        assert tip["y"] >= token["y"] + token["height"] or tip["y"] + tip["height"] <= token["y"]
        assert 0 <= token["y"] <= 256 - token["height"]
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_axe_finds_nothing(browser: Any, demo: Path, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    viewport = {"width": width, "height": 800}
    opened = Opened(browser, demo, "#row-13", color_scheme=scheme, viewport=viewport, bypass_csp=True)
    found = axe.Axe().run(opened.page)
    assert found.violations_count == 0, found.generate_report()


def test_the_slider_selects_on_the_tokens_that_stand_under_the_oracles(browser: Any, demo: Path) -> None:
    path = report(
        str(demo.parent),
        demo.parent / "layers.html",
        rows=0,
        wanted=[13],
        tokenizer=str(ROOT / "demo/policy"),
    )
    opened = Opened(browser, path, bypass_csp=True)
    (row,) = stored(opened)
    lines = [(line, side == "chosen") for side in SIDES for line in (row[side], *row[side]["layers"])]
    assert len(lines) == 4
    for ratio, masks in zip(RATIOS, opened.masks("ratio", RATIOS), strict=True):
        for mask, (line, highest) in zip(masks, lines, strict=True):
            rewards = np.frombuffer(base64.b64decode(line["rewards"]), "<f4")
            assert mask == select(rewards, "ratio", ratio, highest=highest).tolist()
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(opened.page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1200, "dark")])
def test_the_page_of_a_run_is_sound(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    entries = history(0.69, 0.8, 0.9)
    save(tmp_path, record(entries), entries)
    path = report_run(tmp_path)
    viewport = {"width": width, "height": 800}
    plain = Opened(browser, path, color_scheme=scheme, viewport=viewport)
    assert plain.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    plain.page.click("#theme")
    assert plain.page.evaluate("document.documentElement.dataset.theme") == "light"
    assert (plain.said, plain.asked) == ([], [path.as_uri()])
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    opened = Opened(browser, path, color_scheme=scheme, viewport=viewport, bypass_csp=True)
    found = axe.Axe().run(opened.page)
    assert found.violations_count == 0, found.generate_report()
