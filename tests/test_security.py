"""Tests that files of strangers cannot run code, or read, write or reveal anything else.

Models, datasets, cards and manifests come from anywhere. Code and pickles are opened when the user says
so and not before; a name leads nowhere else; a token is told to the Hub alone.
"""

import json
import os
import pickle
import shutil
import stat
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from annotated import run_record
from click.testing import CliRunner, Result
from hub_server import USERS, HubServer
from huggingface_hub import DatasetCard
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny, save_tiny_adapter
from tiny_pair import pairs, save_pair, write_jsonl
from transformers import AutoModelForCausalLM

from cli.main import main
from cli.rows import describe_row
from sepo_data import AnnotateSettings, PreferenceError, SchemaError, SepoError, annotate, load_annotated
from sepo_data.annotated.card import code, render_card
from sepo_data.annotated.from_json import from_json
from sepo_data.annotated.manifest import Manifest
from sepo_data.annotated.publishing import ANNOTATED, push_annotated
from sepo_data.errors import without_secrets
from sepo_data.hub.client import dataset_revision, model_revision
from sepo_data.hub.pushing import check_push_target
from sepo_data.models.checkpoints import Trust
from sepo_data.models.description import describe_model, describe_pair
from sepo_data.runs.folder import Run
from sepo_data.sources.splits import open_source

SECRET = "hf_ThisIsNobodysToken0123456789abcdef"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    annotate(write_jsonl(folder / "prefs.jsonl", pairs(8)), *models, AnnotateSettings(folder / "out"))
    return folder / "out"


@pytest.fixture
def copy(tmp_path: Path, annotated: Path) -> Path:
    """The annotated dataset, to be damaged."""
    return Path(shutil.copytree(annotated, tmp_path / "copy"))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(found: Result, *parts: str) -> None:
    """Check for exit code 1, no traceback, and all of this in the last line."""
    assert found.exit_code == 1, found.output
    assert isinstance(found.exception, SystemExit), found.exception
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    for part in parts:
        assert part in last


def assert_done(found: Result) -> None:
    assert found.exit_code == 0, (found.stderr, found.exception)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Pickles


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def as_pickle(folder: str, to: Path) -> str:
    """The same model with its weights in a pickle."""
    shutil.copytree(folder, to)
    torch.save(load_file(to / "model.safetensors"), to / "pytorch_model.bin")
    (to / "model.safetensors").unlink()
    return str(to)


def test_every_command_refuses_a_pickle_and_opens_it_when_asked(
    tmp_path: Path, models: tuple[str, str], annotated: Path
) -> None:
    oracle = as_pickle(models[0], tmp_path / "oracle")
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(8))
    train = ("--learning-rate", 0.01, "--batch-size", 4, "--output", tmp_path / "trained")
    commands: list[tuple[object, ...]] = [
        ("annotate", "--oracle", oracle, "--ref", models[1], "--dataset", data, "--output", tmp_path / "out"),
        ("verify", annotated, "--oracle", oracle, "--ref", models[1]),
        ("train", "dpo", "--model", oracle, "--dataset", data, *train),
    ]
    for command in commands:
        assert_refused(invoke(*command), "pytorch_model.bin is a pickle", "--allow-pickle")
        assert_done(invoke(*command, "--allow-pickle"))
    rewards = [
        load_annotated(str(folder))["train"][:5]["chosen_reward"] for folder in (tmp_path / "out", annotated)
    ]
    assert rewards[0] == pytest.approx(rewards[1])


