"""A tokenizer prepared to encode responses: control tokens, end of turn, safe places to split a text."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import TokenizerError
from ..files import text_sha256
from ..reasons import Unusable
from ..schema import Message
from ..settings import Reasoning
from ..sources.context import NO_CONTEXT, Context
from .rendered import RenderedChat
from .rendering import render

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ResponseEncoder:
    """A tokenizer prepared to encode responses; made by `response_encoder`.

    Attributes:
        tokenizer: The tokenizer as loaded.
        chat_template: Whether prompts are rendered with its chat template.
        control: Pattern of its control tokens.
        is_control: For each id, whether it is a control token; the last value, False, covers all higher ids.
        added: Pattern of the tokens that the tokenizer matches before it processes a text.
        cuts: Pattern of those before which a text can be split without changing its tokens.
        uncounted: Pattern whose group matches the characters that the backend's offsets skip.
        bos_ids: Ids that the tokenizer prepends to a plain text; empty with a template.
        backend: Its fast tokenizer, set to report every character that a token owns.
        literal_backend: The same, but control tokens are encoded as text.
    """

    tokenizer: "PreTrainedTokenizerBase"
    chat_template: bool
    control: re.Pattern[str]
    is_control: npt.NDArray[np.bool_]
    added: re.Pattern[str]
    cuts: frozenset[str]
    uncounted: re.Pattern[str]
    bos_ids: tuple[int, ...]
    backend: "Tokenizer"
    literal_backend: "Tokenizer"

    def render(
        self,
        prompt: str | list[Message],
        response: str | list[Message] = "",
        context: Context = NO_CONTEXT,
        *,
        every_turn: bool = False,
        reasoning: Reasoning = "score",
    ) -> RenderedChat | Unusable:
        """Render a prompt and its response, see `rendering.render`."""
        return render(
            self.tokenizer,
            prompt,
            response,
            self.control,
            chat_template=self.chat_template,
            every_turn=every_turn,
            reasoning=reasoning,
            context=context,
        )

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of the control tokens."""
        return frozenset(np.flatnonzero(self.is_control).tolist())


def response_encoder(tokenizer: "PreTrainedTokenizerBase", *, chat_template: bool = True) -> ResponseEncoder:
    """Prepare a tokenizer to encode responses.

    Args:
        tokenizer: A fast tokenizer.
        chat_template: Use its chat template, if it has one.

    Raises:
        TokenizerError: If the tokenizer reports no character offsets.
    """
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"{type(tokenizer).__name__} reports no character offsets, so its tokens cannot be placed in the "
            "text. Use a model with a fast tokenizer (one with a tokenizer.json)."
        )
    use_template = chat_template and tokenizer.chat_template is not None
    if (
        use_template
        and not isinstance(tokenizer.chat_template, str)
        and "default" not in tokenizer.chat_template
    ):
        raise TokenizerError(
            f"the tokenizer has chat templates named {', '.join(tokenizer.chat_template)}, and none is "
            "the default. Save the one to use as its chat_template."
        )
    backend = _offset_backend(tokenizer, literal=False)
    added, cuts = _cutting_tokens(backend)
    uncounted = _uncounted(backend, added)
    return ResponseEncoder(
        tokenizer=tokenizer,
        chat_template=use_template,
        control=control_tokens(tokenizer),
        is_control=_is_control(tokenizer),
        added=added,
        cuts=cuts,
        uncounted=uncounted,
        bos_ids=() if use_template else bos_ids(tokenizer),
        backend=backend,
        literal_backend=_offset_backend(tokenizer, literal=True),
    )


def bos_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The ids that a tokenizer prepends to a plain text."""
    whole = tokenizer.encode("a")
    bare = tokenizer.encode("a", add_special_tokens=False)
    places = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    return tuple(whole[: places[0]]) if places else ()


def _offset_backend(tokenizer: "PreTrainedTokenizerBase", *, literal: bool) -> "Tokenizer":
    """A copy that never truncates and whose offsets include white space, which post-processors trim.

    It shares the vocabulary, because a large one takes seconds to serialise and parse. Added tokens
    keep their ids: those beyond the vocabulary are numbered in the order in which they are added.
    """
    from tokenizers import Tokenizer

    given = tokenizer.backend_tokenizer
    added = given.get_added_tokens_decoder()
    backend = Tokenizer(given.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(given, part) is not None:
            setattr(backend, part, getattr(given, part))
    backend.add_tokens([added[i] for i in sorted(added)])
    backend.encode_special_tokens = literal
    return backend


def _uncounted(backend: "Tokenizer", added: re.Pattern[str]) -> re.Pattern[str]:
    """Pattern of characters that SentencePiece's rules delete at the start of a text or after an added token.

    The library (tokenizers 0.23) does not count these control characters: all offsets after
    them, up to the next added token, are too low.
    """
    rules = backend.normalizer
    if rules is None or b'"Precompiled"' not in rules.__getstate__():
        return pattern_of(())
    bare = rules.normalize_str("qq")
    deleted = [chr(code) for code in range(1, 0xA0) if rules.normalize_str(f"q{chr(code)}q") == bare]
    if not deleted or backend.encode(f"{deleted[0]}q", add_special_tokens=False).offsets[-1][1] == 2:
        return pattern_of(())  # this version counts them
    return re.compile(f"(?:\\A|{added.pattern})((?:{pattern_of(deleted).pattern})+)")


def _cutting_tokens(backend: "Tokenizer") -> tuple[re.Pattern[str], frozenset[str]]:
    """Pattern of the tokens that are matched in the raw text, and of those that are safe to split before.

    Text between such tokens is tokenised separately, so splitting before one changes nothing,
    unless it strips adjacent white space, or its match or the previous one's depends on a neighbour.
    """
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
    cuts = [
        token.content
        for token in added
        if token.special and not (token.lstrip or token.single_word) and re.match(r"[^\w\s]", token.content)
    ]
    return pattern_of(token.content for token in added), frozenset(cuts)


def _is_control(tokenizer: "PreTrainedTokenizerBase") -> npt.NDArray[np.bool_]:
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    control = special - {tokenizer.unk_token_id}  # stands for unknown characters, which are text
    is_control = np.zeros(max(control, default=-1) + 2, dtype=bool)
    is_control[list(control)] = True
    return is_control


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """The pattern of the tokenizer's control tokens (BOS, end of turn, …), longest first."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return pattern_of(special - {tokenizer.unk_token})


def pattern_of(contents: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of the texts, the longest first; without texts, nothing."""
    longest_first = sorted(contents, key=lambda content: (-len(content), content))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing


def tokenizer_hash(encoder: ResponseEncoder) -> str:
    """Hash of everything that determines token ids: the tokenizer, and which tokens begin and end a text."""
    tokenizer = encoder.tokenizer
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    roles = {"special": special, "control": sorted(encoder.control_ids), "bos_ids": encoder.bos_ids}
    return text_sha256(tokenizer.backend_tokenizer.to_str() + json.dumps(roles, sort_keys=True))
