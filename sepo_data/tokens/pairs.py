"""Source rows to encoded pairs; what cannot be used is dropped with its reason.

Reading, rendering and encoding in one place, so that annotation, its dry run and
training see the same tokens of the same rows.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from ..reasons import Drops, Unusable
from ..schema import Sides
from ..sources.preferences import Pair, PairColumns
from .encoder import ResponseEncoder
from .encoding import EncodedResponse, encode_responses
from .rendering import RenderedChat

if TYPE_CHECKING:
    import datasets

WRITTEN_OUT = "responses that write out control tokens, encoded as text"
CUT_AT_SOURCE = "responses that were cut where they were made, so no end of turn is scored"


@dataclass(frozen=True)
class EncodedPair(Sides[EncodedResponse]):
    """The two responses of a pair as tokens in their contexts.

    Attributes:
        row: Number of its row in the source.
        pair: The pair in explicit form.
    """

    row: int = field(kw_only=True)
    pair: Pair = field(kw_only=True)


@dataclass(frozen=True)
class EncodedPairs:
    """What became of a range of source rows.

    Attributes:
        pairs: Those that can be used, in the source's order.
        rows: Their source rows, all columns, named as in an annotated dataset.
        dropped: The other rows.
        counts: How often something happened that a user should know, by description.
    """

    pairs: list[EncodedPair]
    rows: pa.Table
    dropped: Drops = field(default_factory=Drops)
    counts: dict[str, int] = field(default_factory=dict)


def encode_pairs(
    rows: "datasets.Dataset",
    columns: PairColumns,
    encoder: ResponseEncoder,
    max_length: int,
    lo: int,
    hi: int,
) -> EncodedPairs:
    """Read, render and tokenise the rows ``lo`` to ``hi``.

    Args:
        rows: Of a preference dataset, or an annotated one.
        columns: Where they keep the pair.
        encoder: Made by `encoder.response_encoder`.
        max_length: Most tokens of prompt and response together; longer responses lose their end.
        lo: First row.
        hi: One past the last row.

    Raises:
        TokenizerError: If the tokenizer cannot serve this dataset at all.
    """
    table: pa.Table = rows.with_format("arrow")[lo:hi]
    usable: list[tuple[int, Pair, RenderedChat]] = []
    dropped = Drops()
    rendered: dict[str, RenderedChat | Unusable] = {}
    for row, content in enumerate(table.to_pylist(), start=lo):
        pair = columns.read(content)
        if isinstance(pair, Unusable):
            dropped.add(pair, row)
            continue
        chat = _render_once(encoder, pair, rendered)
        if isinstance(chat, Unusable):
            dropped.add(chat, row)
        else:
            usable.append((row, pair, chat))
    chats = [chat.ending_in(response) for _, pair, chat in usable for response in pair.responses]
    encoded = encode_responses(encoder, chats, max_length)
    pairs = []
    for (row, pair, _), chosen, rejected in zip(usable, encoded[::2], encoded[1::2], strict=True):
        if isinstance(chosen, Unusable):
            dropped.add(chosen, row)
        elif isinstance(rejected, Unusable):
            dropped.add(rejected, row)
        else:
            ends = (
                side.without_end() if cut else side
                for side, cut in zip((chosen, rejected), pair.cut, strict=True)
            )
            pairs.append(EncodedPair(*ends, row=row, pair=pair))
    written_out = sum(
        encoder.control.search(response) is not None for item in pairs for response in item.pair.responses
    )
    counts = {WRITTEN_OUT: written_out, CUT_AT_SOURCE: sum(sum(item.pair.cut) for item in pairs)}
    return EncodedPairs(
        pairs=pairs,
        rows=table.take(pa.array([item.row - lo for item in pairs], pa.int64())).rename_columns(
            {column: name for name, column in columns.context.items()}
        ),
        dropped=dropped,
        counts={what: count for what, count in counts.items() if count},
    )


def _render_once(
    encoder: ResponseEncoder, pair: Pair, rendered: dict[str, RenderedChat | Unusable]
) -> RenderedChat | Unusable:
    """The pair's prompt, rendered; ``rendered`` are those of the pairs before it, which may share it."""
    prompt = repr((pair.prompt, pair.context))
    if prompt not in rendered:
        rendered[prompt] = encoder.render(pair.prompt, context=pair.context)
    return rendered[prompt]
