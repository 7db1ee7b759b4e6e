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
POLICY = str(ROOT / "demo" / "policy")
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
        AnnotateSettings(folder, limit=8),
    )
    return str(folder)


def export(annotated: str, target: str, output: Path) -> Path:
    """An export of the demo; returns what the trainer reads."""
    command = ["export", annotated, "--to", target, "--tokenizer", POLICY, "--output", str(output)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    (data,) = [*output.glob("tokenized"), *output.glob("train.jsonl")]
    return data


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
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    recipe = "\n".join(line[4:] for line in lines if line.startswith("    ")).replace(
        "train.jsonl", str(data)
    )
    (tmp_path / "recipe.py").write_text(recipe)
    answer = answer_of("tinker", "tinker_lines.py", tmp_path, data, tmp_path / "recipe.py")
    pairs = exported_pairs(annotated, POLICY, max_length=CONTEXT)
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    assert answer["tokens"] == [side.input_ids.size - 1 for side in sides]
    assert answer["weight"] == [float(side.weights.sum()) for side in sides]
