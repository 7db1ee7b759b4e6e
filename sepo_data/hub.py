"""Talk to the Hugging Face Hub: push an annotated dataset in one commit, load one, find revisions.

The Hub answers 429, 409, 412 and 5xx now and then, drops connections, and at times does what it was
asked while the answer is lost. So every call is repeated until it succeeds or cannot, and each try looks
at the Hub anew: what a lost answer has done is not done again. No torch, no models.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, parse_ratelimit_headers  # type: ignore[attr-defined]

from .errors import HubError, ModelError, OutputError, PreferenceError, SchemaError, SepoError, first_line
from .schema import MANIFEST_NAME, check_version, validate

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("sepo")

T = TypeVar("T")

TRIES = 6
BACKOFF_S = 1.0  # before the second try, then doubled; the client waits inside uploads only, up to 23 s a try
LONGEST_WAIT_S = 300.0  # the Hub counts requests in windows of five minutes

# An answer that is no JSON is the error page of a gateway.
NO_ANSWER = (httpx.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)


@dataclass(frozen=True)
class SourceFacts:
    """What the Hub says of a dataset: its commit, who may see it, and the YAML of its card."""

    revision: str
    private: bool
    gated: bool
    card: dict[str, Any]


def check_push_target(repo_id: str, *, private: bool) -> None:
    """Make sure that a push can work, before any work is done for it; creates the dataset repository.

    Args:
        repo_id: ``user/name`` or ``organization/name``.
        private: Create it private, and refuse one that is public.

    Raises:
        HubError: If there is no valid token, no right to write, or something else under this name.
    """
    if "/" not in repo_id:
        raise HubError(f"{repo_id}: whose is it? Give a name like user/{repo_id}.")
    _repeated(lambda: _open_target(repo_id, private=private), lambda cause: _push_error(repo_id, cause))


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
    files = _finished_files(folder)
    private = private or bool(_check_manifest(folder, str(folder)).get("source", {}).get("restricted"))
    check_push_target(repo_id, private=private)
    return _repeated(lambda: _commit(files, repo_id), lambda cause: _push_error(repo_id, cause))


def load_annotated(name_or_folder: str, *, revision: str | None = None) -> "datasets.DatasetDict":
    """Load an annotated dataset and check that it keeps the contract.

    Args:
        name_or_folder: A folder of ``sepo-annotate``, or a name on the Hub; a folder wins.
        revision: Branch, tag or commit on the Hub.

    Returns:
        Its splits by name.

    Raises:
        SchemaError: If it is not an annotated dataset, of an unknown version, or breaks the contract.
        HubError: If the Hub does not have it, or cannot be reached.
    """
    import datasets

    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir() and is_path(name_or_folder):
        raise SchemaError(f"{name_or_folder}: no such folder. Check the path, or give a name like user/name.")
    if not folder.is_dir():
        folder = _repeated(
            lambda: _download(name_or_folder, revision),
            lambda cause: _source_error("datasets/", name_or_folder, revision, cause, HubError),
        )
    _check_manifest(folder, name_or_folder)
    try:
        loaded = datasets.load_dataset(str(folder))
    except Exception as error:  # datasets lets through whatever its readers raise
        raise SchemaError(f"{name_or_folder}: cannot be read: {_line(error)}.") from error
    validate(loaded)
    return loaded


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

    return _repeated(facts, lambda cause: _source_error("datasets/", name, revision, cause, PreferenceError))


def model_revision(name: str, revision: str | None) -> str:
    """Find the commit behind a model's name; with HF_HUB_OFFLINE, the one in the cache.

    Raises:
        ModelError: If there is no such model or revision, or the token may not see it.
        HubError: If the Hub cannot be reached.
    """
    return _repeated(
        lambda: _sha(name, "model", revision),
        lambda cause: _source_error("", name, revision, cause, ModelError),
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

    return _repeated(listed, lambda cause: _source_error("", name, commit, cause, ModelError))


def _open_target(repo_id: str, *, private: bool) -> None:
    api = HfApi()
    api.whoami()
    api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
    try:  # create_repo is content with a dataset that is somebody else's
        api.auth_check(repo_id, repo_type="dataset", write=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:  # a mirror that does not know this question
            raise
    info = api.dataset_info(repo_id)
    if private and not info.private:
        raise HubError(f"{repo_id}: is public, you asked for private. Change its settings, or the name.")
    paths = _paths(info)
    strange = paths - {".gitattributes", "README.md", "LICENSE"}
    if strange and MANIFEST_NAME not in paths:
        raise HubError(f"{repo_id}: holds {min(strange)}, which sepo did not write. Push to another name.")


def _finished_files(folder: Path) -> dict[str, Path]:
    """What a push consists of, by path in the repository; work files stay behind."""
    shards = sorted(folder.glob("data/*.parquet"))
    files = [*shards, folder / "README.md", folder / MANIFEST_NAME]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not shards:
        raise OutputError(
            f"{folder}: not a finished annotated dataset ({(missing or ['data/*.parquet'])[0]} is missing). "
            f"Let sepo-annotate finish, or run `sepo merge {folder}` first."
        )
    for shard in shards:
        _check_shard(shard)
    return {path.relative_to(folder).as_posix(): path for path in files}


def _check_shard(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # one at a time: memory stays flat
                validate(file.read_row_group(group))
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{path}: cannot be read ({_line(error)}). Annotate again.") from error
    except SchemaError as error:
        raise SchemaError(f"{path}, row group {group}: {error}") from error


def _commit(files: dict[str, Path], repo_id: str) -> str:
    """One try. Operations are made anew: they remember what the Hub had when they were first used."""
    api = HfApi()
    info = api.dataset_info(repo_id)
    stale = sorted(path for path in _paths(info) if path.startswith("data/") and path not in files)
    additions = [CommitOperationAdd(path, local) for path, local in files.items()]
    commit = api.create_commit(  # with nothing to change it makes no commit and returns the head
        repo_id,
        [*additions, *(CommitOperationDelete(path) for path in stale)],
        commit_message="Push annotated dataset",
        repo_type="dataset",
        parent_commit=info.sha,
    )
    return commit.oid


def _paths(info: Any) -> set[str]:
    return {sibling.rfilename for sibling in info.siblings or []}


def _download(name: str, revision: str | None) -> Path:
    """The data, card and manifest of an annotated dataset in the cache."""
    sha = _sha(name, "dataset", revision)

    def download(*patterns: str) -> Path:
        return Path(snapshot_download(name, repo_type="dataset", revision=sha, allow_patterns=[*patterns]))

    _check_manifest(download(MANIFEST_NAME), name)  # before gigabytes of something else arrive
    return download(MANIFEST_NAME, "README.md", "data/*")


def _check_manifest(folder: Path, name: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except FileNotFoundError as error:
        problem = f"not an annotated dataset (no {MANIFEST_NAME})"
        raise SchemaError(f"{name}: {problem}. Make one of it with sepo-annotate.") from error
    except (ValueError, TypeError, KeyError) as error:
        problem = f"{MANIFEST_NAME} has no schema version ({_line(error)})"
        raise SchemaError(f"{name}: {problem}. Annotate again, or copy it again.") from error
    check_version(version)
    return manifest


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
        log.warning("%s: the YAML of its card cannot be read (%s); it is left out.", name, _line(error))
        return {}


def _repeated(call: Callable[[], T], error_of: Callable[[BaseException], SepoError]) -> T:
    """Call until it succeeds; what cannot succeed, or has failed `TRIES` times, becomes one line."""
    for tried in range(1, TRIES + 1):
        try:
            return call()
        except SepoError:
            raise
        except Exception as error:  # the clients let through what HTTP, JSON, files and Xet raise
            cause = _cause(error)
            if tried == TRIES or not _may_pass(cause):
                raise error_of(cause) from error
        wait_s = max(BACKOFF_S * 2 ** (tried - 1), _asked_wait_s(cause))
        log.warning("%s; next try in %.0f s", _line(cause), wait_s)
        time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _cause(error: BaseException) -> BaseException:
    """The answer, or the lack of one, behind what the clients have wrapped around it."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, (HfHubHTTPError, *NO_ANSWER)):
        link = link.__cause__ or link.__context__
    return link or error


