"""Exports read by the trainers themselves: `make peers` installs each into its own environment.

Their loader and collator read an export of the demo; the loss that they compute on its first pairs is ours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

from export_losses import exported_pairs, pair_loss, sft_loss_of

from cli.main import main
from sepo_data import AnnotateSettings, annotate

ROOT = Path(__file__).parents[2]
POLICY, ORACLE = (str(ROOT / "demo" / name) for name in ("policy", "oracle"))
ENVIRONMENTS = Path(os.environ.get("SEPO_PEERS", ROOT / ".peers"))
PAIRS, CONTEXT = 4, 512  # the policy reads no more

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("demo") / "annotated"
    demo = ROOT / "demo"
    annotate(
        str(demo / "pairs.jsonl"),
        str(demo / "oracle"),
        str(demo / "reference"),
        AnnotateSettings(folder, limit=24),
    )
    return str(folder)


def export(annotated: str, target: str, output: Path) -> Path:
    """An export of the demo; returns what the trainer reads."""
    tokenizer = [] if target == "axolotl-spans" else ["--tokenizer", POLICY]
    result = CliRunner().invoke(
        main, ["export", annotated, "--to", target, *tokenizer, "--output", str(output)]
    )
    assert result.exit_code == 0, result.output
    (data,) = [*output.glob("tokenized"), *output.glob("train.jsonl"), *output.glob("data/train.parquet")]
    return data


def recipe_of(output: Path) -> str:
    """The code or configuration that the card of an export shows."""
    lines = (output / "README.md").read_text().splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    "))


def answer_of(peer: str, script: str, tmp_path: Path, *arguments: object) -> dict[str, Any]:
    """Output of a script run by the interpreter of a peer's environment."""
    python = ENVIRONMENTS / peer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{peer} is not installed: run `make peers`")
    found = subprocess.run(
        [python, Path(__file__).with_name(script), *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    answer: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return answer


def compare(peer: str, answer: dict[str, Any], ours: float) -> None:
    theirs = answer["loss"]
    print(f"{peer} {answer['version']}: loss {theirs:.7f}, difference {theirs - ours:.1e}")
    assert theirs == pytest.approx(ours, abs=1e-5)


@pytest.mark.timeout(600)
def test_llama_factorys_simpo_on_the_export_is_sepos_loss(annotated: str, tmp_path: Path) -> None:
    data = export(annotated, "llama-factory", tmp_path / "out")
    work = tmp_path / "work"
    answer = answer_of("llama-factory", "llama_factory_loss.py", tmp_path, POLICY, data, PAIRS, work)
    pairs = exported_pairs(annotated, POLICY, max_length=CONTEXT)[:PAIRS]
    compare("LLaMA-Factory", answer, pair_loss(POLICY, pairs))


@pytest.mark.timeout(600)
def test_ms_swifts_loss_on_the_export_is_that_of_the_selected_tokens(annotated: str, tmp_path: Path) -> None:
    data = export(annotated, "ms-swift", tmp_path / "out")
    answer = answer_of("ms-swift", "ms_swift_loss.py", tmp_path, POLICY, data, PAIRS, tmp_path / "work")
    pairs = exported_pairs(annotated, POLICY, max_length=CONTEXT)[:PAIRS]
    compare("ms-swift", answer, sft_loss_of(POLICY, pairs))


@pytest.mark.timeout(600)
def test_tinker_reads_the_lines_as_the_recipe_does(annotated: str, tmp_path: Path) -> None:
    data = export(annotated, "tinker", tmp_path / "out")
    (tmp_path / "recipe.py").write_text(recipe_of(tmp_path / "out").replace("train.jsonl", str(data)))
    answer = answer_of("tinker", "tinker_lines.py", tmp_path, data, tmp_path / "recipe.py")
    pairs = exported_pairs(annotated, POLICY, max_length=CONTEXT)
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    assert answer["tokens"] == [side.input_ids.size - 1 for side in sides]
    assert answer["weight"] == [float(side.weights.sum()) for side in sides]


def axolotls(model: str, data: Path, tmp_path: Path) -> dict[str, Any]:
    """What axolotl makes of an export."""
    (tmp_path / "sepo.yaml").write_text(recipe_of(tmp_path / "out"))
    return answer_of("axolotl", "axolotl_labels.py", tmp_path, model, data, tmp_path / "sepo.yaml", PAIRS)


@pytest.mark.timeout(600)
def test_axolotls_loss_on_the_export_is_that_of_the_selected_tokens(annotated: str, tmp_path: Path) -> None:
    answer = axolotls(POLICY, export(annotated, "axolotl", tmp_path / "out"), tmp_path)
    pairs = exported_pairs(annotated, POLICY, max_length=CONTEXT)
    compare("axolotl", answer, sft_loss_of(POLICY, pairs[:PAIRS]))
    chosen = [pair.chosen for pair in pairs]
    assert answer["trained"] == [one.input_ids[one.positions[one.weights > 0]].tolist() for one in chosen]


@pytest.mark.timeout(600)
def test_axolotl_trains_on_the_tokens_of_the_selected_characters(annotated: str, tmp_path: Path) -> None:
    """In English, where no character is split over several tokens."""
    data = export(annotated, "axolotl-spans", tmp_path / "out")
    theirs = axolotls(ORACLE, data, tmp_path)["trained"]
    texts = [json.loads(line)["messages"][-1]["content"] for line in data.read_text().splitlines()]
    pairs = exported_pairs(annotated, ORACLE)
    end = pairs[0].chosen.input_ids[-1]  # has no characters
    compared = 0
    for text, pair, trained in zip(texts, pairs, theirs, strict=True):
        if text.isascii():
            ours = pair.chosen.input_ids[pair.chosen.positions[pair.chosen.weights > 0]]
            assert trained == ours[ours != end].tolist()
            compared += 1
    assert compared >= 3