@pytest.mark.parametrize("allowed", [False, True])
def test_what_a_pickle_would_run_does_not_run(tmp_path: Path, models: tuple[str, str], allowed: bool) -> None:
    oracle, marker = as_pickle(models[0], tmp_path / "oracle"), tmp_path / "marker"
    Path(oracle, "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Bomb(marker)}))
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(2))
    with pytest.raises(SepoError, match=r"^[^\n]*oracle: [^\n]*$"):
        annotate(data, oracle, models[1], AnnotateSettings(tmp_path / "out", allow_pickle=allowed))
    assert not marker.exists()
    with Path(oracle, "pytorch_model.bin").open("rb") as file:
        pickle.load(file)
    assert marker.exists()  # so it would have


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../other/model.safetensors", "/etc/passwd"])
@pytest.mark.parametrize("on_hub", [False, True])
def test_an_index_of_safetensors_names_nothing_else(
    tmp_path: Path, models: tuple[str, str], hub: HubServer, repo_id: str, name: str, on_hub: bool
) -> None:
    oracle = as_pickle(models[0], tmp_path / "oracle")
    keys = torch.load(Path(oracle, "pytorch_model.bin"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, name)}
    Path(oracle, "model.safetensors.index.json").write_text(json.dumps(index))
    if on_hub:
        hub.add("model", repo_id, Path(oracle))
    with pytest.raises(SepoError, match=f"index.json names {name}, which is not a safetensors file"):
        describe_model(repo_id if on_hub else oracle)


