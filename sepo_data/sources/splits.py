"""Open splits as users write them: ``train[:1000]``, ``train+test``, ``all``."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from ..dataset_spec import DEFAULT_SPEC, DatasetSpec
from ..errors import PreferenceError
from ..files import text_sha256
from ..pieces import compact, parsed_json
from ..schema import SPLIT_NAME
from .arrow_cache import CachedRows, cached_rows
from .faults import NoSplitError
from .opening import Source, open_split

_SLICE = re.compile(r"(\w+(?:\.\w+)*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")
_VERSION = 1  # in the names of cache files: raise it when the same splits give different rows
_BATCH_ROWS = 1000


def open_source(dataset: str, spec: DatasetSpec = DEFAULT_SPEC) -> Source:
    """Open the rows of a file, a folder or a Hub dataset; a local path takes precedence over the Hub.

    Args:
        dataset: A .parquet, .arrow, .jsonl, .json, .csv or .tsv file (the last four may be compressed), a
            glob pattern, a folder of such files, a folder written by ``save_to_disk``, or a Hub id.
        spec: Its configuration, split and revision. A single file has one split, "train".

    Raises:
        PreferenceError: If it does not exist, has no such config or split, no rows, or a file cannot be read.
        HubError: If the Hub refuses, or cannot be reached.
    """
    source = _open_splits(
        dataset,
        spec.split or "train",
        lambda split: open_split(dataset, spec.config_name, split, spec.revision),
    )
    if not len(source.rows):
        split = source.part or source.split
        raise PreferenceError(f'{dataset}: split "{split}" has no rows. Choose another file or split.')
    return source


def _open_splits(dataset: str, split: str, opened: Callable[[str], Source]) -> Source:
    """Open a split by name, a slice of one, or several of these joined."""
    try:
        if SPLIT_NAME.fullmatch(split):
            return opened(split)
    except NoSplitError as error:
        if split != "all":
            raise
        parts: Sequence[str] = error.splits
    else:
        parts = split.split("+")
    sources = [_sliced(dataset, part.strip(), opened) for part in parts]
    return replace(_joined(dataset, sources, split), part=split)


def _sliced(dataset: str, part: str, opened: Callable[[str], Source]) -> Source:
    found = _SLICE.fullmatch(part)
    if found is None:
        raise PreferenceError(
            f'{dataset}: split "{part}" cannot be read. Write train, train[:1000], train[50%:] or train+test.'
        )
    name, lo, hi = found.groups()
    source = opened(name)
    rows = len(source.rows)
    start, stop, _ = slice(_row(lo, rows), _row(hi, rows)).indices(rows)
    if (start, stop) == (0, rows):
        return source
    return replace(source, rows=source.rows.select(range(start, stop) if start < stop else []))


def _row(bound: str | None, rows: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * rows / 100) if bound.endswith("%") else int(bound)


def _joined(dataset: str, sources: Sequence[Source], part: str) -> Source:
    first = sources[0]
    if len(sources) == 1:
        return first
    local = first.revision.startswith("sha256:")
    revisions = "".join(source.revision for source in sources)
    repairs: Counter[str] = Counter()
    for source in sources:
        repairs.update(source.repairs)
    read = _rows_of(dataset, sources, part)
    return replace(
        first,
        rows=read.rows,
        split="all",
        revision=f"sha256:{text_sha256(revisions)}" if local else first.revision,
        repairs={**repairs, **read.repairs},
        json_columns=read.json_columns,
    )


def _rows_of(dataset: str, sources: Sequence[Source], part: str) -> CachedRows:
    """The rows of all splits; written anew if their columns share no types."""
    import datasets

    if len({source.json_columns for source in sources}) == 1:
        with suppress(ValueError):
            rows = datasets.concatenate_datasets([source.rows for source in sources])
            return CachedRows(rows, {}, sources[0].json_columns)
    facts = [(source.revision, source.config, source.split, len(source.rows)) for source in sources]
    name = f"joined-{_VERSION}-{text_sha256(repr((part, facts)))}"
    return cached_rows(name, dataset, partial(_batches, sources))


def _batches(sources: Sequence[Source], repairs: dict[str, int]) -> Iterator[list[dict[str, object]]]:
    for source in sources:
        for table in source.rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            yield [
                {
                    name: parsed_json(value) if name in source.json_columns else compact(value)
                    for name, value in row.items()
                }
                for row in table.to_pylist()
            ]
