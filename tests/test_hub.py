"""Tests of the Hub: the real clients, over HTTP, against a Hub on this machine that fails on demand."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from annotated import manifest
from hub_server import PREFIXES, READER, STRANGER, Fault, HubServer
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
from safetensors.numpy import save_file

from sepo_data.annotated.opening import annotated_revision, load_annotated, open_annotated
from sepo_data.annotated.publishing import ANNOTATED, push_annotated
from sepo_data.errors import HubError, ModelError, OutputError, PreferenceError, SchemaError, SepoError
from sepo_data.hub.client import TRIES, dataset_revision, model_files, model_revision, with_retries
from sepo_data.hub.pushing import Artifact, RepoType, check_push_target
from sepo_data.schema import MANIFEST_NAME, annotated_schema
from sepo_train.folder import RECORD_NAME
from sepo_train.publishing import TRAINED, push_model

KINDS: list[RepoType] = ["dataset", "model"]
ARTIFACTS: dict[RepoType, Artifact] = {"dataset": ANNOTATED, "model": TRAINED}
PUSH = {"dataset": push_annotated, "model": push_model}
# what a push asks for; the client itself repeats the uploads, after a second
ASKS = {
    "whoami": "GET /api/whoami-v2",
    "create": "POST /api/repos/create",
    "rights": "GET /api/{kind}s/{repo_id}/auth-check/write",
    "info": "GET /api/{kind}s/{repo_id}$",
    "card": "POST /api/validate-yaml",
    "commit": "POST /api/{kind}s/{repo_id}/commit",
}
UPLOADS = {
    "preupload": "POST /api/{kind}s/{repo_id}/preupload",
    "batch": "POST /{page}{repo_id}.git/info/lfs/objects/batch",
    "put": "PUT /upload/{repo_id}/",
    "verify": "POST /{page}{repo_id}.git/info/lfs/verify",
}
REQUEST = httpx.Request("GET", "http://127.0.0.1")
FAULTS: list[Fault] = [500, 503, 429, 409, "reset", "lost"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepo_data.hub.client.BACKOFF_S", 0.01)


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
    """A finished folder with two rows per shard, and work files as a run leaves them."""
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
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest().as_dict()))
    return folder


def write_model(folder: Path, shards: int = 2, first_row: int = 0) -> Path:
    """A finished model with one weight per shard, and the files that training leaves."""
    (folder / "checkpoint-2").mkdir(parents=True)
    weights = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({f"w{shard}": np.array([first_row + shard], np.float32)}, folder / name)
        weights[f"w{shard}"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    for name, text in {
        "config.json": '{"model_type": "llama"}',
        "tokenizer.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "README.md": "---\nlicense: mit\n---\n# Trained\n",
        RECORD_NAME: json.dumps({"schema_version": "1.0", "dataset": {"restricted": False}}),
    }.items():
        (folder / name).write_text(text)
    left = ["checkpoint-2/model.safetensors", "training_args.bin", "optimizer.pt", "rng_state.pth", ".token"]
    for name in [*left, "trainer_state.json"]:
        (folder / name).write_bytes(b"stays behind")
    return folder


WRITE = {"dataset": write_folder, "model": write_model}
MODEL_FILES = ["*.safetensors", "*.index.json", "config.json", "tokenizer.json", "*.jinja", RECORD_NAME]
FILES = {"dataset": ["data/*", MANIFEST_NAME], "model": MODEL_FILES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "out")


def asks(call: str, kind: str, repo_id: str) -> str:
    """The pattern of one of the requests of a push."""
    return (ASKS | UPLOADS)[call].format(kind=kind, repo_id=repo_id, page=PREFIXES[kind])


def pushed_files(folder: Path, kind: str = "dataset") -> dict[str, bytes]:
    paths = [path for pattern in ["README.md", *FILES[kind]] for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_pushed_once(hub: HubServer, repo_id: str, folder: Path, kind: str = "dataset") -> None:
    assert hub.num_commits(repo_id, kind) == 1
    assert hub.files(repo_id, kind) == pushed_files(folder, kind)


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


@pytest.mark.parametrize("kind", KINDS)
def test_pushing_the_same_folder_again_makes_no_second_commit(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType
) -> None:
    folder = WRITE[kind](tmp_path / "out")
    first = PUSH[kind](folder, repo_id)
    assert first == PUSH[kind](folder, repo_id) == hub.repos[kind, repo_id].head
    assert_pushed_once(hub, repo_id, folder, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_folder_is_a_second_commit_and_leaves_no_stale_shards(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType
) -> None:
    PUSH[kind](WRITE[kind](tmp_path / "out"), repo_id)
    PUSH[kind](WRITE[kind](tmp_path / "other", shards=1, first_row=10), repo_id)
    assert hub.num_commits(repo_id, kind) == 2
    assert hub.files(repo_id, kind) == pushed_files(tmp_path / "other", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_two_pushes_of_one_folder_at_once_make_one_commit(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType
) -> None:
    folder = WRITE[kind](tmp_path / "out")
    check_push_target(repo_id, ARTIFACTS[kind], private=False)
    with ThreadPoolExecutor() as pool:
        commits = set(pool.map(lambda _: PUSH[kind](folder, repo_id), range(4)))
    assert len(commits) == 1
    assert_pushed_once(hub, repo_id, folder, kind)


@pytest.mark.parametrize(("kind", "old"), [("dataset", "data/old.parquet"), ("model", "old.safetensors")])
def test_a_push_is_made_on_top_of_a_concurrent_commit(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType, old: str
) -> None:
    folder = WRITE[kind](tmp_path / "out")
    check_push_target(repo_id, ARTIFACTS[kind], private=False)
    theirs = {"LICENSE": b"MIT", old: b"old"}
    hub.fail(asks("commit", kind, repo_id), [lambda: hub.add(kind, repo_id, theirs)])
    PUSH[kind](folder, repo_id)
    assert hub.num_commits(repo_id, kind) == 2  # theirs, and ours after a 412
    assert hub.files(repo_id, kind) == {"LICENSE": b"MIT", **pushed_files(folder, kind)}


def test_an_adapter_takes_the_place_of_a_model_and_what_others_have_added_stays(
    hub: HubServer, repo_id: str, tmp_path: Path
) -> None:
    model, adapter = write_model(tmp_path / "model"), tmp_path / "adapter"
    push_model(model, repo_id)
    theirs = {"LICENSE": b"MIT", "model.gguf": b"converted", "onnx/model.json": b"{}"}
    stale = {"additional_chat_templates/rag.jinja": b"old", "merges.txt": b"old"}
    hub.add("model", repo_id, {**hub.files(repo_id, "model"), **theirs, **stale})
    (adapter / "additional_chat_templates").mkdir(parents=True)
    (adapter / "additional_chat_templates" / "tool_use.jinja").write_text("new")
    save_file({"lora": np.ones(1, np.float32)}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text("{}")
    for name in ("README.md", RECORD_NAME):
        (adapter / name).write_bytes((model / name).read_bytes())
    push_model(adapter, repo_id)
    names = ["README.md", RECORD_NAME, "adapter_config.json", "adapter_model.safetensors"]
    expected = {*names, "additional_chat_templates/tool_use.jinja", *theirs}
    assert set(hub.files(repo_id, "model")) == expected


# Faults that pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("call", "fault"), [*itertools.product(ASKS, FAULTS), ("commit", 412)])
def test_a_fault_of_the_hub_is_survived_with_one_commit(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType, call: str, fault: Fault
) -> None:
    folder = WRITE[kind](tmp_path / "out")
    hub.fail(asks(call, kind, repo_id), [fault])
    PUSH[kind](folder, repo_id)
    assert_pushed_once(hub, repo_id, folder, kind)
    assert not hub.pending_faults


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_during_the_upload_is_survived_with_one_commit(
    hub: HubServer, repo_id: str, tmp_path: Path, fault: Fault
) -> None:
    # the client waits a second after each of these; one repository for each call waits for all at once
    hub.uploads.clear()
    jobs = []
    for number, (kind, call) in enumerate(itertools.product(KINDS, UPLOADS)):
        name = f"{repo_id}-{kind}-{call}"
        hub.fail(asks(call, kind, name), [fault])
        jobs.append((kind, WRITE[kind](tmp_path / f"{kind}-{call}", first_row=10 * number), name))
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job: PUSH[job[0]](*job[1:]), jobs))
    for kind, folder, name in jobs:
        assert_pushed_once(hub, name, folder, kind)
    assert not hub.pending_faults


@pytest.mark.parametrize("kind", KINDS)
def test_faults_one_after_the_other_are_survived(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType
) -> None:
    folder = WRITE[kind](tmp_path / "out")
    hub.fail(asks("commit", kind, repo_id), [412, 503, "reset", 409, "lost"])
    PUSH[kind](folder, repo_id)
    assert_pushed_once(hub, repo_id, folder, kind)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of waiting that were requested."""
    found: list[float] = []
    monkeypatch.setattr("sepo_data.hub.client.BACKOFF_S", 1.0)
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def failing(*errors: BaseException) -> Callable[[], str]:
    """Raise these errors, one per call, then answer."""
    due = list(errors)

    def call() -> str:
        if due:
            raise due.pop(0)
        return "answer"

    return call


