"""A Hugging Face Hub on 127.0.0.1, in memory, that fails on demand: the other end for the real clients.

It serves what `huggingface_hub`, `datasets`, `transformers` and `peft` ask for: datasets and models are
created, written, listed and read. Pull requests, tags, Xet storage and uploads in parts are left out.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"  # tokens
USERS = {OWNER: ("me", True), READER: ("me", False), STRANGER: ("stranger", True)}  # name, may write

PREFIXES = {"dataset": "datasets/", "model": ""}  # of the pages of a repository

# an HTTP status, "reset" (nothing is done), "lost" (done, but the answer never arrives), or a call before it
Fault = int | str | Callable[[], object]


@dataclass
class Repo:
    """One dataset or model with a single branch; each commit is a whole tree."""

    owner: str
    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, tree: dict[str, bytes]) -> str:
        """Make this tree the head; returns its commit."""
        parts = [
            f"{self.head} {len(self.commits)}",
            *(f"{path} {git_sha(tree[path])}" for path in sorted(tree)),
        ]
        self.commits.append((hashlib.sha1("\n".join(parts).encode()).hexdigest(), tree))
        return self.head

    @property
    def head(self) -> str:
        """The latest commit, or nothing before the first."""
        return self.commits[-1][0] if self.commits else ""


@dataclass
class Answer:
    """The response to the client."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):  # noqa: N818
    """An error response; clients distinguish errors by `code`."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer(status, json.dumps({"error": message}).encode(), headers)


@cache
def only_server() -> "HubServer":
    """The instance of this process, in which mutmut may run pytest more than once."""
    return HubServer()


class HubServer:
    """The server and its state; tests prepare and inspect repositories without HTTP."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.new_repos_are_private = False  # where the request does not say, as organizations may set it
        self.uploads: dict[str, bytes] = {}  # large files by SHA-256
        self.requests: list[str] = []  # "METHOD /path", in order of arrival
        self.crashes: list[BaseException] = []
        self.jobs: list[dict[str, Any]] = []  # as they were asked for
        self.run_job: Callable[[dict[str, Any]], int] = lambda job: 0  # its exit code; in a thread
        self._running: list[Future[int]] = []
        self._pool = ThreadPoolExecutor()
        self.lock = threading.RLock()
        self._faults: list[tuple[re.Pattern[str], list[Fault], dict[str, str]]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def add(
        self,
        kind: str,
        repo_id: str,
        files: Path | Mapping[str, bytes],
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Put a ``"dataset"`` or ``"model"`` on the Hub from a folder or a mapping; returns its commit."""
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos.setdefault((kind, repo_id), Repo(repo_id.split("/")[0], private, gated))
        return repo.commit(dict(files))

    def files(self, repo_id: str, kind: str = "dataset") -> dict[str, bytes]:
        """The files of a repository at its head, without the one that the Hub itself makes."""
        tree = self.repos[kind, repo_id].commits[-1][1]
        return {path: data for path, data in tree.items() if path != ".gitattributes"}

    def num_commits(self, repo_id: str, kind: str = "dataset") -> int:
        """Commits of a repository, without the one that creates it."""
        return len(self.repos[kind, repo_id].commits) - 1

    def fail(
        self, pattern: str, kinds: Sequence[Fault], times: int = 1, *, retry_after_s: int | None = None
    ) -> None:
        """Answer the next requests that match (regular expression for ``METHOD /path``) with these faults."""
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self._faults.append((re.compile(pattern), [*kinds] * times, headers))

    def clear(self) -> None:
        """Forget faults that did not happen, settings, and the requests so far."""
        self._faults.clear()
        self.requests.clear()
        self.new_repos_are_private = False

    @property
    def pending_faults(self) -> list[Fault]:
        """Faults that no request has triggered yet."""
        return [fault for _, kinds, _ in self._faults for fault in kinds]

    def start_job(self, asked: dict[str, Any]) -> int:
        """Run a Job; returns its number."""
        self.jobs.append(asked)
        self._running.append(self._pool.submit(self.run_job, asked))
        return len(self._running) - 1

    def job_stage(self, number: int) -> str:
        """Its status."""
        job = self._running[number]
        return "RUNNING" if not job.done() else "ERROR" if job.exception() or job.result() else "COMPLETED"

    def next_fault(self, request: str) -> tuple[Fault, dict[str, str]] | None:
        """Take the fault that is due for this request, with headers for its answer."""
        for pattern, kinds, headers in self._faults:
            if kinds and pattern.search(request):
                return kinds.pop(0), headers
        return None


def git_sha(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_large(path: str) -> bool:
    """Whether the Hub keeps a file of this name in large file storage."""
    return path.endswith((".parquet", ".safetensors"))


def _etag(path: str, data: bytes) -> str:
    return sha256(data) if is_large(path) else git_sha(data)


def _kind(prefix: str) -> str:
    return next(kind for kind, found in PREFIXES.items() if found == prefix)


def _json(value: object) -> Answer:
    return Answer(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        """Keep stderr for the tests."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client went away, as it may
            self.close_connection = True

    def do_GET(self) -> None:
        """Handle every method: return a fault or the answer of a route."""
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault, headers = self.hub.next_fault(request) or (None, {})
            if fault == "reset":
                return self._drop()
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if callable(fault):
                fault()
            answer = _fault_answer(fault, headers) if isinstance(fault, int) else self._route(request)
            if fault == "lost":
                return self._drop()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        return None

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _drop(self) -> None:
        """End the connection by a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for stream in (self.rfile, self.wfile, self.connection):
            stream.close()
        self.close_connection = True

    def _route(self, request: str) -> Answer:
        try:
            for pattern, route in ROUTES:
                if match := re.fullmatch(pattern, request):
                    return route(self, **match.groupdict())
            raise Refusal(404, f"no such page: {request}")
        except Refusal as refusal:
            return refusal.answer
        except Exception as error:
            self.hub.crashes.append(error)
            return Answer(500)

    # What a request is allowed to see and do

    @property
    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USERS[token][0] if token else None

    def check_write(self, owner: str | None) -> None:
        if (owner, True) != USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer ")):
            raise Refusal(403, f'You don\'t have the rights to write under the namespace "{owner}"')

    def repo(self, kind: str, repo_id: str) -> Repo:
        repo = self.hub.repos.get((kind, repo_id))
        user = self.user
        if repo is None or (repo.private and user != repo.owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def tree(self, kind: str, repo_id: str, rev: str) -> tuple[Repo, str, dict[str, bytes]]:
        repo = self.repo(kind, repo_id)
        for sha, tree in repo.commits:
            if rev == sha or (rev == "main" and sha == repo.head):
                return repo, sha, tree
        raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")

    # The routes

    def whoami(self) -> Answer:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        return _json({"type": "user", "name": self.user, "orgs": []})

    def create(self) -> Answer:
        asked = json.loads(self.body)
        owner = asked["organization"] or self.user
        self.check_write(owner)
        kind, repo_id = asked.get("type", "model"), f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{PREFIXES[kind]}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            body = {"error": f"You already created this {kind} repo", "url": url}
            return Answer(409, json.dumps(body).encode())
        self.hub.add(
            kind,
            repo_id,
            {".gitattributes": b"*.parquet filter=lfs\n*.safetensors filter=lfs\n"},
            private=_asked_for_private(asked, self.hub.new_repos_are_private),
        )
        return _json({"url": url, "name": repo_id})

    def may_write(self, kind: str, repo_id: str) -> Answer:
        self.check_write(self.repo(kind, repo_id).owner)
        return Answer()

    def info(self, kind: str, repo_id: str, rev: str | None = None) -> Answer:
        repo, sha, tree = self.tree(kind, repo_id, rev or "main")
        facts: dict[str, Any] = {
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "tags": [],
            "disabled": False,
        }
        siblings = [{"rfilename": path} for path in tree]
        return _json({"id": repo_id, "sha": sha, "siblings": siblings, "downloads": 0, "likes": 0, **facts})

    def list_tree(self, kind: str, repo_id: str, rev: str, folder: str | None = None) -> Answer:
        _, _, tree = self.tree(kind, repo_id, rev)
        root = PurePosixPath(folder or "")
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        entries: dict[str, dict[str, Any]] = {}
        for path, data in sorted(tree.items()):
            if root not in PurePosixPath(path).parents:
                continue
            below = PurePosixPath(path).relative_to(root)
            if len(below.parts) > 1:
                name = str(root / below.parts[0])
                entries.setdefault(
                    name, {"type": "directory", "path": name, "oid": git_sha(name.encode()), "size": 0}
                )
            if len(below.parts) == 1 or recursive:
                entries[path] = {"type": "file", "path": path, "oid": git_sha(data), "size": len(data)}
                if is_large(path):
                    entries[path]["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return _json(list(entries.values()))

    def paths_info(self, kind: str, repo_id: str, rev: str) -> Answer:
        _, _, tree = self.tree(kind, repo_id, rev)
        asked = parse_qs(self.body.decode()).get("paths", [])
        files = [
            {"type": "file", "path": path, "oid": git_sha(tree[path]), "size": len(tree[path])}
            for path in asked
            if path in tree
        ]
        folders = [
            {"type": "directory", "path": path, "oid": git_sha(path.encode())}
            for path in asked
            if any(one.startswith(f"{path}/") for one in tree)
        ]
        return _json([*files, *folders])

    def start_job(self, owner: str) -> Answer:
        self.check_write(owner)
        return self.job(owner, str(self.hub.start_job(json.loads(self.body))))

    def job(self, owner: str, number: str) -> Answer:
        who = {"id": owner, "name": owner, "type": "user"}
        return _json({"id": number, "owner": who, "status": {"stage": self.hub.job_stage(int(number))}})

    def preupload(self, kind: str, repo_id: str, rev: str) -> Answer:
        repo, _, tree = self.tree(kind, repo_id, rev)
        self.check_write(repo.owner)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": _etag(file["path"], tree[file["path"]]) if file["path"] in tree else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return _json({"files": files})

    def batch(self, prefix: str, repo_id: str) -> Answer:
        self.check_write(self.repo(_kind(prefix), repo_id).owner)
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.hub.uploads:
                upload = {"href": f"{self.hub.url}/upload/{repo_id}/{wanted['oid']}", "header": {}}
                verify = {"href": f"{self.hub.url}/{prefix}{repo_id}.git/info/lfs/verify"}
                wanted["actions"] = {"upload": upload, "verify": verify}
        return _json({"transfer": "basic", "objects": objects})

    def upload(self, repo_id: str, oid: str) -> Answer:
        if sha256(self.body) != oid:
            raise Refusal(400, "The SHA-256 you specified did not match what we received.")
        self.hub.uploads[oid] = self.body
        return Answer()

    def verify(self, prefix: str, repo_id: str) -> Answer:
        if json.loads(self.body)["oid"] not in self.hub.uploads:
            raise Refusal(404, "The object was not uploaded")
        return Answer()

    def validate_yaml(self) -> Answer:
        if re.search(r"^license: \S+ ", json.loads(self.body)["content"], re.MULTILINE):
            body = {"errors": [{"message": '"license" must be one of [apache-2.0, mit, …]'}], "warnings": []}
            return Answer(400, json.dumps(body).encode())
        return _json({"errors": [], "warnings": []})

    def commit(self, kind: str, repo_id: str, rev: str) -> Answer:
        repo, head, tree = self.tree(kind, repo_id, rev)
        self.check_write(repo.owner)
        tree = dict(tree)
        for line in self.body.splitlines():
            key, value = json.loads(line).values()
            if key == "header" and value.get("parentCommit", head) != head:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            if key == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            if key == "lfsFile":
                tree[value["path"]] = self.hub.uploads[value["oid"]]
            if key == "deletedFile" and tree.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        sha = repo.commit(tree)
        url = f"{self.hub.url}/{PREFIXES[kind]}{repo_id}/commit/{sha}"
        return _json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, prefix: str, repo_id: str, rev: str, path: str) -> Answer:
        repo, sha, tree = self.tree(_kind(prefix), repo_id, rev)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if repo.gated and self.user != repo.owner:
            raise Refusal(403, "Access to this repository is restricted", "GatedRepo")
        if path not in tree:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.answer.headers |= headers
            raise refusal
        data = tree[path]
        headers["ETag"] = f'"{_etag(path, data)}"'
        if is_large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return Answer(206, data[first : last + 1], headers)
        return Answer(200, data, headers)


def _asked_for_private(asked: Mapping[str, Any], default: bool) -> bool:
    """Hub 2 sends a visibility, older clients ``private``; neither sends defaults."""
    if "visibility" in asked:
        return bool(asked["visibility"] == "private")
    return bool(asked.get("private", default))


def _fault_answer(status: int, headers: dict[str, str]) -> Answer:
    if status >= 500:  # a gateway's page, no JSON
        return Answer(status, b"<html>busy</html>", {"Content-Type": "text/html", **headers})
    answer = Refusal(status, "Cannot create repo: another conflicting operation is in progress").answer
    answer.headers |= headers
    return answer


def _routes() -> list[tuple[str, Callable[..., Answer]]]:
    repo = r"(?P<repo_id>[^/]+/[^/]+?)"
    page = rf"/(?P<prefix>(datasets/)?){repo}"
    api = rf"/api/(?P<kind>dataset|model)s/{repo}"
    rev = r"(?P<rev>[^/]+)"
    return [
        ("GET /api/whoami-v2", _Handler.whoami),
        ("POST /api/repos/create", _Handler.create),
        ("POST /api/validate-yaml", _Handler.validate_yaml),
        (f"GET {api}", _Handler.info),
        (f"GET {api}/revision/{rev}", _Handler.info),
        (f"GET {api}/auth-check/write", _Handler.may_write),
        (f"GET {api}/tree/{rev}(/(?P<folder>.+))?", _Handler.list_tree),
        (f"POST {api}/paths-info/{rev}", _Handler.paths_info),
        ("POST /api/jobs/(?P<owner>[^/]+)", _Handler.start_job),
        (r"GET /api/jobs/(?P<owner>[^/]+)/(?P<number>\d+)", _Handler.job),
        (f"POST {api}/preupload/{rev}", _Handler.preupload),
        (f"POST {api}/commit/{rev}", _Handler.commit),
        (rf"POST {page}\.git/info/lfs/objects/batch", _Handler.batch),
        (rf"POST {page}\.git/info/lfs/verify", _Handler.verify),
        (f"PUT /upload/{repo}/(?P<oid>[0-9a-f]+)", _Handler.upload),
        (f"(GET|HEAD) {page}/resolve/{rev}/(?P<path>.+)", _Handler.resolve),
    ]


ROUTES = _routes()
