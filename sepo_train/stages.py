"""The three stages: data to examples, an objective, one trainer.

train_sft   base model + conversations        -> reference
train_dpo   reference + preferences           -> oracle
train_sepo  any policy + annotated dataset    -> policy
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from transformers import TrainingArguments

from sepo_data.annotated.opening import open_annotated
from sepo_data.files import check_apart
from sepo_data.models.description import Description
from sepo_data.projected.pairs import ProjectedRows
from sepo_data.projected.transfer import transfer_report
from sepo_data.projected.whole import settled
from sepo_data.runs.progress import NO_PROGRESS, Progress
from sepo_data.schema import PAIR_COLUMNS
from sepo_data.settings import ProjectionSettings
from sepo_data.sources.conversations import open_chats
from sepo_data.sources.preferences import open_pairs
from sepo_data.tokens.chats import encode_chats
from sepo_data.tokens.encoder import ResponseEncoder
from sepo_data.tokens.pairs import encode_pairs

from .arguments import training_arguments
from .examples import (
    Example,
    conversation_example,
    drawn_numbers,
    drawn_rows,
    key_tokens,
    pair_example,
    pair_weights,
)
from .folder import DatasetPart, check_folder
from .inputs import Data, annotated_facts, choose_split, prepare_start, read_examples
from .objectives import dpo_objective, sepo_objective, sft_objective
from .reference import reference_logps
from .settings import DpoSettings, SepoSettings, SftSettings, TrainSettings
from .training import Training, TrainReport, run_training

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("sepo")


def train_sft(
    model: str,
    dataset: str,
    settings: SftSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = NO_PROGRESS,
) -> TrainReport:
    """Train a model on the assistant's tokens of conversations: stage 1, the reference.

    Args:
        model: Base model, Hub id or folder.
        dataset: Conversations, prompts with completions or, with ``settings.side``, preferences.
        settings: Everything else.
        stop: Asked after every step; True ends the run there, with a checkpoint.
        progress: Told how far the run is, in steps.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    return run_training(sft_training(model, dataset, settings), stop=stop, progress=progress)


def sft_training(model: str, dataset: str, settings: SftSettings) -> Training:
    """What `train_sft` trains on, and how; no weights are loaded yet.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    check_folder(settings.output_dir)
    check_apart(settings.output_dir, dataset)
    arguments = training_arguments(settings)
    source, columns = open_chats(dataset, settings, settings.side)
    source = replace(source, rows=drawn_rows(source.rows, settings))
    start = prepare_start(model, source.rows, columns.names, settings)
    encode = partial(
        encode_chats,
        source.rows,
        columns,
        start.encoder,
        start.max_length,
        reasoning=settings.reasoning,
    )
    data = read_examples(
        source, encode, lambda encoded: [conversation_example(chat) for chat in encoded.chats]
    )
    return Training("sft", start, data, settings, arguments, sft_objective)


def train_dpo(
    model: str,
    dataset: str,
    settings: DpoSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = NO_PROGRESS,
) -> TrainReport:
    """Train a model with DPO from itself as the reference: stage 2, the oracle.

    Args:
        model: The reference, Hub id or folder.
        dataset: Preference dataset: Hub id, folder or file.
        settings: Everything else.
        stop: Asked after every step; True ends the run there, with a checkpoint.
        progress: Told how far the run is, in steps.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    return run_training(dpo_training(model, dataset, settings), stop=stop, progress=progress)