def final(cause: BaseException) -> SepoError:
    return HubError(f"final: {cause}")


def test_waits_double_and_the_sixth_failure_is_the_last(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    assert with_retries(failing(*[httpx.ConnectError("no route.")] * 5), final) == "answer"
    assert waits == [1, 2, 4, 8, 16]
    assert caplog.messages == [f"no route; next try in {wait:.0f} s" for wait in waits]
    with pytest.raises(HubError, match=r"^final: no route\.$"):
        with_retries(failing(*[httpx.ConnectError("no route.")] * 6), final)
    assert waits == [1, 2, 4, 8, 16] * 2


def test_what_another_try_cannot_change_ends_at_once(waits: list[float]) -> None:
    ours = PreferenceError("no such column")
    with pytest.raises(PreferenceError) as raised:
        with_retries(failing(ours), final)
    assert raised.value is ours
    with pytest.raises(HubError, match="final: no such key"):
        with_retries(failing(ValueError("no such key")), final)
    assert waits == []


def test_a_hub_that_asks_for_longer_than_the_next_wait_gets_it(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    busy = [
        HfHubHTTPError(
            "busy", response=httpx.Response(429, headers={"Retry-After": seconds}, request=REQUEST)
        )
        for seconds in ("3", "1", "")
    ]
    assert with_retries(failing(*busy), final) == "answer"
    assert waits == [3, 2, 4]
    assert [message.rpartition("; ")[2] for message in caplog.messages] == [
        f"next try in {wait:.0f} s" for wait in waits
    ]


def test_a_wait_that_the_hub_asks_for_is_kept(hub: HubServer, repo_id: str, folder: Path) -> None:
    hub.fail(asks("commit", "dataset", repo_id), [429], retry_after_s=1)
    start = time.monotonic()
    push_annotated(folder, repo_id)
    assert time.monotonic() - start >= 1
    assert_pushed_once(hub, repo_id, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_that_stays_down_is_one_line_and_a_later_push_works(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType
) -> None:
    folder = WRITE[kind](tmp_path / "out")
    hub.fail(asks("commit", kind, repo_id), [503], times=TRIES)
    with pytest.raises(HubError, match=f"{repo_id}: the Hub does not answer .*503.*Try again later") as error:
        PUSH[kind](folder, repo_id)
    one_line(error)
    assert hub.num_commits(repo_id, kind) == 0
    PUSH[kind](folder, repo_id)
    assert_pushed_once(hub, repo_id, folder, kind)


# Faults that do not pass: one line, before any work


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_without_rights_is_refused_before_work(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, kind: RepoType
) -> None:
    hub.add(kind, "other/theirs", {"README.md": b"theirs"})
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
            check_push_target(repo_id, ARTIFACTS[kind], private=False)
        assert one_line(error).startswith(message)
    assert (kind, "me/new") not in hub.repos


@pytest.mark.parametrize("kind", KINDS)
def test_rights_to_read_an_own_repository_are_not_rights_to_push(
    hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch, kind: RepoType
) -> None:
    check_push_target(repo_id, ARTIFACTS[kind], private=True)
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(HubError, match="no right to write there"):
        check_push_target(repo_id, ARTIFACTS[kind], private=True)


def test_a_model_and_a_dataset_may_have_the_same_name(hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    for kind in KINDS:
        PUSH[kind](WRITE[kind](tmp_path / kind), repo_id)
    for kind in KINDS:
        assert_pushed_once(hub, repo_id, tmp_path / kind, kind)


@pytest.mark.parametrize("name", ["prefs", "me/", "me/a/b", "me/a--b", "me/a b", "/tmp/out", "me/x.git"])
def test_a_bad_name_is_refused_with_a_good_one(hub: HubServer, name: str) -> None:
    with pytest.raises(HubError, match="Give a name like user/") as error:
        check_push_target(name, ANNOTATED, private=False)
    assert name in one_line(error)


REFUSALS: list[Fault] = [400, 401, 402, 403, 404, 422]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_of_a_push_is_not_tried_again(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType, status: Fault
) -> None:
    hub.fail(asks("commit", kind, repo_id), [status], times=TRIES)
    with pytest.raises(HubError):
        PUSH[kind](WRITE[kind](tmp_path / "out"), repo_id)
    assert sum("/commit/" in request for request in hub.requests) == 1


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_to_show_a_dataset_or_a_model_is_not_tried_again(
    hub: HubServer, repo_id: str, status: Fault
) -> None:
    hub.fail(f"GET /api/(datasets|models)/{repo_id}$", [status], times=2 * TRIES)
    for kind, look_up in (("dataset", dataset_revision), ("model", model_revision)):
        with pytest.raises(SepoError):
            look_up(repo_id, None)
        assert hub.requests.count(f"GET /api/{kind}s/{repo_id}") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_private_on_the_hub_stays_private_without_being_asked_for(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType
) -> None:
    folder = WRITE[kind](tmp_path / "out")
    PUSH[kind](folder, repo_id, private=True)
    hub.new_repos_are_private = True
    for name in (repo_id, f"{repo_id}-new"):
        PUSH[kind](folder, name)
        assert hub.repos[kind, name].private


@pytest.mark.parametrize("kind", KINDS)
def test_private_work_never_goes_to_a_public_repository(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType
) -> None:
    folder = WRITE[kind](tmp_path / "out")
    check_push_target(repo_id, ARTIFACTS[kind], private=False)
    with pytest.raises(HubError, match="is public, you asked for private"):
        PUSH[kind](folder, repo_id, private=True)
    PUSH[kind](folder, f"{repo_id}-private", private=True)
    assert hub.repos[kind, f"{repo_id}-private"].private
    assert hub.num_commits(repo_id, kind) == 0


@pytest.mark.parametrize(
    ("kind", "file"), [("dataset", "data/train.parquet"), ("model", "model.safetensors")]
)
def test_what_sepo_did_not_write_is_not_replaced(
    hub: HubServer, repo_id: str, tmp_path: Path, kind: RepoType, file: str
) -> None:
    hub.add(kind, repo_id, {"README.md": b"", file: b"theirs"})
    with pytest.raises(HubError, match=rf"{repo_id}: contains {file}, which sepo did not write"):
        check_push_target(repo_id, ARTIFACTS[kind], private=False)
    with pytest.raises(HubError, match=rf"{repo_id}: contains {file}, which sepo did not write"):
        PUSH[kind](WRITE[kind](tmp_path / "out"), repo_id)


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


@pytest.mark.parametrize(
    "missing", ["config.json", "model-00002-of-00002.safetensors", "README.md", RECORD_NAME]
)
def test_an_unfinished_model_is_not_pushed(hub: HubServer, tmp_path: Path, missing: str) -> None:
    folder = write_model(tmp_path / "out")
    (folder / missing).unlink()
    problem = f"{folder}: not a finished model ({missing} is missing). Let sepo-train finish first."
    with pytest.raises(OutputError, match=re.escape(problem)):
        push_model(folder, "me/new")
    assert not hub.requests


def test_a_model_still_in_training_is_not_pushed(hub: HubServer, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "out")
    (folder / RECORD_NAME).write_text(json.dumps({"dataset": {}, "finished": False}))
    with pytest.raises(OutputError, match=r"not a finished model \(.* of an unfinished run\)"):
        push_model(folder, "me/new")
    assert not hub.requests


def test_a_folder_without_weights_or_with_half_an_adapter_is_not_pushed(
    hub: HubServer, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "out", shards=0)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(OutputError, match=r"model.safetensors is missing"):
        push_model(folder, "me/new")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"adapter_model.safetensors is missing"):
        push_model(folder, "me/new")
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model-00001-of-00002.safetensors", lambda data: data[:-1]),
        ("model.safetensors.index.json", lambda data: data[:-1]),
        ("model.safetensors.index.json", lambda data: b"[]"),
        (RECORD_NAME, lambda data: b"[]"),
        (RECORD_NAME, lambda data: b"{}"),
    ],
)
def test_a_damaged_model_is_not_pushed(
    hub: HubServer, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    path = write_model(tmp_path / "out") / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OutputError, match=f"{re.escape(str(path))}: cannot be read") as error:
        push_model(path.parent, "me/new")
    one_line(error)
    assert not hub.requests


def test_a_model_trained_on_restricted_data_is_pushed_private(
    hub: HubServer, repo_id: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "out")
    (folder / RECORD_NAME).write_text(json.dumps({"dataset": {"restricted": True}}))
    push_model(folder, repo_id)
    assert HfApi().model_info(repo_id).private


def test_a_hub_without_xet_storage_gets_a_hint(repo_id: str, folder: Path) -> None:
    code = (
        "import sys, pathlib; from sepo_data.hub import client; client.BACKOFF_S = 0.01\n"
        "from sepo_data import push_annotated; push_annotated(pathlib.Path(sys.argv[1]), sys.argv[2])"
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


def test_a_revision_names_one_dataset_for_good(
    hub: HubServer, repo_id: str, folder: Path, tmp_path: Path
) -> None:
    sha = push_annotated(folder, repo_id)
    local = annotated_revision(str(folder))
    assert annotated_revision(repo_id) == annotated_revision(repo_id, "main") == sha
    assert local == f"sha256:{hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()}"
    push_annotated(write_folder(tmp_path / "other", first_row=10), repo_id)
    assert annotated_revision(repo_id) != annotated_revision(repo_id, sha) == sha
    for name, revision, known_as in [(repo_id, sha, repo_id), (str(folder), local, "out")]:
        assert load_annotated(name, revision=revision)["train"][0]["prompt"] == "Question 0?"
        found = open_annotated(name, revision=revision)
        assert (found.name, found.revision) == (known_as, revision)
        assert found.manifest.as_dict() == json.loads((folder / MANIFEST_NAME).read_text())


def test_a_folder_that_is_of_another_revision_is_refused(folder: Path, tmp_path: Path) -> None:
    before = annotated_revision(str(folder))
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest().as_dict() | {"new": True}))
    for revision in (before, "main"):
        with pytest.raises(SchemaError, match=f'holds sha256:.*, not revision "{revision}"') as error:
            load_annotated(str(folder), revision=revision)
        one_line(error)
    with pytest.raises(SchemaError, match="not an annotated dataset"):
        annotated_revision(str(tmp_path))
    with pytest.raises(SchemaError, match="no such folder"):
        annotated_revision(str(tmp_path / "missing"))


