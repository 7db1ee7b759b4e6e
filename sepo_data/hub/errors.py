"""What the Hub's failures mean: whether to try again, how long to wait, and the line for the user.

The clients wrap responses in their own errors, and pass on those of HTTP, JSON, files and Xet;
only this module knows them. No request is made here.
"""

import json

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# public there, "for downstream libraries across major versions": hub 2 hands out httpx2 as httpx
from huggingface_hub.utils import httpx, parse_ratelimit_headers  # type: ignore[attr-defined]

from ..errors import HubError, SepoError, first_line

LONGEST_WAIT_S = 300.0  # the Hub counts requests in windows of five minutes

# A response that is not JSON is the error page of a gateway.
NO_ANSWER = (httpx.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)


def cause_of(error: BaseException) -> BaseException:
    """The HTTP response, or its absence, inside the clients' exceptions."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, (HfHubHTTPError, *NO_ANSWER)):
        link = link.__cause__ or link.__context__
    return link or error


def _status(cause: BaseException) -> int:
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0


def is_transient(cause: BaseException) -> bool:
    """Whether another try makes sense."""
    if isinstance(cause, HfHubHTTPError):
        return _status(cause) >= 500 or _status(cause) in (408, 409, 412, 425, 429)
    refused = (OfflineModeIsEnabled, httpx.LocalProtocolError)  # the request never left
    return isinstance(cause, NO_ANSWER) and not isinstance(cause, refused)


def is_likely_path(name: str, cause: BaseException) -> bool:
    """Whether a name without an owner may be a mistyped folder, since the Hub cannot be reached."""
    return bool(name) and "/" not in name and isinstance(cause, httpx.ConnectError)


def retry_after_s(cause: BaseException) -> float:
    """How long the Hub asks to wait, from either of its headers."""
    if not isinstance(cause, HfHubHTTPError):
        return 0.0
    headers = cause.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return min(LONGEST_WAIT_S, float(limit.reset_in_seconds))
    asked = headers.get("Retry-After", "")
    return min(LONGEST_WAIT_S, float(asked)) if asked.isdigit() else 0.0


def push_error(repo_id: str, cause: BaseException) -> SepoError:
    """The error for a failed push."""
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
        return HubError(f"{repo_id}: {line_of(cause)}. Give a name like user/name.")
    if "xet-write-token" in str(cause):
        return HubError(f"{repo_id}: {line_of(cause)}. A Hub without Xet storage needs HF_HUB_DISABLE_XET=1.")
    return _no_answer(repo_id, cause)


def page_of(prefix: str, name: str) -> str:
    """The address of a dataset (``prefix`` "datasets/") or a model (no prefix)."""
    return f"{HfApi().endpoint}/{prefix}{name}"


def source_error(
    prefix: str, name: str, revision: str | None, cause: BaseException, kind: type[SepoError]
) -> SepoError:
    """The error for an unreadable dataset (``prefix`` "datasets/") or model (no prefix)."""
    if isinstance(cause, GatedRepoError):
        page = page_of(prefix, name)
        return kind(f"{name}: access is restricted. Ask for it at {page}, then log in with `hf auth login`.")
    if isinstance(cause, RepositoryNotFoundError) and "/" not in name:
        return kind(f"{name}: neither a folder here nor on the Hub. Check the path, or give user/name.")
    if isinstance(cause, RepositoryNotFoundError) or _status(cause) == 401:
        return kind(f"{name}: not on the Hub, or private. Check the name, or log in with `hf auth login`.")
    if isinstance(cause, RevisionNotFoundError):
        return kind(f'{name}: no revision "{revision}". Give a branch, a tag or a commit.')
    if isinstance(cause, HFValidationError):
        return kind(f"{name}: neither a folder nor a name on the Hub. Check the path, or give user/name.")
    if is_likely_path(name, cause):
        return HubError(f"{name}: no such folder here, and the Hub cannot be reached. Check the path.")
    return _no_answer(name, cause)


def _no_answer(name: str, cause: BaseException) -> SepoError:
    if isinstance(cause, OfflineModeIsEnabled):
        return HubError(f"{name}: no folder here, and HF_HUB_OFFLINE is set. Check the path, or unset it.")
    if isinstance(cause, httpx.LocalProtocolError) and "Bearer" in str(cause):
        return HubError(
            "the Hugging Face token contains an invalid character. Log in with `hf auth login`, or "
            "correct HF_TOKEN."
        )
    if is_transient(cause):
        return HubError(
            f"{name}: the Hub does not answer ({line_of(cause)}). Try again later, or check the path."
        )
    return HubError(f"{name}: {line_of(cause)}.")


def line_of(error: BaseException) -> str:
    """The first line of a message: the Hub's own words if it has sent any."""
    message = error.server_message if isinstance(error, HfHubHTTPError) else None
    return (message.splitlines()[0] if message else first_line(error)).rstrip(".")
