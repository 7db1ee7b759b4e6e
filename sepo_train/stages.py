"""The three stages: data to examples, an objective, one trainer.

train_sft   base model + conversations        -> reference
train_dpo   reference + preferences           -> oracle
train_sepo  any policy + annotated dataset    -> policy
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import TrainingArguments

from sepo_data.checkpoints import Description, Trust, describe_model
from sepo_data.conversations import ChatSource, EncodedChat, EncodedChats, encode_chats, open_chats
from sepo_data.encoding import EncodedResponse, Ids, end_of_turn, response_encoder
from sepo_data.errors import PreferenceError
from sepo_data.hub import Annotated, open_annotated
from sepo_data.policy_rows import ProjectedRows, ProjectedSide, annotated_source
from sepo_data.preferences import PairColumns, Source, open_source
from sepo_data.provenance import carried_over
from sepo_data.rows import EncodedPair, EncodedRows, encode_rows
from sepo_data.templates import give_template
from sepo_data.transfer import transfer_report

from .arguments import training_arguments
from .batches import Example, WeightedSequence
from .objectives import dpo_objective, sepo_objective, sft_objective
from .reference import reference_logps
from .runs import check_folder
from .settings import DpoSettings, SepoSettings, SftSettings, TrainSettings
from .training import Data, Start, TrainReport, run_training

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("sepo")

ROWS_AT_ONCE = 512

Encoded = TypeVar("Encoded", EncodedChats, EncodedRows)


def train_sft(
    model: str, dataset: str, settings: SftSettings, *, stop: Callable[[], bool] = lambda: False
) -> TrainReport:
    """Train a model on the assistant's tokens of conversations: stage 1, the reference.

    Args:
        model: Base model, Hub id or folder.
        dataset: Conversations, prompts with completions or, with ``settings.side``, preferences.
        settings: Everything else.
        stop: Asked after every step; True ends the run there, with a checkpoint.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    check_folder(settings.output_dir)
    arguments = training_arguments(settings)
    source = open_chats(dataset, side=settings.side, **_where(settings))
    source = replace(source, rows=_drawn(source.rows, settings))
    start = _start(model, source, settings)
    encode = partial(encode_chats, source, start.encoder, start.max_length)
    data = _data(source, encode, lambda encoded: [_conversation(chat) for chat in encoded.chats])
    return run_training("sft", start, data, settings, arguments, sft_objective, stop=stop)


def train_dpo(
    model: str, dataset: str, settings: DpoSettings, *, stop: Callable[[], bool] = lambda: False
) -> TrainReport:
    """Train a model with DPO from itself as the reference: stage 2, the oracle.

    Args:
        model: The reference, Hub id or folder.
        dataset: Preference dataset: Hub id, folder or file.
        settings: Everything else.
        stop: Asked after every step; True ends the run there, with a checkpoint.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    check_folder(settings.output_dir)
    arguments = training_arguments(settings)
    source = open_source(dataset, **_where(settings))
    source = replace(source, rows=_drawn(source.rows, settings))
    start = _start(model, source, settings)
    encode = partial(encode_rows, source, start.encoder, start.max_length)
    data = _data(source, encode, lambda encoded: [_whole_pair(pair) for pair in encoded.pairs])
    return run_training(
        "dpo",
        start,
        data,
        settings,
        arguments,
        dpo_objective(settings.beta, settings.label_smoothing),
        prepare=partial(_with_reference, start.description, settings, arguments),
        stop=stop,
    )


def train_sepo(
    policy: str, dataset: str, settings: SepoSettings, *, stop: Callable[[], bool] = lambda: False
) -> TrainReport:
    """Train any policy on the key tokens of an annotated dataset: stage 3.

    Args:
        policy: Hub id or folder; its tokenizer need not be the oracle's.
        dataset: Annotated dataset, Hub id or folder.
        settings: Everything else.
        stop: Asked after every step; True ends the run there, with a checkpoint.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    check_folder(settings.output_dir)
    arguments = training_arguments(settings)
    annotated = open_annotated(dataset, revision=settings.revision)
    split = _split(annotated, settings.split)
    source = annotated_source(_drawn(annotated.splits[split], settings), annotated.name)
    start = _start(policy, source, settings)
    projection = settings.projection_settings(annotated.manifest.get("selection", {}), start.max_length)
    if settings.projection == "sum":  # the record says what was chosen, by whomever
        settings = replace(
            settings,
            selection=projection.selection,
            chosen_ratio=projection.chosen_ratio,
            rejected_ratio=projection.rejected_ratio,
        )
    examples: list[Example] = []
    notes = Counter[str]()

    def collect(projected: ProjectedRows) -> None:
        notes.update(projected.counts)
        examples.extend(
            Example(pair.row, (_key_tokens(pair.chosen), _key_tokens(pair.rejected)))
            for pair in projected.pairs
        )

    transfer = transfer_report(source, start.encoder, projection, collect)
    same_tokens = transfer.chosen.one_to_one == transfer.rejected.one_to_one == 1
    if examples:
        log.info("%s", transfer.short())
    for warning in transfer.warnings():
        log.warning("%s", warning)
    return run_training(
        "sepo",
        start,
        Data(
            examples,
            transfer.dropped,
            _annotated_facts(annotated, split),
            dict(notes),
            None if same_tokens else transfer.short(),
        ),
        settings,
        arguments,
        sepo_objective(settings.scale, settings.margin),
        stop=stop,
    )


