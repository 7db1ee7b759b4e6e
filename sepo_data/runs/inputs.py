"""An annotation before weights are loaded: what to score, with what, and all checks."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ..errors import PreferenceError, TokenizerError
from ..files import check_apart
from ..reasons import Reason, Unusable
from ..schema import annotated_schema, annotation_columns
from ..settings import AnnotateSettings
from ..sources.opening import Source
from ..sources.preferences import PairColumns, open_pairs, pair_types
from ..tokens.encoder import ResponseEncoder, response_encoder
from ..tokens.rendering import asks_in_text
from ..tokens.templates import read_chat_template
from .tables import passthrough_columns

if TYPE_CHECKING:
    from ..models.description import PairFacts
    from ..models.loading import Loading


log = logging.getLogger("sepo")

FIRST_ROWS = 32


@dataclass(frozen=True)
class Job:
    """Everything that is decided before weights are loaded."""

    source: Source
    columns: PairColumns
    facts: "PairFacts"
    encoder: ResponseEncoder
    settings: AnnotateSettings
    max_length: int

    @property
    def loading(self) -> "Loading":
        """How its models are loaded."""
        from ..models.loading import Loading  # loads torch

        return Loading(self.settings.dtype, self.settings.device, self.max_length)

    @property
    def in_turn(self) -> bool:
        """Whether oracle and reference are loaded one after the other."""
        from ..models.placement import load_sequentially, scoring_device

        device = scoring_device(self.settings.device)
        return self.settings.sequential or load_sequentially(self.facts, self.settings.dtype, device)


def prepare(dataset: str, oracle: str, ref: str, settings: AnnotateSettings) -> Job:
    """Check everything that can be wrong before weights are loaded.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    from ..models.checkpoints import Trust
    from ..models.description import describe_pair

    check_apart(settings.output, dataset)
    source, columns = open_pairs(dataset, settings, streaming=settings.streaming)
    if settings.limit is not None:
        source = replace(source, rows=source.rows.select(range(min(settings.limit, len(source.rows)))))
    if taken := sorted(annotation_columns().intersection(source.rows.column_names)):
        raise PreferenceError(
            f"{dataset}: already has columns of an annotated dataset ({', '.join(taken)}). Remove them, or "
            "annotate the dataset that it was made from."
        )
    facts = describe_pair(
        oracle,
        ref,
        oracle_revision=settings.oracle_revision,
        ref_revision=settings.ref_revision,
        base=settings.base,
        trust=Trust(settings.allow_pickle, settings.trust_remote_code),
    )
    if isinstance(settings.chat_template, Path):
        read_chat_template(facts.tokenizer, settings.chat_template)
    encoder = response_encoder(facts.tokenizer, chat_template=settings.chat_template is not False)
    max_length = settings.max_length
    if facts.max_context is not None and facts.max_context < max_length:
        max_length = facts.max_context
        log.info("maximum length %d instead of %d: the models' context", max_length, settings.max_length)
    job = Job(source, columns, facts, encoder, settings, max_length)
    _check_first_rows(job)
    return job


def output_schema(job: Job) -> pa.Schema:
    """The Arrow schema of the dataset that a job makes."""
    kept = passthrough_columns(job.source.schema, job.columns, job.settings.ignore_columns)
    types = pair_types(job.source, job.columns)
    return annotated_schema(kept, types, store_logps=job.settings.store_logps)


def _check_first_rows(job: Job) -> None:
    """Refuse early what would be wrong, or refused by the template, in nearly every row."""
    refused: list[Unusable] = []
    rendered = written = 0
    for content in job.source.rows.select(range(min(FIRST_ROWS, len(job.source.rows)))):
        pair = job.columns.read(content)
        if isinstance(pair, Unusable):
            continue
        chat = job.encoder.render(pair.prompt, context=pair.context)
        rendered += 1
        written += job.encoder.chat_template and asks_in_text(pair.prompt)
        refused += [chat] if isinstance(chat, Unusable) else []
    reasons = Counter(unusable.reason for unusable in refused)
    if 2 * reasons[Reason.ALREADY_RENDERED] > rendered:
        raise TokenizerError(
            f"{job.source.name}: prompts begin with control tokens of a chat template, so they were rendered "
            "before. Pass `chat_template=False` to use them as they are."
        )
    if 2 * written > rendered:
        log.warning(
            "%s: most prompts end as a template in text does (### Response:), and go into the chat template. "
            "Pass `chat_template=False` if the models were trained on the text alone.",
            job.source.name,
        )
    details = Counter(unusable.detail for unusable in refused if unusable.reason == Reason.TEMPLATE_REFUSES)
    if not details:
        return
    words = next(iter(details)) or "it leaves a response out, or writes it twice"
    if 2 * details.total() > rendered:
        problem = f"the chat template refuses most of the first conversations: {words.rstrip('.')}"
        raise TokenizerError(
            f"{job.source.name}: {problem}. Change them (a system text may go into the first user turn), or "
            "pass `chat_template=FILE` with another template."
        )
    log.warning("the chat template refuses some conversations: %s", words)
