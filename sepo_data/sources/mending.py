"""Convert rows in another shape to what `preferences` and `conversations` read, in a cache file.

Only the columns of the pair or the conversation are rewritten; the source's other columns stay as they
are. An unusable row stays a row, with the reason in a separate column, so that row numbers do not shift.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..dataset_spec import DatasetSpec
from ..files import text_sha256
from ..reasons import Reason, Unusable
from ..schema import Row, json_messages
from .arrow_cache import Batches, cached_rows
from .column_names import usual_names
from .opening import Source

if TYPE_CHECKING:
    import datasets


UNUSABLE = "sepo_unusable"
Mended = Mapping[str, object] | Unusable
Make = Callable[[Row, set[str]], Mended]

_VERSION = 6  # in the names of cache files: raise it when the same source gives different rows
_BATCH_ROWS = 1000


def mended(source: Source, read: Sequence[str], replaced: Sequence[str], make: Make, recipe: str) -> Source:
    """The source with its columns converted.

    Args:
        source: Where the rows come from.
        read: Columns that ``make`` reads.
        replaced: Those of them that the new columns replace.
        make: Returns a row's new columns, or why it is unusable; adds its repairs to the given set.
        recipe: Everything that determines the result of ``make``.

    Raises:
        PreferenceError: If the cache cannot be written.
    """
    import datasets

    before = [UNUSABLE] if UNUSABLE in source.rows.column_names else []
    read, replaced = ([*names, *before] for names in (read, replaced))
    batches = partial(_batches, source.rows.select_columns(read), make)
    found = cached_rows(_name(source, recipe), source.name, batches, json_messages())
    made = set(found.rows.column_names)  # another column may have such a name: a verdict "chosen"
    gone = [name for name in source.rows.column_names if name in made.union(replaced)]
    others = source.rows.remove_columns(gone)
    rows = datasets.concatenate_datasets([others, found.rows], axis=1) if others.column_names else found.rows
    return replace(
        source,
        rows=rows,
        repairs={**source.repairs, **found.repairs},
        json_columns=source.json_columns.difference(gone),
    )


def made_anew(source: Source, batches: Batches, recipe: str) -> Source:
    """The source with new rows, whose columns all come from ``batches``; otherwise as `mended`."""
    found = cached_rows(_name(source, recipe), source.name, batches)
    return replace(
        source,
        rows=found.rows,
        repairs={**source.repairs, **found.repairs},
        json_columns=found.json_columns,
    )


def _name(source: Source, recipe: str) -> str:
    facts = (source.name, source.revision, source.config, source.split, source.part, len(source.rows), recipe)
    return f"mended-{_VERSION}-{text_sha256(repr((*facts, sorted(source.rows.column_names))))}"


def with_usual_names(source: Source, spec: DatasetSpec) -> Source:
    """The source with ``Prompt`` renamed to ``prompt`` and the like; columns named by the user stay."""
    named = {value for value in vars(spec).values() if isinstance(value, str)} | {*spec.ignore_columns}
    names = {old: new for old, new in usual_names(source.schema.names).items() if old not in named}
    if not names:
        return source
    json_columns = frozenset(names.get(name, name) for name in source.json_columns)
    return replace(source, rows=source.rows.rename_columns(names), json_columns=json_columns)


def reason_of(row: Row) -> Unusable | None:
    """Why a converted row is unusable; None if it is usable."""
    reason = row.get(UNUSABLE)
    return None if reason is None else Unusable(Reason(reason))


def _batches(
    rows: "datasets.Dataset", make: Make, repairs: dict[str, int]
) -> Iterator[list[dict[str, object]]]:
    for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        batch: list[dict[str, object]] = []
        for row in table.to_pylist():
            repaired: set[str] = set()
            made = reason_of(row) or make(row, repaired)
            if isinstance(made, Unusable):
                batch.append({UNUSABLE: str(made.reason)})
                continue
            for what in sorted(repaired):
                repairs[what] = repairs.get(what, 0) + 1
            batch.append({**made, UNUSABLE: None})
        yield batch
