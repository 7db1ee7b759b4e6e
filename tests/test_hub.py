"""Tests of the Hub: the real clients, over HTTP, against a Hub on this machine that fails on demand."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import READER, STRANGER, Fault, HubServer
from huggingface_hub import HfApi

from sepo_data.errors import HubError, ModelError, OutputError, PreferenceError, SchemaError, SepoError
from sepo_data.hub import (
    TRIES,
    check_push_target,
    dataset_revision,
    load_annotated,
    model_revision,
    push_annotated,
)
from sepo_data.schema import MANIFEST_NAME, SCHEMA_VERSION, annotated_schema

# what a push asks for; the client itself repeats the uploads, after a second
ASKS = {
    "whoami": "GET /api/whoami-v2",
    "create": "POST /api/repos/create",
    "rights": "auth-check/write",
    "info": "GET /api/datasets/{repo_id}$",
    "card": "POST /api/validate-yaml",
    "commit": "POST /api/datasets/{repo_id}/commit",
}
UPLOADS = {
    "preupload": "POST /api/datasets/{repo_id}/preupload",
    "batch": "POST /datasets/{repo_id}.git/info/lfs/objects/batch",
    "put": "PUT /upload/{repo_id}/",
    "verify": "POST /datasets/{repo_id}.git/info/lfs/verify",
}
FAULTS: list[Fault] = [500, 503, 429, 409, "reset", "lost"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepo_data.hub.BACKOFF_S", 0.01)


def row(number: int) -> dict[str, object]:
    one: dict[str, object] = {"prompt": f"Question {number}?", "chosen": "Paris.", "rejected": "Lyon."}
    # "Paris." is "Paris" and ".", so 1 + 0.5 and 0.25 for the end of the turn = 1.75
    for side, split, sign in [("chosen", 5, 1.0), ("rejected", 4, -1.0)]:
        one |= {
            f"{side}_token_start": [0, split],
            f"{side}_token_end": [split, split + 1],
            f"{side}_token_rewards": [sign, sign / 2],
            f"{side}_token_mask": [True, False],
            f"{side}_eos_reward": sign / 4,
            f"{side}_eos_mask": False,
            f"{side}_reward": sign * 1.75,
        }
    return one


def write_folder(folder: Path, shards: int = 2, first_row: int = 0) -> Path:
    """A finished folder of two rows a shard, with work files as a run leaves them."""
    schema = annotated_schema(
        pa.schema([]), dict.fromkeys(("prompt", "chosen", "rejected"), pa.string()), store_logps=False
    )
    (folder / "data").mkdir(parents=True)
    (folder / "_work").mkdir()
    (folder / "_work" / "train-000000000-000000002.parquet").write_bytes(b"unfinished")
    for shard in range(shards):
        rows = [row(first_row + 2 * shard), row(first_row + 2 * shard + 1)]
        name = f"train-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / name)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Annotated\n")
    (folder / MANIFEST_NAME).write_text(json.dumps({"schema_version": SCHEMA_VERSION}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "out")


def pushed_files(folder: Path) -> dict[str, bytes]:
    paths = [*folder.glob("data/*"), folder / "README.md", folder / MANIFEST_NAME]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_pushed_once(hub: HubServer, repo_id: str, folder: Path) -> None:
    assert hub.num_commits(repo_id) == 1
    assert hub.files(repo_id) == pushed_files(folder)


def one_line(error: pytest.ExceptionInfo[SepoError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Push


def test_a_pushed_folder_loads_by_name_and_without_sepo(hub: HubServer, repo_id: str, folder: Path) -> None:
    commit = push_annotated(folder, repo_id)
    assert_pushed_once(hub, repo_id, folder)
    assert commit == hub.repos["dataset", repo_id].head
    rows = datasets.load_dataset(repo_id, split="train").to_list()
    assert rows == pa.concat_tables(map(pq.read_table, sorted(folder.glob("data/*")))).to_pylist()
    assert [r["prompt"] for r in rows] == [f"Question {number}?" for number in range(4)]


def test_pushing_the_same_folder_again_makes_no_second_commit(
    hub: HubServer, repo_id: str, folder: Path
) -> None:
    assert push_annotated(folder, repo_id) == push_annotated(folder, repo_id)
    assert_pushed_once(hub, repo_id, folder)


def test_a_changed_folder_is_a_second_commit_and_leaves_no_stale_shards(
    hub: HubServer, repo_id: str, folder: Path, tmp_path: Path
) -> None:
    push_annotated(folder, repo_id)
    push_annotated(write_folder(tmp_path / "other", shards=1, first_row=10), repo_id)
    assert hub.num_commits(repo_id) == 2
    assert hub.files(repo_id) == pushed_files(tmp_path / "other")


def test_two_pushes_of_one_folder_at_once_make_one_commit(hub: HubServer, repo_id: str, folder: Path) -> None:
    check_push_target(repo_id, private=False)
    with ThreadPoolExecutor() as pool:
        commits = set(pool.map(lambda _: push_annotated(folder, repo_id), range(4)))
    assert len(commits) == 1
    assert_pushed_once(hub, repo_id, folder)


def test_a_push_goes_on_top_of_what_somebody_commits_meanwhile(
    hub: HubServer, repo_id: str, folder: Path
) -> None:
    check_push_target(repo_id, private=False)
    theirs = {"LICENSE": b"MIT", "data/old.parquet": b"old"}
    hub.fail(ASKS["commit"].format(repo_id=repo_id), [lambda: hub.add("dataset", repo_id, theirs)])
    push_annotated(folder, repo_id)
    assert hub.num_commits(repo_id) == 2  # theirs, and ours after a 412
    assert hub.files(repo_id) == {"LICENSE": b"MIT", **pushed_files(folder)}


# Faults that pass


@pytest.mark.parametrize(("call", "fault"), [*itertools.product(ASKS, FAULTS), ("commit", 412)])
def test_a_fault_of_the_hub_is_survived_with_one_commit(
    hub: HubServer, repo_id: str, folder: Path, call: str, fault: Fault
) -> None:
    hub.fail(ASKS[call].format(repo_id=repo_id), [fault])
    push_annotated(folder, repo_id)
    assert_pushed_once(hub, repo_id, folder)
    assert not hub.pending_faults


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_during_the_upload_is_survived_with_one_commit(
    hub: HubServer, repo_id: str, folder: Path, fault: Fault
) -> None:
    # the client waits a second after each of these; one dataset for each call waits for all at once
    names = {call: f"{repo_id}-{call}" for call in UPLOADS}
    hub.uploads.clear()
    folders = {call: write_folder(folder / call, first_row=10 * i) for i, call in enumerate(names)}
    for call, name in names.items():
        hub.fail(UPLOADS[call].format(repo_id=name), [fault])
    with ThreadPoolExecutor() as pool:
        list(pool.map(push_annotated, folders.values(), names.values()))
    for call, name in names.items():
        assert_pushed_once(hub, name, folders[call])
    assert not hub.pending_faults


def test_faults_one_after_the_other_are_survived(hub: HubServer, repo_id: str, folder: Path) -> None:
    hub.fail(ASKS["commit"].format(repo_id=repo_id), [412, 503, "reset", 409, "lost"])
    push_annotated(folder, repo_id)
    assert_pushed_once(hub, repo_id, folder)


def test_a_wait_that_the_hub_asks_for_is_kept(hub: HubServer, repo_id: str, folder: Path) -> None:
    hub.fail(ASKS["commit"].format(repo_id=repo_id), [429], retry_after_s=1)
    start = time.monotonic()
    push_annotated(folder, repo_id)
    assert time.monotonic() - start >= 1
    assert_pushed_once(hub, repo_id, folder)


def test_a_hub_that_stays_down_is_one_line_and_a_later_push_works(
    hub: HubServer, repo_id: str, folder: Path
) -> None:
    hub.fail(ASKS["commit"].format(repo_id=repo_id), [503], times=TRIES)
    with pytest.raises(HubError, match=f"{repo_id}: the Hub does not answer .*503.*Try again later") as error:
        push_annotated(folder, repo_id)
    one_line(error)
    assert hub.num_commits(repo_id) == 0
    push_annotated(folder, repo_id)
    assert_pushed_once(hub, repo_id, folder)


# Faults that do not pass: one line, before any work


def test_a_target_without_rights_is_refused_before_work(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("dataset", "other/theirs", {"README.md": b"theirs"})
    refused = "no right to write there. Use a token that may write to"
    cases = [
        ("hf_wrong", "me/new", "the Hub refuses the token. Log in with `hf auth login`"),
        ("", "me/new", "no Hugging Face token to push with. Log in with `hf auth login`"),
        (READER, "me/new", f'me/new: {refused} "me"'),
        (STRANGER, "me/new", f'me/new: {refused} "me"'),
        ("hf_owner", "other/new", f'other/new: {refused} "other"'),
        ("hf_owner", "other/theirs", f'other/theirs: {refused} "other"'),
    ]
    for token, repo_id, message in cases:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError) as error:
            check_push_target(repo_id, private=False)
        assert one_line(error).startswith(message)
    assert ("dataset", "me/new") not in hub.repos


def test_rights_to_read_an_own_dataset_are_not_rights_to_push(
    hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_push_target(repo_id, private=True)
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(HubError, match="no right to write there"):
        check_push_target(repo_id, private=True)


@pytest.mark.parametrize("name", ["prefs", "me/", "me/a/b", "me/a--b", "me/a b", "/tmp/out", "me/x.git"])
def test_a_bad_name_is_refused_with_a_good_one(hub: HubServer, name: str) -> None:
    with pytest.raises(HubError, match="Give a name like user/") as error:
        check_push_target(name, private=False)
    assert name in one_line(error)


def test_private_data_never_goes_to_a_public_dataset(hub: HubServer, repo_id: str, folder: Path) -> None:
    check_push_target(repo_id, private=False)
    with pytest.raises(HubError, match="is public, you asked for private"):
        push_annotated(folder, repo_id, private=True)
    push_annotated(folder, f"{repo_id}-private", private=True)
    assert hub.repos["dataset", f"{repo_id}-private"].private
    assert hub.num_commits(repo_id) == 0


def test_a_dataset_that_sepo_did_not_write_is_not_replaced(hub: HubServer, repo_id: str) -> None:
    hub.add("dataset", repo_id, {"README.md": b"", "data/train.parquet": b"theirs"})
    with pytest.raises(HubError, match=r"holds data/train.parquet, which sepo did not write"):
        check_push_target(repo_id, private=False)


def test_a_card_that_the_hub_refuses_is_one_line(hub: HubServer, repo_id: str, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: no such thing\n---\n")
    with pytest.raises(HubError, match=f'{repo_id}: "license" must be one of') as error:
        push_annotated(folder, repo_id)
    one_line(error)


@pytest.mark.parametrize("missing", [MANIFEST_NAME, "README.md", "data/*.parquet"])
def test_an_unfinished_folder_is_not_pushed(hub: HubServer, folder: Path, missing: str) -> None:
    for path in list(folder.glob(missing)):
        path.unlink()
    problem = f"not a finished annotated dataset ({missing} is missing). Let sepo-annotate finish, or run"
    with pytest.raises(OutputError, match=re.escape(problem)):
        push_annotated(folder, "me/new")
    assert not hub.requests


def test_data_that_breaks_the_contract_is_not_pushed(hub: HubServer, folder: Path) -> None:
    path = folder / "data" / "train-00001-of-00002.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["chosen_token_mask"]), path)
    with pytest.raises(SchemaError, match=r'train-00001.*column "chosen_token_mask" is missing'):
        push_annotated(folder, "me/new")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OutputError, match=r"train-00001.*cannot be read"):
        push_annotated(folder, "me/new")
    assert not hub.requests


def test_a_hub_without_xet_storage_gets_a_hint(repo_id: str, folder: Path) -> None:
    code = (
        "import sys, pathlib; from sepo_data import hub; hub.BACKOFF_S = 0.01\n"
        "hub.push_annotated(pathlib.Path(sys.argv[1]), sys.argv[2])"
    )
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_XET"}
    done = subprocess.run(
        [sys.executable, "-c", code, folder, repo_id], env=env, capture_output=True, text=True
    )
    assert "HF_HUB_DISABLE_XET=1" in done.stderr.splitlines()[-1]


# Load


def test_an_annotated_dataset_loads_from_folder_and_hub(
    hub: HubServer, repo_id: str, folder: Path, tmp_path: Path
) -> None:
    first = push_annotated(folder, repo_id)
    push_annotated(write_folder(tmp_path / "other", first_row=10), repo_id)
    assert load_annotated(str(folder))["train"][0]["prompt"] == "Question 0?"
    assert load_annotated(repo_id)["train"][0]["prompt"] == "Question 10?"
    assert load_annotated(repo_id, revision=first)["train"][0]["prompt"] == "Question 0?"


def test_a_dataset_made_from_a_restricted_source_is_pushed_private(
    hub: HubServer, repo_id: str, folder: Path
) -> None:
    manifest = json.loads((folder / "sepo_manifest.json").read_text())
    manifest["source"] = {"restricted": True}
    (folder / "sepo_manifest.json").write_text(json.dumps(manifest))
    push_annotated(folder, repo_id)
    assert HfApi().dataset_info(repo_id).private


@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "lost"])
def test_faults_while_loading_are_survived(hub: HubServer, repo_id: str, folder: Path, fault: Fault) -> None:
    push_annotated(folder, repo_id)
    hub.fail(rf"GET /api/datasets/{repo_id}$", [fault])
    hub.fail(rf"HEAD /datasets/{repo_id}/resolve/\w+/data/train-00000", [fault])
    assert load_annotated(repo_id)["train"].num_rows == 4
    assert not hub.pending_faults


def test_what_is_not_an_annotated_dataset_is_refused_before_its_data_is_fetched(
    hub: HubServer, repo_id: str, folder: Path, tmp_path: Path
) -> None:
    files = pushed_files(folder)
    del files[MANIFEST_NAME]
    hub.add("dataset", repo_id, files)
    with pytest.raises(SchemaError, match=rf"{repo_id}: not an annotated dataset .*sepo-annotate"):
        load_annotated(repo_id)
    assert not [request for request in hub.requests if "parquet" in request]
    with pytest.raises(SchemaError, match="not an annotated dataset"):
        load_annotated(str(tmp_path))


def test_an_unknown_schema_version_is_refused(folder: Path) -> None:
    for manifest in ('{"schema_version": "2.0"}', "{}", "{", "[]"):
        (folder / MANIFEST_NAME).write_text(manifest)
        with pytest.raises(SchemaError, match="schema version"):
            load_annotated(str(folder))


@pytest.mark.parametrize("name", ["me/missing", "me/a/b/c", "nothing here"])
def test_a_dataset_that_is_not_there_is_one_line(hub: HubServer, name: str) -> None:
    with pytest.raises(HubError, match=rf"{name}: (not on the Hub|neither a folder nor)") as error:
        load_annotated(name)
    one_line(error)


# Revisions


def test_the_facts_of_a_source_are_those_of_its_revision(hub: HubServer, repo_id: str) -> None:
    first = hub.add(
        "dataset", repo_id, {"README.md": b"---\nlicense: mit\nlanguage: [en, de]\n---\n# Hi"}, gated=True
    )
    second = hub.add("dataset", repo_id, {"data.jsonl": b"{}"})
    old, new = dataset_revision(repo_id, first), dataset_revision(repo_id, None)
    assert (old.revision, old.card) == (first, {"license": "mit", "language": ["en", "de"]})
    assert (new.revision, new.card) == (second, {})
    assert (new.private, new.gated) == (False, True)


@pytest.mark.parametrize("card", [b"no yaml", b"---\nlicense: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe"])
def test_a_card_that_is_no_yaml_is_left_out(hub: HubServer, repo_id: str, card: bytes) -> None:
    hub.add("dataset", repo_id, {"README.md": card})
    assert dataset_revision(repo_id, "main").card == {}


@pytest.mark.parametrize("fault", [500, 503, 429, "reset", "lost"])
def test_faults_while_looking_up_revisions_are_survived(hub: HubServer, repo_id: str, fault: Fault) -> None:
    sha = hub.add("dataset", repo_id, {"README.md": b"---\nlicense: mit\n---\n"})
    model = hub.add("model", repo_id, {"config.json": b"{}"})
    hub.fail(f"GET /api/(datasets|models)/{repo_id}$", [fault, fault, fault])
    facts = dataset_revision(repo_id, None)
    assert (facts.revision, facts.card) == (sha, {"license": "mit"})
    assert model_revision(repo_id, None) == model


def test_a_model_and_its_tokenizer_load_by_name(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    config = transformers.GPT2Config(vocab_size=2, n_embd=4, n_layer=1, n_head=1, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    sha = hub.add("model", repo_id, tmp_path)
    hub.add("model", repo_id, {})  # the head has no model any more
    revision = model_revision(repo_id, sha)
    assert revision == sha
    assert transformers.AutoTokenizer.from_pretrained(repo_id, revision=revision)("b").input_ids == [1]
    assert transformers.AutoModelForCausalLM.from_pretrained(repo_id, revision=revision).config.n_embd == 4


def test_sources_that_are_not_there_say_what_to_do(
    hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("dataset", f"other/{repo_id[3:]}-gated", {"README.md": b"---\nlicense: mit\n---\n"}, gated=True)
    hub.add("dataset", f"other/{repo_id[3:]}-private", {"README.md": b""}, private=True)
    hub.add("model", repo_id, {"config.json": b"{}"})
    cases = [
        (f"other/{repo_id[3:]}-gated", None, f"Ask for it at {hub.url}/datasets/other"),
        (f"other/{repo_id[3:]}-private", None, "not on the Hub, or private"),
        (f"{repo_id}-missing", None, "not on the Hub, or private"),
        ("a/b/c", None, "neither a folder nor a name on the Hub"),
    ]
    for name, revision, message in cases:
        with pytest.raises(PreferenceError, match=message) as error:
            dataset_revision(name, revision)
        assert one_line(error).startswith(f"{name}: ")
    with pytest.raises(ModelError, match='no revision "v9"'):
        model_revision(repo_id, "v9")
    with pytest.raises(ModelError, match="not on the Hub, or private"):
        model_revision(f"{repo_id}-missing", None)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelError, match="hf auth login"):
        model_revision(repo_id, None)


def test_a_hub_that_stays_down_is_an_error_of_the_hub(hub: HubServer, repo_id: str) -> None:
    hub.add("model", repo_id, {"config.json": b"{}"})
    hub.fail("GET /api/models/", ["reset"], times=TRIES)
    with pytest.raises(HubError, match=f"{repo_id}: the Hub does not answer") as error:
        model_revision(repo_id, None)
    one_line(error)


def test_offline_a_model_has_the_revision_of_the_cache(hub: HubServer, repo_id: str) -> None:
    sha = hub.add("model", repo_id, {"config.json": b"{}"})
    code = (
        "import sys, huggingface_hub; from sepo_data.hub import model_revision\n"
        "if len(sys.argv) > 2: huggingface_hub.snapshot_download(sys.argv[1])\n"
        "print(model_revision(sys.argv[1], None))"
    )
    command = [sys.executable, "-c", code, repo_id]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    before = subprocess.run(command, env=offline, capture_output=True, text=True)
    assert "HF_HUB_OFFLINE is set" in before.stderr.splitlines()[-1]
    subprocess.run([*command, "download"], check=True, capture_output=True)
    assert subprocess.check_output(command, env=offline, text=True).strip() == sha
