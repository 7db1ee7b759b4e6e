"""Annotated datasets without models: real tokenizers, log-probs by hand, and the columns of annotation."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from annotated import side_values
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sepo_data.models.scoring import ScoredSide
from sepo_data.runs.tables import annotated_table
from sepo_data.schema import SIDES, Side, Sides, annotated_schema
from sepo_data.settings import AnnotateSettings
from sepo_data.sources.opening import Source
from sepo_data.sources.preferences import PairColumns, pair_types
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import encode_pairs

EXPLICIT = PairColumns("prompt", "chosen", "rejected")


def scored(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, settings: AnnotateSettings
) -> datasets.Dataset:
    """Annotate rows as in `sepo-annotate`, with random log-probs instead of models."""
    source = Source(datasets.Dataset.from_list(rows), "pairs", "train", "")
    encoder = response_encoder(tokenizer, chat_template=bool(settings.chat_template))
    encoded = encode_pairs(source.rows, EXPLICIT, encoder, settings.max_length, 0, len(rows))
    rng = np.random.default_rng(0)

    def logps(side: Side) -> list[np.ndarray]:
        return [rng.normal(-3, 1, p[side].positions.size).astype(np.float32) for p in encoded.pairs]

    schema = annotated_schema(pa.schema({"id": pa.int64()}), pair_types(source, EXPLICIT), store_logps=False)
    sides = Sides.of(lambda side: ScoredSide(logps(side), logps(side)))
    return datasets.Dataset(annotated_table(encoded, sides, schema, settings.selection))


def row_by_hand(chosen: dict[str, Any], **rejected: Any) -> dict[str, Any]:
    """The annotated pair of "abcdefgh", whose columns ``chosen`` changes, and "xyz"."""
    row: dict[str, Any] = {"prompt": "p", "chosen": "abcdefgh", "rejected": "xyz"}
    for side, changes in zip(SIDES, (chosen, rejected), strict=True):
        values = side_values(row[side]) | changes
        ends = [values["eos_reward"]] if values["eos_reward"] is not None else []
        values["reward"] = sum([*values["token_rewards"], *ends])
        row |= {f"{side}_{name}": value for name, value in values.items()}
    return row


def letters(*words: str, unknown: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer of single letters and of these words, each of which is built letter by letter."""
    alphabet = [chr(code) for code in range(ord("a"), ord("z") + 1) if chr(code) not in unknown]
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    tokens = ["<eos>", "<unk>", *alphabet, *(first + last for first, last in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
