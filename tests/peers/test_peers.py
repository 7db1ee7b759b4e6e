"""Exports read by the trainers themselves: `make peers` installs each into an environment of its own.

Their loader and collator read an export of the demo; the loss that they compute on its first pairs is ours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def loss_of_peer(peer: str, script: str, annotated: str, target: str, tmp_path: Path, *options: str) -> float:
    """What the peer computes on the first pairs of an export."""
    python = ENVIRONMENTS / peer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{peer} is not installed: run `make peers`")
    command = ["export", annotated, "--to", target, "--tokenizer", POLICY, "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 0, result.output
    data = next(iter([*(tmp_path / "out").glob("tokenized"), *(tmp_path / "out").glob("train.jsonl")]))
    found = subprocess.run(
        [python, Path(__file__).with_name(script), POLICY, data, str(PAIRS), tmp_path / "work"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    answer = json.loads(found.stdout.splitlines()[-1])
    print(f"{peer} {answer['version']}: loss {answer['loss']:.7f}")
    return float(answer["loss"])


@pytest.mark.timeout(600)
def test_llama_factorys_simpo_on_the_export_is_sepos_loss(annotated: str, tmp_path: Path) -> None:
    theirs = loss_of_peer("llama-factory", "llama_factory_loss.py", annotated, "llama-factory", tmp_path)
    ours = pair_loss(POLICY, exported_pairs(annotated, POLICY, max_length=CONTEXT)[:PAIRS])
    print(f"difference {theirs - ours:.1e}")
    assert theirs == pytest.approx(ours, abs=1e-5)


@pytest.mark.timeout(600)
def test_ms_swifts_loss_on_the_export_is_that_of_the_selected_tokens(annotated: str, tmp_path: Path) -> None:
    theirs = loss_of_peer("ms-swift", "ms_swift_loss.py", annotated, "ms-swift", tmp_path)
    ours = sft_loss_of(POLICY, exported_pairs(annotated, POLICY, max_length=CONTEXT)[:PAIRS])
    print(f"difference {theirs - ours:.1e}")
    assert theirs == pytest.approx(ours, abs=1e-5)
