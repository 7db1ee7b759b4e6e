"""Exactly-once work: what a run is, and its finished chunks.

A run is the facts that change its numbers. Work goes in chunks of rows with their
global range in the name, written aside and renamed when complete, so a finished
name means done: a killed run repeats at most the chunk in hand and the one being written,
and two workers on one chunk write the same bytes. A chunk begins with the hash of the rest
of it, so one that was damaged since counts as not done.
"""

import contextlib
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..annotated.from_json import NotAsItMustBeError, from_json
from ..annotated.manifest import Manifest, RunRecord
from ..errors import OutputError, first_line
from ..files import json_bytes, renamed, write_atomically, writing
from ..schema import MANIFEST_NAME
from .provenance import described_differences

CHUNK_ROWS = 256

_NOTES_KEY = b"sepo_notes"
_IDENTITY_KEY = b"sepo_identity"
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Run:
    """One annotation run and its folder.

    Attributes:
        output: The folder that becomes the dataset.
        record: Facts of the run. ``scoring`` and ``selection`` make its identity; the rest is for the card.
    """

    output: Path
    record: RunRecord

    @property
    def work(self) -> Path:
        """Where chunks are kept until they are merged; readers of datasets skip the underscore."""
        return self.output / "_work"

    @property
    def fingerprint(self) -> str:
        """Identity of the numbers, see `fingerprint`."""
        return fingerprint(asdict(self.record.scoring))

    @property
    def identity(self) -> bytes:
        """What a chunk must have been made for: its numbers and its masks."""
        return fingerprint(_identity(self.record)).encode()

    @property
    def split(self) -> str:
        """Name of the split, in file names."""
        return self.record.scoring.source.split

    @property
    def rows(self) -> int:
        """Rows of the source that the run covers."""
        return self.record.scoring.source.rows

    def chunk(self, lo: int, hi: int, part: str = "rows") -> Path:
        """The file of the source rows ``lo`` to ``hi``: a SHA-256, then Parquet."""
        return self.work / f"{self.split}-{lo:09d}-{hi:09d}.{part}"


def fingerprint(scoring: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of everything that changes numbers."""
    canonical = json.dumps(scoring, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def open_run(output: Path, record: RunRecord) -> Run:
    """Begin a run in a folder, or take up the one that was begun there.

    Args:
        output: The folder; made if it is missing.
        record: Facts of this run.

    Returns:
        The run with the record that stands in the folder.

    Raises:
        OutputError: If the folder cannot be written, holds something else, or
            holds a run that differs in what makes its identity.
    """
    run = Run(output, record)
    found = read_record(output)
    if found is None:
        with writing(output):
            if output.is_dir() and any(path.name != "_work" for path in output.iterdir()):
                raise OutputError(f"{output} is not empty and holds no run of sepo. Choose another `output`.")
            run.work.mkdir(parents=True, exist_ok=True)
            with (
                contextlib.suppress(FileExistsError),
                renamed(run.work / "run.json", replace=False) as partial,
            ):
                partial.write_bytes(json_bytes(record.as_dict()))
        found = read_record(output)  # another worker may have been first, with another run
    assert found is not None
    _refuse_other_run(run, found)
    if is_finished(run):  # a kill between the manifest and the end of a merge leaves chunks behind
        clear_work(run)
        return Run(output, found)
    if _facts(found) != _facts(record):  # what is not identity, like a licence, may change until the end
        try:
            with writing(output):
                write_atomically(run.work / "run.json", json_bytes(record.as_dict()))
        except OutputError:
            if not is_finished(run):  # else another worker has just made the dataset
                raise
    return run


def _facts(record: RunRecord) -> dict[str, Any]:
    """Without the versions of what computes: nodes differ in them, and the first one's stay."""
    return {
        key: value for key, value in record.as_dict().items() if key not in ("environment", "sepo_version")
    }


def _identity(record: RunRecord) -> dict[str, Any]:
    """What makes a run: everything that changes numbers or masks."""
    facts = record.as_dict()
    return {part: facts[part] for part in ("scoring", "selection")}


def read_record(output: Path) -> RunRecord | None:
    """The record of the run in a folder, a `Manifest` if it is finished; None if there is none."""
    finished = (output / MANIFEST_NAME, Manifest)
    begun = (output / "_work" / "run.json", RunRecord)
    for path, kind in (finished, begun, finished):  # another worker may be done between the first two looks
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            json_bytes(stored)  # a lone surrogate could not be written again
            return from_json(kind, stored)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, RecursionError, NotAsItMustBeError) as error:
            raise OutputError(f"{path} cannot be read ({error}). Delete {output} and run again.") from error
    return None


