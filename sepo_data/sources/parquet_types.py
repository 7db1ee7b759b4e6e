"""Columns of parquet files that differ from file to file, or that ``datasets`` cannot hold.

``datasets`` takes the first file's columns for those of all, and one column of a type that it does not know
refuses them all. Both are settled before it reads. Columns that share no type are read here, as JSON text.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .arrow_cache import CachedRows, cached_rows, merged_type
from .compressed import DataFile
from .faults import find_corrupt_parquet

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

_READER_VERSION = 1  # raise it when the reader gives other rows for the same file: cache files carry it
_BATCH_ROWS = 1000


class CommonTypes(NamedTuple):
    """What holds the columns of several files.

    Attributes:
        schema: Of the columns that have a type.
        unknown: Columns of types that `datasets` does not know.
        mixed: Columns that share no type.
        alike: Whether all files have these columns in these types.
    """

    schema: pa.Schema
    unknown: set[str]
    mixed: set[str]
    alike: bool

    def features(self) -> "datasets.Features | None":
        """The types as `datasets` has them; None if it needs no telling, or knows none of them."""
        import datasets

        if not self.schema.names or (self.alike and not self.unknown):
            return None
        return datasets.Features.from_arrow_schema(self.schema)

    def left_out(self, place: str) -> dict[str, int]:
        """For `Source.repairs`: the columns that are left out, which is logged."""
        names = sorted(self.unknown | self.mixed)
        if not names or not self.schema.names:
            return {}
        what = f"columns left out, since no type of datasets holds their values: {', '.join(names)}"
        log.warning("%s: %s", place, what)
        return {what: len(names)}


def common_types(schemas: Sequence[pa.Schema]) -> CommonTypes:
    """The types that hold the columns of all files."""
    import datasets

    types: dict[str, pa.DataType] = {}
    unknown, mixed = set[str](), set[str]()
    for field in (field for schema in schemas for field in schema):
        try:
            types[field.name] = _both(types.get(field.name), field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            mixed.add(field.name)
        try:
            datasets.Features.from_arrow_schema(pa.schema([field]))
        except ValueError:
            unknown.add(field.name)
    alike = all(dict(zip(one.names, one.types, strict=True)) == types for one in schemas)
    kept = [(name, kind) for name, kind in types.items() if name not in unknown | mixed]
    metadata = schemas[0].metadata if schemas else None
    return CommonTypes(pa.schema(kept, metadata), unknown, mixed - unknown, alike)


def settle_types(builder: Any, files: Sequence[DataFile]) -> dict[str, int]:
    """Give a builder the types that hold the columns of all of its files, where the first one's do not.

    Returns:
        The columns that are left out, see `CommonTypes.left_out`.
    """
    schemas = _schemas(files)
    common = common_types(schemas)
    features = common.features()
    if features is None:
        return {}
    builder.info.features = features
    left_out = common.left_out(files[0].label)
    if left_out:
        builder.config.columns = list(features)
    return left_out


def mixed_rows(files: Sequence[DataFile], digest: str) -> CachedRows | None:
    """Rows that ``datasets`` refuses for columns without a common type, or missing next to unknown ones.

    Args:
        files: Parquet files on this machine.
        digest: What identifies their content.
    """
    schemas = _schemas(files)
    common = common_types(schemas)
    partly = any(not set(common.schema.names) <= set(schema.names) for schema in schemas)
    if not common.mixed and not (common.unknown and partly):
        return None
    name, place = f"parquet-{_READER_VERSION}-{digest}", files[0].label
    found = cached_rows(name, place, partial(_batches, files, common.unknown))
    return found._replace(repairs={**common._replace(mixed=set()).left_out(place), **found.repairs})


def _batches(
    files: Sequence[DataFile], left_out: set[str], repairs: dict[str, int]
) -> Iterator[list[dict[str, object]]]:
    try:
        for _, path in files:
            with pq.ParquetFile(path) as file:
                names = [name for name in file.schema_arrow.names if name not in left_out]
                for batch in file.iter_batches(_BATCH_ROWS, columns=names):
                    yield batch.to_pylist()
    except (pa.ArrowException, OSError):
        find_corrupt_parquet(files)
        raise


def _schemas(files: Sequence[DataFile]) -> list[pa.Schema]:
    try:
        return [pq.read_schema(path) for _, path in files]
    except (pa.ArrowException, OSError):
        return []  # `datasets` fails too, and the file is named then


def _both(first: pa.DataType | None, second: pa.DataType) -> pa.DataType:
    return second if first is None or first == second else merged_type(first, second)
