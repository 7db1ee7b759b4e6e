"""Open splits as users write them: ``train[:1000]``, ``train+test``, ``all``."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..dataset_spec import DEFAULT_SPEC, DatasetSpec
from ..errors import PreferenceError, first_line
from ..files import text_sha256
from ..schema import SPLIT_NAME
from .faults import NoSplitError
from .opening import Source, open_split

_SLICE = re.compile(r"(\w+(?:\.\w+)*)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


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
    return replace(_joined(dataset, sources), part=split)


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


def _joined(dataset: str, sources: Sequence[Source]) -> Source:
    import datasets

    first = sources[0]
    if len(sources) == 1:
        return first
    try:
        rows = datasets.concatenate_datasets([source.rows for source in sources])
    except ValueError as error:
        problem = f"its splits have different columns ({first_line(error)})"
        raise PreferenceError(f"{dataset}: {problem}. Choose one with `split`.") from error
    local = first.revision.startswith("sha256:")
    revisions = "".join(source.revision for source in sources)
    return replace(
        first,
        rows=rows,
        split="all",
        revision=f"sha256:{text_sha256(revisions)}" if local else first.revision,
        repairs={what: count for source in sources for what, count in source.repairs.items()},
        json_columns=frozenset().union(*(source.json_columns for source in sources)),
    )
