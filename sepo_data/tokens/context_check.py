"""Check that what a row gives its chat template is in the prompt that is scored.

The template is called plainly, with what the row gives, and with less or what other rows give. If only the
latter is what is scored, something was lost on the way. If none is (the template writes the date, the prompt
holds control tokens as text), nothing follows.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..errors import TokenizerError
from ..schema import Message, Row
from ..sources.context import ContextColumns, parsed
from ..sources.preferences import Pair
from .encoder import ResponseEncoder
from .encoding import EncodedResponse

MOST = 4  # different contexts


class Encoded(NamedTuple):
    """A row of the source, the pair in it, and its chosen response."""

    number: int
    row: Row
    pair: Pair
    chosen: EncodedResponse


def check_context(encoder: ResponseEncoder, columns: ContextColumns, rows: Iterable[Encoded]) -> None:
    """Render a few rows plainly, with different contexts.

    Args:
        encoder: Encoded them.
        columns: Where they hold the context.
        rows: Any number.

    Raises:
        TokenizerError: If something of a row is not in its prompt.
    """
    different: dict[str, tuple[Encoded, dict[str, Any]]] = {}
    for one in rows:
        if given := _given(columns, one.row):
            different.setdefault(repr(given), (one, given))
        if len(different) == MOST:
            break
    few = list(different.values())
    for one, given in few:
        scored = one.chosen.input_ids[: one.chosen.positions[0]].tolist()
        less = [{name: given[name] for name in given if name != lost} for lost in given]
        others = [other for _, other in few if other != given]
        if _plain_ids(encoder, one.pair, given)[: len(scored)] != scored and any(
            _plain_ids(encoder, one.pair, wrong)[: len(scored)] == scored for wrong in ({}, *less, *others)
        ):
            raise TokenizerError(
                f"row {one.number}: the prompt that would be scored is not the one for its "
                f"{', '.join(given)}. This is a fault of sepo: please report it with the chat template."
            )


def _given(columns: ContextColumns, row: Row) -> dict[str, Any]:
    """What the row gives: tools and system text by these names, and the template's keywords."""
    found = {name: row[column] for name, column in columns.items() if row[column]}
    keywords = parsed(found.pop("chat_template_kwargs", None))
    if "tools" in found:
        found["tools"] = parsed(found["tools"])
    return found | (keywords if isinstance(keywords, dict) else {})


def _plain_ids(encoder: ResponseEncoder, pair: Pair, given: dict[str, Any]) -> list[int]:
    """The ids of prompt and chosen response as the tokenizer's template writes them."""
    prompt, chosen = pair.prompt, pair.chosen
    turns: list[Message] = [{"role": "system", "content": given["system"]}] if "system" in given else []
    turns += [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    turns += [{"role": "assistant", "content": chosen}] if isinstance(chosen, str) else chosen
    keywords = {name: value for name, value in given.items() if name != "system"}
    try:
        text = encoder.tokenizer.apply_chat_template(turns, tokenize=False, **keywords)
    except Exception:  # a template is a program, and may raise anything
        return []
    return encoder.backend.encode(str(text), add_special_tokens=False).ids
