"""Source rows to encoded pairs; unusable rows are dropped with their reason.

Reading, rendering and encoding happen in one place, so that annotation, its dry run
and training see the same tokens for the same rows.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from ..reasons import Drops, Unusable
from ..schema import Message, Sides
from ..settings import Reasoning
from ..sources.preferences import Pair, PairColumns
from .context_check import Encoded, check_context
from .encoder import ResponseEncoder
from .encoding import EncodedResponse, encode_responses
from .rendered import RenderedChat
from .rendering import asks_in_text
from .turns import LEFT_OUT, plain_text

if TYPE_CHECKING:
    import datasets

WRITTEN_OUT = "responses that write out control tokens, encoded as text"
AS_SYSTEM = "conversations whose developer's text was given to the template as the system's"
ASKS_IN_TEXT = "prompts that end as a template in text does (### Response:), put into the chat template"
ENDS_RENDERED = (
    "responses that end with a control token as text: rendered before, so their end is scored twice"
)
CUT_AT_SOURCE = "responses that were cut where they were made, so no end of turn is scored"


@dataclass(frozen=True)
class EncodedPair(Sides[EncodedResponse]):
    """The two responses of a pair as tokens in their contexts.

    Attributes:
        row: Its row number in the source.
        pair: The pair in explicit form.
    """

    row: int = field(kw_only=True)
    pair: Pair = field(kw_only=True)


@dataclass(frozen=True)
class EncodedPairs:
    """A range of source rows, encoded or dropped.

    Attributes:
        pairs: The usable pairs, in source order.
        rows: Their source rows, all columns, named as in an annotated dataset.
        dropped: The other rows.
        counts: Events to report to the user: description → count.
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
    reasoning: Reasoning = "score",
) -> EncodedPairs:
    """Read, render and tokenise the rows ``lo`` to ``hi``.

    Args:
        rows: Rows of a preference dataset, annotated or not.
        columns: The columns of the pair.
        encoder: Made by `encoder.response_encoder`.
        max_length: Maximum tokens of prompt and response together; longer responses lose their end.
        lo: First row.
        hi: One past the last row.
        reasoning: Whether the responses' reasoning is scored, context, or a reason to drop the row.

    Raises:
        TokenizerError: If the tokenizer cannot encode this dataset at all.
    """
    table: pa.Table = rows.with_format("arrow")[lo:hi]
    dropped = Drops()
    usable = _rendered_pairs(table, columns, encoder, reasoning, lo, dropped)
    encoded = encode_responses(encoder, [chat for _, _, both in usable for chat in both], max_length)
    pairs, left_out, as_system = [], 0, 0
    for (row, pair, both), first, second in zip(usable, encoded[::2], encoded[1::2], strict=True):
        if isinstance(first, Unusable):
            dropped.add(first, row)
        elif isinstance(second, Unusable):
            dropped.add(second, row)
        else:
            ends = (
                side.without_end() if cut else side
                for side, cut in zip((first, second), pair.cut, strict=True)
            )
            pairs.append(EncodedPair(*ends, row=row, pair=pair))
            left_out += sum(chat.left_out > 0 for chat in both)
            as_system += both.chosen.as_system
    own_rows = table.take(pa.array([item.row - lo for item in pairs], pa.int64()))
    contexts = own_rows.select([column for _, column in columns.context.items()]).to_pylist()
    rendered = (
        Encoded(item.row, row, item.pair, item.chosen) for item, row in zip(pairs, contexts, strict=True)
    )
    check_context(encoder, columns.context, rendered)
    written_out = sum(encoder.control.search(side.text) is not None for item in pairs for side in item)
    counts = {
        WRITTEN_OUT: written_out,
        CUT_AT_SOURCE: sum(sum(item.pair.cut) for item in pairs),
        LEFT_OUT: left_out,
        AS_SYSTEM: as_system,
        ENDS_RENDERED: sum(_ends_rendered(encoder, side.text) for item in pairs for side in item),
        ASKS_IN_TEXT: sum(encoder.chat_template and asks_in_text(item.pair.prompt) for item in pairs),
    }
    return EncodedPairs(
        pairs=pairs,
        rows=own_rows.rename_columns({column: name for name, column in columns.context.items()}),
        dropped=dropped,
        counts={what: count for what, count in counts.items() if count},
    )


def _rendered_pairs(
    table: pa.Table,
    columns: PairColumns,
    encoder: ResponseEncoder,
    reasoning: Reasoning,
    lo: int,
    dropped: Drops,
) -> list[tuple[int, Pair, Sides[RenderedChat]]]:
    """The pairs of a table whose first row is ``lo``, with row numbers; other rows go to ``dropped``."""
    usable: list[tuple[int, Pair, Sides[RenderedChat]]] = []
    rendered: dict[str, RenderedChat | Unusable] = {}
    for row, content in enumerate(table.to_pylist(), start=lo):
        pair = columns.read(content)
        if isinstance(pair, Unusable):
            dropped.add(pair, row)
            continue
        chosen, rejected = (_rendered(encoder, pair, side, reasoning, rendered) for side in pair.sides)
        if isinstance(chosen, Unusable):
            dropped.add(chosen, row)
        elif isinstance(rejected, Unusable):
            dropped.add(rejected, row)
        else:
            usable.append((row, pair, Sides(chosen, rejected)))
    return usable


def _ends_rendered(encoder: ResponseEncoder, response: str) -> bool:
    """Whether a response ends with control tokens from an earlier rendering: it then gets a second end."""
    end = response.rstrip()
    return encoder.chat_template and any(one.end() == len(end) for one in encoder.control.finditer(end))


def _rendered(
    encoder: ResponseEncoder,
    pair: Pair,
    response: str | list[Message],
    reasoning: Reasoning,
    prompts: dict[str, RenderedChat | Unusable],
) -> RenderedChat | Unusable:
    """A side rendered after its prompt; ``prompts`` caches rendered prompts, which the two sides share."""
    text = plain_text(response)
    if text is None:
        return encoder.render(pair.prompt, response, pair.context, reasoning=reasoning)
    prompt = repr((pair.prompt, pair.context))
    if prompt not in prompts:
        prompts[prompt] = encoder.render(pair.prompt, context=pair.context)
    chat = prompts[prompt]
    return chat if isinstance(chat, Unusable) else chat.ending_in(text)
