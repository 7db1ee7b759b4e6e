"""Lines of text files, plain or compressed: gzip, xz, bzip2, Zstandard, and zip archives of one file.

They are UTF-8, or UTF-16 that says so in its first two bytes, as Excel and PowerShell write it.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from ..errors import PreferenceError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE_BYTES = 1 << 20
_Stream = IO[bytes] | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ENDINGS = (".gz", ".xz", ".bz2", ".zst", ".zip")


class _AsUtf8(io.RawIOBase):
    """A stream of UTF-16 as UTF-8."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
        self._rest, self._ended = b"", False

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill a buffer; returns the number of bytes, 0 at the end."""
        while not (self._rest or self._ended):
            piece = self._stream.read(_PIECE_BYTES)
            self._ended = not piece
            self._rest = self._decoder.decode(piece, self._ended).encode("utf-8", "surrogatepass")
        into = memoryview(buffer)
        size = min(len(into), len(self._rest))
        into[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


class DataFile(NamedTuple):
    """A file to read: its name in messages and its local path."""

    label: str
    path: Path


def plain_name(file: DataFile) -> str:
    """The name without a compression suffix; for a zip with no other suffix, the name of the file in it."""
    name = without_ending(file.label)
    return _member(file) if file.label.lower().endswith(".zip") and not Path(name).suffix else name


def without_ending(name: str) -> str:
    """A file name without its compression suffix."""
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)


def numbered_lines(file: DataFile) -> Iterator[tuple[int, str]]:
    r"""Numbered lines with their line ends, split only at "\n": U+2028 and a lone "\r" are text."""
    number = 0
    with _opened(file, lambda: number) as stream:
        for number, line in enumerate(stream, 1):
            text = line.decode("utf-8", "surrogatepass")
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def pieces(file: DataFile) -> Iterator[str]:
    """The text in pieces of about a megabyte, for what need not have lines."""
    line = 1
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    with _opened(file, lambda: line) as stream:
        while piece := stream.read(_PIECE_BYTES):
            try:
                text = decoder.decode(piece)
            except UnicodeDecodeError as error:
                line += piece.count(b"\n", 0, error.start)
                raise
            if text:
                yield text
            line += piece.count(b"\n")
        decoder.decode(b"", final=True)


def begins_with(file: DataFile, character: bytes) -> bool:
    """Whether it is the first character that is no blank."""
    with _opened(file, lambda: 0) as stream:
        return bool(stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(character))


@contextmanager
def _opened(file: DataFile, line: Callable[[], int]) -> Iterator[_Stream]:
    """Yield decompressed bytes; errors name the last line that was read."""
    kind, opened = _kind(file)
    try:
        with opened() as stream:
            start = stream.read(4)
        if start == b"PAR1":
            raise PreferenceError(f"{file.label}: it is a parquet file. Give it the ending .parquet.")
        wide = start[:2] in _UTF_16 and start[2:] != b"\0\0"
        if b"\0" in start and not wide:
            problem = "UTF-32, or UTF-16 without its mark. Save the file as UTF-8"
            raise PreferenceError(f"{file.label}: {problem}.")
        with opened() as stream:
            yield io.BufferedReader(_AsUtf8(stream)) if wide else stream
    except UnicodeDecodeError as error:
        problem = f"not {error.encoding.upper()} ({error.reason}). Save the file as UTF-8"
        raise PreferenceError(f"{file.label}, line {line()}: {problem}.") from error
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        problem = f"corrupt or truncated {kind} ({error}). Copy or download the file again"
        raise PreferenceError(f"{file.label}, line {line() + 1}: {problem}.") from error


def _kind(
    file: DataFile,
) -> tuple[str, Callable[[], _Stream]]:
    """The compression, detected from the content: a downloaded file may have lost its suffix."""
    path = file.path
    with path.open("rb") as raw:
        start = raw.read(6)
    if start.startswith(b"\x1f\x8b"):
        return "gzip", lambda: gzip.open(path)
    if start.startswith(b"BZh"):
        return "bzip2", lambda: bz2.open(path)
    if start.startswith(b"\xfd7zXZ\x00"):
        return "xz", lambda: lzma.open(path)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return "Zstandard", lambda: _zstandard(path)
    if start.startswith(b"PK\x03\x04"):
        return "zip", lambda: zipfile.ZipFile(path).open(_member(file))
    return "file", lambda: path.open("rb")


def _zstandard(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


def _member(file: DataFile) -> str:
    """The one file in a zip."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
    except zipfile.BadZipFile as error:
        raise PreferenceError(f"{file.label}: corrupt or truncated zip ({error}). Copy it again.") from error
    if len(names) != 1:
        raise PreferenceError(f"{file.label}: holds {len(names)} files. Unpack it, and give the folder.")
    return names[0]
