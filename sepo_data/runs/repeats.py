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
    """Counts over any number of rows, in 16 bytes each."""

    def __init__(self) -> None:
        self._keys: list[_Keys] = []  # (n, 2) each: of the pair, and of the same pair the other way round

    def add(self, table: pa.Table) -> None:
        """Look at rows of an annotated dataset."""
        rows = table.select(PAIR_COLUMNS).to_pylist()
        keys = [[_key(*texts), _key(texts[0], texts[2], texts[1])] for texts in map(_texts, rows)]
        self._keys.append(np.array(keys, np.uint64).reshape(-1, 2))

    def counts(self) -> dict[str, int]:
        """How many rows repeat an earlier one, and how many pairs contradict another; none is left out."""
        found = np.concatenate(self._keys)
        known, first = np.unique(found[:, 0], return_index=True)
        # numpy 2.0 overflows in its other method where one key alone is known
        turned = int(np.isin(found[first, 1], known, kind="sort").sum()) // 2
        counts = {REPEATED: len(found) - len(known), CONTRADICTED: turned}
        return {what: count for what, count in counts.items() if count}


def _texts(row: dict[str, object]) -> list[bytes]:
    return [repr(row[name]).encode("utf-8", "surrogatepass") for name in PAIR_COLUMNS]


def _key(*texts: bytes) -> int:
    digest = blake2b(digest_size=8)
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little")
