"""Tests of `sepo export`: the files for each trainer, read by the trainer if it is installed."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from export_losses import exported_pairs, pair_loss, sft_loss_of
from tiny_pair import pairs, save_pair, write_jsonl
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from cli.main import main
from sepo_data import AnnotateSettings, annotate
from sepo_data.exports.targets import TEXT_TARGETS, TOKEN_TARGETS
from sepo_data.projected.pairs import ProjectedPair

TARGETS = [*TOKEN_TARGETS, *TEXT_TARGETS]
ON_CPU: dict[str, Any] = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 1}
COLUMNS = ("input_ids", "attention_mask", "labels")
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "export.md").read_text()


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    data = write_jsonl(folder / "prefs.jsonl", pairs(16))
    annotate(data, *save_pair(folder), AnnotateSettings(folder / "annotated"))
    return str(folder / "annotated")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with another vocabulary than the oracle's."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = tiny_tokenizer("unigram_nfkc")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def exported(annotated: str, target: str, output: Path, *options: object) -> Path:
    result = run(annotated, "--to", target, "--output", output, *options)
    assert result.exit_code == 0, result.output
    saved, following = result.output.splitlines()[-2:]
    assert saved.startswith(f"saved to {output} in ")
    assert following.endswith(f"as {output / 'README.md'} says")
    return output


def rows_of(folder: Path) -> list[dict[str, Any]]:
    if (folder / "tokenized").exists():
        return list(datasets.load_from_disk(str(folder / "tokenized"))["train"])
    if (folder / "train.jsonl").exists():
        return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return list(datasets.Dataset.from_parquet(str(folder / "data" / "train.parquet")))


@pytest.fixture(scope="module")
def wanted(annotated: str, policy: str) -> list[ProjectedPair]:
    return exported_pairs(annotated, policy)


def test_the_page_has_every_target() -> None:
    table, _ = PAGE.split("## The trainer")
    assert sorted(re.findall(r"^\| `(\w[\w-]*)` \|", table, re.MULTILINE)) == sorted(TARGETS)


@pytest.mark.parametrize("target", ["llama-factory", "open-instruct"])
def test_pairs_have_labels_on_the_selected_tokens_only(
    tmp_path: Path, annotated: str, policy: str, wanted: list[ProjectedPair], target: str
) -> None:
    rows = rows_of(exported(annotated, target, tmp_path / "out", "--tokenizer", policy))
    assert len(rows) == len(wanted) == 16
    for row, pair in zip(rows, wanted, strict=True):
        for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            assert row[f"{name}_input_ids"] == side.input_ids.tolist()
            assert row[f"{name}_attention_mask"] == [1] * side.input_ids.size
            selected = side.positions[side.weights > 0].tolist()
            ids = side.input_ids.tolist()
            assert row[f"{name}_labels"] == [ids[i] if i in selected else -100 for i in range(len(ids))]
    others = set(rows[0]) - {f"{s}_{c}" for s in ("chosen", "rejected") for c in COLUMNS}
    assert others == ({"images", "videos", "audios"} if target == "llama-factory" else set())


@pytest.mark.parametrize(("target", "columns"), [("trl-sft", ("input_ids", "labels")), ("axolotl", COLUMNS)])
def test_the_chosen_side_has_labels_on_its_selected_tokens(
    tmp_path: Path,
    annotated: str,
    policy: str,
    wanted: list[ProjectedPair],
    target: str,
    columns: tuple[str, ...],
) -> None:
    rows = rows_of(exported(annotated, target, tmp_path / "out", "--tokenizer", policy))
    assert set(rows[0]) == set(columns)
    for row, pair in zip(rows, wanted, strict=True):
        trained = [i for i, label in enumerate(row["labels"]) if label != -100]
        assert trained == pair.chosen.positions[pair.chosen.weights > 0].tolist()
        assert row["input_ids"] == pair.chosen.input_ids.tolist()


@pytest.mark.parametrize("weights", ["mask", "tis"])
def test_weights_go_with_the_tokens_that_are_predicted(
    tmp_path: Path, annotated: str, policy: str, weights: str
) -> None:
    options = ("--tokenizer", policy, "--weights", weights, "--selection", "all")
    tinker = rows_of(exported(annotated, "tinker", tmp_path / "tinker", *options))
    swift = rows_of(exported(annotated, "ms-swift", tmp_path / "swift", *options))
    trl = rows_of(exported(annotated, "trl-dpo", tmp_path / "trl", *options))
    pairs = exported_pairs(annotated, policy, weights=weights, selection="all")
    assert (len(tinker), len(swift), len(trl)) == (32, 16, 16)
    for row, pair in enumerate(pairs):
        for place, (name, side) in enumerate((("chosen", pair.chosen), ("rejected", pair.rejected))):
            everywhere = np.zeros(side.input_ids.size)
            everywhere[side.positions] = side.weights
            datum = tinker[2 * row + place]
            (chunk,) = datum["model_input"]["chunks"]
            inputs = datum["loss_fn_inputs"]
            assert chunk["tokens"] == side.input_ids[:-1].tolist()
            assert inputs["target_tokens"]["data"] == side.input_ids[1:].tolist()
            np.testing.assert_allclose(inputs["weights"]["data"], everywhere[1:], rtol=1e-6)
            ids = trl[row]["prompt_ids"] + trl[row][f"{name}_ids"]
            assert ids == side.input_ids.tolist()
            np.testing.assert_allclose(
                [0.0] * len(trl[row]["prompt_ids"]) + trl[row][f"{name}_mask"], everywhere, rtol=1e-6
            )
            if name == "chosen":
                content = swift[row]["messages"][0]["content"]
                assert content["token_ids"] == side.input_ids.tolist()
                np.testing.assert_allclose(content["loss_scale"], everywhere, rtol=1e-6)
    assert (len({w for row in trl for w in row["chosen_mask"]}) > 2) == (weights == "tis")


def test_spans_are_the_selected_text_with_inclusive_ends(tmp_path: Path, annotated: str) -> None:
    rows = rows_of(exported(annotated, "axolotl-spans", tmp_path / "out"))
    (stored,) = datasets.load_dataset(annotated).values()
    selected = [row for row in stored if any(row["chosen_token_mask"])]  # else the end of the turn alone
    assert len(rows) == len(selected)
    for row, annotation in zip(rows, selected, strict=True):
        *context, answer = row["messages"]
        assert [turn["train"] for turn in context] == [False]
        assert answer["content"] == annotation["chosen"][0]["content"]
        spans = [(span["begin_offset"], span["end_offset"]) for span in answer["train_detail"]]
        assert all(one[1] + 1 < other[0] for one, other in pairwise(spans))
        names = ("chosen_token_start", "chosen_token_end", "chosen_token_mask")
        tokens = zip(*(annotation[name] for name in names), strict=True)
        wanted = {i for start, end, mask in tokens if mask for i in range(start, end)}
        assert {i for begin, end in spans for i in range(begin, end + 1)} == wanted


def test_a_bos_that_the_trainer_adds_is_left_out(tmp_path: Path, annotated: str) -> None:
    tokenizer = tiny_tokenizer("unigram_nfkc").__class__.from_pretrained(_with_bos(tmp_path))
    rows = rows_of(exported(annotated, "ms-swift", tmp_path / "swift", "--tokenizer", tmp_path / "bos"))
    whole = rows_of(exported(annotated, "trl-sft", tmp_path / "trl", "--tokenizer", tmp_path / "bos"))
    begin = tokenizer("a")["input_ids"][0]
    for swift, trl in zip(rows, whole, strict=True):
        assert [begin, *swift["messages"][0]["content"]["token_ids"]] == trl["input_ids"]


def _with_bos(folder: Path) -> Path:
    """A tokenizer that puts BOS in front of every text, and whose template does, too."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer("unigram_nfkc")
    tokenizer.save_pretrained(folder / "bos")
    loaded = type(tokenizer).from_pretrained(folder / "bos")
    bos = loaded.bos_token
    loaded.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, loaded.bos_token_id)]
    )
    loaded.chat_template = "{{ bos_token }}" + loaded.chat_template
    loaded.save_pretrained(folder / "bos")
    return folder / "bos"


