"""Annotated rows on the tokens of a policy, whatever its tokenizer.

Reading, rendering and encoding are those of annotation (`pairs.encode_pairs`), so a
policy with the oracle's tokenizer gets the oracle's tokens and, with the same settings,
its rewards and masks bit for bit. For other tokenizers, rewards are projected (`projection`)
and key tokens selected again among the policy's tokens, or the oracle's selection is
projected. The end of a turn goes to the end of the turn only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..annotated.annotations import Annotation, group_values, read_annotations
from ..errors import PreferenceError, SchemaError
from ..pieces import Piece, as_given, keys_differ
from ..projection import Bounds, Spans, partition, project, project_mask
from ..reasons import Drops, Reason, Unusable
from ..rules.weights import weigh_tokens
from ..schema import (
    PAIR_COLUMNS,
    SIDES,
    Side,
    Sides,
    column_array,
    json_messages,
    piece_fields,
    scalar_fields,
    token_fields,
    validate,
)
from ..selection import Mask
from ..settings import ProjectionSettings
from ..sources.preferences import annotated_columns
from ..tokens.encoder import ResponseEncoder, response_encoder
from ..tokens.encoding import EncodedResponse
from ..tokens.pairs import EncodedPair, encode_pairs
from ..tokens.tokenising import Ids

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

DEFAULTS = ProjectionSettings()

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ProjectedSide:
    """One response on the policy's tokens: ``T`` of them, and ``n = T + 1`` with the end of the turn.

    Attributes:
        input_ids: Prompt and response, ``(S,)``, cut after the last position.
        positions: Positions of the tokens in ``input_ids``, ``(n,)``: the response's ``T`` and, if it
            was reached, the token that ends the turn.
        token_ids: Ids of the response's tokens, ``(T,)``.
        pieces: The texts that they are in, usually one.
        token_start: First code point of each in the concatenated texts, ``(T,)``.
        token_end: One past the last code point, ``(T,)``.
        token_rewards: Projected rewards in nats, ``(T,)``; NaN where the oracle saw nothing.
        token_mask: Which of them are selected, ``(T,)``.
        eos_reward: Reward of the token that ends the turn; NaN if the oracle never saw the end,
            None if ``max_length`` cuts it off here.
        eos_mask: Whether it is selected; None if it is cut off.
        weights: Weight of each position in the loss, 0 or more, ``(n,)``; 0 where not selected.
        dropped_reward: Sum of |reward| that ``max_length`` cuts off here, or the template leaves out.
    """

    input_ids: Ids
    positions: Ids
    token_ids: Ids
    pieces: tuple[Piece, ...]
    token_start: Spans
    token_end: Spans
    token_rewards: Floats
    token_mask: Mask
    eos_reward: float | None
    eos_mask: bool | None
    weights: Floats
    dropped_reward: float


@dataclass(frozen=True)
class ProjectedPair(Sides[ProjectedSide]):
    """A pair on the policy's tokens; ``row`` is its number among the rows that were projected."""

    row: int = field(kw_only=True)


@dataclass(frozen=True)
class ProjectedRows:
    """The result of projecting a range of annotated rows.

    Attributes:
        pairs: Those that can be trained on, in the dataset's order.
        dropped: The other rows.
        counts: Counts of things a user should know, by description.
    """

    pairs: list[ProjectedPair]
    dropped: Drops
    counts: dict[str, int]


