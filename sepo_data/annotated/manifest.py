"""What a manifest holds, checked before anything in it is believed: it may come from anywhere.

Every key that is read has a kind, and what becomes a part of a path can lead nowhere else. A key
that is missing is missed by those who need it all: a run that goes on, and ``sepo verify``.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import EllipsisType
from typing import Any

from ..errors import SchemaError
from ..files import file_sha256
from ..hub.errors import line_of
from ..schema import MANIFEST_NAME, SIDES, SPLIT_NAME, check_version
from ..selection import SELECTIONS
from ..settings import DTYPES
from .health import Health, SideHealth
from .precision import Precision

DATA_FILE = re.compile(r"data/\w[\w.-]{0,200}\.parquet")  # in the folder, and nowhere else

_TEXT, _WHOLE, _NUMBER, _FLAG, _NULL = "text", "a whole number", "a finite number", "true or false", "null"
_RATIO, _SPLIT, _FILE = "a number in (0, 1]", "letters, digits, _ and dots", "like data/train-*.parquet"
_DTYPE, _RULE = f"one of {', '.join(DTYPES)}", f"one of {', '.join(SELECTIONS)}"

_IS: dict[str, Callable[[Any], bool]] = {
    _TEXT: lambda value: isinstance(value, str),
    _WHOLE: lambda value: type(value) is int and 0 <= value < 2**53,  # what every JSON keeps
    _NUMBER: lambda value: type(value) in (int, float) and abs(value) < 2**53,
    _FLAG: lambda value: isinstance(value, bool),
    _NULL: lambda value: value is None,
    _RATIO: lambda value: type(value) in (int, float) and 0 < value <= 1,
    _SPLIT: lambda value: isinstance(value, str) and SPLIT_NAME.fullmatch(value) is not None,
    _FILE: lambda value: isinstance(value, str) and DATA_FILE.fullmatch(value) is not None,
    _DTYPE: lambda value: value in DTYPES,
    _RULE: lambda value: value in SELECTIONS,
}

# a kind, a list of one shape, a mapping by key (`...`: any key), or several of which one must fit
Shape = str | list["Shape"] | dict[str | EllipsisType, "Shape"] | tuple["Shape", ...]

_MODEL: Shape = {"name": _TEXT, "revision": _TEXT, "base": (_TEXT, _NULL)}
_COUNTS: Shape = {...: _WHOLE}
_SIDE: Shape = {field.name: _NUMBER for field in fields(SideHealth)}
RECORD: dict[str | EllipsisType, Shape] = {
    "schema_version": _TEXT,
    "sepo_version": _TEXT,
    "scoring": {
        "source": {"revision": _TEXT, "split": _SPLIT, "rows": _WHOLE},
        "chat_template_sha256": (_TEXT, _NULL),
        "dtype": _DTYPE,
        "max_length": _WHOLE,
        "store_logps": _FLAG,
    },
    "selection": {
        "rule": _RULE,
        "chosen_ratio": _RATIO,
        "rejected_ratio": _RATIO,
        "seed": (_WHOLE, _NULL),
    },
    "source": {
        "name": _TEXT,
        "config": (_TEXT, _NULL),
        "on_hub": _FLAG,
        "card": {},
        "restricted": _FLAG,
        "repairs": _COUNTS,
    },
    "oracle": _MODEL,
    "ref": _MODEL,
}
MANIFEST: Shape = {
    **RECORD,
    "fingerprint": _TEXT,
    "counts": {"rows": _WHOLE, "annotated": _WHOLE, "dropped": _COUNTS, "notes": _COUNTS},
    "dropped_rows": {...: [_WHOLE]},
    "health": {field.name: _SIDE if field.name in SIDES else _NUMBER for field in fields(Health)},
    "precision": (_NULL, {field.name: _NUMBER for field in fields(Precision)}),
    "shards": [{"file": _FILE, "rows": _WHOLE, "bytes": _WHOLE, "sha256": _TEXT}],
}


def check_content(folder: Path, manifest: dict[str, Any]) -> None:
    """Make sure that the data files are those that the manifest describes.

    Raises:
        SchemaError: Naming the first one that is not.
    """
    for shard in manifest.get("shards", []):
        path = folder / shard["file"]
        if not path.is_file() or file_sha256(path) != shard["sha256"]:
            raise SchemaError(
                f"{path} was changed or damaged since {MANIFEST_NAME} was written. Copy it again, or "
                "annotate again."
            )


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """The manifest of an annotated dataset; ``name`` is what a message calls the folder.

    Raises:
        SchemaError: If there is none, or of a version that this sepo cannot read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except FileNotFoundError as error:
        problem = f"not an annotated dataset (no {MANIFEST_NAME})"
        raise SchemaError(f"{name}: {problem}. Make one of it with sepo-annotate.") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"{MANIFEST_NAME} has no schema version ({line_of(error)})"
        raise SchemaError(f"{name}: {problem}. Annotate again, or copy it again.") from error
    check_version(version)
    check_manifest(manifest, name)
    return manifest


def check_manifest(manifest: Any, name: str, *, complete: bool = False) -> None:
    """Make sure that what stands in a manifest is what readers take it for.

    Args:
        manifest: As read.
        name: What a message calls the dataset.
        complete: Whether everything has to be there.

    Raises:
        SchemaError: Naming the first key that is not as it must be.
    """
    for flaw in flaws(manifest, MANIFEST, complete=complete):
        raise SchemaError(f"{name}: {MANIFEST_NAME}: {flaw}. Copy it again, or annotate again.")


def flaws(value: Any, shape: Shape, place: str = "", *, complete: bool) -> Iterator[str]:
    """What is not as it must be, in words.

    Example:
        >>> list(flaws({"counts": {"rows": "ten"}}, MANIFEST, complete=False))
        ["counts.rows is 'ten', it must be a whole number"]
    """
    if isinstance(shape, tuple):
        found = [list(flaws(value, one, place, complete=complete)) for one in shape]
        yield from found[-1] if all(found) else []
    elif isinstance(shape, str):
        if not _IS[shape](value):
            yield f"{place} is {_shown(value)}, it must be {shape}"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{place} is {_shown(value)}, it must be a list"
            return
        for number, item in enumerate(value):
            yield from flaws(item, shape[0], f"{place}[{number}]", complete=True)
    elif not isinstance(value, dict):
        yield f"{place or 'it'} is {_shown(value)}, it must be an object"
    else:
        names = {**dict.fromkeys(value, shape[...])} if ... in shape else shape
        for key, expected in names.items():
            at = f"{place}.{key}" if place else str(key)
            if key in value:
                yield from flaws(value[key], expected, at, complete=complete)
            elif complete:
                yield f"{at} is missing"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
