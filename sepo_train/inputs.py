"""What a stage starts from: model, tokenizer and examples, and the facts that the record keeps about them."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from sepo_data.annotated.opening import Annotated
from sepo_data.errors import PreferenceError
from sepo_data.models.checkpoints import Trust
from sepo_data.models.description import Description, describe_model
from sepo_data.reasons import Drops
from sepo_data.runs.provenance import carried_over
from sepo_data.sources.opening import Source
from sepo_data.tokens.chats import EncodedChats
from sepo_data.tokens.encoder import ResponseEncoder, response_encoder
from sepo_data.tokens.encoding import end_of_turn
from sepo_data.tokens.pairs import EncodedPairs
from sepo_data.tokens.templates import set_chat_template

from .examples import Example
from .folder import DatasetPart
from .settings import TrainSettings

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("sepo")

ROWS_AT_ONCE = 512

Encoded = TypeVar("Encoded", EncodedChats, EncodedPairs)


@dataclass(frozen=True)
class Start:
    """What a stage starts from.

    Attributes:
        description: The model without its weights.
        encoder: Its tokenizer, with the training's chat template.
        max_length: Maximum tokens per sequence.
        end_of_turn: Id of the token that ends a response in that template; None without one.
    """

    description: Description
    encoder: ResponseEncoder
    max_length: int
    end_of_turn: int | None


@dataclass(frozen=True)
class Data:
    """What a stage trains on.

    Attributes:
        examples: With all tokens of the responses, in the order of the rows.
        dropped: Rows that could not be used, by reason.
        facts: What the record says about the dataset.
        notes: Counts of things a user should know, by description.
        transfer: How an annotation fits the policy's vocabulary, in one line.
        details: The chat template's first message, by the reason why it refused rows.
    """

    examples: list[Example]
    dropped: dict[str, int]
    facts: DatasetPart
    notes: dict[str, int] = field(default_factory=dict)
    transfer: str | None = None
    details: dict[str, str] = field(default_factory=dict)


def prepare_start(
    model: str, rows: "datasets.Dataset", columns: Sequence[str], settings: TrainSettings
) -> Start:
    """The model without its weights, and how it reads texts or messages."""
    trust = Trust(settings.allow_pickle, settings.trust_remote_code)
    description = describe_model(model, settings.model_revision, trust)
    schema = rows.features.arrow_schema
    texts = pa.schema([schema.field(name) for name in columns])
    set_chat_template(description.tokenizer, settings.chat_template, texts, model)
    encoder = response_encoder(description.tokenizer, chat_template=settings.chat_template is not False)
    context = description.max_context
    max_length = min(settings.max_length, context or settings.max_length)
    if max_length < settings.max_length:
        log.info("maximum length %d instead of %d: the model's context", max_length, settings.max_length)
    return Start(description, encoder, max_length, end_of_turn(encoder))


def read_examples(
    source: Source,
    encode: Callable[[int, int], Encoded],
    examples_of: Callable[[Encoded], list[Example]],
) -> Data:
    """All rows as examples, one range at a time."""
    examples: list[Example] = []
    dropped, notes = Drops(), Counter(source.repairs)
    for lo in range(0, len(source.rows), ROWS_AT_ONCE):
        encoded = encode(lo, min(lo + ROWS_AT_ONCE, len(source.rows)))
        examples += examples_of(encoded)
        dropped.extend(encoded.dropped)
        notes.update(encoded.counts)
    return Data(examples, dropped.counts, _facts(source), dict(notes), details=dropped.details)


def choose_split(annotated: Annotated, name: str | None) -> str:
    """The requested split, or the only one."""
    splits = [str(split) for split in annotated.splits]
    if name is None and len(splits) == 1:
        return splits[0]
    if (name or "train") not in splits:
        problem = "has several splits" if name is None else f'no split "{name}"'
        raise PreferenceError(f"{annotated.name}: {problem}. Choose with `split`: {', '.join(splits)}.")
    return name or "train"


def _facts(source: Source) -> DatasetPart:
    """What the record says about a dataset."""
    return {
        "name": source.name,
        "revision": source.revision,
        "config": source.config,
        "split": source.split,
        "on_hub": not source.revision.startswith("sha256:"),
        "card": carried_over(source.card),
        "restricted": source.restricted,
    }


def annotated_facts(annotated: Annotated, split: str) -> DatasetPart:
    """What the record keeps about an annotated dataset."""
    source = annotated.manifest.source
    return {
        "name": annotated.name,
        "revision": annotated.revision,
        "config": None,
        "split": split,
        "on_hub": not annotated.revision.startswith("sha256:"),
        "card": source.card,
        "restricted": source.restricted,
    }
