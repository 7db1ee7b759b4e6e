"""Hostile texts of datasets and runs, shown in Chromium: they stay text and look like what they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from annotated import TEXT, annotated_table, manifest, side_values
from opened import Opened, page_of
from test_run_report import history, record, save

from sepo_data.errors import visible
from sepo_data.schema import SIDES, annotated_schema
from sepo_train.run_report import report_run

MARKUP = [
    "</style><script>window.ran = 1</script>", "]]><script>window.ran = 1</script>", "<![CDATA[ x ]]>",
    "<svg onload='window.ran = 1'>", "<svg><script>window.ran = 1</script></svg>",
    "</title><script>window.ran = 1", "<iframe srcdoc='<script>top.ran = 1</script>'>",
    "<math><mtext></mtext><style><img src=x onerror=window.ran=1>", "<base href='https://example.com/'>",
    "<meta http-equiv='refresh' content='0;url=https://example.com'>",
    "<link rel=stylesheet href='https://example.com/a.css'>",
    "<plaintext>", "<textarea>", "<template>", "<noscript>",
    "\" onfocus='window.ran = 1' autofocus x=\"", "javascript:window.ran=1", "&lt;b&gt; &#60; &amp;lt;",
    "\\u003c/script\\u003e", "${window.ran = 1}", "{% raw %}{{ 7 * 7 }}",
    "__proto__", "constructor", "toString",
    "x}</style>*{display:none}", "url(https://example.com/a.png)", "a\u2028b\u2029c",
]  # fmt: skip
UNSEEN = [
    "a\u200bb", "a\u200eb\u200fc", "a\u061cb", "soft\u00adhyphen", "a\u2060b\u2064c", "\ufff9a\ufffab\ufffb",
    "hidden" + "".join(chr(0xE0000 + ord(letter)) for letter in "words"), "cr\rlf\r\n", "\ufeff",
]  # fmt: skip
TEXTS = """[...document.querySelectorAll('.response')].map(response =>
  [...response.querySelectorAll('.token:not(.turn-end)')].map(token => token.textContent).join(''))"""


def table_of(texts: list[str], *, reward: float = 0.5) -> pa.Table:
    """A row of each text: prompt, both responses and the column ``kind``."""
    content = []
    for text in texts:
        values: dict[str, Any] = {"kind": text, "prompt": text, "chosen": text, "rejected": text}
        for side in SIDES:
            values |= {f"{side}_{name}": value for name, value in side_values(text, reward=reward).items()}
        content.append(values)
    schema = annotated_schema(pa.schema({"kind": pa.string()}), TEXT, store_logps=False)
    return pa.Table.from_pylist(content, schema=schema)


def check_inert(opened: Opened, path: Path) -> None:
    assert opened.page.evaluate("window.ran") is None
    strange = "document.querySelectorAll('img, iframe, object, base, link, textarea, template').length"
    assert opened.page.evaluate(strange) == 0
    assert opened.said == []
    assert opened.asked == [path.as_uri()]
    opened.context.close()


def test_markup_in_texts_groups_and_names_stays_text(browser: Any, tmp_path: Path) -> None:
    texts, name = [*MARKUP, *UNSEEN], "".join(MARKUP[:4])
    made = manifest()
    made = replace(
        made,
        source=replace(made.source, name=name, config=name),
        oracle=replace(made.oracle, name=name, revision=name, base=name),
        ref=replace(made.ref, name=name),
        counts=replace(made.counts, dropped={name: 1}, notes={name: 1}),
    )
    path = page_of(table_of(texts), tmp_path, made, by="kind")
    opened = Opened(browser, path, "#row-0\"><img src=x onerror='window.ran=1'>")
    assert opened.page.inner_text("h1") == name
    for place, text in enumerate(texts):
        assert opened.page.inner_text("#where").startswith(f"Row {place} ")
        shown = visible(text).replace("\n", "↵\n")
        assert opened.page.evaluate(TEXTS) == [shown, shown]
        opened.page.locator(".token").first.hover()
        opened.page.keyboard.press("j")
    for value in opened.page.evaluate("[...document.getElementById('group').options].map(one => one.value)"):
        opened.page.select_option("#group", value)
        assert f"of {1 if value else len(texts)} " in opened.page.inner_text("#where")
    opened.page.select_option("#group", "")
    opened.page.fill("#search", MARKUP[0])
    assert "of 1 " in opened.page.inner_text("#where")
    check_inert(opened, path)


def test_markup_in_the_record_of_a_run_stays_text(browser: Any, tmp_path: Path) -> None:
    entries, evil = history(0.6931, 0.6), "".join(MARKUP[:6])
    facts = record(entries, transfer=evil, settings={evil: evil}, environment={evil: evil})
    facts["model"] |= {"name": evil, "revision": evil, "base": evil}
    facts["dataset"] |= {"name": evil, "config": evil}
    facts["rows"]["dropped"] = {evil: 1}
    save(tmp_path, facts, entries)
    path = report_run(tmp_path)
    check_inert(Opened(browser, path), path)


@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib's of a chart without data
@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0, 1e30])
@pytest.mark.parametrize("rows", [1, 40])
def test_rewards_that_are_all_equal_make_a_page(
    browser: Any, tmp_path: Path, reward: float, rows: int
) -> None:
    path = page_of(table_of(["one text"] * rows, reward=reward), tmp_path)
    opened = Opened(browser, path, viewport={"width": 320, "height": 640})
    opened.page.locator(".token").first.hover()
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.page.locator("figure svg").count() == 6
    check_inert(opened, path)


def test_a_token_of_a_million_characters_does_not_fill_the_window(browser: Any, tmp_path: Path) -> None:
    (row,) = annotated_table(1).to_pylist()
    one = {**side_values("x"), "token_end": [1_000_000]}
    row |= {"chosen": "word " * 200_000, **{f"chosen_{name}": value for name, value in one.items()}}
    path = page_of(pa.Table.from_pylist([row], schema=annotated_table(1).schema), tmp_path)
    opened = Opened(browser, path)
    assert len(opened.page.evaluate(TEXTS)[0]) == 1_000_000
    opened.page.locator(".token").first.focus()
    assert opened.page.locator("#tip").bounding_box()["height"] < 400
    assert opened.page.locator("#tokens table").first.bounding_box()["width"] < 1200
    check_inert(opened, path)


def test_blanks_and_marks_of_a_token_are_visible_in_its_tooltip(browser: Any, tmp_path: Path) -> None:
    path = page_of(table_of([" \t\n\u00a0\u3000\u0301\u200b"]), tmp_path)
    opened = Opened(browser, path)
    for place, shown in enumerate(["␣", "⇥", "↵", "\\xa0", "\\u3000", "◌\u0301", "\\u200b"]):
        opened.page.locator(".token").nth(place).focus()
        assert opened.page.inner_text("#tip code") == shown
    check_inert(opened, path)


def test_a_page_is_printed_light_with_its_colours(browser: Any, tmp_path: Path) -> None:
    path = page_of(table_of(["one text"]), tmp_path)
    opened = Opened(browser, path)
    opened.page.click("#theme")
    opened.page.click("#theme")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = opened.page.evaluate(background)
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate(background) != dark
    adjust = "getComputedStyle(document.querySelector('.token')).printColorAdjust"
    assert opened.page.evaluate(adjust) == "exact"
    check_inert(opened, path)


def test_walking_back_through_a_long_response_shows_the_token_below_the_panel(
    browser: Any, tmp_path: Path
) -> None:
    path = page_of(table_of(["word " * 800]), tmp_path)
    opened = Opened(browser, path)
    tokens = opened.page.locator(".response").first.locator(".token")
    tokens.nth(600).focus()
    panel, token = opened.page.locator(".panel").bounding_box(), tokens.first.bounding_box()
    opened.page.evaluate(
        "distance => scrollBy(0, distance)", token["y"] - panel["y"] - 100
    )  # it lies under it
    opened.page.keyboard.press("Home")
    panel, token = opened.page.locator(".panel").bounding_box(), tokens.first.bounding_box()
    assert token["y"] >= panel["y"] + panel["height"]
    opened.context.close()
