"""SHA-256 of files and texts, in hexadecimal: what content is known by where there is no commit."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Of a text in UTF-8; lone surrogates, as file names have them, included."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
