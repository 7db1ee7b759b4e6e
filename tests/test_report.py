"""Tests of the report: its statistics against plain numpy, the content of the page, and refusals."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from annotated import manifest, random_table
from click.testing import CliRunner
from nasty import NASTY
from transformers import AutoTokenizer

from cli.main import main
from sepo_data import (
    AnnotateSettings,
    SchemaError,
    annotate,
    load_annotated,
    project_row,
    reselect,
    select_tokens,
    show,
)
from sepo_data.pieces import one_text
from sepo_data.report.charts import charts
from sepo_data.report.drawing import svg
from sepo_data.report.kinds import KINDS, token_kinds
from sepo_data.report.page import render_page
from sepo_data.report.rows import rows_shown, stored_rows
from sepo_data.report.statistics import BARS, POSITIONS, RATIOS, measure
from sepo_data.schema import PAIR_COLUMNS, SIDES
from sepo_data.settings import SelectionChange
from sepo_data.tokens.templates import set_chat_template

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample of the repository, annotated by its models."""
    output = tmp_path_factory.mktemp("report") / "demo"
    settings = AnnotateSettings(output=output, store_logps=True)
    annotate(
        str(ROOT / "demo/pairs.jsonl"), str(ROOT / "demo/oracle"), str(ROOT / "demo/reference"), settings
    )
    return output


@pytest.fixture
def table() -> pa.Table:
    """Rewards in sixteenths of a nat, whose histograms are exact."""
    table = random_table(np.random.default_rng(0), 300)
    for side in SIDES:
        name = f"{side}_token_rewards"
        coarse = [[round(16 * reward) / 16 for reward in row] for row in table[name].to_pylist()]
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(coarse, table.schema.field(at).type))
    return table


