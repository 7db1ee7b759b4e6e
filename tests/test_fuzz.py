"""Anything at all as rows, names, manifests, cards and config files: valid data comes out, or one line.

The examples are the same in every run. SEPO_FUZZ=20 in the environment draws twenty times as many.
"""

import copy
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from annotated import random_table
from click.testing import CliRunner
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_pair import pairs, save_pair
from tiny_tokenizers import FAMILIES, tiny_tokenizer

from cli.main import main
from sepo_data import AnnotateSettings, SepoError, annotate, load_annotated
from sepo_data.annotated.card import render_card
from sepo_data.annotated.from_json import from_json
from sepo_data.annotated.manifest import Manifest, RunRecord
from sepo_data.annotated.publishing import annotated_files
from sepo_data.models.description import PairFacts, describe_pair
from sepo_data.models.scoring import ScoredSide, Scores
from sepo_data.runs.folder import Run, open_run, write_chunk
from sepo_data.runs.inputs import Job, output_schema
from sepo_data.runs.merging import merge_run
from sepo_data.runs.tables import annotated_table
from sepo_data.schema import MANIFEST_NAME, Side, Sides, annotation_columns, validate
from sepo_data.sources.preferences import open_pairs
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import EncodedPair, encode_pairs
from sepo_data.verification import verify
from sepo_train.folder import Record
from sepo_train.model_card import render_card as render_model_card

TIMES = int(os.environ.get("SEPO_FUZZ", "1"))


