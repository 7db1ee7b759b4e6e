"""Every command and every Python block of the documentation runs, on small data, or says why not.

A page's blocks run in order, in a folder of its own, with the demo's models in place of the reader's and few
rows. A comment ``<!-- not run: reason -->`` before a block leaves it out.
"""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main
from sepo_data import AnnotateSettings, annotate, errors

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: path.read_text("utf-8") for path in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
}
ELSEWHERE = {
    "pipeline.md": "`make pipeline` runs it",
    "datasets.md": "tests/test_popular.py reads the datasets of its commands",
    "evaluation.md": "tests/test_generation.py and tests/test_evaluation.py run these commands",
    "plain_pytorch.md": "tests/test_docs.py runs it",
    "report.md": "tests/test_report.py runs these commands",
    "scaling.md": "tests/test_executors.py runs the executors, tests/test_docs.py reads the options",
    "projection.md": "tests/test_docs.py runs its Python",
    "measurements.md": "data and models of that size are not here",
    "measured_transfer.md": "as above",
    "measured_training.md": "as above",
}
# what a line may begin with besides sepo, and why it is not run here
OTHER_PROGRAMS = {
    "make": "tests/test_readme.py looks for its targets",
    "python": "benchmarks take hours",
    "python3": "sets up an environment",
    "pip": "installs",
    ".": "enters an environment",
    "torchrun": "several devices; tests/test_docs.py reads the options",
    "accelerate": "as above",
    "exec": "as above",
    "eval": "belongs into a shell",
}
STAND_INS = {
    "me/oracle-1b": "demo/oracle",
    "me/oracle-135m": "demo/oracle",
    "me/sft-1b": "demo/reference",
    "me/sft-135m": "demo/reference",
    "other/model-8b": "demo/policy",
    "me/prefs-sepo": "annotated",
    "me/prefs": "prefs.jsonl",
    "demo/pairs.jsonl": "prefs.jsonl",
    "PREFS": "prefs.jsonl",
    "CHATS": "prefs.jsonl --side chosen",
    "BASE": "demo/reference",
    "POLICY": "demo/policy",
}
SMALL = {
    f"SEPO_{command}_MAX_LENGTH": "256" for command in ("ANNOTATE", "TRAIN_SFT", "TRAIN_DPO", "TRAIN_SEPO")
}
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n+)?"
    r"(?:^```(?P<language>python|yaml)\n(?P<code>.*?)^```$|(?P<lines>(?:^    \S[^\n]*\n?)+))",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """The blocks to run: ``python`` with its code, ``yaml``, or ``command`` with a line."""
    for found in BLOCK.finditer(PAGES[page]):
        if found["reason"]:
            continue
        if found["code"]:
            yield found["language"], found["code"]
            continue
        for line in found["lines"].splitlines():
            if re.match(r"sepo(-\w+)? (?!.*…)", line.strip()):
                yield "command", line.split(" #")[0].strip()


def stood_in(text: str) -> str:
    pattern = r"(?<![\w/.-])(" + "|".join(map(re.escape, STAND_INS)) + r")(?![\w/-])"
    return re.sub(pattern, lambda name: STAND_INS[name[0]], text)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    lines = (ROOT / "demo" / "pairs.jsonl").read_text("utf-8").splitlines(keepends=True)[:14]
    (folder / "prefs.jsonl").write_text("".join(lines), "utf-8")
    settings = AnnotateSettings(output=folder / "annotated", max_length=256)
    annotate(
        str(folder / "prefs.jsonl"), str(ROOT / "demo" / "oracle"), str(ROOT / "demo" / "reference"), settings
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and any(blocks(page))])
def test_the_blocks_of_a_page_run(
    page: str, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "prefs.jsonl").write_bytes((annotated / "prefs.jsonl").read_bytes())
    if not any(re.search(r"annotate .*--output annotated$", block) for _, block in blocks(page)):
        (tmp_path / "annotated").symlink_to(annotated / "annotated")
    monkeypatch.chdir(tmp_path)
    for kind, block in blocks(page):
        if kind == "python":
            exec(compile(stood_in(block), page, "exec"), {})
        elif kind == "yaml":
            Path("run.yaml").write_text(stood_in(block), "utf-8")
        else:
            words = shlex.split(stood_in(block))
            words = [*words[0].split("-")[1:], *words[1:]]
            found = CliRunner().invoke(main, words, prog_name="sepo", env={**os.environ, **SMALL})
            assert found.exit_code == (3 if words[0] == "diff" else 0), f"{block}\n{found.output[-3000:]}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_a_line_that_is_a_command_is_one_that_is_run_or_explained(page: str) -> None:
    for found in BLOCK.finditer(PAGES[page]):
        for line in (found["lines"] or "").splitlines():
            words = line.split("#")[0].split()
            program = words[0] if words else ""
            if re.fullmatch(r"[a-z.][\w.-]*", program) and re.search(r" --[a-z]|\.py\b|pip install", line):
                assert program.startswith("sepo") or program in OTHER_PROGRAMS, line


def test_every_kind_of_error_has_an_entry_and_every_message_quoted_there_exists() -> None:
    page = PAGES["troubleshooting.md"]
    kinds = [name for name in vars(errors) if name.endswith("Error") and name != "SepoError"]
    assert re.findall(r"^## (\w+Error)$", page, re.MULTILINE) == kinds
    code = "".join(
        path.read_text("utf-8")
        for package in ("sepo_data", "sepo_train", "cli")
        for path in sorted((ROOT / package).rglob("*.py"))
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # literals that go on in the next line
    quoted = re.findall(r'^\| "(.+?)" \|', page, re.MULTILINE)
    assert len(quoted) >= 45
    assert not [message for message in quoted if message not in code]
