"""Pairs that a dataset holds twice, or the other way round as well: counted, and left to the user."""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..schema import PAIR_COLUMNS

REPEATED = "pairs that stand in an earlier row as well"
CONTRADICTED = "pairs that stand the other way round as well"

_Keys = npt.NDArray[np.uint64]


class RepeatMeter:
    """Counts over any number of rows, in 8 bytes each."""

    def __init__(self) -> None:
        self._keys: list[_Keys] = []  # (n,) each; a pair and its opposite differ in the last bit only

    def add(self, table: pa.Table) -> None:
        """Look at rows of an annotated dataset."""
        rows = table.select(PAIR_COLUMNS).to_pylist()
        self._keys.append(np.array([_key(*map(_text, row.values())) for row in rows], np.uint64))

    def counts(self) -> dict[str, int]:
        """How many rows repeat an earlier one, and how many pairs contradict another; none is left out."""
        known = np.unique(np.concatenate(self._keys))
        turned = known.size - np.unique(known >> np.uint64(1)).size
        counts = {REPEATED: sum(keys.size for keys in self._keys) - known.size, CONTRADICTED: turned}
        return {what: count for what, count in counts.items() if count}


def _text(value: object) -> bytes:
    return repr(value).encode("utf-8", "surrogatepass")


def _key(prompt: bytes, chosen: bytes, rejected: bytes) -> int:
    digest = blake2b(digest_size=8)
    for text in (prompt, *sorted((chosen, rejected))):
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") & ~1 | (chosen < rejected)
