"""Push files to the Hub in one commit, after making sure that they may go there.

Each try looks at the Hub anew: what a lost answer has done is not done again.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..errors import HubError
from ..schema import MANIFEST_NAME
from .client import with_retries
from .errors import push_error

RepoType = Literal["dataset", "model"]

RECORD_NAME = "sepo_training.json"
MARKS: dict[RepoType, str] = {"dataset": MANIFEST_NAME, "model": RECORD_NAME}
ANYBODYS = {".gitattributes", "README.md", "LICENSE"}

CHAT_TEMPLATES = "additional_chat_templates/*.jinja"
# Files that from_pretrained would still read when a later push no longer has them.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")


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
    with_retries(
        lambda: _open_target(repo_id, repo_type, private=private), lambda cause: push_error(repo_id, cause)
    )


def push_files(files: dict[str, Path], repo_id: str, repo_type: RepoType, *, private: bool) -> str:
    """Push files in one commit, and return its SHA; no commit is made if nothing changes."""
    check_push_target(repo_id, private=private, repo_type=repo_type)
    return with_retries(lambda: _commit(files, repo_id, repo_type), lambda cause: push_error(repo_id, cause))


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


def refuse_foreign(repo_id: str, repo_type: RepoType, paths: set[str]) -> None:
    """Make sure that a repository is empty, or holds what sepo has pushed.

    Raises:
        HubError: If a push would replace something else.
    """
    strange = paths - ANYBODYS
    if strange and MARKS[repo_type] not in paths:
        raise HubError(f"{repo_id}: holds {min(strange)}, which sepo did not write. Push to another name.")


def stale_files(repo_type: RepoType, on_hub: set[str], pushed: Iterable[str]) -> list[str]:
    """Files of an earlier push that this one has to delete; what others have added stays."""
    return sorted(path for path in on_hub - set(pushed) if _is_ours(path, repo_type))


def _is_ours(path: str, repo_type: RepoType) -> bool:
    if repo_type == "dataset":
        return path.startswith("data/")
    patterns = [CHAT_TEMPLATES] if "/" in path else MODEL_FILES
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def sorted_by_path(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files by their path in the repository, which is that below the folder."""
    return {path.relative_to(folder).as_posix(): path for path in files}
