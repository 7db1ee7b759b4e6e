"""Conversations as tokens: every assistant turn is a response to train on."""

from dataclasses import dataclass, field

from ..sources.conversations import Chat, ChatSource, read_chat
from .encoder import ResponseEncoder
from .encoding import Ids, encode_turns
from .pairs import WRITTEN_OUT
from .rendering import RenderedChat, render_chat

# what a user should know
CUT = "conversations cut at the maximum length"
SHORTENED = "conversations cut behind their last assistant message"


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as tokens.

    Attributes:
        row: Number of its row in the source.
        input_ids: The conversation, ``(S,)``, cut behind the last trained token.
        positions: Where the trained tokens stand in ``input_ids``, ``(n,)``, increasing,
            all at least 1: those of every assistant turn, and the token that ends it.
    """

    row: int
    input_ids: Ids
    positions: Ids


@dataclass(frozen=True)
class EncodedChats:
    """What became of a range of source rows.

    Attributes:
        chats: Those that can be used, in the source's order.
        dropped: Numbers of the other rows by reason.
        counts: How often something happened that a user should know, by description.
    """

    chats: list[EncodedChat]
    dropped: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def encode_chats(
    source: ChatSource, encoder: ResponseEncoder, max_length: int, lo: int, hi: int
) -> EncodedChats:
    """Read, render and tokenise the source rows ``lo`` to ``hi``.

    Args:
        source: Opened by `open_chats`.
        encoder: Made by `encoding.response_encoder`.
        max_length: Most tokens of a conversation; longer ones lose their end.
        lo: First row.
        hi: One past the last row.

    Raises:
        TokenizerError: If the tokenizer cannot serve this dataset at all.
    """
    usable: list[tuple[int, Chat, RenderedChat]] = []
    dropped: dict[str, list[int]] = {}
    for row, content in enumerate(source.rows.with_format("arrow")[lo:hi].to_pylist(), start=lo):
        chat = read_chat(content, source)
        rendered = chat if isinstance(chat, str) else _rendered(encoder, chat)
        if isinstance(chat, str) or isinstance(rendered, str):
            dropped.setdefault(str(rendered), []).append(row)
        else:
            usable.append((row, chat, rendered))
    chats = []
    counts = dict.fromkeys((CUT, SHORTENED, WRITTEN_OUT), 0)
    encoded = encode_turns(encoder, [rendered for _, _, rendered in usable], max_length)
    for (row, chat, rendered), turns in zip(usable, encoded, strict=True):
        if isinstance(turns, str):
            dropped.setdefault(turns, []).append(row)
            continue
        chats.append(EncodedChat(row, turns.input_ids, turns.positions))
        counts[CUT] += not turns.ended
        counts[SHORTENED] += chat.shortened
        counts[WRITTEN_OUT] += sum(map(bool, map(encoder.control.search, rendered.responses)))
    return EncodedChats(chats, dropped, {what: count for what, count in counts.items() if count})


def _rendered(encoder: ResponseEncoder, chat: Chat) -> RenderedChat | str:
    return render_chat(
        encoder.tokenizer, chat.prompt, chat.response, encoder.control, chat_template=encoder.chat_template
    )
