"""Tests that the training pages are true: their Python and their commands run."""

import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import rich_click as click
import torch
from transformers import AutoModelForCausalLM

from cli.main import main
from sepo_data import AnnotateSettings, annotate
from sepo_data.models.logprobs import token_logps
from sepo_data.rules.weights import WEIGHTS
from sepo_data.selection import SELECTIONS
from sepo_train import sepo_loss

ROOT = Path(__file__).parent.parent
DOCS = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
PIPELINE = re.findall(r"^    \$ (.*)$", DOCS["pipeline.md"], re.MULTILINE)
LAUNCHED = [
    *re.findall(
        r"^    (?:torchrun|accelerate launch) .*-m (sepo_cli\..*)$", DOCS["training.md"], re.MULTILINE
    ),
    *re.findall(
        r"^    (?:torchrun|accelerate launch|exec) .*?(sepo-annotate .*)$", DOCS["scaling.md"], re.MULTILINE
    ),
]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS[page], re.DOTALL)


def parsed(line: str) -> dict[str, Any]:
    """The options of a command as click reads them, required ones, ranges and choices included."""
    words = shlex.split(line)
    words = [*words[0].split("-")[1:], *words[1:]]
    command: click.Command = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    return command.make_context(command.name, words).params


@pytest.mark.parametrize("line", PIPELINE)
def test_a_command_of_the_pipeline_can_be_read(line: str) -> None:
    parsed(line)


def test_the_pipeline_trains_annotates_and_looks_in_an_order_that_works() -> None:
    made: set[str] = set()
    for line in PIPELINE:
        options = parsed(line)
        for name in ("model", "policy", "oracle", "ref", "dataset", "tokenizer"):
            path = options.get(name)
            assert path is None or path in made or ((ROOT / path).exists() and not path.startswith("out")), (
                line
            )
        made |= {str(options[name]) for name in ("output", "output_dir") if options.get(name)}
    assert [line.split()[0] for line in PIPELINE].count("sepo-train") == 5
    assert {"out/pipeline/policy", "out/pipeline/other-policy"} <= made


def test_every_output_that_the_pipeline_shows_is_that_of_its_command() -> None:
    # a command says where it saved what it made, and none is shown without what it printed
    shown = re.split(r"^    \$ ", DOCS["pipeline.md"], flags=re.MULTILINE)[1:]
    for line, page in zip(PIPELINE, shown, strict=True):
        options = parsed(line)
        output = options.get("output_dir") or options.get("output")
        printed = re.findall(r"^    (.*)$", page.split("\n## ")[0], re.MULTILINE)
        assert printed
        assert output is None or any(line.startswith(f"saved to {output} in") for line in printed)


def test_make_runs_the_lines_of_the_page() -> None:
    (script,) = re.findall(r"sed -n '.*' docs/pipeline\.md", (ROOT / "Makefile").read_text())
    found = subprocess.run(
        ["sh", "-c", script.replace("$$", "$")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == PIPELINE


def test_ci_runs_the_pipeline() -> None:
    assert "make pipeline" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("line", LAUNCHED)
def test_a_command_under_a_launcher_can_be_read(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    parsed(line.replace("sepo_cli.", "sepo-"))


def test_launchers_are_shown() -> None:
    assert len(LAUNCHED) >= 7


def test_the_worked_example_of_projection_prints_what_the_page_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (block,) = python_blocks("projection.md")
    exec(compile(block, "projection.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert len(promised) == 5
    assert capsys.readouterr().out.splitlines() == promised


def test_picture_tables_and_python_of_projection_are_one_example() -> None:
    page = DOCS["projection.md"]
    picture = ElementTree.parse(ROOT / "docs" / "projection.svg").getroot()
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    drawn = [text.text for text in picture.iterfind(".//svg:text", namespace)]
    oracle, policy = drawn[1:11], drawn[-8:]
    assert oracle == ["read", "2.0", "ing", "−1.6", "␣al", "1.2", "oud", "0.3", "end", "0.2"]
    assert policy == ["reading", "0.4", "␣a", "0.8", "loud", "0.7", "end", "0.2"]
    keys = [
        box.get("x") for box in picture.iterfind(".//svg:rect", namespace) if "key" in box.get("class", "")
    ]
    assert keys == ["80", "346", "346", "422"]  # read, ␣al; ␣a, loud
    assert "| reward, nats | **2.0** | −1.6 | **1.2** | 0.3 | 0.2 |" in page
    for token, reward in (("reading", "0.4"), ("␣a", "**0.8**"), ("loud", "**0.7**")):
        assert re.search(rf"^\| `{token}` \| .* = {re.escape(reward)} \|$", page, re.MULTILINE)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the checkout after ``make demo``, with the first four pairs of the sample."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    annotate(
        "demo/pairs.jsonl",
        "demo/oracle",
        "demo/reference",
        AnnotateSettings(output=Path("out/demo"), limit=4),
    )
    return tmp_path


def test_the_plain_loop_trains_on_the_loss_of_the_trainer(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = python_blocks("plain_pytorch.md")
    assert len([line for line in block.splitlines() if line.strip()]) <= 30
    names: dict[str, Any] = {}
    exec(compile(block, "plain_pytorch.md", "exec"), names)
    losses = [
        float(loss) for loss in re.findall(r"^pair \d: loss (.*)$", capsys.readouterr().out, re.MULTILINE)
    ]
    assert len(losses) == 4  # a batch, so one step: all were computed by the model as it was
    before: Any = AutoModelForCausalLM.from_pretrained("demo/policy", dtype=torch.float32)
    before.eval()
    pair = names["pair"]
    logps = [
        torch.from_numpy(found)[None]
        for found in token_logps(before, [pair.chosen, pair.rejected], batch_tokens=1024)
    ]
    weights = [torch.from_numpy(side.weights)[None] for side in (pair.chosen, pair.rejected)]
    assert losses[-1] == pytest.approx(sepo_loss(*logps, *weights).item(), abs=1e-3)
    trained = names["policy"].get_output_embeddings().weight
    assert not torch.equal(trained, before.get_output_embeddings().weight)


@pytest.mark.parametrize("page", sorted(DOCS))
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", DOCS[page]):
        assert (ROOT / "docs" / target).exists(), target


def test_the_defaults_on_the_training_page_are_those_of_the_commands() -> None:
    rows = [row.split(" | ") for row in DOCS["training_options.md"].splitlines() if row.startswith("| `--")]
    stages = ("sft", "dpo", "sepo")
    checked = 0
    for name, *cells in rows:
        option = name.removeprefix("| ").strip("`")
        for stage, cell in zip(stages, cells, strict=False):
            if re.fullmatch(r"[\d.e-]+", cell) and len(cells) == 4:
                command = main.commands["train"].commands[stage]  # type: ignore[attr-defined]
                (found,) = [param for param in command.params if option in param.opts]
                assert found.default == float(cell), (option, stage)
                checked += 1
    assert checked >= 15


def test_the_example_of_rules_and_weights_prints_what_the_page_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (block,) = python_blocks("selection.md")
    exec(compile(block, "selection.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)


def test_the_page_of_rules_and_weights_has_all_of_them() -> None:
    named = re.findall(r"^\| `(\w+)` \|", DOCS["selection.md"], re.MULTILINE)
    assert named == [*SELECTIONS, *WEIGHTS]
