"""Stream parquet files from the Hub, one row group at a time; nothing is kept on disk.

Rows have the same numbers as after a download, so a run resumes in the same chunks, and its output is
byte-identical. One row group is held in memory. The first rows decide what the columns mean.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from ..dataset_spec import DatasetSpec
from ..errors import HubError, PreferenceError, first_line
from ..schema import SPLIT_NAME
from .arrow_cache import CachedRows
from .column_kinds import kind_of, odd_role
from .opening import Source, find_on_hub, is_hub_id
from .parquet_types import common_types

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq


HEAD_ROWS = 2048
_AT_ONCE = 16  # footers read concurrently


class _Group(NamedTuple):
    """A row group: name of its file in messages, address of that file, index in the file, row count."""

    label: str
    url: str
    number: int
    rows: int


class RemoteRows:
    """The part of `datasets.Dataset` that reading needs: slices of rows as Arrow, and iteration.

    Attributes:
        features: Types of the columns.
        check: Called with each row group that was read and its file's name; may refuse it.
    """

    def __init__(
        self, groups: Sequence[_Group], features: "datasets.Features", lo: int = 0, hi: int | None = None
    ) -> None:
        self.features = features
        self.check: Callable[[pa.Table, str], None] = lambda table, label: None
        self._groups = groups
        self._ends = list(accumulate(group.rows for group in groups))
        self._lo, self._hi = lo, sum(group.rows for group in groups) if hi is None else hi
        self._read: tuple[int, pa.Table] | None = None  # the latest row group

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.features)

    def __len__(self) -> int:
        return self._hi - self._lo

    def with_format(self, kind: str) -> "RemoteRows":
        """These rows; they are Arrow anyway."""
        assert kind == "arrow"
        return self

    def select(self, rows: range) -> "RemoteRows":
        """A contiguous range of rows."""
        found = RemoteRows(self._groups, self.features, self._lo + rows.start, self._lo + rows.stop)
        found.check = self.check
        return found

    def __iter__(self) -> Iterator[dict[str, object]]:
        for lo in range(0, len(self), HEAD_ROWS):
            yield from self[lo : lo + HEAD_ROWS].to_pylist()

    def __getitem__(self, rows: slice) -> "pa.Table":
        """Read a slice of rows.

        Raises:
            HubError: If they cannot be read.
        """
        import pyarrow as pa

        start, stop, _ = rows.indices(len(self))
        start, stop = start + self._lo, stop + self._lo
        found = [self.features.arrow_schema.empty_table()]
        for i, (group, end) in enumerate(zip(self._groups, self._ends, strict=True)):
            begin = end - group.rows
            if begin < stop and start < end:
                lo, hi = max(start, begin) - begin, min(stop, end) - begin
                found.append(self._group(i).slice(lo, hi - lo))
        return pa.concat_tables(found)

    def _group(self, i: int) -> "pa.Table":
        from datasets.table import table_cast

        if self._read is None or self._read[0] != i:
            group = self._groups[i]
            with _parquet(group.label, group.url) as file:
                names = [name for name in file.schema_arrow.names if name in self.features]
                found = file.read_row_group(group.number, columns=names)
                table = table_cast(found, self.features.arrow_schema)
            self.check(table, group.label)
            self._read = i, table
        return self._read[1]


def open_remote(dataset: str, spec: DatasetSpec) -> tuple[Source, RemoteRows]:
    """Open a split of a Hub dataset without downloading it.

    Returns:
        The source with only its first rows, and all of its rows.

    Raises:
        PreferenceError: If it is not on the Hub, has no such config or split, or is not parquet.
        HubError: If the Hub refuses, or cannot be reached.
    """
    import datasets

    split = spec.split or "train"
    if Path(dataset).expanduser().exists() or not is_hub_id(dataset):
        raise PreferenceError(f"{dataset}: `streaming` is for datasets on the Hub. Leave it out.")
    if not SPLIT_NAME.fullmatch(split) or split == "all":
        raise PreferenceError(f'{dataset}: `streaming` reads one whole split, not "{split}". Choose one.')
    found = find_on_hub(dataset, spec.config_name, split, spec.revision)
    if other := [label for label in found.files if not label.lower().endswith(".parquet")]:
        problem = f"`streaming` reads parquet files, and {other[0]} is not one"
        raise PreferenceError(
            f"{dataset}: {problem}. Pass `revision=refs/convert/parquet`, the Hub's own parquet copy."
        )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        footers = list(pool.map(_footer, *zip(*found.files.items(), strict=True)))
    common = common_types([schema for _, schema in footers])
    features = (
        common.features() or found.builder.info.features or datasets.Features.from_arrow_schema(footers[0][1])
    )
    rows = RemoteRows([group for groups, _ in footers for group in groups], features)
    if not len(rows):
        raise PreferenceError(f'{dataset}: split "{split}" has no rows. Choose another file or split.')
    info = datasets.DatasetInfo(features=features)
    head = datasets.Dataset(datasets.table.InMemoryTable(rows[:HEAD_ROWS]), info=info)
    return found.source(CachedRows(head, common.left_out(dataset), frozenset())), rows


def with_all_rows(source: Source, rows: RemoteRows) -> Source:
    """A source that was opened with its first rows, with all of its rows."""
    return replace(source, rows=cast("datasets.Dataset", rows))


def check_roles(names: Sequence[str]) -> Callable[["pa.Table", str], None]:
    """Refuse later rows with other roles: the first rows had roles that templates know."""

    def check(table: "pa.Table", label: str) -> None:
        for name in names:
            column = table.column(name)
            odd = odd_role(column) if kind_of(column.type) == "messages" else None
            if odd is not None:
                raise PreferenceError(
                    f'{label}: "{name}" has a role "{odd}", unlike the first rows, so its rows have to be '
                    "converted, which `streaming` cannot do. Leave it out."
                )

    return check


def _footer(label: str, url: str) -> "tuple[list[_Group], pa.Schema]":
    with _parquet(label, url) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        return [_Group(label, url, i, size) for i, size in enumerate(sizes)], file.schema_arrow


@contextmanager
def _parquet(label: str, url: str) -> "Iterator[pq.ParquetFile]":
    """Open a parquet file on the Hub; any failure becomes one line."""
    import pyarrow.parquet as pq
    from huggingface_hub import HfFileSystem

    try:
        with HfFileSystem().open(url) as stream, pq.ParquetFile(stream, pre_buffer=True) as file:
            yield file
    except Exception as error:
        raise HubError(
            f"{label}: cannot be read from the Hub ({first_line(error)}). The same command resumes."
        ) from error
