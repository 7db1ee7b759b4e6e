"""Conversations as tokens: every assistant turn is a response to train on."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..reasons import Drops, Unusable
from ..settings import Reasoning
from ..sources.conversations import Chat, ChatColumns
from .encoder import ResponseEncoder
from .encoding import encode_turns
from .pairs import AS_SYSTEM, WRITTEN_OUT
from .rendered import RenderedChat
from .tokenising import Ids
from .turns import LEFT_OUT

if TYPE_CHECKING:
    import datasets

# counts reported to the user
CUT = "conversations cut at the maximum length"
SHORTENED = "conversations cut after their last assistant message"


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as tokens.

    Attributes:
        row: Its row number in the source.
        input_ids: The conversation, ``(S,)``, cut after the last trained token.
        positions: Positions of the trained tokens in ``input_ids``, ``(n,)``, increasing,
            all at least 1: those of every assistant turn, and the token that ends it.
    """

    row: int
    input_ids: Ids
    positions: Ids


@dataclass(frozen=True)
class EncodedChats:
    """A range of source rows, encoded or dropped.

    Attributes:
        chats: The usable conversations, in source order.
        dropped: The other rows.
        counts: Events to report to the user: description → count.
    """

    chats: list[EncodedChat]
    dropped: Drops = field(default_factory=Drops)
    counts: dict[str, int] = field(default_factory=dict)


def encode_chats(
    rows: "datasets.Dataset",
    columns: ChatColumns,
    encoder: ResponseEncoder,
    max_length: int,
    lo: int,
    hi: int,
    reasoning: Reasoning = "score",
) -> EncodedChats:
    """Read, render and tokenise the rows ``lo`` to ``hi``.

    Args:
        rows: Rows of a dataset of conversations.
        columns: Their columns.
        encoder: Made by `encoder.response_encoder`.
        max_length: Maximum tokens of a conversation; longer ones lose their end.
        lo: First row.
        hi: One past the last row.
        reasoning: Whether the assistant's reasoning is trained on, context, or a reason to drop the row.

    Raises:
        TokenizerError: If the tokenizer cannot encode this dataset at all.
    """
    usable: list[tuple[int, Chat, RenderedChat]] = []
    dropped = Drops()
    for row, content in enumerate(rows.with_format("arrow")[lo:hi].to_pylist(), start=lo):
        chat = columns.read(content)
        if isinstance(chat, Unusable):
            dropped.add(chat, row)
            continue
        rendered = encoder.render(
            chat.prompt, chat.response, chat.context, every_turn=True, reasoning=reasoning
        )
        if isinstance(rendered, Unusable):
            dropped.add(rendered, row)
        else:
            usable.append((row, chat, rendered))
    chats = []
    counts = dict.fromkeys((CUT, SHORTENED, WRITTEN_OUT, LEFT_OUT, AS_SYSTEM), 0)
    encoded = encode_turns(encoder, [rendered for _, _, rendered in usable], max_length)
    for (row, chat, rendered), turns in zip(usable, encoded, strict=True):
        if isinstance(turns, Unusable):
            dropped.add(turns, row)
            continue
        turns = turns.without_end() if chat.cut else turns
        chats.append(EncodedChat(row, turns.input_ids, turns.positions))
        counts[CUT] += not turns.ended
        counts[SHORTENED] += chat.shortened
        counts[LEFT_OUT] += rendered.left_out > 0
        counts[AS_SYSTEM] += rendered.as_system
        counts[WRITTEN_OUT] += sum(map(bool, map(encoder.control.search, rendered.responses)))
    return EncodedChats(chats, dropped, {what: count for what, count in counts.items() if count})
