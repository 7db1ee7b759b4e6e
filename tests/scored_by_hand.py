"""Annotated datasets without models: real tokenizers, log-probs by hand, and the columns of annotation."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from annotated import side_values
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sepo_data.annotated.annotations import annotated_source
from sepo_data.models.scoring import ScoredSide
from sepo_data.runs.tables import annotated_table
from sepo_data.schema import SIDES, annotated_schema
from sepo_data.settings import AnnotateSettings
from sepo_data.sources.preferences import pair_types
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import encode_rows


def scored(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, settings: AnnotateSettings
) -> datasets.Dataset:
    """Annotate rows as `sepo-annotate` does, with random log-probs in the place of the models'."""
    source = annotated_source(datasets.Dataset.from_list(rows), "pairs")
    encoder = response_encoder(tokenizer, chat_template=settings.chat_template)
    encoded = encode_rows(source, encoder, settings.max_length, 0, len(rows))
    rng = np.random.default_rng(0)

    def logps(side: str) -> list[np.ndarray]:
        return [rng.normal(-3, 1, getattr(p, side).positions.size).astype(np.float32) for p in encoded.pairs]

    schema = annotated_schema(pa.schema({"id": pa.int64()}), pair_types(source), store_logps=False)
    sides = {side: ScoredSide(logps(side), logps(side)) for side in SIDES}
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