def responses(table: pa.Table, side: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rewards and mask of each response, the end of the turn last."""
    for row in table.to_pylist():
        ends = (
            []
            if row[f"{side}_eos_reward"] is None
            else [(row[f"{side}_eos_reward"], row[f"{side}_eos_mask"])]
        )
        pairs = [*zip(row[f"{side}_token_rewards"], row[f"{side}_token_mask"], strict=True), *ends]
        yield np.array([reward for reward, _ in pairs]), np.array([mask for _, mask in pairs])


@pytest.mark.parametrize("rows_at_once", [7, 300])
def test_statistics_are_those_of_plain_numpy(table: pa.Table, rows_at_once: int) -> None:
    found = measure(table.slice(i, rows_at_once) for i in range(0, 300, rows_at_once))
    difference = np.subtract(*(table[f"{side}_reward"].to_numpy().astype(np.float64) for side in SIDES))
    assert found.margins.tolist() == difference.tolist()
    sizes = {side: [rewards.size for rewards, _ in responses(table, side)] for side in SIDES}
    assert found.longer.tolist() == np.subtract(sizes["chosen"], sizes["rejected"]).tolist()
    for side in SIDES:
        both = list(responses(table, side))
        rewards, mask = np.concatenate([r for r, _ in both]), np.concatenate([m for _, m in both])
        of_side = found.sides[side]
        assert (of_side.tokens, of_side.selected) == (rewards.size, mask.sum())
        for ratio, share in zip(RATIOS, of_side.carried, strict=True):
            marked = [np.abs(r[select_tokens(r, ratio, highest=side == "chosen")]).sum() for r, _ in both]
            assert share == pytest.approx(sum(marked) / np.abs(rewards).sum())
        parts = np.concatenate(
            [((np.arange(r.size) + 0.5) / r.size * POSITIONS).astype(int) for r, _ in both]
        )
        means = [rewards[parts == part].mean() for part in range(POSITIONS)]
        assert of_side.by_position == pytest.approx(means)
        assert of_side.histogram.sum() == ((found.edges[0] <= rewards) & (rewards < found.edges[-1])).sum()
        middle = np.histogram(rewards, found.edges)[0]
        assert of_side.histogram[:-1].tolist() == middle[:-1].tolist()  # numpy's last bar has both its ends
        assert len(middle) == BARS


def test_tokens_are_counted_by_text_and_kind(demo: Path) -> None:
    rows = load_annotated(str(demo))["train"]
    found = measure(rows.with_format("arrow").iter(10)).sides.rejected
    counted: Counter[str] = Counter()
    rewards: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for row in rows:
        text = row["rejected"] if isinstance(row["rejected"], str) else row["rejected"][-1]["content"]
        spans = zip(row["rejected_token_start"], row["rejected_token_end"], strict=True)
        texts = [text[start:end] for start, end in spans] + [""]
        counted.update(texts)
        for token, reward in zip(
            texts, [*row["rejected_token_rewards"], row["rejected_eos_reward"]], strict=True
        ):
            rewards[token] += reward
        for token in texts:
            if not token:
                kinds["end of turn"] += 1
            elif token.isspace():
                kinds["newline" if len(token.splitlines()) > 1 or token.endswith("\n") else "blank"] += 1
            elif token.strip().isascii():
                word, number = re.search("[A-Za-z]", token), re.search("[0-9]", token)
                kinds["word" if word else "number" if number else "punctuation"] += 1
            else:
                kinds["other"] += 1
    assert {token.text: token.count for token in found.texts} == dict(counted)
    for token in found.texts:
        assert token.reward == pytest.approx(rewards[token.text] / counted[token.text], abs=1e-6)
    of_kind = dict(zip(KINDS, found.kind_tokens.tolist(), strict=True))
    for kind in ("end of turn", "blank", "newline", "number"):
        assert of_kind[kind] == kinds[kind], kind
    assert sum(of_kind.values()) == sum(counted.values()) == found.tokens


def test_kinds_of_every_nasty_text_are_found() -> None:
    for text in NASTY:
        places = np.arange(len(text))
        assert len(token_kinds([one_text(text, places, places + 1, None, None)])) == len(text)
    wholes = [one_text(" 12 x", [0, 3], [3, 4], None, None), one_text("中a", [0], [2], None, None)]
    assert [KINDS[kind] for kind in token_kinds(wholes)] == ["number", "blank", "word"]


def test_groups_are_compared(table: pa.Table) -> None:
    values = ["a" if row % 3 else "b" for row in range(300)]
    found = measure([table.append_column("kind", pa.array(values))], by="kind")
    assert [(group.value, group.pairs) for group in found.groups] == [("a", 200), ("b", 100)]
    of_b = found.margins[::3]
    assert found.groups[1].margin == pytest.approx(of_b.mean())
    assert found.groups[1].accuracy == (of_b > 0).mean()
    of_side = list(responses(table, "rejected"))[::3]
    carried = sum(np.abs(rewards[mask]).sum() for rewards, mask in of_side)
    assert found.groups[1].carried.rejected == pytest.approx(
        carried / sum(np.abs(r).sum() for r, _ in of_side)
    )


def test_rows_shown_are_the_most_inverted_and_a_spread_of_the_others() -> None:
    margins = np.random.default_rng(1).normal(1.0, 2.0, 1000)
    shown = rows_shown(margins, 40, [7])
    order = np.argsort(margins)
    assert set(order[:10].tolist()) <= set(shown)
    assert {7, int(order[-1])} <= set(shown)
    assert len(shown) in (40, 41)
    assert shown == sorted(shown)
    assert rows_shown(margins[:5], 200) == [0, 1, 2, 3, 4]


def page_of(folder: Path, *options: str) -> str:
    found = CliRunner().invoke(main, ["report", str(folder), *options], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return Path(found.output.strip()).read_text("utf-8")


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def test_the_page_holds_the_head_the_charts_and_the_rows(demo: Path) -> None:
    page = page_of(demo)
    assert (demo / "report.html").read_text("utf-8") == page
    made = json.loads((demo / "sepo_manifest.json").read_text())
    for expected in (
        "pairs.jsonl", made["oracle"]["revision"], made["ref"]["revision"], "88.9%", "Token rewards",
        "Margin and length", "end of turn", "chosen_ratio 0.3", "45 annotated of 45",
    ):  # fmt: skip
        assert expected in page, expected
    rows = load_annotated(str(demo))["train"]
    stored = data_of(page)["rows"]
    assert [row["row"] for row in stored] == list(range(45))
    for row, original in zip(stored, rows, strict=True):
        for side in SIDES:
            rewards = np.frombuffer(base64.b64decode(row[side]["rewards"]), "<f4")
            expected = [*original[f"{side}_token_rewards"], original[f"{side}_eos_reward"]]
            assert rewards.tolist() == np.array(expected, np.float32).tolist()
            starts = np.frombuffer(base64.b64decode(row[side]["starts"]), "<u2")
            assert starts.tolist() == original[f"{side}_token_start"]
            assert len(base64.b64decode(row[side]["oracle"])) == 4 * len(starts)


def test_the_page_asks_nothing_of_any_other_place(demo: Path) -> None:
    page = page_of(demo, "--rows", "5")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_the_same_dataset_makes_the_same_page(demo: Path, tmp_path: Path) -> None:
    assert page_of(demo, "-o", str(tmp_path / "a.html")) == page_of(demo, "-o", str(tmp_path / "b.html"))


def test_rows_can_be_chosen(demo: Path, tmp_path: Path) -> None:
    page = page_of(demo, "--rows", "0", "--row", "13", "--row", "2", "-o", str(tmp_path / "page.html"))
    assert [row["row"] for row in data_of(page)["rows"]] == [2, 13]
    page = page_of(demo, "--rows", "8", "-o", str(tmp_path / "page.html"))
    assert len(data_of(page)["rows"]) == 8


def test_names_and_values_cannot_become_markup(table: pa.Table) -> None:
    evil = "</script><img src=x onerror=alert(1)>\u202e\0"
    made = manifest()
    made = replace(made, source=replace(made.source, name=evil), oracle=replace(made.oracle, name=evil))
    found = measure([table.append_column("kind", pa.array([evil] * 300))], by="kind")
    (row,) = stored_rows(datasets.Dataset(table), [0])
    row["chosen"]["text"] = evil
    page = render_page(made, found, [row], by="kind")
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\0" not in page
    assert page.count("</script>") == 3
    assert data_of(page)["rows"][0]["chosen"]["text"] == evil


def test_charts_of_one_row_of_equal_rewards_can_be_drawn() -> None:
    found = measure([random_table(np.random.default_rng(0), 1)])
    for chart in charts(found, manifest().selection):
        assert svg(chart).startswith("<svg")
        assert chart.caption


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--row", "45"], "no row 45: the dataset has 45"),
        (["--by", "nothing"], "no column nothing. Correct --by"),
        (["--by", "chosen_token_rewards"], "holds lists"),
        (["-o", "/proc/nowhere/page.html"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(demo: Path, options: list[str], said: str) -> None:
    found = CliRunner().invoke(main, ["report", str(demo), *options])
    assert found.exit_code == 1
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def reselected(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "more"
    reselect(str(demo), SelectionChange(chosen_ratio=0.6, rejected_ratio=0.6), output)
    return output


def test_a_policys_tokens_and_another_annotation_are_shown_below_the_oracles(
    demo: Path, reselected: Path, tmp_path: Path
) -> None:
    layers = ("--tokenizer", str(ROOT / "demo/policy"), "--against", str(reselected))
    page = page_of(demo, *layers, "--rows", "0", "--row", "13", "-o", str(tmp_path / "page.html"))
    assert "On the tokens of policy" in page
    assert "45 pairs in both; 0 only here, 0 only there. Reward accuracy 88.9% and 88.9%" in page
    rows = load_annotated(str(demo))["train"]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo/policy")
    texts = rows.select_columns([*PAIR_COLUMNS]).features.arrow_schema
    set_chat_template(tokenizer, True, texts, "policy")  # as training does
    pair = project_row(rows[13], tokenizer, row_number=13)
    other = load_annotated(str(reselected))["train"][13]
    (stored,) = data_of(page)["rows"]
    for side in SIDES:
        policy, against = stored[side]["layers"]
        assert (policy["layer"], against["layer"]) == ("policy", "more")
        projected = pair[side]
        rewards = np.frombuffer(base64.b64decode(policy["rewards"]), "<f4")
        assert rewards[:-1].tolist() == projected.token_rewards.tolist()
        assert (
            np.frombuffer(base64.b64decode(policy["starts"]), "<u2").tolist()
            == projected.token_start.tolist()
        )
        assert policy["text"] == stored[side]["text"]
        mask = [bool(one) for one in base64.b64decode(against["mask"])]
        assert mask == [*other[f"{side}_token_mask"], other[f"{side}_eos_mask"]]
        assert against["rewards"] == stored[side]["rewards"]


def test_an_annotation_of_other_pairs_is_refused_in_one_line(demo: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": "Why?", "chosen": "Because it is so.", "rejected": "No."}]
    data = tmp_path / "other.jsonl"
    data.write_text("\n".join(map(json.dumps, pairs)))
    models = (str(ROOT / "demo/oracle"), str(ROOT / "demo/reference"))
    annotate(str(data), *models, AnnotateSettings(output=tmp_path / "other"))
    found = CliRunner().invoke(main, ["report", str(demo), "--against", str(tmp_path / "other")])
    assert found.exit_code == 1
    assert "the two datasets have no pair in common" in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_row_shows_itself_in_a_notebook(demo: Path) -> None:
    row = dict(load_annotated(str(demo))["train"][13])
    html = show(row)._repr_html_()
    spans = re.findall(r'<span title="([+-][\d.]+) nats, (not )?selected"', html)
    rewards = [
        reward for side in SIDES for reward in [*row[f"{side}_token_rewards"], row[f"{side}_eos_reward"]]
    ]
    assert [shown for shown, _ in spans] == [f"{reward:+.3f}" for reward in rewards]
    selected = sum(sum(row[f"{side}_token_mask"]) + row[f"{side}_eos_mask"] for side in SIDES)
    assert sum(not skipped for _, skipped in spans) == selected
    text = re.sub(r"<[^>]*>", "", html)
    assert row["chosen"][-1]["content"] in text
    evil = "<img src=x onerror=alert(1)>\u202e"
    spans_of_evil = {"start": [0], "end": [len(evil)], "rewards": [1.0], "mask": [True]}
    named = {f"chosen_token_{name}": values for name, values in spans_of_evil.items()}
    html = show({**row, "chosen": evil, **named})._repr_html_()
    assert "<img" not in html
    assert "\u202e" not in html
    with pytest.raises(SchemaError, match="chosen_eos_reward is missing"):
        show({"prompt": "a"})


def test_a_folder_that_is_not_an_annotated_dataset_is_refused(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert found.exit_code == 1
    assert "not an annotated dataset" in found.stderr


def test_without_matplotlib_the_extra_is_named(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    found = CliRunner().invoke(main, ["report", str(demo)])
    assert found.exit_code == 1
    assert "pip install 'sepo[report]'" in found.stderr