def test_weights_in_several_safetensors_are_fine(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    (folder / "model.safetensors").unlink(missing_ok=True)
    describe_model(str(folder))


# Code of a model

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig
Path({marker!r}).touch()
class MineConfig(LlamaConfig):
    model_type = "mine"
"""
MODELING = {
    "llama": """
from transformers import LlamaForCausalLM
from .configuration_mine import MineConfig
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
""",
    # every token sees those before it through one state: neighbours in a packed batch would mix
    "recurrent": """
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from .configuration_mine import MineConfig
class MineForCausalLM(PreTrainedModel):
    config_class = MineConfig
    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.state = torch.nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.head = torch.nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()
    def get_output_embeddings(self):
        return self.head
    def forward(self, input_ids, attention_mask=None, labels=None, **others):
        return CausalLMOutput(logits=self.head(self.state(self.embed(input_ids))[0]))
""",
}


def with_code(folder: Path, kind: str, models: tuple[str, str], marker: Path) -> Path:
    """Oracle and reference with their own code below the folder; importing it leaves a marker."""
    auto_map = {
        "AutoConfig": "configuration_mine.MineConfig",
        "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
    }
    for number, role in enumerate(("oracle", "ref")):
        place = Path(shutil.copytree(models[number], folder / role))
        (place / "configuration_mine.py").write_text(CONFIGURATION.format(marker=str(marker)))
        (place / "modeling_mine.py").write_text(MODELING[kind])
        edit_json(
            place / "config.json", model_type="mine", auto_map=auto_map, architectures=["MineForCausalLM"]
        )
        if kind == "recurrent":
            torch.manual_seed(number)
            config = json.loads((place / "config.json").read_text())
            vocabulary, hidden = config["vocab_size"], config["hidden_size"]
            modules = {
                "embed": torch.nn.Embedding(vocabulary, hidden),
                "state": torch.nn.GRU(hidden, hidden, batch_first=True),
                "head": torch.nn.Linear(hidden, vocabulary),
            }
            weights = torch.nn.ModuleDict(modules).state_dict()
            save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return folder


def plain_rewards(folder: Path, rows: Any) -> list[float]:
    """Log-probs of the chosen responses, with one forward pass per sequence."""
    facts = describe_pair(str(folder / "oracle"), str(folder / "ref"), trust=Trust(remote_code=True))
    logps = []
    for role in ("oracle", "ref"):
        model = AutoModelForCausalLM.from_pretrained(
            folder / role, trust_remote_code=True, dtype=torch.float32
        )
        sums = []
        for row in rows:
            prompt = facts.tokenizer.apply_chat_template(
                row["prompt"], tokenize=False, add_generation_prompt=True
            )
            text = prompt + row["chosen"][0]["content"] + "<|im_end|>"
            ids = facts.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            first = facts.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids.shape[1]
            with torch.no_grad():
                all_logps = torch.log_softmax(model(ids).logits, -1)[0, :-1]
            sums.append(float(all_logps.gather(1, ids[0, 1:, None])[first - 1 :].sum()))
        logps.append(sums)
    return [oracle - ref for oracle, ref in zip(*logps, strict=True)]


@pytest.mark.parametrize("kind", MODELING)
def test_code_of_a_model_runs_when_asked_and_annotates_as_it_computes_alone(
    tmp_path: Path, models: tuple[str, str], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "marker"
    folder = with_code(tmp_path, kind, models, marker)
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(8))
    arguments = ("--oracle", folder / "oracle", "--ref", folder / "ref", "--dataset", data)
    command = ("annotate", *arguments, "--output", tmp_path / "out")
    assert_refused(invoke(*command), "needs code of its own", "--trust-remote-code")
    assert not marker.exists()
    with caplog.at_level("INFO", logger="sepo"):
        assert_done(invoke(*command, "--trust-remote-code"))
    assert marker.exists()
    assert ("batches are padded" in caplog.text) == (kind == "recurrent")
    rows = load_annotated(str(tmp_path / "out"))["train"]
    assert rows["chosen_reward"][:] == pytest.approx(plain_rewards(folder, rows), abs=1e-3)

    check = ("verify", tmp_path / "out", *arguments[:4])
    assert_refused(invoke(*check), "--trust-remote-code")
    assert_done(invoke(*check, "--trust-remote-code"))


def test_code_of_a_model_trains_when_asked(tmp_path: Path, models: tuple[str, str]) -> None:
    marker = tmp_path / "marker"
    folder = with_code(tmp_path, "llama", models, marker)
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(8))
    train = (
        "--dataset",
        data,
        "--learning-rate",
        0.01,
        "--batch-size",
        4,
        "--output",
        tmp_path / "trained",
    )
    command = ("train", "dpo", "--model", folder / "ref", *train)
    assert_refused(invoke(*command), "needs code of its own", "--trust-remote-code")
    assert not marker.exists()
    assert_done(invoke(*command, "--trust-remote-code"))
    assert marker.exists()
    with_adapter = save_tiny_adapter(tmp_path / "adapter", Path(models[1]))
    edit_json(with_adapter / "adapter_config.json", base_model_name_or_path=str(folder / "ref"))
    marker.unlink()
    with pytest.raises(SepoError, match="`trust_remote_code=True`"):
        describe_model(str(with_adapter))
    assert not marker.exists()


def test_code_of_a_tokenizer_runs_when_asked(
    tmp_path: Path, models: tuple[str, str], annotated: Path
) -> None:
    folder, marker = Path(shutil.copytree(models[1], tmp_path / "policy")), tmp_path / "marker"
    (folder / "tokenization_mine.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast\n"
        f"Path({str(marker)!r}).touch()\nclass Mine(PreTrainedTokenizerFast):\n    pass\n"
    )
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="Mine",
        auto_map={"AutoTokenizer": [None, "tokenization_mine.Mine"]},
    )
    for command in (
        ("inspect", annotated, "--tokenizer", folder),
        ("verify", annotated, "--oracle", models[0], "--ref", folder),
    ):
        assert_refused(invoke(*command), "needs code of its own", "--trust-remote-code")
        assert not marker.exists()
    assert_done(invoke("inspect", annotated, "--tokenizer", folder, "--trust-remote-code"))
    assert marker.exists()
    assert_done(invoke("verify", annotated, "--oracle", models[0], "--ref", folder, "--trust-remote-code"))


def test_a_chat_template_runs_no_code(tmp_path: Path, models: tuple[str, str]) -> None:
    marker = tmp_path / "marker"
    attack = "{{ cycler.__init__.__globals__.os.mkdir('" + str(marker) + "') }}"
    for role in ("oracle", "ref"):
        folder = Path(shutil.copytree(models[role == "ref"], tmp_path / role))
        template = folder / "chat_template.jinja"
        template.write_text(attack + template.read_text())
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(2))
    with pytest.raises(SepoError, match="chat template refuses"):
        annotate(data, str(tmp_path / "oracle"), str(tmp_path / "ref"), AnnotateSettings(tmp_path / "out"))
    assert not marker.exists()


# Secrets


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """A token that may write, of the form that real ones have."""
    monkeypatch.setitem(USERS, SECRET, ("me", True))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("sepo_data.hub.client.BACKOFF_S", 0.001)
    return SECRET


def files_with(text: str, folder: Path) -> list[Path]:
    needle = text.encode()
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_no_hub_token_is_in_anything_that_a_run_writes_or_prints(
    tmp_path: Path, models: tuple[str, str], hub: HubServer, repo_id: str, secret: str,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(3))
    hub.add("model", f"{repo_id}-oracle", Path(models[0]))
    command = (
        "annotate", "--oracle", f"{repo_id}-oracle", "--ref", models[1], "--dataset", data,
        "--output", tmp_path / "out", "--push-to-hub", repo_id, "--private",
    )  # fmt: skip
    hub.fail("POST .*/commit/", [500, "reset"])
    with caplog.at_level("DEBUG", logger="sepo"):
        found = invoke(*command)
    assert_done(found)
    assert "next try" in caplog.text
    said = [found.output, caplog.text, *capfd.readouterr()]
    assert not [text for text in said if secret in text]
    assert not files_with(secret, tmp_path)
    assert not [name for name, content in hub.files(repo_id).items() if secret.encode() in content]


@pytest.mark.parametrize("fault", [400, 401, 403, 404, 500, "reset"])
def test_no_hub_token_is_in_an_error(
    hub: HubServer, repo_id: str, secret: str, fault: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    calls = (
        lambda: check_push_target(repo_id, ANNOTATED, private=False),
        lambda: model_revision(repo_id, None),
        lambda: dataset_revision(repo_id, None),
        lambda: load_annotated(repo_id),
    )
    for call in calls:
        hub.fail(".*", [fault], times=50)
        with pytest.raises(SepoError) as error:
            call()
        hub.clear()
        assert secret not in str(error.value)
    assert secret not in caplog.text


@pytest.mark.parametrize("broken", [f"{SECRET}\x0b", f"{SECRET}\x00{SECRET}"])
def test_a_token_with_a_stray_character_is_refused_and_not_printed(
    hub: HubServer,
    repo_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    get = dict(os.environ).get
    monkeypatch.setattr(
        "huggingface_hub.utils._headers.get_token", lambda: broken
    )  # no environment has a NUL
    assert get("HF_TOKEN") != broken
    with pytest.raises(SepoError, match="token contains an invalid character") as error:
        model_revision(repo_id, None)
    assert SECRET not in str(error.value) + caplog.text
    assert not caplog.text  # and was not tried again


def test_no_password_of_an_address_is_in_an_error(tmp_path: Path, models: tuple[str, str]) -> None:
    address = "https://somebody:hunter2@example.com/prefs.jsonl"
    found = invoke("annotate", "--oracle", models[0], "--ref", models[1], "--dataset", address)
    assert_refused(found, "https://…@example.com/prefs.jsonl: an address")
    assert "hunter2" not in found.output
    assert "hunter2" not in without_secrets(f"GET {address} failed")


def test_a_token_of_any_form_is_known_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-another-hub-0123456789")
    assert str(SepoError("refused: of-another-hub-0123456789")) == "refused: …"
    assert str(SepoError(f"refused: {SECRET}")) == "refused: …"


def test_the_files_of_a_submitted_job_hold_no_token(
    tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executors = pytest.importorskip("cli.executors")
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 1\n")
    sbatch.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    run = Run(tmp_path / "out", run_record(600))
    executors.submit(run, {"dataset": "me/prefs"}, 2, None, {"partition": "gpu", "time": "1:00:00"})
    tasks = tmp_path / "out-tasks"
    assert (tasks / "annotate.yaml").exists()
    assert (tasks / "launch_script.slurm").exists()
    assert not files_with(secret, tasks)


# Places


@pytest.mark.parametrize("split", ["../../outside", "a/b", "..", "train\n", "*"])
def test_a_split_is_a_name_of_files_and_no_path(tmp_path: Path, models: tuple[str, str], split: str) -> None:
    saved = tmp_path / "saved"
    rows = datasets.Dataset.from_list(pairs(2))
    datasets.DatasetDict({"train": rows}).save_to_disk(saved)
    (saved / split).resolve().mkdir(parents=True, exist_ok=True)
    shutil.copytree(saved / "train", (saved / split).resolve(), dirs_exist_ok=True)
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PreferenceError, match=r"split .* cannot be read|no split|split names are letters"):
        annotate(str(saved), *models, AnnotateSettings(tmp_path / "out", split=split))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["../other/*.jsonl", "{other}/prefs.jsonl", "data/../../other/*.jsonl"])
def test_the_card_of_a_source_names_no_file_outside(tmp_path: Path, where: str) -> None:
    other = tmp_path / "other"
    for folder in (other, tmp_path / "source" / "data"):
        folder.mkdir(parents=True)
    write_jsonl(other / "prefs.jsonl", pairs(2))
    config = {"config_name": "default", "data_files": where.format(other=other)}
    card = f"---\n{yaml.safe_dump({'configs': [config]})}---\n"
    (tmp_path / "source" / "README.md").write_text(card)
    with pytest.raises(PreferenceError, match=r"prefs\.jsonl, which is not in it\. Correct data_files"):
        open_source(str(tmp_path / "source"))


@pytest.mark.parametrize("where", ["../other/*.parquet", "{other}/train-00000-of-00001.parquet"])
@pytest.mark.parametrize("on_hub", [False, True])
def test_the_card_of_an_annotated_dataset_names_no_file_outside(
    tmp_path: Path, annotated: Path, copy: Path, where: str, on_hub: bool, hub: HubServer, repo_id: str
) -> None:
    other = shutil.copytree(annotated / "data", tmp_path / "other")
    card = copy / "README.md"
    _, header, page = card.read_text().split("---\n", 2)
    metadata = yaml.safe_load(header)
    path = where.format(other=other).replace("../other", os.path.relpath(other, copy))
    if on_hub:
        path = str(other / "*.parquet")
    metadata["configs"][0]["data_files"][0]["path"] = path
    card.write_text(f"---\n{yaml.safe_dump(metadata)}---\n{page}")
    if on_hub:
        hub.add("dataset", repo_id, copy)
    with pytest.raises(SchemaError, match="which is not in the folder"):
        load_annotated(repo_id if on_hub else str(copy))


@pytest.mark.parametrize(
    "name", ["../outside.parquet", "/etc/passwd", "data/../../x.parquet", "README.md", 5]
)
def test_a_manifest_names_no_file_outside(
    tmp_path: Path, copy: Path, hub: HubServer, repo_id: str, name: object
) -> None:
    manifest = json.loads((copy / "sepo_manifest.json").read_text())
    manifest["shards"][0]["file"] = name
    edit_json(copy / "sepo_manifest.json", **manifest)
    for read in (lambda: load_annotated(str(copy)), lambda: push_annotated(copy, repo_id)):
        with pytest.raises(SchemaError, match=r"shards\[0\]\.file is .*, it must be like data/train"):
            read()
    assert ("dataset", repo_id) not in hub.repos


# Cards and reports

RESPONSES = [
    "<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "---\nlicense: mit\ntags: [evil]\n---\n# Evil",
    "../../../../etc/passwd",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "[click](https://evil.example) | a | b |\n\n## Evil",
    "\x1b[2J\x1b]0;evil\x07",
]


def test_what_a_response_says_stays_in_its_column(tmp_path: Path, models: tuple[str, str]) -> None:
    plain = [{"prompt": "p", "chosen": f"fine {i}", "rejected": "no", "id": i} for i in range(len(RESPONSES))]
    nasty = [{**row, "chosen": text} for row, text in zip(plain, RESPONSES, strict=True)]
    cards, names = [], []
    for name, rows in (("plain", plain), ("nasty", nasty)):
        output = tmp_path / name / "out"
        output.parent.mkdir()
        found = invoke(
            "annotate", "--oracle", models[0], "--ref", models[1], "--output", output,
            "--dataset", write_jsonl(tmp_path / name / "prefs.jsonl", rows),
        )  # fmt: skip
        assert_done(found)
        assert not [text for text in RESPONSES if text in found.output]
        cards.append((output / "README.md").read_text())
        names.append(sorted(str(path.relative_to(output)) for path in output.rglob("*")))
    assert names[0] == names[1]
    assert load_annotated(str(tmp_path / "nasty" / "out"))["train"]["chosen"][:] == RESPONSES
    for text in ("evil", "Evil", "script", "passwd", "im_end", "49"):
        assert cards[0].count(text) == cards[1].count(text) or text == "49"  # figures may hold 49
    assert (
        yaml.safe_load(cards[1].split("---\n")[1]).keys() == yaml.safe_load(cards[0].split("---\n")[1]).keys()
    )


def test_a_row_on_a_terminal_steers_it_no_more_than_the_report_does(annotated: Path) -> None:
    def shown(attack: str, of_role: str) -> str:
        row = dict(load_annotated(str(annotated))["train"][0])
        text = attack + row["chosen"][-1]["content"]
        spans = {name: [x + len(attack) for x in row[f"chosen_token_{name}"]] for name in ("start", "end")}
        spans["start"][0] = 0  # the first token's: what no token covers is not shown
        row["chosen"] = [{"role": f"assistant{of_role}", "content": text}]
        row["prompt"] = [{"role": f"user{of_role}", "content": attack}]
        return describe_row(row | {f"chosen_token_{name}": values for name, values in spans.items()}, 0)

    nasty = shown("\x1b[2J\x9b31m\x07", "\x1b[8m")
    assert nasty.count("\x1b") == shown("harmless", "").count("\x1b")  # those of our own colours
    assert not {"\x07", "\x9b"} & set(nasty)
    assert r"\x1b[2J\x9b31m\x07" in nasty


def test_a_name_stays_in_its_code_span(annotated: Path) -> None:
    manifest = json.loads((annotated / "sepo_manifest.json").read_text())
    evil = "x` | <b>|\n\n---\nlicense: mit\n---\n# Evil [click](https://evil.example)"
    for facts in (manifest["source"], manifest["oracle"], manifest["ref"]):
        facts["name"] = evil
    manifest["source"]["card"] = {"license": evil}
    page = DatasetCard(render_card(from_json(Manifest, manifest))).text
    assert code(evil).count("`") == 2
    assert page.count("evil.example") == page.count(code(evil)) == 5
    assert page.count("\n# ") == 1


def test_a_folder_whose_name_is_no_text_annotates(tmp_path: Path, models: tuple[str, str]) -> None:
    folder = tmp_path / os.fsdecode(b"prefs-\xff")
    folder.mkdir()
    data = folder / os.fsdecode(b"prefs-\xfe.jsonl")
    write_jsonl(data, pairs(2))
    annotate(str(data), *models, AnnotateSettings(tmp_path / "out"))
    assert "prefs-\ufffd.jsonl" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    ["extra_gated_fields: {Date: 2024-01-01}", "license: &a [*a]", 'license: "\\uD800"'],
)
def test_a_strange_card_of_a_source_ends_no_run(tmp_path: Path, models: tuple[str, str], line: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", pairs(2))
    (folder / "README.md").write_text(f"---\n{line}\n---\n")
    annotate(str(folder), *models, AnnotateSettings(tmp_path / "out"))
    header = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(header)["tags"][0] == "sepo"
