"""Why a dataset does not open: it has no such split, or one of its files is corrupt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import PreferenceError, first_line
from .compressed import DataFile


class NoSplitError(PreferenceError):
    """There is no such split.

    Attributes:
        splits: The splits that exist.
    """

    def __init__(self, message: str, splits: Sequence[str]) -> None:
        super().__init__(message)
        self.splits = splits


class NoFilesError(PreferenceError):
    """A folder holds no files that ``datasets`` finds."""


def find_corrupt_parquet(files: Sequence[DataFile]) -> None:
    """Read parquet files completely to find a corrupt one.

    Raises:
        PreferenceError: Naming a corrupt file.
    """
    for label, path in files:
        if not label.lower().endswith(".parquet"):
            continue
        try:
            for _ in pq.ParquetFile(path).iter_batches():
                pass
        except (pa.ArrowException, OSError) as error:
            problem = f"corrupt or truncated parquet ({first_line(error)})"
            raise PreferenceError(f"{label}: {problem}. Copy or download it again.") from error


@contextmanager
def one_line(place: str) -> Iterator[None]:
    """Turn whatever another library raises into one line that names the place."""
    try:
        yield
    except Exception as error:
        raise PreferenceError(f"{place}: cannot be read: {first_line(error)}") from error
