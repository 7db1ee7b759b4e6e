"""The manifest of an annotated dataset: everything that made it. Reading it checks it.

It is untrusted: nothing in it is used before its type is checked, and no path in it can leave
the folder.
"""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from ..errors import SchemaError
from ..files import file_sha256
from ..hub.errors import line_of
from ..schema import MANIFEST_NAME, SPLIT_NAME, check_version
from ..selection import SelectionRule
from ..settings import Dtype, Reasoning
from .from_json import Count, NotAsItMustBeError, from_json, matching
from .health import Health
from .precision import Precision

_DATA_FILE = re.compile(r"data/\w[\w.-]{0,200}\.parquet")  # in the folder, and nowhere else

SplitName = Annotated[str, matching("letters, digits, _ and dots", SPLIT_NAME)]
DataFile = Annotated[str, matching("like data/train-*.parquet", _DATA_FILE)]


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model.

    Attributes:
        name: Name on the Hub, or of the folder, without its parents.
        revision: Commit on the Hub, or ``sha256:…`` of the folder's configuration and weights.
        base: For an adapter, ``name@revision`` of the model that it adapts.
    """

    name: str
    revision: str
    base: str | None


@dataclass(frozen=True)
class ModelRevision:
    """What determines a model's outputs: revisions, not folder names; ``base`` for an adapter."""

    revision: str
    base: str | None


@dataclass(frozen=True)
class ScoredRows:
    """Which rows were scored.

    Attributes:
        revision: Commit on the Hub, or ``sha256:…`` of the local content.
        config: Configuration, if the dataset has several.
        split: Which split.
        rows: How many rows of it.
        columns: Where the source keeps its pair.
        pairs: How pairs were made, or from which columns, if the source has no chosen and rejected.
        part: The split as requested, if it is not a whole one.
    """

    revision: str
    config: str | None
    split: SplitName
    rows: Count
    columns: dict[str, str | None]
    pairs: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class Scoring:
    """Everything that changes numbers and nothing else: its hash is the run's fingerprint."""

    schema_version: str
    source: ScoredRows
    oracle: ModelRevision
    ref: ModelRevision
    tokenizer_sha256: str
    chat_template_sha256: str | None
    dtype: Dtype
    max_length: Count
    reasoning: Reasoning
    store_logps: bool


@dataclass(frozen=True)
class SourceRecord:
    """Where the pairs come from.

    Attributes:
        name: Hub id, or the name of the file or folder without its parents.
        config: Configuration, if the dataset has several.
        on_hub: Whether it is on the Hub.
        card: What a derived dataset keeps of its card.
        restricted: Private or gated on the Hub.
        repairs: What was changed in its texts, with counts.
    """

    name: str
    config: str | None
    on_hub: bool
    card: dict[str, object]
    restricted: bool
    repairs: dict[str, Count]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The facts about a run before its first row; see `docs/dataset_format.md`."""

    schema_version: str
    sepo_version: str
    scoring: Scoring
    selection: SelectionRule
    source: SourceRecord
    oracle: ModelFacts
    ref: ModelFacts
    environment: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Plain JSON."""
        return {**asdict(self), "selection": self.selection.as_dict()}


@dataclass(frozen=True)
class Counts:
    """Counts: rows of the source, annotated, dropped by reason, and notes."""

    rows: Count
    annotated: Count
    dropped: dict[str, Count]
    notes: dict[str, Count]


@dataclass(frozen=True)
class Shard:
    """A data file."""

    file: DataFile
    rows: Count
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Origin:
    """The annotated dataset whose rewards were reselected.

    Attributes:
        name: Hub id, or the name of the folder without its parents.
        revision: Commit on the Hub, or ``sha256:…`` of its manifest.
        selection: What was selected there.
    """

    name: str
    revision: str
    selection: SelectionRule


@dataclass(frozen=True, kw_only=True)
class Manifest(RunRecord):
    """A finished run; see `docs/dataset_format.md`."""

    fingerprint: str
    counts: Counts
    dropped_rows: dict[str, list[Count]]
    health: Health
    precision: Precision | None = None
    self_check: float | None = None
    shards: list[Shard]
    reselected_from: Origin | None = None

    def warnings(self) -> list[str]:
        """Warnings to read before training."""
        of_precision = self.precision.warnings(self.scoring.dtype) if self.precision is not None else []
        return [*self.health.warnings(), *of_precision]

    def as_dict(self) -> dict[str, object]:
        """Plain JSON, without an empty origin."""
        stored, origin = super().as_dict(), self.reselected_from
        del stored["reselected_from"]
        if origin is None:
            return stored
        return {
            **stored,
            "reselected_from": {**asdict(origin), "selection": origin.selection.as_dict()},
        }


def completed(record: RunRecord, **finished: Any) -> Manifest:
    """The manifest of a run: its record, and the other fields of `Manifest`."""
    return Manifest(**{one.name: getattr(record, one.name) for one in fields(record)}, **finished)


def check_content(folder: Path, manifest: Manifest) -> None:
    """Check that the data files match the manifest.

    Raises:
        SchemaError: Naming the first one that is not.
    """
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file() or file_sha256(path) != shard.sha256:
            raise SchemaError(
                f"{path} was changed or damaged since {MANIFEST_NAME} was written. Copy it again, or "
                "annotate again."
            )


def read_manifest(folder: Path, name: str) -> Manifest:
    """The manifest of an annotated dataset; ``name`` is the folder's name in messages.

    Raises:
        SchemaError: If it is missing, of a version that this sepo cannot read, or invalid.
    """
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except FileNotFoundError as error:
        problem = f"not an annotated dataset (no {MANIFEST_NAME}). Annotate it with sepo-annotate first"
        if (folder / "_work").is_dir():
            problem = "its annotation is not finished. Run the same sepo-annotate again, which resumes"
        raise SchemaError(f"{name}: {problem}.") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"{MANIFEST_NAME} has no schema version ({line_of(error)})"
        raise SchemaError(f"{name}: {problem}. Annotate again, or copy it again.") from error
    check_version(version)
    try:
        return from_json(Manifest, manifest)
    except NotAsItMustBeError as error:
        raise SchemaError(f"{name}: {MANIFEST_NAME}: {error}. Copy it again, or annotate again.") from error