def fuzz(
    examples: int, *drawn: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on this many examples."""
    unhurried = settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: unhurried(given(*drawn)(test))


_NUMBERS = itertools.count()

NASTY = [
    "", " ", "\n", "\0", "\ud800", "\udfff\ud800", "\ufffe\ufdd0", "\u2028", "\x85", "\r", "\x1b[2J",
    "\ufeff", "<|im_end|>", "<|im_start|>user\n", "<|endoftext|>", "\n\nHuman: a\n\nAssistant: b",
    "\n\nAssistant:", "<script>alert(1)</script>", "[a](https://evil.example)", "![a](//evil.example)",
    "<!--", "`", "|", "\\", "---", "---\nlicense: mit\n---\n", "...", "# Evil", "- a: [", "*a", "&a", "*",
    "!!python/object:os.system", "../../../../etc/passwd", "/etc/passwd", "C:\\con", "~", "{{ 7 * 7 }}",
    "{% raw %}", "%s%n", "no", "null", "NaN", "1e999", "=cmd()", "a" * 300, "é" * 40, "👩🏽\u200d💻",
    "e\u0301" * 9,
]  # fmt: skip
TEXTS = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=[]), max_size=20)
NAMES = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())  # as `name_of` and the Hub have them
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([10**400, -1, 0, 1]),
    st.floats(),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


# Rows

ROLES = st.sampled_from(["user", "assistant", "system", "tool"]) | SCALARS
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS})
    | st.fixed_dictionaries(
        {"role": ROLES, "content": SCALARS}, optional={"tool_calls": VALUES, "name": TEXTS}
    ),
    max_size=3,
)
ANSWERS = st.builds(lambda text: [{"role": "assistant", "content": text}], TEXTS)
EXTRA_NAMES = TEXTS | st.sampled_from(
    ["id", "_type", "list", "element", "chosen.x", "a.b.list", "prompt", "messages", "chosen_reward",
     "rejected_token_start", "a\0b", "__index_level_0__", "label", "feature", "dtype", "split", "repairs"]
)  # fmt: skip


QUESTIONS = st.builds(lambda text: [{"role": "user", "content": text}], TEXTS)
ALIKE = [  # values that one Arrow column holds together
    TEXTS,
    TEXTS | st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.lists(TEXTS, max_size=2),
    st.fixed_dictionaries({"_type": TEXTS, "a.b": st.lists(st.booleans(), max_size=2)}),
]
MIXED = [TEXTS, MESSAGES, ANSWERS, SCALARS, VALUES]


@st.composite
def usable_rows(draw: st.DrawFn) -> list[Any]:
    """Rows of a readable format with arbitrary texts."""
    prompt, side = draw(
        st.sampled_from(
            [
                (TEXTS, TEXTS),
                (QUESTIONS, ANSWERS),
                (TEXTS, ANSWERS),
                (None, st.tuples(QUESTIONS, ANSWERS).map(lambda turns: turns[0] + turns[1])),
                (None, TEXTS.map(lambda text: f"\n\nHuman: a\n\nAssistant: {text}")),
            ]
        )
    )
    columns = {"chosen": side, "rejected": side} | ({} if prompt is None else {"prompt": prompt})
    for _ in range(draw(st.integers(0, 2))):
        columns.setdefault(draw(EXTRA_NAMES), draw(st.sampled_from(ALIKE)))
    return draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=4))


@st.composite
def any_rows(draw: st.DrawFn) -> list[Any]:
    """Rows with arbitrary values."""
    names = ["prompt", "chosen", "rejected", draw(EXTRA_NAMES)]
    columns = {name: draw(st.sampled_from(MIXED)) for name in names}
    optional = {name: columns.pop(name) for name in list(columns) if draw(st.booleans())}
    row = st.fixed_dictionaries(columns, optional=optional)
    return draw(st.lists(row | VALUES if draw(st.integers(0, 5)) == 0 else row, min_size=1, max_size=3))


ROWS = st.one_of(usable_rows(), usable_rows(), usable_rows(), any_rows())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def facts(models: tuple[str, str]) -> PairFacts:
    return describe_pair(*models)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@contextmanager
def one_line_or_none() -> Iterator[list[str]]:
    """Check that an expected failure is one line and add it to the yielded list; raise any other."""
    refusals: list[str] = []
    try:
        yield refusals
    except SepoError as error:
        refusals.append(str(error))
    assert all(len(line.splitlines()) == 1 for line in refusals), refusals


def data_of(card: DatasetCard | ModelCard) -> dict[str, Any]:
    return dict(card.data.to_dict())


def write_rows(place: Path, rows: list[Any]) -> str:
    path = place / f"{next(_NUMBERS)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def random_scores(found: list[EncodedPair]) -> Scores:
    rng = np.random.default_rng(0)

    def of(side: Side) -> ScoredSide:
        sizes = [pair[side].positions.size for pair in found]
        return ScoredSide(*([rng.normal(size=size).astype(np.float32) for size in sizes] for _ in range(2)))

    return Sides.of(of)


@fuzz(200, ROWS, st.sampled_from(FAMILIES), st.integers(2, 400), st.sampled_from([True, True, True, False]))
def test_rows_are_annotated_or_dropped_for_a_reason(
    place: Path, facts: PairFacts, rows: list[Any], family: str, max_length: int, template: bool
) -> None:
    data = write_rows(place, rows)
    with one_line_or_none():
        source, columns = open_pairs(data)
        encoder = response_encoder(tiny_tokenizer(family), chat_template=template)
        encoded = encode_pairs(source.rows, columns, encoder, max_length, 0, len(source.rows))
        lost = [row for numbers in encoded.dropped.values() for row in numbers]
        assert sorted([*lost, *(pair.row for pair in encoded.pairs)]) == list(range(len(rows)))
        assert all(encoded.dropped)
        if not encoded.pairs or annotation_columns() & set(source.rows.column_names):
            return
        job = Job(source, columns, facts, encoder, AnnotateSettings(place / "out"), max_length)
        table = annotated_table(
            encoded, random_scores(encoded.pairs), output_schema(job), job.settings.selection
        )
        validate(table)
        pq.write_table(table, place / "rows.parquet")
        read = pq.read_table(place / "rows.parquet")
        assert read.schema.equals(table.schema)
        assert repr(read.to_pylist()) == repr(table.to_pylist())  # Arrow's NaN equals nothing


@fuzz(15, ROWS, st.sampled_from([True, True, True, False]))
def test_whatever_the_rows_a_run_ends_in_a_dataset_or_in_one_line(
    place: Path, models: tuple[str, str], rows: list[Any], template: bool
) -> None:
    data, output = write_rows(place, rows), place / f"out-{next(_NUMBERS)}"
    with one_line_or_none():
        report = annotate(data, *models, AnnotateSettings(output, chat_template=template, max_length=200))
        assert report.manifest is not None
        counts = report.manifest.counts
        assert counts.annotated + sum(counts.dropped.values()) == len(rows)
        loaded = load_annotated(str(output))["train"]
        assert len(loaded) == counts.annotated
        assert sorted(path.name for path in output.rglob("*") if path.is_file()) == [
            "README.md",
            MANIFEST_NAME,
            "train-00000-of-00001.parquet",
        ]
        card = DatasetCard((output / "README.md").read_text(encoding="utf-8"))
        assert data_of(card)["tags"][0] == "sepo"
        shown = CliRunner().invoke(main, ["inspect", str(output), "--row", str(len(loaded) - 1)])
        assert shown.exit_code == 0, shown.exception


def test_rows_that_fit_are_all_annotated_and_rows_that_do_not_are_refused(
    place: Path, models: tuple[str, str]
) -> None:
    output = place / f"out-{next(_NUMBERS)}"
    report = annotate(write_rows(place, pairs(3)), *models, AnnotateSettings(output))
    assert report.manifest is not None
    assert report.manifest.counts.annotated == 3
    with one_line_or_none() as refusals:
        annotate(write_rows(place, [{"text": "a"}, {"text": "b"}]), *models, AnnotateSettings(place / "none"))
    assert refusals


# Cards


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    rows = [*pairs(6), {**pairs(1)[0], "chosen": []}]
    annotate(write_rows(folder, rows), *models, AnnotateSettings(folder / "out"))
    return folder / "out"


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    return found


def named(manifest: dict[str, Any], names: list[str], licence: Any, *, on_hub: bool) -> dict[str, Any]:
    """The manifest with these names in all fields for names."""
    changed = copy.deepcopy(manifest)
    source, config, oracle, base, revision, split = names
    changed["source"] |= {"name": source, "config": config or "c", "on_hub": on_hub}
    changed["source"]["card"] = {"license": licence, "language": licence, "extra_gated_prompt": licence}
    changed["oracle"] |= {"name": oracle, "base": base or "b"}
    changed["ref"] |= {"name": base, "revision": revision}
    changed["scoring"]["source"] |= {
        "revision": revision,
        "split": "".join(filter(str.isalnum, split)) or "s",
    }
    return changed


def prose(page: str) -> str:
    """A page without code spans and blocks, in which markup has no meaning."""
    text = "".join(page.split("```")[::2])
    return "`".join(text.split("`")[::2])


@fuzz(60, st.lists(NAMES, min_size=6, max_size=6), NAMES | st.lists(NAMES, max_size=3), st.booleans())
def test_names_are_what_they_are_in_a_card_and_nothing_more(
    annotated: Path, names: list[str], licence: Any, on_hub: bool
) -> None:
    manifest = named(manifest_of(annotated), names, licence, on_hub=on_hub)
    plain = named(manifest_of(annotated), ["x"] * 6, "mit", on_hub=on_hub)
    content = render_card(from_json(Manifest, manifest))
    card = DatasetCard(content)
    expected = DatasetCard(render_card(from_json(Manifest, plain)))
    header = yaml.safe_load(content.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert header.keys() == data_of(expected).keys()
    assert [header[key] for key in ("license", "language", "extra_gated_prompt")] == [licence] * 3
    assert header["pretty_name"] == f"{names[0].split('/')[-1]} with token rewards (SePO)"
    assert header.get("source_datasets") == ([names[0]] if on_hub else None)
    assert header["sepo"]["source"] == f"{names[0]}@{names[4]}"
    assert header["sepo"]["oracle"].startswith(f"{names[2]}@")
    assert header["configs"][0]["data_files"][0]["split"] == manifest["scoring"]["source"]["split"]
    assert prose(card.text) == prose(expected.text)
    assert card.text.count("\n") == expected.text.count("\n")


@fuzz(60, st.lists(NAMES, min_size=4, max_size=4), st.booleans())
def test_names_are_what_they_are_in_a_model_card_too(names: list[str], on_hub: bool) -> None:
    def card(model: str, revision: str, dataset: str, config: str) -> ModelCard:
        record: Record = {
            "stage": "sepo",
            "model": {"name": f"x{model}", "revision": revision or "r", "on_hub": on_hub},
            "dataset": {"name": f"x{dataset}", "config": config or "c", "on_hub": on_hub},
            "settings": {"split": config or "c"},
        }
        return ModelCard(render_model_card(record, is_adapter=False))

    found, expected = card(*names), card("x", "x", "x", "x")
    assert data_of(found).keys() == data_of(expected).keys()
    if on_hub:
        assert data_of(found)["base_model"] == f"x{names[0]}"
    assert prose(found.text) == prose(expected.text)
    assert found.text.count("\n") == expected.text.count("\n")


# Manifests

WATCHED: list[Path] = []  # a folder that nobody has a reason to open
OPENED: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if (
        WATCHED
        and event in ("open", "os.listdir", "os.scandir")
        and isinstance(arguments[0], str | bytes | Path)
    ):
        path = os.path.normpath(Path.cwd() / os.fsdecode(arguments[0]))
        if Path(path).is_relative_to(WATCHED[0]):
            OPENED.append(path)


sys.addaudithook(_watch)


@pytest.fixture
def outside(tmp_path: Path, annotated: Path) -> Iterator[Path]:
    """A neighbour's folder with data that would fit; nothing in it may be opened, and none added."""
    folder = Path(shutil.copytree(annotated / "data", tmp_path / "outside"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    OPENED.clear()
    WATCHED.append(folder)
    yield folder
    WATCHED.clear()
    assert not OPENED
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


TRICKS = st.sampled_from(
    ["../outside/train-00000-of-00001.parquet", "data/../../outside/train-00000-of-00001.parquet",
     "../outside/x", "../../outside/x", "/etc/passwd", "data/", "data/..",
     "data/\0.parquet", "1.9", "2.0", 1, [], {}]
)  # fmt: skip
JUNK = VALUES | TRICKS


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[list[float], str, Any]]:
    """A place in a tree (relative at each level), an operation there, and its operand."""
    where = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5)
    what = st.sampled_from(["replace", "replace", "replace", "delete", "add"])
    return draw(st.lists(st.tuples(where, what, JUNK), min_size=1, max_size=2))


def mutated(tree: Any, changes: list[tuple[list[float], str, Any]]) -> Any:
    tree = copy.deepcopy(tree)
    for where, what, junk in changes:
        node = tree
        for share in where[:-1]:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            child = node[keys[int(share * len(keys))]] if keys else None
            if not isinstance(child, dict | list) or not child:
                break
            node = child
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[int(where[-1] * len(keys))] if keys else None
        if what == "add" and isinstance(node, dict):
            node["added"] = junk
        elif key is not None and what == "delete":
            del node[key]
        elif key is not None:
            node[key] = junk
    return tree


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def read_in_every_way(folder: Path, models: tuple[str, str], *, scored: bool) -> list[bool]:
    """Whether each way to read a dataset succeeds; failures are one line."""
    readers: list[Callable[[str], object]] = [
        load_annotated,
        lambda name: annotated_files(Path(name)),
        lambda name: merge_run(Path(name)),
    ]
    if scored:
        readers.append(lambda name: verify(name, *models, num_rows=2))
    answers = []
    for read in readers:
        with one_line_or_none() as refusals:
            read(str(folder))
        answers.append(not refusals)
    for command in (["inspect", str(folder)], ["merge", str(folder)], ["diff", str(folder), str(folder)]):
        found = CliRunner().invoke(main, command)
        assert isinstance(found.exception, SystemExit | None), (command, found.exception)
        assert found.exit_code in (0, 1)
        answers.append(found.exit_code == 0)
    return answers


def changed_folder(annotated: Path, tmp_path: Path, name: str, content: bytes) -> Path:
    folder = Path(shutil.copytree(annotated, tmp_path / f"copy-{next(_NUMBERS)}"))
    (folder / name).write_bytes(content)
    return folder


@fuzz(35, mutations())
def test_a_changed_manifest_is_read_or_refused_in_one_line(
    tmp_path: Path, outside: Path, annotated: Path, models: tuple[str, str], changes: Any
) -> None:
    content = as_json(mutated(manifest_of(annotated), changes))
    folder = changed_folder(annotated, tmp_path, MANIFEST_NAME, content)
    read_in_every_way(folder, models, scored=True)


def test_the_manifest_as_it_was_is_read_in_every_way_and_one_of_other_rows_in_none(
    tmp_path: Path, outside: Path, annotated: Path, models: tuple[str, str]
) -> None:
    content = (annotated / MANIFEST_NAME).read_bytes()
    same = changed_folder(annotated, tmp_path, MANIFEST_NAME, content)
    assert all(read_in_every_way(same, models, scored=True))
    manifest = manifest_of(annotated)
    manifest["scoring"]["source"]["rows"] = -1
    other = changed_folder(annotated, tmp_path, MANIFEST_NAME, as_json(manifest))
    assert not any(read_in_every_way(other, models, scored=True))


@fuzz(25, st.binary(max_size=40) | VALUES.map(as_json) | st.just(b"[" * 100_000))
def test_an_invalid_manifest_is_refused_in_one_line(
    tmp_path: Path, annotated: Path, models: tuple[str, str], content: bytes
) -> None:
    folder = changed_folder(annotated, tmp_path, MANIFEST_NAME, content)
    assert not any(read_in_every_way(folder, models, scored=False))
    with one_line_or_none() as refusals:
        annotate(write_rows(tmp_path, pairs(2)), *models, AnnotateSettings(folder))
    assert refusals


@fuzz(30, mutations())
def test_a_changed_card_leads_to_no_other_file(
    tmp_path: Path, outside: Path, annotated: Path, models: tuple[str, str], changes: Any
) -> None:
    content = (annotated / "README.md").read_text(encoding="utf-8")
    header, page = content.removeprefix("---\n").split("\n---\n", 1)
    metadata = {"configs": yaml.safe_load(header)["configs"]}
    changed = yaml.safe_dump(mutated(metadata, changes), allow_unicode=True).encode("utf-8", "replace")
    folder = changed_folder(annotated, tmp_path, "README.md", b"---\n" + changed + b"\n---\n" + page.encode())
    with one_line_or_none():
        load_annotated(str(folder))


@pytest.mark.parametrize(("pattern", "is_read"), [("data/train-*", True), ("data/test-*", False)])
def test_a_card_that_names_the_data_is_read_and_one_that_names_none_is_not(
    tmp_path: Path, outside: Path, annotated: Path, pattern: str, is_read: bool
) -> None:
    configs = [{"config_name": "default", "data_files": [{"split": "train", "path": pattern}]}]
    card = f"---\n{yaml.safe_dump({'configs': configs})}---\n# A page\n"
    with one_line_or_none() as refusals:
        load_annotated(str(changed_folder(annotated, tmp_path, "README.md", card.encode())))
    assert (not refusals) == is_read


def unfinished(folder: Path, annotated: Path) -> Run:
    """A run whose chunks are all there, before the merge."""
    whole = manifest_of(annotated)
    run = open_run(folder, from_json(RunRecord, whole))
    table = random_table(np.random.default_rng(0), run.rows)
    write_chunk(run, 0, run.rows, table, {"dropped": {}, "counts": {}})
    return run


@fuzz(60, mutations())
def test_a_changed_record_of_a_run_is_merged_or_refused_in_one_line(
    tmp_path: Path, outside: Path, annotated: Path, changes: Any
) -> None:
    run = unfinished(tmp_path / f"run-{next(_NUMBERS)}", annotated)
    (run.work / "run.json").write_bytes(as_json(mutated(run.record.as_dict(), changes)))
    with one_line_or_none():
        merge_run(run.output)


def test_the_record_as_it_was_is_merged_and_one_of_another_run_is_refused(
    tmp_path: Path, outside: Path, annotated: Path
) -> None:
    same, other = unfinished(tmp_path / "same", annotated), unfinished(tmp_path / "other", annotated)
    record = same.record.as_dict()
    (same.work / "run.json").write_bytes(as_json(record))
    assert merge_run(same.output).counts.annotated == same.rows
    (other.work / "run.json").write_bytes(as_json({**record, "selection": {"rule": "all"}}))
    with one_line_or_none() as refusals:
        merge_run(other.output)
    assert refusals


@fuzz(60, st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans(), st.booleans())
def test_a_changed_chunk_is_refused_in_one_line(
    tmp_path: Path, annotated: Path, place_in_file: float, bits: int, signed: bool, cut: bool
) -> None:
    run = unfinished(tmp_path / f"run-{next(_NUMBERS)}", annotated)
    path = run.chunk(0, run.rows)
    content = bytearray(path.read_bytes())
    start = 32 if signed else 0  # behind the hash
    position = start + int(place_in_file * (len(content) - start))
    content[position] ^= bits
    if cut:
        del content[position:]
    if signed:
        content[:32] = hashlib.sha256(content[32:]).digest()
    path.write_bytes(bytes(content))
    if signed:
        with one_line_or_none():
            merge_run(run.output)
    else:
        with pytest.raises(SepoError, match="damaged"):
            merge_run(run.output)


@pytest.mark.parametrize(("tail", "is_merged"), [(b"", True), (b"\0", False)])
def test_a_chunk_signed_again_is_merged_and_one_with_a_byte_more_is_refused(
    tmp_path: Path, annotated: Path, tail: bytes, is_merged: bool
) -> None:
    run = unfinished(tmp_path / "run", annotated)
    path = run.chunk(0, run.rows)
    content = path.read_bytes()[32:] + tail
    path.write_bytes(hashlib.sha256(content).digest() + content)
    with one_line_or_none() as refusals:
        merge_run(run.output)
    assert (not refusals) == is_merged


# Config files

OPTIONS = [option.opts[0].removeprefix("--") for option in main.commands["annotate"].params]


@fuzz(100, st.dictionaries(st.sampled_from(OPTIONS) | TEXTS, VALUES, max_size=4) | VALUES)
def test_a_config_file_is_used_or_refused_in_one_line(
    tmp_path: Path, models: tuple[str, str], content: Any
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8", errors="replace")
    arguments = ["--oracle", models[0], "--ref", models[1], "--dataset", str(tmp_path / "none.jsonl")]
    found = CliRunner().invoke(main, ["annotate", "--config", str(config), *arguments])
    assert isinstance(found.exception, SystemExit | None), (content, found.exception)
    assert found.exit_code in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(("content", "exit_code"), [({"limit": 1}, 0), ({"limt": 1}, 2), ({"limit": "x"}, 2)])
def test_a_config_file_that_fits_is_used_and_one_that_does_not_is_refused(
    tmp_path: Path, models: tuple[str, str], content: dict[str, object], exit_code: int
) -> None:
    config, data = tmp_path / "run.yaml", write_rows(tmp_path, pairs(3))
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    arguments = ["--oracle", models[0], "--ref", models[1], "--dataset", data, "--output", tmp_path / "out"]
    found = CliRunner().invoke(main, ["annotate", "--config", str(config), *map(str, arguments)])
    assert found.exit_code == exit_code, found.output
    if exit_code == 0:
        assert manifest_of(tmp_path / "out")["counts"]["annotated"] == 1
