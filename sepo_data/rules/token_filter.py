"""Which tokens may be selected at all: by their text, or by their id."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import SettingsError

Ids = npt.NDArray[np.int64]

END_OF_TURN = "^$"  # matches the token that ends the turn, which has no text


@dataclass(frozen=True)
class TokenFilter:
    r"""Tokens to select from, and tokens never to select.

    Each entry is a token id, if it is nothing but digits, or a regular expression that a token's whole
    text has to match: ``\s+`` is blanks, ``[7]`` the text 7. The token that ends the turn has no text:
    ``^$`` matches it.

    Attributes:
        include: Only tokens that match one of these may be selected; empty: all.
        exclude: Tokens that match one of these may not.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse invalid regular expressions.

        Raises:
            SettingsError: Naming it.
        """
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                problem = f'"{pattern}" is neither a token id nor a regular expression ({error})'
                raise SettingsError(
                    rf"{problem}. To match it literally, escape special characters with \."
                ) from error

    def __bool__(self) -> bool:
        """Whether it filters anything."""
        return bool(self.include or self.exclude)

    def allows(self, texts: Sequence[str], token_ids: Ids | None) -> npt.NDArray[np.bool_]:
        r"""Mark the tokens that may be selected.

        Args:
            texts: The token's texts, ``(T,)``; empty for the token that ends the turn.
            token_ids: Their ids; None where no tokenizer is known.

        Raises:
            SettingsError: If an entry is an id, and ids are not known.

        Example:
            >>> TokenFilter(exclude=(r"\s+", "^$")).allows(["Paris", " ", "."  , ""], None).tolist()
            [True, False, True, False]
        """
        allowed = ~_matching(self.exclude, texts, token_ids)
        return allowed & _matching(self.include, texts, token_ids) if self.include else allowed


def _matching(entries: tuple[str, ...], texts: Sequence[str], token_ids: Ids | None) -> npt.NDArray[np.bool_]:
    ids = {int(entry) for entry in entries if entry.isdecimal()}
    patterns = [re.compile(entry) for entry in entries if not entry.isdecimal()]
    found = {text for text in set(texts) if any(pattern.fullmatch(text) for pattern in patterns)}
    matching = np.array([text in found for text in texts], dtype=bool)
    if not ids:
        return matching
    if token_ids is None:
        raise SettingsError(
            f"token id {min(ids)} has no meaning here, where no tokenizer is known. Use a regular "
            "expression for its text."
        )
    return matching | np.isin(token_ids, list(ids))