def dpo_training(model: str, dataset: str, settings: DpoSettings) -> Training:
    """What `train_dpo` trains on, and how; no weights are loaded yet.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    check_folder(settings.output_dir)
    check_apart(settings.output_dir, dataset)
    arguments = training_arguments(settings)
    source, columns = open_pairs(dataset, settings)
    source = replace(source, rows=drawn_rows(source.rows, settings))
    start = prepare_start(model, source.rows, columns.names, settings)
    encode = partial(
        encode_pairs,
        source.rows,
        columns,
        start.encoder,
        start.max_length,
        reasoning=settings.reasoning,
    )
    weight = pair_weights(source.rows, source.name, settings.pair_weight)
    data = read_examples(
        source, encode, lambda encoded: [pair_example(pair, weight(pair.row)) for pair in encoded.pairs]
    )
    return Training(
        "dpo",
        start,
        data,
        settings,
        arguments,
        dpo_objective(settings.beta, settings.label_smoothing),
        prepare=partial(_with_reference, start.description, settings, arguments),
    )


def train_sepo(
    policy: str,
    dataset: str,
    settings: SepoSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = NO_PROGRESS,
) -> TrainReport:
    """Train any policy on the key tokens of an annotated dataset: stage 3.

    Args:
        policy: Hub id or folder; its tokenizer need not be the oracle's.
        dataset: Annotated dataset, Hub id or folder.
        settings: Everything else.
        stop: Asked after every step; True ends the run there, with a checkpoint.
        progress: Told how far the run is, in steps.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    return run_training(sepo_training(policy, dataset, settings), stop=stop, progress=progress)


def sepo_training(policy: str, dataset: str, settings: SepoSettings) -> Training:
    """What `train_sepo` trains on, and how; no weights are loaded yet.

    Raises:
        SepoError: One of its children, see `sepo_data.errors`.
    """
    check_folder(settings.output_dir)
    check_apart(settings.output_dir, dataset)
    arguments = training_arguments(settings)
    annotated = open_annotated(dataset, revision=settings.revision)
    split = choose_split(annotated, settings.split)
    numbers = drawn_numbers(len(annotated.splits[split]), settings)
    rows = drawn_rows(annotated.splits[split], settings)
    start = prepare_start(policy, rows, PAIR_COLUMNS, settings)
    projection = settled(
        rows,
        annotated.name,
        start.encoder,
        settings.projection_settings(annotated.manifest.selection, start.max_length),
    )
    weight = pair_weights(rows, annotated.name, settings.pair_weight)
    by_policy = start.max_length < settings.max_length
    facts = annotated_facts(annotated, split)
    data = _projected_data(rows, numbers, start.encoder, projection, weight, facts, by_policy=by_policy)
    if settings.projection == "sum":  # the record has the effective choice, explicit or not
        settings = settings.with_selection(projection.selection)
    referenced = settings.loss == "dpo"
    return Training(
        "sepo",
        start,
        data,
        settings,
        arguments,
        dpo_objective(settings.beta, 0.0) if referenced else sepo_objective(settings.scale, settings.margin),
        prepare=partial(_with_reference, start.description, settings, arguments) if referenced else list,
    )


def _projected_data(
    rows: "datasets.Dataset",
    numbers: npt.NDArray[np.int64],
    encoder: ResponseEncoder,
    projection: ProjectionSettings,
    weight: Callable[[int], float],
    facts: DatasetPart,
    *,
    by_policy: bool,
) -> Data:
    """Annotated rows as examples on a policy's tokens, with a report of how much survives projection."""
    examples: list[Example] = []
    notes = Counter[str]()

    def collect(projected: ProjectedRows) -> None:
        notes.update(projected.counts)
        examples.extend(
            Example(pair.row, (key_tokens(pair.chosen), key_tokens(pair.rejected)), items=weight(pair.row))
            for pair in projected.pairs
        )

    transfer = transfer_report(rows, encoder, projection, collect, numbers)
    same_tokens = transfer.chosen.one_to_one == transfer.rejected.one_to_one == 1
    if examples:
        log.info("%s", transfer.short())
    for warning in transfer.warnings(by_policy=by_policy):
        log.warning("%s", warning)
    return Data(examples, transfer.dropped, facts, dict(notes), None if same_tokens else transfer.short())


def _with_reference(
    description: Description, settings: TrainSettings, arguments: TrainingArguments, examples: list[Example]
) -> list[Example]:
    logps = reference_logps(description, examples, settings.dtype, arguments)
    return [
        replace(example, ref_logps=(float(chosen), float(rejected)))
        for example, (chosen, rejected) in zip(examples, logps, strict=True)
    ]
