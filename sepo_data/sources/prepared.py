"""Files that ``datasets`` converts to Arrow: parquet, and whatever else it reads."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HubError, PreferenceError, first_line
from ..files import text_sha256
from .arrow_cache import CachedRows
from .compressed import DataFile
from .faults import find_corrupt_parquet, one_line
from .parquet_types import mixed_rows, settle_types

if TYPE_CHECKING:
    import datasets


def prepared_rows(
    builder: Any, split: str, dataset: str, files: dict[str, str], digest: str | None
) -> CachedRows:
    """The rows of the files of a split.

    Args:
        builder: Of ``datasets``, which knows how to read them.
        split: Its name.
        dataset: The dataset's name in messages.
        files: Name in messages → path, or address on the Hub.
        digest: Of the files, if they are on this machine.

    Raises:
        PreferenceError: If they cannot be read.
        HubError: If the download fails.
    """
    left_out: dict[str, int] = {}
    if builder.name == "parquet":
        with suppress(HubError):  # offline, `datasets` may have what it once made of files that are gone
            there = downloaded(files, dataset)
            mixed = mixed_rows(there, digest or text_sha256(repr(files)))
            if mixed is not None:
                return mixed
            left_out = settle_types(builder, there)
    return CachedRows(_prepared(builder, split, dataset, files, digest), left_out, frozenset())


def arrow_rows(paths: Sequence[Path], dataset: str) -> "datasets.Dataset":
    """Rows of Arrow files: streams, as ``datasets`` writes them, or Arrow's file format."""
    import datasets
    import pyarrow as pa

    def rows_of(path: Path) -> datasets.Dataset:
        with pa.memory_map(str(path)) as file:
            if file.read(6) != b"ARROW1":
                return datasets.Dataset.from_file(str(path))
        return datasets.Dataset(pa.ipc.open_file(pa.memory_map(str(path))).read_all())

    with one_line(dataset):
        return datasets.concatenate_datasets(list(map(rows_of, paths)))


def downloaded(files: dict[str, str], dataset: str) -> list[DataFile]:
    """Local paths of the files; those on the Hub are downloaded to its cache unless they are there."""
    import datasets

    try:
        paths = datasets.DownloadManager().download(list(files.values()))
    except Exception as error:
        raise HubError(f"{dataset}: the download failed ({first_line(error)}). Try again.") from error
    return [DataFile(label, Path(path)) for label, path in zip(files, paths, strict=True)]


def _prepared(
    builder: Any, split: str, dataset: str, files: dict[str, str], digest: str | None
) -> "datasets.Dataset":
    """Let ``datasets`` convert the files to Arrow; if one is corrupt, name it.

    Its own cache identifies local files by path and time, and those of a folder whose card has ``configs`` by
    the folder's name alone: it would return rows of other files. So local files are cached by their digest.
    """
    import datasets
    from datasets.utils import logging

    kept_in = digest and str(
        Path(datasets.config.HF_DATASETS_CACHE) / "sepo" / f"rows-{builder.name}-{split}-{digest}"
    )
    if kept_in:
        builder.dataset_name = "rows"  # its files there would have the folder's name, which may change

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # it logs each failure before raising it
    try:
        builder.download_and_prepare(output_dir=kept_in)
        return builder.as_dataset(split=split)
    except Exception as error:
        find_corrupt_parquet(downloaded(files, dataset))
        raise PreferenceError(f"{dataset}: cannot be read: {first_line(error.__cause__ or error)}") from error
    finally:
        logging.set_verbosity(verbosity)