@pytest.mark.parametrize(("revision", "problem"), [("v9", 'no revision "v9"'), (None, "not on the Hub")])
def test_a_revision_that_is_not_there_is_one_line(
    hub: HubServer, repo_id: str, revision: str | None, problem: str
) -> None:
    if revision:
        hub.add("dataset", repo_id, {"README.md": b""})
    with pytest.raises(HubError, match=f"{repo_id}: {problem}") as error:
        annotated_revision(repo_id, revision)
    one_line(error)


def test_offline_a_dataset_loads_from_the_cache_at_its_revision(
    hub: HubServer, repo_id: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = push_annotated(folder, repo_id)
    load_annotated(repo_id)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.clear()
    assert annotated_revision(repo_id, sha) == sha
    assert load_annotated(repo_id, revision=sha)["train"].num_rows == 4
    assert hub.requests == []


def test_a_dataset_made_from_a_restricted_source_is_pushed_private(
    hub: HubServer, repo_id: str, folder: Path
) -> None:
    changed = json.loads((folder / "sepo_manifest.json").read_text())
    changed["source"]["restricted"] = True
    (folder / "sepo_manifest.json").write_text(json.dumps(changed))
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
    for content in ('{"schema_version": "2.0"}', "{}", "{", "[]"):
        (folder / MANIFEST_NAME).write_text(content)
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
    hub.add("dataset", f"{repo_id}-private", {}, private=True)
    private = dataset_revision(f"{repo_id}-private", None)
    assert (private.private, private.gated) == (True, False)


@pytest.mark.parametrize("card", [b"no yaml", b"---\nlicense: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe"])
def test_a_card_that_is_no_yaml_is_left_out(
    hub: HubServer, repo_id: str, card: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("dataset", repo_id, {"README.md": card})
    assert dataset_revision(repo_id, "main").card == {}
    if card != b"no yaml":  # a card without any
        (warning,) = caplog.messages
        start, end = f"{repo_id}: the YAML of its card cannot be read (", "); it is left out."
        assert warning.startswith(start)
        assert warning.endswith(end)
        assert warning[len(start) : -len(end)] not in ("", "None")


def test_the_files_of_a_model_are_those_of_its_commit(hub: HubServer, repo_id: str) -> None:
    first = hub.add("model", repo_id, {"config.json": b"{}", "a/model.bin": b""})
    hub.add("model", repo_id, {"config.json": b"{}"})
    assert model_files(repo_id, first, ()) == {"config.json", "a/model.bin"}
    assert model_files(repo_id, hub.add("model", repo_id, {}), ()) == set()
    with pytest.raises(ModelError, match=f'^{repo_id}: no revision "v9"'):
        model_files(repo_id, "v9", ())


def test_offline_a_model_s_files_are_those_of_the_cache(
    hub: HubServer, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("model", repo_id, dict.fromkeys(("config.json", "tokenizer.json", "README.md"), b"{}"))
    later = hub.add("model", repo_id, {"config.json": b"{}"})
    for file in ("config.json", "tokenizer.json"):
        hf_hub_download(repo_id, file, revision=commit)
    hf_hub_download(repo_id, "config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    telling = ("adapter_config.json", "config.json")
    assert model_files(repo_id, commit, telling) == {"config.json", "tokenizer.json"}
    assert model_files(repo_id, later, telling) == {"config.json"}
    assert model_files(repo_id, commit, ("adapter_config.json",)) == set()
    assert model_revision(repo_id, None) == later
    assert model_revision(repo_id, commit) == commit


def test_access_to_a_gated_model_is_asked_for_on_its_page(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **keywords: object) -> None:
        raise GatedRepoError("gated", response=httpx.Response(403, request=REQUEST))

    for call in ("repo_info", "model_info"):
        monkeypatch.setattr(HfApi, call, refuse)
    for look_up in (
        lambda: model_revision("other/gated", None),
        lambda: model_files("other/gated", "v1", ()),
    ):
        with pytest.raises(ModelError) as error:
            look_up()
        assert one_line(error) == (
            f"other/gated: access is restricted. Ask for it at {hub.url}/other/gated, then log in with "
            "`hf auth login`."
        )


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
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
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
    hub.add("dataset", repo_id, {"README.md": b""})
    with pytest.raises(PreferenceError, match='no revision "v9"'):
        dataset_revision(repo_id, "v9")
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


@pytest.mark.parametrize(
    "look_up",
    [lambda name: dataset_revision(name, None), lambda name: model_revision(name, None), annotated_revision],
)
def test_without_a_network_a_mistyped_folder_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, look_up: Callable[[str], object]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(HubError, match=r"prefs: no such folder here, .* cannot be reached\. Check the path"):
        look_up("prefs")
    assert not caplog.messages
    with pytest.raises(HubError, match="the Hub does not answer"):
        look_up("me/prefs")
    assert len(caplog.messages) == TRIES - 1


def test_offline_a_model_has_the_revision_of_the_cache(hub: HubServer, repo_id: str) -> None:
    sha = hub.add("model", repo_id, {"config.json": b"{}"})
    code = (
        "import sys, huggingface_hub; from sepo_data.hub.client import model_revision\n"
        "if len(sys.argv) > 2: huggingface_hub.snapshot_download(sys.argv[1])\n"
        "print(model_revision(sys.argv[1], None))"
    )
    command = [sys.executable, "-c", code, repo_id]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    before = subprocess.run(command, env=offline, capture_output=True, text=True)
    assert "HF_HUB_OFFLINE is set" in before.stderr.splitlines()[-1]
    subprocess.run([*command, "download"], check=True, capture_output=True)
    assert subprocess.check_output(command, env=offline, text=True).strip() == sha
