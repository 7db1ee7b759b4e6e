"""Turn scored pairs into Arrow columns in the schema of an annotated dataset."""

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..models.scoring import Logps, ScoredSide, Scores
from ..pieces import last_message
from ..schema import PAIR_COLUMNS, SIDES, Message, Side, column_array
from ..selection import Mask, SelectionRule
from ..sources.mending import UNUSABLE
from ..sources.preferences import PairColumns
from ..tokens.encoding import EncodedResponse
from ..tokens.pairs import EncodedPair, EncodedPairs


def passthrough_columns(source: pa.Schema, pair: PairColumns, ignored: Container[str] = ()) -> pa.Schema:
    """The source's columns to copy, without the pair's own and those to leave out."""
    names = {column: name for name, column in pair.context.items()}
    return pa.schema(
        field.with_name(names.get(field.name, field.name))
        for field in source
        if field.name not in (*pair.names, UNUSABLE) and field.name not in ignored
    )


def annotated_table(
    encoded: EncodedPairs,
    scored: Scores,
    schema: pa.Schema,
    selection: SelectionRule,
) -> pa.Table:
    """Combine source columns, rewards and masks of a range of rows.

    Args:
        encoded: The rows.
        scored: Log-probs by side.
        schema: Made by `schema.annotated_schema`.
        selection: Which tokens are the key tokens.
    """
    columns: dict[str, object] = {}
    for side in SIDES:
        columns |= _side_columns(encoded, side, scored[side], selection)
    for name in PAIR_COLUMNS:
        values = [getattr(item.pair, name) for item in encoded.pairs]
        columns[name] = column_array(values, schema.field(name).type)
    arrays = [
        columns[field.name] if field.name in columns else encoded.rows[field.name].cast(field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def side_masks(
    pairs: Sequence[EncodedPair], side: Side, rewards: Sequence[Logps], selection: SelectionRule
) -> list[Mask]:
    """The key tokens of one side's responses."""
    return [selection.mask(values, side, pair.row) for pair, values in zip(pairs, rewards, strict=True)]


def _side_columns(
    encoded: EncodedPairs, side: Side, scored: ScoredSide, selection: SelectionRule
) -> dict[str, pa.Array]:
    responses = [item[side] for item in encoded.pairs]
    places = [_in_own_texts(item[side], item.pair.sides[side]) for item in encoded.pairs]
    rewards = scored.rewards
    masks = side_masks(encoded.pairs, side, rewards, selection)
    sizes = [response.token_start.size for response in responses]
    ended = np.array([response.ended for response in responses], dtype=bool)
    last_reward = np.array([values[-1] for values in rewards], dtype=np.float32)
    last_mask = np.array([mask[-1] for mask in masks], dtype=bool)
    total = np.array([values.sum(dtype=np.float64) for values in rewards], dtype=np.float32)

    def tokens(parts: Sequence[npt.NDArray[np.generic]], kind: pa.DataType) -> pa.ListArray:
        return list_array([part[:size] for part, size in zip(parts, sizes, strict=True)], kind)

    return {
        f"{side}_reward": pa.array(total),
        f"{side}_eos_reward": pa.array(last_reward, mask=~ended),
        f"{side}_eos_mask": pa.array(last_mask, mask=~ended),
        f"{side}_token_start": tokens([place.start for place in places], pa.int32()),
        f"{side}_token_end": tokens([place.end for place in places], pa.int32()),
        f"{side}_token_message": pa.array([place.message for place in places], pa.list_(pa.int16())),
        f"{side}_token_field": pa.array([place.field for place in places], pa.list_(pa.string())),
        f"{side}_token_rewards": tokens(rewards, pa.float32()),
        f"{side}_token_mask": tokens(masks, pa.bool_()),
        f"{side}_token_oracle_logps": tokens(scored.oracle_logps, pa.float32()),
        f"{side}_token_ref_logps": tokens(scored.ref_logps, pa.float32()),
    }


class _Places(NamedTuple):
    """Spans of a response's tokens in their own texts, and which texts; None: there is only one."""

    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    message: list[int] | None
    field: list[str] | None


def _in_own_texts(response: EncodedResponse, side: str | list[Message]) -> _Places:
    pieces = response.pieces
    starts = np.cumsum([0, *(piece.size for piece in pieces)])
    of_token = starts.searchsorted(response.token_start, side="right") - 1
    shift = np.array([piece.begins - start for piece, start in zip(pieces, starts, strict=False)], np.int32)
    start, end = response.token_start + shift[of_token], response.token_end + shift[of_token]
    if [piece[:2] for piece in pieces] == [(last_message(side), "content")]:
        return _Places(start, end, None, None)
    of = [pieces[i] for i in of_token]
    return _Places(start, end, [piece.message for piece in of], [piece.field for piece in of])


def list_array(rows: Sequence[npt.NDArray[np.generic]], kind: pa.DataType) -> pa.ListArray:
    """One list per row."""
    offsets = np.concatenate([[0], np.cumsum([row.size for row in rows])]).astype(np.int32)
    flat = np.concatenate(rows) if rows else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind))