def is_finished(run: Run) -> bool:
    """Whether the dataset is complete: the manifest is written last."""
    return (run.output / MANIFEST_NAME).exists()


def clear_work(run: Run) -> None:
    """Remove the chunks of a finished run.

    Other workers may still be writing or removing there: each does this as its last step,
    so the last one finds nothing in its way.
    """
    for _ in range(10):
        shutil.rmtree(run.work, ignore_errors=True)
        if not run.work.exists():
            return


def chunk_ranges(num_rows: int, shard: tuple[int, int] = (0, 1)) -> list[tuple[int, int]]:
    """The half-open row ranges of one shard's chunks, on a grid that no shard count changes.

    Example:
        >>> chunk_ranges(600), chunk_ranges(600, (1, 2))
        ([(0, 256), (256, 512), (512, 600)], [(256, 512), (512, 600)])
    """
    starts = range(0, num_rows, CHUNK_ROWS)
    index, count = shard
    own = starts[len(starts) * index // count : len(starts) * (index + 1) // count]
    return [(lo, min(lo + CHUNK_ROWS, num_rows)) for lo in own]


def missing_chunks(run: Run) -> list[tuple[int, int]]:
    """The chunks of the whole run that nobody has written yet."""
    return [chunk for chunk in chunk_ranges(run.rows) if not run.chunk(*chunk).is_file()]


def is_done(run: Run, lo: int, hi: int, part: str = "rows") -> bool:
    """Whether a chunk is written whole; a damaged one counts as not done and is written again."""
    try:
        read_chunk(run, lo, hi, part)
    except OutputError:
        return False
    return True


def write_chunk(
    run: Run, lo: int, hi: int, table: pa.Table, notes: dict[str, Any], part: str = "rows"
) -> None:
    """Write the annotated rows of one chunk, whole or not at all.

    Args:
        run: The run.
        lo: First source row.
        hi: One past the last source row.
        table: The rows that could be annotated, in the final columns.
        notes: What happened to the others, plain JSON; kept in the file's footer.
        part: Names the file, see `Run.chunk`.

    Raises:
        OutputError: If the folder cannot be written or the disk is full.
    """
    path = run.chunk(lo, hi, part)
    footer = {_NOTES_KEY: json_bytes(notes), _IDENTITY_KEY: run.identity + path.name.encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(footer), sink, compression="zstd")
    content = sink.getvalue()
    try:
        with writing(run.output):
            write_atomically(path, hashlib.sha256(content).digest(), content)
    except OutputError:
        if not is_finished(run):  # else another worker had this chunk too, and has merged the run
            raise


def read_chunk(run: Run, lo: int, hi: int, part: str = "rows") -> tuple[pa.Table, dict[str, Any]]:
    """What `write_chunk` wrote: the rows of a chunk, and its notes.

    Raises:
        OutputError: If the chunk is missing, damaged, or another run's.
    """
    path = run.chunk(lo, hi, part)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror or error}). Run again.") from error
    digest, rest = content[:_DIGEST_BYTES], memoryview(content)[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        raise OutputError(
            f"{path} is damaged. The command of its shard, or one without `shard`, makes it anew."
        )
    try:
        table = pq.read_table(pa.BufferReader(pa.py_buffer(rest)))
        footer = table.schema.metadata or {}
        notes = dict(json.loads(footer.get(_NOTES_KEY, b"")))
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path} is no chunk ({first_line(error)}). Delete it and run again.") from error
    if footer.get(_IDENTITY_KEY) != run.identity + path.name.encode():
        raise OutputError(f"{path} is not what was written there. Delete it and run again.")
    return table.replace_schema_metadata(None), notes


def _refuse_other_run(run: Run, found: RunRecord) -> None:
    theirs, ours = _identity(found), _identity(run.record)
    differing = [
        described_differences(theirs[part], ours[part]) for part in ours if theirs[part] != ours[part]
    ]
    if differing:
        raise OutputError(
            f"{run.output} was made with {'; '.join(differing)}. Choose another `output` to keep both."
        )
