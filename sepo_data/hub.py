"""Talk to the Hugging Face Hub: push a dataset or a model in one commit, load a dataset, find revisions.

The Hub answers 429, 409, 412 and 5xx now and then, drops connections, and at times does what it was
asked while the answer is lost. So every call is repeated until it succeeds or cannot, and each try looks
at the Hub anew: what a lost answer has done is not done again. No torch, no models.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    metadata_load,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RemoteEntryNotFoundError

from .errors import HubError, ModelError, PreferenceError, SchemaError, SepoError
from .hashing import file_sha256
from .hub_errors import asked_wait_s, cause_of, line_of, may_pass, push_error, source_error
from .hub_files import (
    RepoType,
    annotated_files,
    check_content,
    read_manifest,
    refuse_foreign,
    stale_files,
    trained_files,
    trained_on_restricted,
)
from .schema import MANIFEST_NAME, validate
from .sources import name_of, outside

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("sepo")

T = TypeVar("T")

TRIES = 6
BACKOFF_S = 1.0  # before the second try, then doubled; the client waits inside uploads only, up to 23 s a try


@dataclass(frozen=True)
class SourceFacts:
    """What the Hub says of a dataset: its commit, who may see it, and the YAML of its card."""

    revision: str
    private: bool
    gated: bool
    card: dict[str, Any]


@dataclass(frozen=True)
class Annotated:
    """An annotated dataset and where it comes from.

    Attributes:
        name: Name on the Hub, or of the folder, without its parents.
        revision: As `annotated_revision` returns it.
        manifest: See `docs/dataset_format.md`.
        splits: Its rows.
    """

    name: str
    revision: str
    manifest: dict[str, Any]
    splits: "datasets.DatasetDict"


def check_push_target(repo_id: str, *, private: bool, repo_type: RepoType = "dataset") -> None:
    """Make sure that a push can work, before any work is done for it; creates the repository.

    Args:
        repo_id: ``user/name`` or ``organization/name``.
        private: Create it private, and refuse one that is public.
        repo_type: What will be pushed, ``"dataset"`` or ``"model"``.

    Raises:
        HubError: If there is no valid token, no right to write, or something else under this name.
    """
    if "/" not in repo_id:
        raise HubError(f"{repo_id}: whose is it? Give a name like user/{repo_id}.")
    _repeated(
        lambda: _open_target(repo_id, repo_type, private=private), lambda cause: push_error(repo_id, cause)
    )


def push_annotated(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Push a finished folder of ``sepo-annotate``: data, card and manifest in one commit.

    Data files of an earlier push that the folder does not have are deleted in the same commit. A folder
    that is already there makes no second commit.

    Args:
        folder: What ``sepo-annotate`` or ``sepo merge`` has written.
        repo_id: ``user/name`` or ``organization/name``; created if it does not exist.
        private: Create it private, and refuse one that is public; so is done anyway if the source of the
            dataset is private or gated.

    Returns:
        The SHA of the commit that holds the folder, for ``load_annotated(repo_id, revision=sha)``.

    Raises:
        OutputError: If the folder is not finished.
        SchemaError: If its data does not keep the contract of an annotated dataset.
        HubError: If the Hub refuses, or cannot be reached.
    """
    files = annotated_files(folder)
    private = private or bool(read_manifest(folder, str(folder)).get("source", {}).get("restricted"))
    return _push(files, repo_id, "dataset", private=private)


