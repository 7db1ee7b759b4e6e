"""Open an annotated dataset, from a folder or from the Hub at a fixed commit, and check it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download

from ..errors import HubError, SchemaError
from ..files import file_sha256, is_path, name_of, paths_outside
from ..hub.client import commit_of, with_retries
from ..hub.errors import line_of, source_error
from ..schema import MANIFEST_NAME, validate
from .manifest import Manifest, check_content, read_manifest

if TYPE_CHECKING:
    import datasets


log = logging.getLogger("sepo")


@dataclass(frozen=True)
class Annotated:
    """An annotated dataset and where it comes from.

    Attributes:
        name: Name on the Hub, or of the folder, without its parents.
        revision: As `annotated_revision` returns it.
        manifest: See `docs/dataset_format.md`.
        splits: Its rows.
        folder: Where its files are, on the Hub's cache or as given.
    """

    name: str
    revision: str
    manifest: Manifest
    splits: "datasets.DatasetDict"
    folder: Path


def load_annotated(name_or_folder: str, *, revision: str | None = None) -> "datasets.DatasetDict":
    """Load an annotated dataset and check its contract.

    Args:
        name_or_folder: A folder of ``sepo-annotate``, or a name on the Hub; a folder wins.
        revision: Branch, tag or commit on the Hub, or what `annotated_revision` has returned.

    Returns:
        Its splits by name.

    Raises:
        SchemaError: If it is not an annotated dataset, has an unknown version, or violates the contract; or
            if a folder has another revision.
        HubError: If the Hub does not have it, or cannot be reached.
    """
    return open_annotated(name_or_folder, revision=revision).splits


def open_annotated(name_or_folder: str, *, revision: str | None = None) -> Annotated:
    """As `load_annotated`, together with where the dataset comes from."""
    import datasets

    commit = annotated_revision(name_or_folder, revision)
    local = _local_folder(name_or_folder)
    folder = local or with_retries(
        lambda: _download(name_or_folder, commit),
        lambda cause: source_error("datasets/", name_or_folder, commit, cause, HubError),
    )
    manifest = read_manifest(folder, name_or_folder)
    # datasets goes by the card, and would serve the old rows from its cache
    check_content(folder, manifest)
    try:
        _check_card(datasets.load_dataset_builder(str(folder)).config.data_files, folder)
        splits = datasets.load_dataset(str(folder))
    except SchemaError:
        raise
    except Exception as error:  # datasets does not wrap the exceptions of its readers
        raise SchemaError(f"{name_or_folder}: cannot be read: {line_of(error)}.") from error
    validate(splits)
    name = name_of(local) if local else name_or_folder
    return Annotated(name, commit, manifest, splits, folder)


def _check_card(data_files: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Check that the card's YAML, which ``datasets`` follows, names only files in the folder."""
    for path in paths_outside(chain.from_iterable(data_files.values()), f"{folder.absolute()}/"):
        raise SchemaError(f"{folder / 'README.md'} names {path}, which is not in the folder. Correct it.")


def annotated_revision(name_or_folder: str, revision: str | None = None) -> str:
    """The current revision of an annotated dataset, to load exactly the same one later.

    Args:
        name_or_folder: As for `load_annotated`.
        revision: Branch, tag or commit on the Hub; for a folder, what this function has returned for it.

    Returns:
        The commit on the Hub, or ``sha256:…`` of a folder's manifest, which contains the hashes of its data.

    Raises:
        SchemaError: If a folder is not an annotated dataset, or not of this ``revision``.
        HubError: If the Hub does not have it, or cannot be reached.
    """
    folder = _local_folder(name_or_folder)
    if folder is None:
        return with_retries(
            lambda: commit_of(name_or_folder, "dataset", revision),
            lambda cause: source_error("datasets/", name_or_folder, revision, cause, HubError),
            name=name_or_folder,
        )
    read_manifest(folder, name_or_folder)
    found = f"sha256:{file_sha256(folder / MANIFEST_NAME)}"
    if revision not in (None, found):
        problem = f'holds {found}, not revision "{revision}"'
        raise SchemaError(f"{name_or_folder}: {problem}. Leave out the revision, or give another folder.")
    return found


def _local_folder(name_or_folder: str) -> Path | None:
    """The folder; None for a name on the Hub."""
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_file():
        raise SchemaError(
            f"{name_or_folder}: a file, not an annotated dataset. Annotate it with sepo-annotate."
        )
    if is_path(name_or_folder):
        raise SchemaError(f"{name_or_folder}: no such folder. Check the path, or give a name like user/name.")
    return None


def _download(name: str, commit: str) -> Path:
    """The data, card and manifest of an annotated dataset in the cache."""

    def download(*patterns: str) -> Path:
        return Path(snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=[*patterns]))

    read_manifest(download(MANIFEST_NAME), name)  # before downloading gigabytes of something else
    return download(MANIFEST_NAME, "README.md", "data/*")
