"""Ask the Hugging Face Hub for commits, files and cards, with retries.

The Hub answers 429, 409, 412 and 5xx now and then, drops connections, and sometimes executes a
request whose response is lost. So every call is repeated until it succeeds or cannot. No datasets or
models of ours here.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, hf_hub_download, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError

from ..errors import ModelError, PreferenceError, SepoError
from .errors import cause_of, is_likely_path, is_transient, line_of, retry_after_s, source_error

log = logging.getLogger("sepo")

T = TypeVar("T")

TRIES = 6
BACKOFF_S = 1.0  # before the second try, then doubled; the client waits inside uploads only, up to 23 s a try


@dataclass(frozen=True)
class SourceFacts:
    """Facts about a dataset on the Hub: its commit, visibility, and the YAML of its card."""

    revision: str
    private: bool
    gated: bool
    card: dict[str, object]


def dataset_revision(name: str, revision: str | None) -> SourceFacts:
    """Find the commit of a dataset's name and revision, and its card at that commit.

    Raises:
        PreferenceError: If there is no such dataset or revision, or the token may not see it.
        HubError: If the Hub cannot be reached.
    """

    def facts() -> SourceFacts:
        info = HfApi().dataset_info(name, revision=revision)
        sha = str(info.sha)
        return SourceFacts(sha, bool(info.private), bool(info.gated), _card(name, sha))

    return with_retries(
        facts, lambda cause: source_error("datasets/", name, revision, cause, PreferenceError), name=name
    )


def model_revision(name: str, revision: str | None) -> str:
    """Find the commit of a model's name and revision; with HF_HUB_OFFLINE, the one in the cache.

    Raises:
        ModelError: If there is no such model or revision, or the token may not see it.
        HubError: If the Hub cannot be reached.
    """
    return with_retries(
        lambda: commit_of(name, "model", revision),
        lambda cause: source_error("", name, revision, cause, ModelError),
        name=name,
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

    return with_retries(listed, lambda cause: source_error("", name, commit, cause, ModelError))


def commit_of(name: str, repo_type: str, revision: str | None) -> str:
    """The current commit of a revision; with HF_HUB_OFFLINE, the one in the cache. One try."""
    api = HfApi()
    try:
        return str(api.repo_info(name, repo_type=repo_type, revision=revision).sha)
    except OfflineModeIsEnabled:
        return api.resolve_revision(name, repo_type=repo_type, revision=revision).resolved


def _card(name: str, sha: str) -> dict[str, object]:
    try:
        path = hf_hub_download(name, "README.md", repo_type="dataset", revision=sha)
    except RemoteEntryNotFoundError:
        return {}
    try:
        return metadata_load(path) or {}
    except Exception as error:  # YAML parsers raise many types
        log.warning("%s: the YAML of its card cannot be read (%s); it is left out.", name, line_of(error))
        return {}


def with_retries(
    call: Callable[[], T], error_of: Callable[[BaseException], SepoError], *, name: str = ""
) -> T:
    """Call until it succeeds; permanent failures, or `TRIES` failures in a row, raise an error.

    A ``name`` that is probably a mistyped folder is not looked up again if the Hub cannot be reached.
    """
    for tried in range(1, TRIES + 1):
        try:
            return call()
        except SepoError:
            raise
        except Exception as error:  # the clients do not wrap exceptions of HTTP, JSON, files and Xet
            cause = cause_of(error)
            if tried == TRIES or not is_transient(cause) or is_likely_path(name, cause):
                raise error_of(cause) from error
        wait_s = max(BACKOFF_S * 2 ** (tried - 1), retry_after_s(cause))
        log.warning("%s; next try in %.0f s", line_of(cause), wait_s)
        time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")
