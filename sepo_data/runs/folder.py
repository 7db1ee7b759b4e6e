"""Exactly-once work: the identity of a run, and its finished chunks.

A run is identified by the facts that determine its numbers. Rows are processed in chunks with their
global range in the name, written to a temporary file and renamed when complete, so a final
name means done: a killed run repeats at most the current chunk and the one being written,
and two workers on one chunk write the same bytes. A chunk begins with the hash of its
rest, so a damaged one counts as missing.
"""

import contextlib
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from ..annotated.from_json import NotAsItMustBeError, from_json
from ..annotated.manifest import Manifest, RunRecord
from ..errors import OutputError, described_differences, first_line
from ..files import json_bytes, renamed, write_atomically, writing
from ..schema import MANIFEST_NAME

CHUNK_ROWS = 256

_NOTES_KEY = b"sepo_notes"
_IDENTITY_KEY = b"sepo_identity"
_DIGEST_BYTES = hashlib.sha256().digest_size


class ChunkNotes(TypedDict, total=False):
    """What a chunk says besides its rows.

    Attributes:
        dropped: Numbers of the rows that cannot be used, by reason.
        counts: What else was noted, with counts.
        precision: Fields of `Precision`, in the chunk that was scored twice.
        self_check: The largest difference in a log-prob, in nats, in the chunks that were checked.
    """

    dropped: dict[str, list[int]]
    counts: dict[str, int]
    precision: dict[str, Any]
    self_check: float


@dataclass(frozen=True)
class Run:
    """One annotation run and its folder.

    Attributes:
        output: The folder of the dataset.
        record: Facts of the run. ``scoring`` and ``selection`` are its identity; the rest is for the card.
    """

    output: Path
    record: RunRecord

    @property
    def work(self) -> Path:
        """Where chunks are kept until they are merged; readers of datasets skip the underscore."""
        return self.output / "_work"

    @property
    def fingerprint(self) -> str:
        """Identity of the rewards, see `fingerprint`."""
        return fingerprint(asdict(self.record.scoring))

    @property
    def identity(self) -> bytes:
        """What identifies a chunk's run: its numbers and its masks."""
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


def fingerprint(scoring: dict[str, object]) -> str:
    """SHA-256 of the canonical JSON of everything that determines the rewards."""
    canonical = json.dumps(scoring, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def open_run(output: Path, record: RunRecord) -> Run:
    """Begin a run in a folder, or resume the one begun there.

    Args:
        output: The folder; created if missing.
        record: Facts of this run.

    Returns:
        The run with the record in the folder.

    Raises:
        OutputError: If the folder cannot be written, or contains something else or
            a run with another identity.
    """
    run = Run(output, record)
    found = read_record(output)
    if found is None:
        with writing(output):
            if output.is_dir() and any(path.name != "_work" for path in output.iterdir()):
                raise OutputError(
                    f"{output} is not empty, and contains no run of sepo. Choose another `output`."
                )
            run.work.mkdir(parents=True, exist_ok=True)
            with (
                contextlib.suppress(FileExistsError),
                renamed(run.work / "run.json", replace=False) as partial,
            ):
                partial.write_bytes(json_bytes(record.as_dict()))
        found = read_record(output)  # another worker may have begun another run first
    assert found is not None
    _refuse_other_run(run, found)
    if is_finished(run):  # a kill between the manifest and the end of a merge leaves chunks over
        clear_work(run)
        return Run(output, found)
    if _facts(found) != _facts(record):  # other facts, like a licence, may change until the end
        try:
            with writing(output):
                write_atomically(run.work / "run.json", json_bytes(record.as_dict()))
        except OutputError:
            if not is_finished(run):  # else another worker has just assembled the dataset
                raise
    return run


def _facts(record: RunRecord) -> dict[str, object]:
    """Without library versions: nodes may differ in them, and the first one's are kept."""
    return {
        key: value for key, value in record.as_dict().items() if key not in ("environment", "sepo_version")
    }


def _identity(record: RunRecord) -> dict[str, object]:
    """The identity of a run: everything that determines rewards or masks."""
    facts = record.as_dict()
    return {part: facts[part] for part in ("scoring", "selection")}


def read_record(output: Path) -> RunRecord | None:
    """The record of the run in a folder, a `Manifest` if it is finished; None if there is none."""
    finished = (output / MANIFEST_NAME, Manifest)
    begun = (output / "_work" / "run.json", RunRecord)
    for path, kind in (finished, begun, finished):  # another worker may finish between the two checks
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            json_bytes(stored)  # a lone surrogate could not be written back
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

    Other workers may still be writing or removing there; each does this as its last step,
    so the last one succeeds.
    """
    for _ in range(10):
        shutil.rmtree(run.work, ignore_errors=True)
        if not run.work.exists():
            return


def chunk_ranges(num_rows: int, shard: tuple[int, int] = (0, 1)) -> list[tuple[int, int]]:
    """The half-open row ranges of one shard's chunks, on a grid independent of the number of shards.

    Example:
        >>> chunk_ranges(600), chunk_ranges(600, (1, 2))
        ([(0, 256), (256, 512), (512, 600)], [(256, 512), (512, 600)])
    """
    starts = range(0, num_rows, CHUNK_ROWS)
    index, count = shard
    own = starts[len(starts) * index // count : len(starts) * (index + 1) // count]
    return [(lo, min(lo + CHUNK_ROWS, num_rows)) for lo in own]


def missing_chunks(run: Run) -> list[tuple[int, int]]:
    """The chunks of the whole run that are not written yet."""
    return [chunk for chunk in chunk_ranges(run.rows) if not run.chunk(*chunk).is_file()]


def is_done(run: Run, lo: int, hi: int, part: str = "rows") -> bool:
    """Whether a chunk is complete; a damaged one counts as missing and is written again."""
    try:
        read_chunk(run, lo, hi, part)
    except OutputError:
        return False
    return True


def write_chunk(run: Run, lo: int, hi: int, table: pa.Table, notes: ChunkNotes, part: str = "rows") -> None:
    """Write the annotated rows of one chunk atomically.

    Args:
        run: The run.
        lo: First source row.
        hi: One past the last source row.
        table: The rows that could be annotated, in the final columns.
        notes: What happened to the others, as plain JSON in the file's footer.
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
        if not is_finished(run):  # else another worker also had this chunk and has merged the run
            raise


def read_chunk(run: Run, lo: int, hi: int, part: str = "rows") -> tuple[pa.Table, ChunkNotes]:
    """Read the rows of a chunk and its notes, as written by `write_chunk`.

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
            f"{path} is damaged. The command of its shard, or one without `shard`, scores it again."
        )
    try:
        table = pq.read_table(pa.BufferReader(pa.py_buffer(rest)))
        footer = table.schema.metadata or {}
        notes: ChunkNotes = json.loads(footer.get(_NOTES_KEY, b""))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise OutputError(f"{path} is not a chunk ({first_line(error)}). Delete it and run again.") from error
    if footer.get(_IDENTITY_KEY) != run.identity + path.name.encode():
        raise OutputError(f"{path} was changed. Delete it and run again.")
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
