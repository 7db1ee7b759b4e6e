"""SHA-256 of files and texts, in hexadecimal: identifies content where there is no commit."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from .errors import OutputError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of a text in UTF-8, including lone surrogates from file names."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def is_path(name: str) -> bool:
    """Whether a name that could be a Hub id is rather a mistyped path: its parent folder exists."""
    parent = Path(name).expanduser().parent
    return parent != Path() and parent.is_dir()


def write_atomically(path: Path, *parts: bytes | pa.Buffer) -> None:
    """Write a file atomically."""
    with renamed(path) as partial, partial.open("wb") as file:
        file.writelines(parts)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turn a file system error into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written ({error.strerror or error}). Make room or choose another `output`; "
            "finished chunks are kept, and the same command resumes."
        ) from error


@contextmanager
def renamed(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A path to write to; it gets its name once it is complete and on disk.

    Without ``replace`` an existing file stays, and FileExistsError is raised.
    """
    partial = path.with_name(f"{path.name}.tmp.{uuid4().hex}")  # another node may have the same process id
    try:
        yield partial
        flush(partial)
        if replace:
            partial.replace(path)
        else:
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def check_empty(output: Path, *, but: Set[str]) -> None:
    """Refuse a folder with other content; ``but`` is what an interrupted call may have left.

    Raises:
        OutputError: If it is a file, or contains anything else.
    """
    if output.exists() and (not output.is_dir() or {path.name for path in output.iterdir()} - but):
        raise OutputError(f"{output} is not empty. Choose another `output`.")
    for leftover in output.rglob("*.tmp.*"):
        leftover.unlink()


def check_apart(output: Path, dataset: str) -> None:
    """Refuse an output inside a dataset's folder: the next run would read it as part of the dataset.

    Raises:
        OutputError: If the output is in the dataset's folder, or is that folder.
    """
    folder = Path(dataset).expanduser()
    if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{output} is inside the dataset's folder {dataset}. Choose another `output`.")


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def json_bytes(value: object) -> bytes:
    """JSON with sorted keys, so equal facts give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def name_of(path: Path) -> str:
    """The last part of a path, as printable text."""
    return path.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def paths_outside(files: Iterable[str], prefix: str) -> Iterator[str]:
    """The files that are not below a folder, given with its slash, or its address."""
    return (file for file in files if ".." in Path(file).parts or not file.startswith(prefix))
