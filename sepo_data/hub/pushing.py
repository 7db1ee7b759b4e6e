"""Push files to the Hub in one commit, after checking that this is allowed.

Each try checks the state of the Hub: a commit whose response was lost is not repeated.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..errors import HubError
from .client import with_retries
from .errors import push_error

RepoType = Literal["dataset", "model"]

ANYBODYS = {".gitattributes", "README.md", "LICENSE"}


@dataclass(frozen=True)
class Artifact:
    """A kind of folder to push.

    Attributes:
        repo_type: What it is on the Hub.
        marker: The file in every push of this kind; a repository without it belongs to something else.
        replaced: Patterns of files that a later push deletes if it no longer has them; ``*`` stays
            within one folder.
        commit_message: The title of its commits.
    """

    repo_type: RepoType
    marker: str
    replaced: tuple[str, ...]
    commit_message: str


def check_push_target(repo_id: str, artifact: Artifact, *, private: bool) -> None:
    """Check that a push can work, before any work is done; creates the repository.

    Args:
        repo_id: ``user/name`` or ``organization/name``.
        artifact: What will be pushed.
        private: Create it private, and refuse one that is public.

    Raises:
        HubError: If there is no valid token, no right to write, or something else under this name.
    """
    if "/" not in repo_id:
        raise HubError(f"{repo_id}: whose is it? Give a name like user/{repo_id}.")
    with_retries(
        lambda: _open_target(repo_id, artifact, private=private), lambda cause: push_error(repo_id, cause)
    )


def push_files(files: dict[str, Path], repo_id: str, artifact: Artifact, *, private: bool) -> str:
    """Push files in one commit, and return its SHA; no commit is made if nothing changes."""
    check_push_target(repo_id, artifact, private=private)
    return with_retries(lambda: _commit(files, repo_id, artifact), lambda cause: push_error(repo_id, cause))


def _open_target(repo_id: str, artifact: Artifact, *, private: bool) -> None:
    api, repo_type = HfApi(), artifact.repo_type
    api.whoami()
    # None, not False: an organization may default to private
    api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
    try:  # create_repo accepts an existing repository of another owner
        api.auth_check(repo_id, repo_type=repo_type, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:  # a mirror without this endpoint
            raise
    info = api.repo_info(repo_id, repo_type=repo_type)
    if private and not info.private:
        raise HubError(f"{repo_id}: is public, you asked for private. Change that, or push to another name.")
    refuse_foreign(repo_id, artifact, _paths(info))


def _commit(files: dict[str, Path], repo_id: str, artifact: Artifact) -> str:
    """One try. Operations are rebuilt each time: they remember the Hub's state of their first use."""
    api = HfApi()
    info = api.repo_info(repo_id, repo_type=artifact.repo_type)
    additions = [CommitOperationAdd(path, local) for path, local in files.items()]
    deletions = [CommitOperationDelete(path) for path in stale_files(artifact, _paths(info), files)]
    commit = api.create_commit(  # without changes it makes no commit and returns the head
        repo_id,
        [*additions, *deletions],
        commit_message=artifact.commit_message,
        repo_type=artifact.repo_type,
        parent_commit=info.sha,
    )
    return commit.oid


def _paths(info: Any) -> set[str]:
    return {sibling.rfilename for sibling in info.siblings or []}


def refuse_foreign(repo_id: str, artifact: Artifact, paths: set[str]) -> None:
    """Check that a repository is empty or was pushed by sepo.

    Raises:
        HubError: If a push would replace something else.
    """
    strange = paths - ANYBODYS
    if strange and artifact.marker not in paths:
        raise HubError(f"{repo_id}: contains {min(strange)}, which sepo did not write. Push to another name.")


def stale_files(artifact: Artifact, on_hub: set[str], pushed: Iterable[str]) -> list[str]:
    """Files of an earlier push that this one deletes; files added by others stay."""
    return sorted(
        path for path in on_hub - set(pushed) if any(_matches(path, pattern) for pattern in artifact.replaced)
    )


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


def sorted_by_path(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files by their path in the repository, relative to the folder."""
    return {path.relative_to(folder).as_posix(): path for path in files}
