"""Source rows to encoded pairs; what cannot be used is dropped with its reason.

Reading, rendering and encoding in one place, so that annotation, its dry run and
training see the same tokens of the same rows.
"""

from dataclasses import dataclass, field

import pyarrow as pa

from ..sources.preferences import Pair, Source, read_pair
from .encoder import ResponseEncoder
from .encoding import EncodedResponse, encode_responses
from .rendering import Rendering, render

WRITTEN_OUT = "responses that write out control tokens, encoded as text"


@dataclass(frozen=True)
class EncodedPair:
    """A pair and the tokens of its two responses.

    Attributes:
        row: Number of its row in the source.
        pair: The pair in explicit form.
        chosen: The chosen response in its context.
        rejected: The rejected response in its context.
    """

    row: int
    pair: Pair
    chosen: EncodedResponse
    rejected: EncodedResponse


@dataclass(frozen=True)
class EncodedRows:
    """What became of a range of source rows.

    Attributes:
        pairs: Those that can be used, in the source's order.
        rows: Their source rows, all columns.
        dropped: Numbers of the other rows by reason.
        counts: How often something happened that a user should know, by description.
    """

    pairs: list[EncodedPair]
    rows: pa.Table
    dropped: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def encode_rows(source: Source, encoder: ResponseEncoder, max_length: int, lo: int, hi: int) -> EncodedRows:
    """Read, render and tokenise the source rows ``lo`` to ``hi``.

    Raises:
        TokenizerError: If the tokenizer cannot serve this dataset at all.
    """
    rows: pa.Table = source.rows.with_format("arrow")[lo:hi]
    usable: list[tuple[int, Pair, Rendering]] = []
    dropped: dict[str, list[int]] = {}
    renderings: dict[str, Rendering | str] = {}
    for row, content in enumerate(rows.to_pylist(), start=lo):
        pair = read_pair(content, source.columns)
        rendering = pair if isinstance(pair, str) else _render_once(encoder, pair, renderings)
        if isinstance(pair, str) or isinstance(rendering, str):
            dropped.setdefault(str(rendering), []).append(row)
        else:
            usable.append((row, pair, rendering))
    pairs = []
    encoded = encode_responses(
        encoder,
        [
            (rendering, response)
            for _, pair, rendering in usable
            for response in (pair.chosen_response, pair.rejected_response)
        ],
        max_length,
    )
    for (row, pair, _), chosen, rejected in zip(usable, encoded[::2], encoded[1::2], strict=True):
        if isinstance(chosen, str) or isinstance(rejected, str):
            dropped.setdefault(chosen if isinstance(chosen, str) else str(rejected), []).append(row)
        else:
            pairs.append(EncodedPair(row, pair, chosen, rejected))
    written_out = sum(
        encoder.control.search(response) is not None
        for item in pairs
        for response in (item.pair.chosen_response, item.pair.rejected_response)
    )
    return EncodedRows(
        pairs=pairs,
        rows=rows.take(pa.array([item.row - lo for item in pairs], pa.int64())),
        dropped=dropped,
        counts={WRITTEN_OUT: written_out} if written_out else {},
    )


def _render_once(
    encoder: ResponseEncoder, pair: Pair, renderings: dict[str, Rendering | str]
) -> Rendering | str:
    """The pair's prompt, rendered; ``renderings`` are those of the pairs before it, which may share it."""
    prompt = repr(pair.prompt)
    if prompt not in renderings:
        renderings[prompt] = render(
            encoder.tokenizer, pair.prompt, encoder.control, chat_template=encoder.chat_template
        )
    return renderings[prompt]
