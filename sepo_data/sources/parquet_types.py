"""Columns of parquet files that differ from file to file, or that ``datasets`` cannot hold.

``datasets`` takes the first file's columns for those of all, and one column of a type that it does not know
refuses them all. Both are settled before it reads.
"""

import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .arrow_cache import merged_type
from .compressed import DataFile

log = logging.getLogger(__name__)


def settle_types(builder: Any, files: Sequence[DataFile]) -> dict[str, int]:
    """Give a builder the types that hold the columns of all of its files, where the first one's do not.

    Args:
        builder: Of parquet files on this machine; anything else is left alone.
        files: Those files.

    Returns:
        For `Source.repairs`: the columns that are left out, because no type holds them.
    """
    import datasets

    try:
        schemas = [pq.read_schema(path) for label, path in files if label.endswith(".parquet")]
    except (pa.ArrowException, OSError):
        return {}  # the builder fails too, and the file is named then
    if not schemas or len(schemas) < len(files):
        return {}
    types: dict[str, pa.DataType] = {}
    left_out = set()
    for field in (field for schema in schemas for field in schema):
        try:
            types[field.name] = _both(types.get(field.name), field.type)
            datasets.Features.from_arrow_schema(pa.schema([(field.name, types[field.name])]))
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError):
            left_out.add(field.name)
    alike = all(dict(zip(one.names, one.types, strict=True)) == types for one in schemas)
    if left_out >= types.keys() or (alike and not left_out):
        return {}
    kept = {name: kind for name, kind in types.items() if name not in left_out}
    features = datasets.Features.from_arrow_schema(pa.schema(list(kept.items()), schemas[0].metadata))
    builder.info.features = features
    if not left_out:
        return {}
    builder.config.columns = list(features)
    what = f"columns left out, since no type of datasets holds their values: {', '.join(sorted(left_out))}"
    log.warning("%s: %s", files[0].label, what)
    return {what: len(left_out)}


def _both(first: pa.DataType | None, second: pa.DataType) -> pa.DataType:
    return second if first is None or first == second else merged_type(first, second)