def _where(settings: SftSettings | DpoSettings) -> dict[str, Any]:
    """Which rows and columns of a dataset."""
    return {
        "config": settings.config_name,
        "split": settings.split or "train",
        "revision": settings.revision,
        "prompt_column": settings.prompt_column,
        "chosen_column": settings.chosen_column,
        "rejected_column": settings.rejected_column,
    }


def _start(model: str, source: Source | ChatSource, settings: TrainSettings) -> Start:
    """The model without its weights, and how it reads this data."""
    trust = Trust(settings.allow_pickle, settings.trust_remote_code)
    description = describe_model(model, settings.model_revision, trust)
    give_template(description.tokenizer, settings.chat_template, _text_columns(source), model)
    encoder = response_encoder(description.tokenizer, chat_template=settings.chat_template is not False)
    context = description.max_context
    max_length = min(settings.max_length, context or settings.max_length)
    if max_length < settings.max_length:
        log.info("maximum length %d instead of %d: the model reads no more", max_length, settings.max_length)
    return Start(description, encoder, max_length, end_of_turn(encoder))


def _text_columns(source: Source | ChatSource) -> pa.Schema:
    """The columns of a dataset that hold prompts and responses."""
    columns = astuple(source.columns) if isinstance(source.columns, PairColumns) else source.columns
    schema = source.rows.features.arrow_schema
    return pa.schema([schema.field(name) for name in columns if name is not None])


def _data(
    source: Source | ChatSource,
    encode: Callable[[int, int], Encoded],
    examples_of: Callable[[Encoded], list[Example]],
) -> Data:
    """All rows as examples, a range at a time."""
    examples: list[Example] = []
    dropped, notes = Counter[str](), Counter[str]()
    for lo in range(0, len(source.rows), ROWS_AT_ONCE):
        encoded = encode(lo, min(lo + ROWS_AT_ONCE, len(source.rows)))
        examples += examples_of(encoded)
        dropped.update({reason: len(rows) for reason, rows in encoded.dropped.items()})
        notes.update(encoded.counts)
    return Data(examples, dict(dropped), _facts(source), dict(notes))


def _drawn(rows: "datasets.Dataset", settings: TrainSettings) -> "datasets.Dataset":
    """The share of the rows that is asked for, drawn by the seed, in their order."""
    if settings.fraction == 1:
        return rows
    number = max(1, round(settings.fraction * len(rows)))
    drawn = np.random.default_rng((settings.seed, 0)).permutation(len(rows))[:number]
    return rows.select(np.sort(drawn))


def _conversation(chat: EncodedChat) -> Example:
    return Example(chat.row, (_whole(chat),), items=chat.positions.size)


def _whole_pair(pair: EncodedPair) -> Example:
    return Example(pair.row, (_whole(pair.chosen), _whole(pair.rejected)))


def _whole(response: EncodedChat | EncodedResponse) -> WeightedSequence:
    return _compact(response.input_ids, response.positions, np.ones(response.positions.size, np.float32))


def _key_tokens(side: ProjectedSide) -> WeightedSequence:
    return _compact(side.input_ids, side.positions, side.weights)


def _compact(input_ids: Ids, positions: Ids, weights: npt.NDArray[np.float32]) -> WeightedSequence:
    """All examples are in memory at once: 32 bits are enough for a token's id and its place."""
    ids, places = input_ids.astype(np.int32), positions.astype(np.int32)
    return WeightedSequence(ids, places, weights, length=positions.size)


def _with_reference(
    description: Description, settings: TrainSettings, arguments: TrainingArguments, examples: list[Example]
) -> list[Example]:
    logps = reference_logps(description, examples, settings.dtype, arguments)
    return [
        replace(example, ref_logps=(float(chosen), float(rejected)))
        for example, (chosen, rejected) in zip(examples, logps, strict=True)
    ]


def _split(annotated: Annotated, name: str | None) -> str:
    """The split that is asked for, or the only one."""
    splits = [str(split) for split in annotated.splits]
    if name is None and len(splits) == 1:
        return splits[0]
    if (name or "train") not in splits:
        problem = "has several splits" if name is None else f'no split "{name}"'
        raise PreferenceError(f"{annotated.name}: {problem}. Choose with --split: {', '.join(splits)}.")
    return name or "train"


def _facts(source: Source | ChatSource) -> dict[str, Any]:
    """What the record says of a dataset."""
    return {
        "name": source.name,
        "revision": source.revision,
        "config": source.config,
        "split": source.split,
        "on_hub": not source.revision.startswith("sha256:"),
        "card": carried_over(source.card),
        "restricted": source.restricted,
    }


def _annotated_facts(annotated: Annotated, split: str) -> dict[str, Any]:
    source = annotated.manifest.get("source", {})
    return {
        "name": annotated.name,
        "revision": annotated.revision,
        "config": None,
        "split": split,
        "on_hub": not annotated.revision.startswith("sha256:"),
        "card": source.get("card", {}),
        "restricted": bool(source.get("restricted")),
    }
