"""The definition of an export target, and helpers shared by several."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..projected.pairs import ProjectedSide
from ..schema import Message

Record = dict[str, object]
RowT = TypeVar("RowT")

IGNORED = -100  # the label of a token without loss, for all of them

IDS, MASK = pa.list_(pa.int32()), pa.list_(pa.int8())


@dataclass(frozen=True)
class Target(Generic[RowT]):
    """The format of a trainer.

    Attributes:
        records: What is written of a row: of a `ProjectedPair`, or of a `SelectedText` where the trainer
            tokenises itself.
        file: Where the records go, in the exported folder.
        schema: Their columns; None for JSON lines.
        weighted: Whether they support weights, or only masks.
        recipe: How to train from them: Markdown, in which ``$DATA`` is the file, ``$MODEL`` the policy and
            ``$LENGTH`` the most tokens of a sequence.
        adds_bos: Whether the trainer itself puts the tokenizer's BOS in front.
    """

    records: Callable[[RowT], list[Record]]
    file: Literal["data/train.parquet", "train.jsonl", "tokenized"]
    schema: pa.Schema | None
    weighted: bool
    recipe: str
    adds_bos: bool = False


@dataclass(frozen=True)
class SelectedText:
    """A chosen response as text, and the key tokens of the oracle in it.

    Attributes:
        prompt: The messages in front of it.
        response: Its text.
        spans: Of the selected tokens, first code point and one past the last, in their order.
    """

    prompt: list[Message]
    response: str
    spans: list[tuple[int, int]]


def without_bos(side: ProjectedSide, bos_ids: tuple[int, ...]) -> ProjectedSide:
    """The response in its context, without these ids if it begins with them."""
    count = len(bos_ids)
    if not count or tuple(side.input_ids[:count].tolist()) != bos_ids:
        return side
    return replace(side, input_ids=side.input_ids[count:], positions=side.positions - count)


def token_weights(side: ProjectedSide) -> npt.NDArray[np.float32]:
    """Weights of all tokens, prompt included, ``(S,)``."""
    weights = np.zeros(side.input_ids.size, np.float32)
    weights[side.positions] = side.weights
    return weights


def labels(side: ProjectedSide) -> list[int]:
    """The ids of the tokens with weight, and -100 for the others, ``(S,)``."""
    found: list[int] = np.where(token_weights(side) > 0, side.input_ids, IGNORED).tolist()
    return found


def sequence(side: ProjectedSide) -> Record:
    """``input_ids``, ``attention_mask`` and ``labels``, as most trainers call them."""
    ids = side.input_ids.tolist()
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels(side)}
