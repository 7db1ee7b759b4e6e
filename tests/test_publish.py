"""From the Hub to the Hub: source and models by name; what comes out pushed, loaded and pushed again."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from click.testing import CliRunner
from hub_server import HubServer
from huggingface_hub import DatasetCard, HfApi, ModelCard
from tiny_models import save_tiny, save_tiny_adapter
from tiny_pair import pairs, save_pair, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.main import main
from sepo_data import AnnotateSettings, HubError, annotate, load_annotated
from sepo_data.runs.folder import read_record
from sepo_train.folder import RECORD_NAME, Record
from sepo_train.model_card import write_card
from sepo_train.publishing import push_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("models"))


def add_source(hub: HubServer, tmp_path: Path, *, private: bool = False) -> str:
    folder = tmp_path / "source"
    folder.mkdir()
    write_jsonl(folder / "train_prefs.jsonl", pairs(5))
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: house-rules\nlanguage: [en]\nextra_gated_prompt: Be nice.\n"
        "configs:\n- config_name: default\n  data_files:\n"
        "  - split: train_prefs\n    path: train_prefs.jsonl\n---\n"
    )
    name = f"me/source-{tmp_path.name.replace('_', '-')[:40].strip('-')}"
    hub.add("dataset", name, folder, private=private)
    return name


def test_names_in_name_out(
    tmp_path: Path, models: tuple[str, str], hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepo_data.hub.client.BACKOFF_S", 0.01)
    source = add_source(hub, tmp_path)
    shas = [
        hub.add("model", f"{repo_id}-{role}", Path(models[i])) for i, role in enumerate(("oracle", "ref"))
    ]
    settings = AnnotateSettings(output=tmp_path / "out", split="train_prefs", push_to_hub=repo_id)
    hub.fail("POST .*/commit/", [500, "lost"])
    report = annotate(source, f"{repo_id}-oracle", f"{repo_id}-ref", settings)

    info = HfApi().dataset_info(repo_id)
    assert report.commit == info.sha
    assert not info.private
    loaded = datasets.load_dataset(repo_id)["train_prefs"]
    assert loaded.to_list() == load_annotated(str(tmp_path / "out"))["train_prefs"].to_list()
    assert [row["id"] for row in loaded] == [0, 1, 2, 3, 4]

    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.scoring.oracle.revision == shas[0]
    assert record.scoring.ref.revision == shas[1]
    assert record.scoring.source.revision == HfApi().dataset_info(source).sha
    card = DatasetCard.load(repo_id).data.to_dict()
    assert (card["license"], card["license_name"]) == ("other", "house-rules")
    assert card["source_datasets"] == [source]
    assert card["extra_gated_prompt"] == "Be nice."

    commits = hub.num_commits(repo_id)
    assert annotate(source, f"{repo_id}-oracle", f"{repo_id}-ref", settings).commit == info.sha
    assert hub.num_commits(repo_id) == commits


def test_a_private_source_makes_a_private_dataset(
    tmp_path: Path, models: tuple[str, str], hub: HubServer, repo_id: str
) -> None:
    source = add_source(hub, tmp_path, private=True)
    settings = AnnotateSettings(output=tmp_path / "out", split="train_prefs", push_to_hub=repo_id)
    annotate(source, *models, settings)
    assert HfApi().dataset_info(repo_id).private
    assert "gated or private" in (tmp_path / "out" / "README.md").read_text()


def test_a_target_without_rights_is_refused_before_any_work(
    tmp_path: Path, models: tuple[str, str], hub: HubServer
) -> None:
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(3))
    with pytest.raises(HubError, match="other/prefs: no right to write there"):
        annotate(data, *models, AnnotateSettings(output=tmp_path / "out", push_to_hub="other/prefs"))
    assert not (tmp_path / "out").exists()


def test_a_push_that_fails_leaves_the_dataset_and_the_same_call_pushes_it(
    tmp_path: Path, models: tuple[str, str], hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepo_data.hub.client.BACKOFF_S", 0.001)
    data = write_jsonl(tmp_path / "prefs.jsonl", pairs(3))
    settings = AnnotateSettings(output=tmp_path / "out", push_to_hub=repo_id)
    hub.fail("POST .*/commit/", [503], times=6)
    with pytest.raises(HubError, match="the Hub does not answer"):
        annotate(data, *models, settings)
    assert len(load_annotated(str(tmp_path / "out"))["train"]) == 3
    annotate(data, *models, settings)
    assert len(datasets.load_dataset(repo_id)["train"]) == 3


def finish(folder: Path, base: str) -> Path:
    """Put card and record next to the weights, as training does."""
    record: Record = {
        "stage": "sepo",
        "model": {"name": base, "on_hub": True},
        "dataset": {"name": "me/prefs-sepo", "on_hub": True},
    }
    write_card(folder, record)
    (folder / RECORD_NAME).write_text(json.dumps(record))
    return folder


@torch.no_grad()
def logits(name: str | Path, revision: str | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=torch.float32)
    output: torch.Tensor = model(torch.arange(10)[None]).logits
    return output


@pytest.mark.parametrize("shard_size", ["50GB", "20KB"])
def test_a_pushed_model_loads_by_name_with_its_tokenizer(
    tmp_path: Path, hub: HubServer, repo_id: str, shard_size: str
) -> None:
    folder = save_tiny(tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size=shard_size)
    commit = push_model(finish(folder, "me/base"), repo_id)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    torch.testing.assert_close(logits(repo_id), logits(folder), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(repo_id)("the cat").input_ids
    assert ModelCard.load(repo_id).data.to_dict()["base_model"] == "me/base"

    push_model(finish(save_tiny(tmp_path / "new", seed=1), "me/base"), repo_id)
    assert not torch.equal(logits(repo_id), logits(folder))
    torch.testing.assert_close(logits(repo_id, commit), logits(folder), rtol=0, atol=0)


def test_a_pushed_adapter_loads_by_name_on_its_base(tmp_path: Path, hub: HubServer, repo_id: str) -> None:
    base = f"{repo_id}-base"
    push_model(finish(save_tiny(tmp_path / "base"), "me/base"), base)
    adapter = finish(save_tiny_adapter(tmp_path / "adapter", Path(base)), base)
    push_model(adapter, repo_id)
    assert set(hub.files(repo_id, "model")) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        RECORD_NAME,
    }
    torch.testing.assert_close(logits(repo_id), logits(adapter), rtol=0, atol=0)
    assert not torch.equal(logits(repo_id), logits(base))
    card = ModelCard.load(repo_id).data
    assert (card.library_name, card.base_model) == ("peft", base)


def test_a_model_that_takes_the_place_of_an_adapter_is_what_loads(
    tmp_path: Path, hub: HubServer, repo_id: str
) -> None:
    model = finish(save_tiny(tmp_path / "model"), "me/base")
    push_model(finish(save_tiny_adapter(tmp_path / "adapter", model), "me/base"), repo_id)
    push_model(model, repo_id)
    torch.testing.assert_close(logits(repo_id), logits(model), rtol=0, atol=0)


def test_sepo_push_takes_a_model_where_it_takes_a_dataset(
    tmp_path: Path, hub: HubServer, repo_id: str
) -> None:
    folder = finish(save_tiny(tmp_path / "out"), "me/base")
    pushed = CliRunner().invoke(main, ["push", str(folder), repo_id, "--private"])
    assert (pushed.exit_code, pushed.stdout.strip()) == (0, f"pushed to {hub.url}/{repo_id}")
    assert hub.repos["model", repo_id].private
    (folder / RECORD_NAME).unlink()
    neither = CliRunner().invoke(main, ["push", str(folder), repo_id])
    assert neither.exit_code == 1
    assert "neither annotated nor trained by sepo. Push it with `hf upload" in neither.stderr
