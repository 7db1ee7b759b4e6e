"""Mistakes that people make at the commands: each is one line that says what to change."""

import os
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main

DEMO = Path(__file__).parent.parent / "demo"
ANNOTATE = "annotate --oracle {demo}/oracle --ref {demo}/reference --dataset {demo}/pairs.jsonl --limit 2"
SEPO = "train sepo --policy {demo}/policy --dataset {demo}/pairs.jsonl --output {new}"
DPO = "train dpo --model {demo}/reference --dataset {demo}/pairs.jsonl --output {new}"

# what is typed, the exit code, and what the line says
MISTAKES = [
    # commands
    ("anotate", 2, "Did you mean 'annotate'?"),
    ("train policy", 2, "No such command policy. Did you mean sepo?"),
    ("train oracle", 2, "Did you mean dpo?"),
    ("convert x", 2, "No such command 'convert'"),
    # options that have another name
    ("train dpo --lr 1e-5", 2, "No such option --lr. Did you mean --learning-rate?"),
    ("train sft --learning_rate 1e-5", 2, "Did you mean --learning-rate?"),
    ("train sepo --num-train-epochs 3", 2, "Did you mean --epochs?"),
    ("train sepo --per-device-train-batch-size 3", 2, "Did you mean --micro-batch-size?"),
    ("train sepo --lora-r 16", 2, "Did you mean --lora-rank?"),
    ("train sft --max-seq-length 16", 2, "Did you mean --max-length?"),
    ("train sft --bf16", 2, "Did you mean --dtype bfloat16?"),
    ("train sft --learn 1", 2, "Did you mean --learning-rate?"),
    ("annotate --model x", 2, "No such option --model. Did you mean --oracle and --ref?"),
    ("annotate --reference x", 2, "Did you mean --ref?"),
    ("annotate --out x", 2, "Did you mean --output?"),
    ("annotate --batch-size 8", 2, "Did you mean --batch-tokens?"),
    ("annotate --top-k 8", 2, "Did you mean --ratio?"),
    ("annotate --datset x", 2, "Did you mean --dataset?"),
    ("inspect x --policy y", 2, "Did you mean --tokenizer?"),
    ("train sft --warmup-ratio 0.1", 2, "Pass it as --set warmup_ratio=VALUE."),
    # options that need not be, or belong to another command
    ("train sepo --resume", 2, "No such option --resume. Runs resume by themselves: leave it out."),
    ("annotate --resume-from-checkpoint x", 2, "Runs resume by themselves"),
    ("annotate --overwrite", 2, "choose another --output"),
    ("export x --dry-run", 2, "No such option --dry-run. That is an option of sepo annotate"),
    ("report x --by", 2, "report --help`"),
    ("annotate --hf-jobs flavor", 2, "like --hf-jobs flavor=VALUE."),
    ("train sepo --eval_steps 2", 2, "Pass it as --set eval_steps=VALUE."),
    ("train dpo --ref x", 2, "The reference is the model that training starts from: leave it out."),
    ("train sepo --ref x", 2, "The loss needs no reference: leave it out."),
    ("train sepo --oracle x", 2, "The oracle's rewards are in the dataset: leave it out."),
    ("annotate --epochs 3", 2, "That is an option of sepo train dpo and of sepo train sepo."),
    # values
    (f"{ANNOTATE} --ratio 30", 2, "'--ratio': 30 is not a share in (0, 1]. Did you mean 0.3?"),
    (f"{ANNOTATE} --ratio 0", 2, "'--ratio': 0"),
    (f"{ANNOTATE} --dtype bf16", 2, "'bf16' is not one of 'float32', 'bfloat16', 'float16'"),
    (f"{ANNOTATE} --shard 4/4", 2, "from 0 to n-1, for example 0/4"),
    (f"{ANNOTATE} --shard auto", 2, "Pass --shard i/n, or leave it out."),
    (f"{ANNOTATE} --batch-tokens few", 2, "neither auto nor a number"),
    (f"{ANNOTATE} --device gpu", 1, "Pass --device auto."),
    (f"{ANNOTATE} --tasks 4", 2, "--tasks and --workers need --executor."),
    (f"{ANNOTATE} --chat-template nowhere.jinja", 2, "'nowhere.jinja' does not exist"),
    (f"{ANNOTATE} --push-to-hub prefs --output {{new}}", 1, "prefs"),
    (f"{DPO} --set max_step=3", 1, "TrainingArguments has no such field. Did you mean max_steps?"),
    (f"{DPO} --set learning_rate=3", 1, "--set learning_rate: use --learning-rate."),
    (f"{DPO} --set learning_rate", 2, "is not field=value"),
    (f"{DPO} --eval-fraction 1", 2, "'--eval-fraction'"),
    (f"{SEPO} --projection majority --ratio 0.2", 1, "or use --projection sum."),
    # files, folders and names
    ("annotate --ref x --dataset y", 2, "Missing option '--oracle'"),
    ("annotate --oracle {new} --ref {demo}/reference --dataset {demo}/pairs.jsonl", 1, "no such folder"),
    ("annotate --oracle {demo}/oracle --ref {demo}/oracle --dataset {demo}/pairs.jsonl", 1, "same"),
    ("annotate --oracle {demo}/oracle --ref {demo}/reference --dataset {new}.jsonl", 1, "no such file"),
    (SEPO, 1, "annotate"),
    (f"{DPO.replace('dpo', 'sft')}", 1, "add --side chosen"),
    (f"{DPO.replace('{new}', 'taken')}", 1, "Choose another --output."),
    ("inspect {demo}/oracle", 1, "{demo}/oracle"),
    ("push {demo}/oracle me/x", 1, "{demo}/oracle"),
    ("merge {demo}", 1, "contains no run of sepo"),
    # reports, exports, generation, evaluation
    ("report {new}", 1, "no such folder"),
    ("report {demo}/oracle", 1, "{demo}/oracle"),
    ("export x --to trl --output {new}", 2, "'trl' is not one of 'llama-factory'"),
    ("export x --output {new}", 2, "Missing option '--to'. Choose from: llama-factory, open-instruct,"),
    ("generate --model x --prompts {demo}/README.md --output {new}", 2, "Missing option '--format'. Choose"),
    ("evaluate --model x --ref x --dataset x --output {demo}", 2, "is a directory"),
    ("report x --output {demo}", 2, "is a directory"),
    ("push {demo}/policy me/x", 1, "neither annotated nor trained by sepo. Push it with `hf upload"),
    (f"{ANNOTATE} --private", 1, "--private is for a repository. Pass --push-to-hub with it."),
    (f"{DPO} --private", 1, "--private is for a repository. Pass --push-to-hub with it."),
    ("generate --model x --prompts {demo}/README.md --format jsonl --output {new} --server localhost:8000",
     1, "--server localhost:8000 is no URL. Give one like http://localhost:8000/v1."),
    ("annotate --oracle {demo}/oracle --ref {demo}/reference --dataset scored.jsonl --min-margin 9 --dry-run",
     1, "differ in scores by 9, so its rows make no pairs. Lower --min-margin"),
    ("inspect unfinished", 1, "its annotation is not finished. Run the same sepo-annotate again"),
    ("export x --to axolotl --output {new}", 1, "Pass --tokenizer MODEL"),
    ("generate --model {demo}/policy", 2, "Missing option '--prompts'"),
    ("evaluate --oracle {demo}/oracle", 2, "Missing option '--model'"),
    ("reselect x --ratio 30 --output {new}", 2, "Did you mean 0.3?"),
    (f"{ANNOTATE} --executor dask", 2, "'dask' is not one of"),
    (f"{ANNOTATE} --streaming", 1, "--streaming is for datasets on the Hub. Leave it out."),
    (f"{SEPO} --max-kl -1", 2, "is not in the range x>0"),
    (f"{SEPO} --save-at few", 2, "as in --save-at 4,8,16"),
    (f"{ANNOTATE} --hf-jobs flavor", 2, "'flavor' is not field=value"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "code", "message"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_a_mistake_is_one_line_that_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, code: int, message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    (tmp_path / "scored.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]}\n')
    (tmp_path / "unfinished" / "_work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "SLURM_ARRAY_TASK_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    words = shlex.split(typed.format(demo=DEMO, new=tmp_path / "new"))
    found = CliRunner().invoke(main, words, prog_name="sepo", env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert found.exit_code == code, found.output
    assert found.stdout == ""
    lines = [line for line in found.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert lines == found.stderr.splitlines()[-1:]
    assert message.format(demo=DEMO) in lines[0]


def test_there_are_enough_of_them() -> None:
    assert len({typed for typed, _, _ in MISTAKES}) >= 60