def test_trls_sft_trainer_trains_on_the_export_with_our_loss(
    tmp_path: Path, annotated: str, policy: str, wanted: list[ProjectedPair]
) -> None:
    folder = exported(annotated, "trl-sft", tmp_path / "out", "--tokenizer", policy)
    data = datasets.Dataset.from_parquet(str(folder / "data" / "train.parquet"))
    model: Any = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    args = SFTConfig(str(tmp_path / "run"), max_length=None, **ON_CPU)
    trainer: Any = SFTTrainer(model, args=args, train_dataset=data)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    loss = trainer.compute_loss(trainer.model.eval(), dict(batch))
    ours = sft_loss_of(policy, wanted[:4])
    print(f"TRL's SFTTrainer: loss {loss.item():.7f}, difference {loss.item() - ours:.1e}")
    assert loss.item() == pytest.approx(ours, abs=1e-5)


ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "max_steps": 1,
}


def test_the_trainer_of_the_page_trains_on_the_export_with_our_loss(
    tmp_path: Path, annotated: str, policy: str
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (trainer_class,) = re.findall(r"^class SepoTrainer.*", block, re.MULTILINE | re.DOTALL)
    assert len([line for line in trainer_class.splitlines() if line.strip()]) <= 20
    names: dict[str, Any] = {}
    exec(compile(block, "export.md", "exec"), names)
    options = ("--tokenizer", policy, "--weights", "tis")
    folder = exported(annotated, "trl-dpo", tmp_path / "out", *options)
    data = datasets.Dataset.from_parquet(str(folder / "data" / "train.parquet"))
    args = DPOConfig(str(tmp_path / "run"), learning_rate=1e-2, per_device_train_batch_size=4, **ON_CPU)
    model: Any = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    trainer = names["SepoTrainer"](model, args=args, train_dataset=data)
    assert trainer.ref_model is None
    batch = names["collate"]([data[i] for i in range(4)])
    loss = trainer.compute_loss(trainer.model.eval(), dict(batch))
    ours = pair_loss(policy, exported_pairs(annotated, policy, weights="tis")[:4])
    print(f"SepoTrainer on TRL's: loss {loss.item():.7f}, difference {loss.item() - ours:.1e}")
    assert loss.item() == pytest.approx(ours, abs=1e-5)
    trainer.train()
    assert trainer.compute_loss(trainer.model.eval(), dict(batch)) < loss


@pytest.mark.parametrize("target", TARGETS)
def test_the_card_says_from_what_and_how_to_train(
    tmp_path: Path, annotated: str, policy: str, target: str
) -> None:
    options = () if target in TEXT_TARGETS else ("--tokenizer", policy)
    folder = exported(annotated, target, tmp_path / "out", "--selection", "global", *options)
    card = (folder / "README.md").read_text()
    _, header, page = card.split("---\n", 2)
    facts = yaml.safe_load(header)["sepo"]
    assert facts["target"] == target
    assert facts["dataset"].startswith("annotated@sha256:")
    assert facts["selection"]["cutoffs"]["chosen"] > facts["selection"]["cutoffs"]["rejected"]
    assert "$" not in page
    assert str(tmp_path) not in card
    assert len(re.findall(r"^    .*$", page, re.MULTILINE)) >= 5


def test_recipes_in_yaml_can_be_read() -> None:
    for name in ("llama-factory", "axolotl"):
        lines = [line[4:] for line in TOKEN_TARGETS[name].recipe.splitlines()]
        assert yaml.safe_load("\n".join(lines))["output_dir"] == "out"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--to", "verl"), 2, "'verl' is not one of"),
        (("--to", "trl-sft"), 1, "trl-sft reads token ids. Pass --tokenizer"),
        (("--to", "axolotl-spans", "--tokenizer", "POLICY"), 1, "Leave out --tokenizer"),
        (("--to", "axolotl", "--tokenizer", "POLICY", "--weights", "tis"), 1, "masks, not weights"),
        (("--to", "trl-dpo", "--tokenizer", "nowhere/at-all"), 1, "nowhere/at-all"),
        (("--to", "trl-dpo", "--tokenizer", "POLICY", "--ratio", "2"), 2, "is not a share in (0, 1]"),
        (
            ("--to", "trl-dpo", "--tokenizer", "POLICY", "--include-tokens", "Z+"),
            1,
            "nothing is left to export",
        ),
        (("--to", "axolotl-spans", "--include-tokens", "Z+"), 1, "nothing is left"),
        (("--to", "axolotl-spans", "--include-tokens", "7"), 1, "token id 7 has no meaning here"),
        (("--to", "axolotl-spans", "--ratio-by", "id=many:1"), 1, 'has "many" in column id'),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    tmp_path: Path, annotated: str, policy: str, options: tuple[str, ...], code: int, said: str
) -> None:
    given = [policy if option == "POLICY" else option for option in options]
    result = run(annotated, "--output", tmp_path / "out", *given)
    assert result.exit_code == code, result.output
    assert said in result.output.splitlines()[-1]
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_tokenizer_without_a_token_that_ends_a_text_is_refused(tmp_path: Path, annotated: str) -> None:
    tokenizer = type(tiny_tokenizer())(
        tokenizer_object=tiny_tokenizer("wordpiece", None).backend_tokenizer, unk_token="[UNK]"
    )
    tokenizer.save_pretrained(tmp_path / "bare")
    result = run(annotated, "--to", "trl-dpo", "--tokenizer", tmp_path / "bare", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "neither a chat template nor an eos_token" in result.output.splitlines()[-1]


def test_another_export_is_not_written_over(tmp_path: Path, annotated: str, policy: str) -> None:
    exported(annotated, "trl-sft", tmp_path / "out", "--tokenizer", policy)
    result = run(annotated, "--to", "axolotl-spans", "--output", tmp_path / "out")
    assert (result.exit_code, "is not empty. Choose another --output" in result.output) == (1, True)