def push_model(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Push a finished folder of ``sepo-train``, a model or an adapter, in one commit.

    Files of an earlier push that a loader would still read (shards, an adapter, a tokenizer) and that the
    folder does not have are deleted in the same commit. Checkpoints, hidden files, and the states of
    optimizer and trainer are not pushed. A folder that is already there makes no second commit.

    Args:
        folder: Weights as safetensors with their configuration, card and ``sepo_training.json``.
        repo_id: ``user/name`` or ``organization/name``; created if it does not exist.
        private: Create it private, and refuse one that is public; so is done anyway if the training
            record says that the dataset is private or gated.

    Returns:
        The SHA of the commit that holds the folder, for ``from_pretrained(repo_id, revision=sha)``.

    Raises:
        OutputError: If the folder is not a finished model.
        HubError: If the Hub refuses, or cannot be reached.
    """
    files = trained_files(folder)
    return _push(files, repo_id, "model", private=private or trained_on_restricted(folder))


def load_annotated(name_or_folder: str, *, revision: str | None = None) -> "datasets.DatasetDict":
    """Load an annotated dataset and check that it keeps the contract.

    Args:
        name_or_folder: A folder of ``sepo-annotate``, or a name on the Hub; a folder wins.
        revision: Branch, tag or commit on the Hub, or what `annotated_revision` has returned.

    Returns:
        Its splits by name.

    Raises:
        SchemaError: If it is not an annotated dataset, of an unknown version, or breaks the contract; or
            if a folder is not of this revision.
        HubError: If the Hub does not have it, or cannot be reached.
    """
    return open_annotated(name_or_folder, revision=revision).splits


def open_annotated(name_or_folder: str, *, revision: str | None = None) -> Annotated:
    """As `load_annotated`, together with where the dataset comes from."""
    import datasets

    commit = annotated_revision(name_or_folder, revision)
    local = _local_folder(name_or_folder)
    folder = local or _repeated(
        lambda: _download(name_or_folder, commit),
        lambda cause: source_error("datasets/", name_or_folder, commit, cause, HubError),
    )
    manifest = read_manifest(folder, name_or_folder)
    # datasets would go by the card, and serve the rows of before from its cache
    check_content(folder, manifest)
    try:
        _check_card(datasets.load_dataset_builder(str(folder)).config.data_files, folder)
        splits = datasets.load_dataset(str(folder))
    except SchemaError:
        raise
    except Exception as error:  # datasets lets through whatever its readers raise
        raise SchemaError(f"{name_or_folder}: cannot be read: {line_of(error)}.") from error
    validate(splits)
    name = name_of(local.resolve()) if local else name_or_folder
    return Annotated(name, commit, manifest, splits)


def _check_card(data_files: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Its YAML says what ``datasets`` reads: nothing that is not in the folder."""
    for path in outside(chain.from_iterable(data_files.values()), f"{folder.absolute()}/"):
        raise SchemaError(f"{folder / 'README.md'} names {path}, which is not in the folder. Correct it.")


def annotated_revision(name_or_folder: str, revision: str | None = None) -> str:
    """What exactly an annotated dataset's name stands for now, to load the same one again later.

    Args:
        name_or_folder: As for `load_annotated`.
        revision: Branch, tag or commit on the Hub; for a folder, what this function has returned for it.

    Returns:
        The commit on the Hub, or ``sha256:…`` of a folder's manifest, which holds the hashes of its data.

    Raises:
        SchemaError: If a folder holds no annotated dataset, or another one than ``revision``.
        HubError: If the Hub does not have it, or cannot be reached.
    """
    folder = _local_folder(name_or_folder)
    if folder is None:
        return _repeated(
            lambda: _sha(name_or_folder, "dataset", revision),
            lambda cause: source_error("datasets/", name_or_folder, revision, cause, HubError),
        )
    read_manifest(folder, name_or_folder)
    found = f"sha256:{file_sha256(folder / MANIFEST_NAME)}"
    if revision not in (None, found):
        problem = f'holds {found}, not revision "{revision}"'
        raise SchemaError(f"{name_or_folder}: {problem}. Leave out the revision, or give another folder.")
    return found


def is_path(name: str) -> bool:
    """Whether a name that could be one on the Hub is a path with a slip: the folder it is in exists here."""
    parent = Path(name).expanduser().parent
    return parent != Path() and parent.is_dir()


def dataset_revision(name: str, revision: str | None) -> SourceFacts:
    """Find the commit behind a dataset's name, and what its card says at that commit.

    Raises:
        PreferenceError: If there is no such dataset or revision, or the token may not see it.
        HubError: If the Hub cannot be reached.
    """

    def facts() -> SourceFacts:
        info = HfApi().dataset_info(name, revision=revision)
        sha = str(info.sha)
        return SourceFacts(sha, bool(info.private), bool(info.gated), _card(name, sha))

    return _repeated(facts, lambda cause: source_error("datasets/", name, revision, cause, PreferenceError))


def model_revision(name: str, revision: str | None) -> str:
    """Find the commit behind a model's name; with HF_HUB_OFFLINE, the one in the cache.

    Raises:
        ModelError: If there is no such model or revision, or the token may not see it.
        HubError: If the Hub cannot be reached.
    """
    return _repeated(
        lambda: _sha(name, "model", revision),
        lambda cause: source_error("", name, revision, cause, ModelError),
    )


def model_files(name: str, commit: str, telling: Sequence[str]) -> frozenset[str]:
    """Names of a model repository's files at a commit.

    Args:
        name: The repository.
        commit: Its commit.
        telling: With HF_HUB_OFFLINE, the files by which the repository is found in the cache.

    Raises:
        HubError: If the Hub cannot be reached.
    """

    def listed() -> frozenset[str]:
        try:
            siblings = HfApi().model_info(name, revision=commit).siblings or []
        except OfflineModeIsEnabled:
            cached = [try_to_load_from_cache(name, file, revision=commit) for file in telling]
            folders = {Path(path).parent for path in cached if isinstance(path, str)}
            return frozenset(path.name for folder in folders for path in folder.iterdir())
        return frozenset(sibling.rfilename for sibling in siblings)

    return _repeated(listed, lambda cause: source_error("", name, commit, cause, ModelError))


def _local_folder(name_or_folder: str) -> Path | None:
    """The folder that is meant; None for a name on the Hub."""
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise SchemaError(
            f"{name_or_folder}: a file, not an annotated dataset. Annotate it with sepo-annotate."
        )
    if is_path(name_or_folder):
        raise SchemaError(f"{name_or_folder}: no such folder. Check the path, or give a name like user/name.")
    return None


def _push(files: dict[str, Path], repo_id: str, repo_type: RepoType, *, private: bool) -> str:
    check_push_target(repo_id, private=private, repo_type=repo_type)
    return _repeated(lambda: _commit(files, repo_id, repo_type), lambda cause: push_error(repo_id, cause))


def _open_target(repo_id: str, repo_type: RepoType, *, private: bool) -> None:
    api = HfApi()
    api.whoami()
    api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
    try:  # create_repo is content with a repository that is somebody else's
        api.auth_check(repo_id, repo_type=repo_type, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:  # a mirror that does not know this question
            raise
    info = api.repo_info(repo_id, repo_type=repo_type)
    if private and not info.private:
        raise HubError(f"{repo_id}: is public, you asked for private. Change its settings, or the name.")
    refuse_foreign(repo_id, repo_type, _paths(info))


def _commit(files: dict[str, Path], repo_id: str, repo_type: RepoType) -> str:
    """One try. Operations are made anew: they remember what the Hub had when they were first used."""
    api = HfApi()
    info = api.repo_info(repo_id, repo_type=repo_type)
    additions = [CommitOperationAdd(path, local) for path, local in files.items()]
    deletions = [CommitOperationDelete(path) for path in stale_files(repo_type, _paths(info), files)]
    commit = api.create_commit(  # with nothing to change it makes no commit and returns the head
        repo_id,
        [*additions, *deletions],
        commit_message="Push annotated dataset" if repo_type == "dataset" else "Push model",
        repo_type=repo_type,
        parent_commit=info.sha,
    )
    return commit.oid


def _paths(info: Any) -> set[str]:
    return {sibling.rfilename for sibling in info.siblings or []}


def _download(name: str, commit: str) -> Path:
    """The data, card and manifest of an annotated dataset in the cache."""

    def download(*patterns: str) -> Path:
        return Path(snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=[*patterns]))

    read_manifest(download(MANIFEST_NAME), name)  # before gigabytes of something else arrive
    return download(MANIFEST_NAME, "README.md", "data/*")


def _sha(name: str, repo_type: str, revision: str | None) -> str:
    api = HfApi()
    try:
        return str(api.repo_info(name, repo_type=repo_type, revision=revision).sha)
    except OfflineModeIsEnabled:
        return api.resolve_revision(name, repo_type=repo_type, revision=revision).resolved


def _card(name: str, sha: str) -> dict[str, Any]:
    try:
        path = hf_hub_download(name, "README.md", repo_type="dataset", revision=sha)
    except RemoteEntryNotFoundError:
        return {}
    try:
        return metadata_load(path) or {}
    except Exception as error:  # whatever the YAML parser raises
        log.warning("%s: the YAML of its card cannot be read (%s); it is left out.", name, line_of(error))
        return {}


def _repeated(call: Callable[[], T], error_of: Callable[[BaseException], SepoError]) -> T:
    """Call until it succeeds; what cannot succeed, or has failed `TRIES` times, becomes one line."""
    for tried in range(1, TRIES + 1):
        try:
            return call()
        except SepoError:
            raise
        except Exception as error:  # the clients let through what HTTP, JSON, files and Xet raise
            cause = cause_of(error)
            if tried == TRIES or not may_pass(cause):
                raise error_of(cause) from error
        wait_s = max(BACKOFF_S * 2 ** (tried - 1), asked_wait_s(cause))
        log.warning("%s; next try in %.0f s", line_of(cause), wait_s)
        time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")