def project_rows(
    rows: "datasets.Dataset",
    encoder: ResponseEncoder,
    settings: ProjectionSettings,
    lo: int,
    hi: int,
    numbers: npt.NDArray[np.int64] | None = None,
) -> ProjectedRows:
    """Project the annotated rows ``lo`` to ``hi`` onto a policy's tokens.

    Args:
        rows: One split of an annotated dataset.
        encoder: The policy's tokenizer, from `encoder.response_encoder`.
        settings: How to project and select.
        lo: First row.
        hi: One past the last row.
        numbers: Of a part of the dataset, its rows' numbers in the whole, on which the rule ``random``
            depends; None: these rows are the whole.

    Raises:
        TokenizerError: If the tokenizer cannot serve this dataset at all.
    """
    columns = annotated_columns(rows.column_names)
    texts = rows.select_columns([*columns.names, *(column for _, column in columns.context.items())])
    encoded = encode_pairs(texts, columns, encoder, settings.max_length, lo, hi, settings.reasoning)
    table: pa.Table = rows.with_format("arrow")[lo:hi]
    annotations, groups = read_annotations(table), group_values(table, settings.selection)
    pairs = []
    for item in encoded.pairs:
        i = item.row - lo
        number = item.row if numbers is None else int(numbers[item.row])
        pair = _project_pair(item, annotations[i], number, settings.of_group(groups[i]))
        if isinstance(pair, Unusable):
            encoded.dropped.add(pair, item.row)
        else:
            pairs.append(pair)
    return ProjectedRows(pairs, encoded.dropped, encoded.counts)


def project_row(
    row: Mapping[str, object],
    tokenizer: "PreTrainedTokenizerBase",
    settings: ProjectionSettings = DEFAULTS,
    *,
    row_number: int = 0,
    chat_template: bool = True,
) -> ProjectedPair:
    """Project one annotated row onto a policy's tokens.

    Args:
        row: A row of an annotated dataset.
        tokenizer: The policy's, a fast one.
        settings: How to project and select.
        row_number: Its number in the dataset, on which the rule ``random`` depends.
        chat_template: Render the prompt with the tokenizer's chat template, if it has one.

    Returns:
        Both responses in context: ids, spans, rewards, masks and weights.

    Raises:
        PreferenceError: If the row cannot be used, with the reason.
        SchemaError: If it violates the contract of an annotated dataset.
        TokenizerError: If the tokenizer reports no character offsets, or renders no messages.

    Example:
        >>> settings = ProjectionSettings(selection=SelectionRule(rejected_ratio=0.2), projection="majority")
        >>> pair = project_row(dataset[0], AutoTokenizer.from_pretrained(policy), settings)
        >>> pair.chosen.input_ids[pair.chosen.positions[pair.chosen.weights > 0]]  # the key tokens' ids
    """
    import datasets

    table = _one_row(row)
    encoder = _encoder(tokenizer, chat_template, f"{tokenizer!r}{tokenizer.chat_template}")
    rows = datasets.Dataset(table, fingerprint="row")  # hashing it takes longer
    columns = annotated_columns(table.column_names)
    encoded = encode_pairs(rows, columns, encoder, settings.max_length, 0, 1, settings.reasoning)
    (annotation,) = read_annotations(table)
    reasons = list(encoded.dropped)
    for item in encoded.pairs:
        pair = _project_pair(item, annotation, row_number, settings.of_group(_group(row, settings)))
        if not isinstance(pair, Unusable):
            return pair
        reasons = [pair.reason]
    raise PreferenceError(f"row {row_number}: {reasons[0]}. Leave this row out.")


def _project_pair(
    item: EncodedPair, annotations: Sides[Annotation], number: int, settings: ProjectionSettings
) -> ProjectedPair | Unusable:
    """The pair, or why it cannot be trained on; ``number`` is its row's in the dataset."""
    chosen, rejected = (
        _project_side(item[side], annotations[side], side, number, settings) for side in SIDES
    )
    if not chosen.weights.any() or not rejected.weights.any():
        return Unusable(Reason.NOTHING_SELECTED)
    return ProjectedPair(chosen, rejected, row=item.row)


