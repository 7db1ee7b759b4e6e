"""Which files a push consists of, and which of those on the Hub are sepo's.

An annotated dataset is known by its manifest, a trained model by the record of its
training. A folder is pushed only when it is finished. No request is made here.
"""

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from .errors import HubError, OutputError, SchemaError
from .hashing import file_sha256
from .hub_errors import line_of
from .manifest import check_manifest
from .schema import MANIFEST_NAME, check_version, validate

RepoType = Literal["dataset", "model"]

RECORD_NAME = "sepo_training.json"
MARKS: dict[RepoType, str] = {"dataset": MANIFEST_NAME, "model": RECORD_NAME}
ANYBODYS = {".gitattributes", "README.md", "LICENSE"}

CHAT_TEMPLATES = "additional_chat_templates/*.jinja"
# Files that from_pretrained would still read when a later push no longer has them.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
PICKLES = (".bin", ".pt", ".pth", ".pkl")  # states of optimizer and trainer; weights are safetensors


def annotated_files(folder: Path) -> dict[str, Path]:
    """What a push of an annotated dataset consists of, by path in the repository; work files stay behind.

    Raises:
        OutputError: If the folder is not finished.
        SchemaError: If its data does not keep the contract of an annotated dataset.
    """
    shards = sorted(folder.glob("data/*.parquet"))
    files = [*shards, folder / "README.md", folder / MANIFEST_NAME]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not shards:
        raise OutputError(
            f"{folder}: not a finished annotated dataset ({(missing or ['data/*.parquet'])[0]} is missing). "
            f"Let sepo-annotate finish, or run `sepo merge {folder}` first."
        )
    check_content(folder, read_manifest(folder, str(folder)))
    for shard in shards:
        _check_shard(shard)
    return _by_path(folder, files)


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


def trained_files(folder: Path) -> dict[str, Path]:
    """What a push of a model or an adapter consists of, by path in the repository.

    That is every file at the folder's top but hidden ones and the states of optimizer and trainer;
    checkpoints stay behind.

    Raises:
        OutputError: If the folder is not a finished model of sepo-train.
    """
    config, weights = "config.json", _weight_files(folder)
    if (folder / "adapter_config.json").is_file():
        config, weights = "adapter_config.json", ["adapter_model.safetensors"]
    required = (config, *weights, "README.md", RECORD_NAME)
    problems = [f"{name} is missing" for name in required if not (folder / name).is_file()]
    if not problems and not _training_record(folder).get("finished", True):
        problems = [f"{RECORD_NAME} is that of a run that goes on"]
    if problems:
        raise OutputError(f"{folder}: not a finished model ({problems[0]}). Let sepo-train finish first.")
    for name in weights:
        _check_weights(folder / name)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not _stays_behind(path.name)]
    return _by_path(folder, [*files, *sorted(folder.glob(CHAT_TEMPLATES))])


def trained_on_restricted(folder: Path) -> bool:
    """Whether a model's training record says that its dataset is private or gated.

    Raises:
        OutputError: If the record cannot be read.
    """
    return bool(_training_record(folder)["dataset"].get("restricted"))


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


def refuse_foreign(repo_id: str, repo_type: RepoType, paths: set[str]) -> None:
    """Make sure that a repository is empty, or holds what sepo has pushed.

    Raises:
        HubError: If a push would replace something else.
    """
    strange = paths - ANYBODYS
    if strange and MARKS[repo_type] not in paths:
        raise HubError(f"{repo_id}: holds {min(strange)}, which sepo did not write. Push to another name.")


def stale_files(repo_type: RepoType, on_hub: set[str], pushed: Iterable[str]) -> list[str]:
    """Files of an earlier push that this one has to delete; what others have added stays."""
    return sorted(path for path in on_hub - set(pushed) if _is_ours(path, repo_type))


def _is_ours(path: str, repo_type: RepoType) -> bool:
    if repo_type == "dataset":
        return path.startswith("data/")
    patterns = [CHAT_TEMPLATES] if "/" in path else MODEL_FILES
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _stays_behind(name: str) -> bool:
    return name.startswith(".") or name.endswith(PICKLES) or name == "trainer_state.json"


def _by_path(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in files}


def _training_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD_NAME
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["dataset"].get("restricted")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path, error) from error
    return record


def _weight_files(folder: Path) -> list[str]:
    """Names of a model's weight files, whether they exist or not."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"it names {outside[0]}")
        return names
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(index, error) from error


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:  # reads the header, which has to fit the file's size
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path}: cannot be read ({line_of(error)}). Train again, or copy it again.")


def _check_shard(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # one at a time: memory stays flat
                validate(file.read_row_group(group))
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{path}: cannot be read ({line_of(error)}). Annotate again.") from error
    except SchemaError as error:
        raise SchemaError(f"{path}, row group {group}: {error}") from error