def _status(cause: BaseException) -> int:
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0


def _may_pass(cause: BaseException) -> bool:
    """Whether another try makes sense."""
    if isinstance(cause, HfHubHTTPError):
        return _status(cause) >= 500 or _status(cause) in (408, 409, 412, 425, 429)
    return isinstance(cause, NO_ANSWER) and not isinstance(cause, OfflineModeIsEnabled)


def _asked_wait_s(cause: BaseException) -> float:
    """How long the Hub has asked to wait, by either of its headers."""
    if not isinstance(cause, HfHubHTTPError):
        return 0.0
    headers = cause.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return min(LONGEST_WAIT_S, float(limit.reset_in_seconds))
    asked = headers.get("Retry-After", "")
    return min(LONGEST_WAIT_S, float(asked)) if asked.isdigit() else 0.0


def _push_error(repo_id: str, cause: BaseException) -> SepoError:
    status = _status(cause)
    if isinstance(cause, LocalTokenNotFoundError):
        return HubError("no Hugging Face token to push with. Log in with `hf auth login`, or set HF_TOKEN.")
    if status == 401:
        return HubError("the Hub refuses the token. Log in with `hf auth login`, or correct HF_TOKEN.")
    if status in (402, 403):
        owner = repo_id.split("/")[0]
        advice = f'Use a token that may write to "{owner}", or push to another name.'
        return HubError(f"{repo_id}: no right to write there. {advice}")
    if isinstance(cause, HFValidationError):
        return HubError(f"{repo_id}: {_line(cause)}. Give a name like user/name.")
    if "xet-write-token" in str(cause):
        return HubError(f"{repo_id}: {_line(cause)}. A Hub without Xet storage needs HF_HUB_DISABLE_XET=1.")
    return _no_answer(repo_id, cause)


def _source_error(
    prefix: str, name: str, revision: str | None, cause: BaseException, kind: type[SepoError]
) -> SepoError:
    if isinstance(cause, GatedRepoError):
        page = f"{HfApi().endpoint}/{prefix}{name}"
        return kind(f"{name}: access is restricted. Ask for it at {page}, then log in with `hf auth login`.")
    if isinstance(cause, RepositoryNotFoundError) or _status(cause) == 401:
        return kind(f"{name}: not on the Hub, or private. Check the name, or log in with `hf auth login`.")
    if isinstance(cause, RevisionNotFoundError):
        return kind(f'{name}: no revision "{revision}". Give a branch, a tag or a commit.')
    if isinstance(cause, HFValidationError):
        return kind(f"{name}: neither a folder nor a name on the Hub. Check the path, or give user/name.")
    return _no_answer(name, cause)


def _no_answer(name: str, cause: BaseException) -> SepoError:
    if isinstance(cause, OfflineModeIsEnabled):
        return HubError(f"{name}: HF_HUB_OFFLINE is set. Unset it, or give a folder of this machine.")
    if _may_pass(cause):
        return HubError(
            f"{name}: the Hub does not answer ({_line(cause)}). Try again later, or check the path."
        )
    return HubError(f"{name}: {_line(cause)}.")


def _line(error: BaseException) -> str:
    """The first line of a message: the Hub's own words if it has sent any."""
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    return (said.splitlines()[0] if said else first_line(error)).rstrip(".")