def _project_side(
    response: EncodedResponse,
    annotation: Annotation,
    side: Side,
    row: int,
    settings: ProjectionSettings,
) -> ProjectedSide:
    stored = float(np.abs(annotation.token_rewards).sum())
    annotation = annotation.over(response.pieces)
    elsewhere = stored - float(np.nansum(np.abs(annotation.token_rewards)))  # in texts that are not rendered
    bounds = partition(response.token_start, response.token_end)
    projected = project(annotation.token_rewards, annotation.bounds, bounds)
    if response.ended:  # an end that the oracle never saw has no reward
        projected = np.append(projected, np.nan if annotation.eos_reward is None else annotation.eos_reward)
    rewards = projected.astype(np.float32)
    mask = _selected(rewards, response, annotation, bounds, side, row, settings)
    size = response.token_start.size
    return ProjectedSide(
        input_ids=response.input_ids,
        positions=response.positions,
        token_ids=response.input_ids[response.positions[:size]],
        pieces=response.pieces,
        token_start=response.token_start,
        token_end=response.token_end,
        token_rewards=rewards[:size],
        token_mask=mask[:size],
        eos_reward=float(rewards[-1]) if response.ended else None,
        eos_mask=bool(mask[-1]) if response.ended else None,
        weights=weigh_tokens(rewards, mask, settings.weights, highest=side == "chosen"),
        dropped_reward=elsewhere + _dropped_reward(annotation, bounds, ended=response.ended),
    )


def _selected(
    rewards: Floats,
    response: EncodedResponse,
    annotation: Annotation,
    bounds: Bounds,
    side: Side,
    row: int,
    settings: ProjectionSettings,
) -> Mask:
    """The mask of the response's tokens and of its end; unknown tokens are never selected."""
    if settings.projection == "majority":
        covered = project_mask(annotation.token_mask, annotation.bounds, bounds)
        return np.append(covered, float(annotation.eos_mask or False))[: rewards.size] >= 0.5
    eligible = ~np.isnan(rewards)
    if settings.selection.tokens:
        spans = zip(response.token_start, response.token_end, strict=True)
        text = response.text
        texts = [text[start:end] for start, end in spans] + [""] * response.ended
        eligible &= settings.selection.tokens.allows(texts, response.input_ids[response.positions])
    return settings.selection.mask(rewards, side, row, eligible=eligible)


def _dropped_reward(annotation: Annotation, bounds: Bounds, *, ended: bool) -> float:
    sizes = np.diff(annotation.bounds)
    cut = np.clip(annotation.bounds[1:] - bounds[-1], 0, sizes) / sizes
    end = 0.0 if ended else abs(annotation.eos_reward or 0.0)
    return float(np.nansum(np.abs(annotation.token_rewards) * cut)) + end


def _group(row: Mapping[str, object], settings: ProjectionSettings) -> object:
    ratio_by = settings.selection.ratio_by
    return None if ratio_by is None else row.get(ratio_by.column)


def _one_row(row: Mapping[str, object]) -> pa.Table:
    """The pair and its annotation, checked."""
    fields = [
        field for side in SIDES for field in (*scalar_fields(side), *token_fields(side), *piece_fields(side))
    ]
    try:
        context = (column for _, column in annotated_columns(row).context.items())
        arrays = {name: pa.array([row[name]]) for name in context if name in row}
        arrays |= {name: _content(row[name]) for name in PAIR_COLUMNS if name in row}
        arrays |= {
            field.name: pa.array([row[field.name]], field.type) for field in fields if field.name in row
        }
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(f"not a row of an annotated dataset: {error}. Pass a row as loaded.") from error
    table = pa.table(arrays)
    validate(table)
    return table


def _content(content: object) -> pa.Array:
    """A text, or messages, which may share no type; those read from JSON have the nulls that were written."""
    given = content if isinstance(content, list) and keys_differ(content) else as_given(content)
    return column_array([given], json_messages()) if isinstance(given, list) else pa.array([given])


@lru_cache(maxsize=4)
def _encoder(tokenizer: "PreTrainedTokenizerBase", chat_template: bool, state: str) -> ResponseEncoder:
    """Preparing a tokenizer takes longer than a row; ``state`` is what may change on it between two rows."""
    return response_encoder(tokenizer, chat_template=chat_template)
