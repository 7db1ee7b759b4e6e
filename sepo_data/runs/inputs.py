"""An annotation before weights are loaded: what is scored, with what, and everything that can be wrong."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from ..errors import PreferenceError, TokenizerError
from ..reasons import Reason, Unusable
from ..schema import annotated_schema, annotation_columns
from ..settings import AnnotateSettings
from ..sources.opening import Source
from ..sources.preferences import PairColumns, open_pairs, pair_types
from ..tokens.encoder import ResponseEncoder, response_encoder
from .tables import passthrough_columns

if TYPE_CHECKING:
    from ..models.description import PairFacts
    from ..models.loading import Loading


log = logging.getLogger("sepo")

FIRST_ROWS = 32


@dataclass(frozen=True)
class Job:
    """Everything that is settled before weights are loaded."""

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
        from ..models.placement import one_after_the_other, scoring_device

        device = scoring_device(self.settings.device)
        return self.settings.sequential or one_after_the_other(self.facts, self.settings.dtype, device)


def prepare(dataset: str, oracle: str, ref: str, settings: AnnotateSettings) -> Job:
    """Find out everything that can be wrong before weights are loaded.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    from ..models.checkpoints import Trust
    from ..models.description import describe_pair

    source, columns = open_pairs(dataset, settings)
    if settings.limit is not None:
        source = replace(source, rows=source.rows.select(range(min(settings.limit, len(source.rows)))))
    if taken := sorted(annotation_columns().intersection(source.rows.column_names)):
        raise PreferenceError(
            f"{dataset}: has columns of an annotated dataset already ({', '.join(taken)}). Remove them, or "
            "annotate the dataset that it was made from."
        )
    facts = describe_pair(
        oracle,
        ref,
        oracle_revision=settings.oracle_revision,
        ref_revision=settings.ref_revision,
        trust=Trust(settings.allow_pickle, settings.trust_remote_code),
    )
    encoder = response_encoder(facts.tokenizer, chat_template=settings.chat_template)
    max_length = settings.max_length
    if facts.max_context is not None and facts.max_context < max_length:
        max_length = facts.max_context
        log.info("maximum length %d instead of %d: the models read no more", max_length, settings.max_length)
    job = Job(source, columns, facts, encoder, settings, max_length)
    _check_first_rows(job)
    return job


def output_schema(job: Job) -> pa.Schema:
    """The Arrow schema of the dataset that a job makes."""
    source = job.source.schema
    passed_through = [source.field(name) for name in passthrough_columns(source.names, job.columns)]
    types = pair_types(job.source, job.columns)
    return annotated_schema(pa.schema(passed_through), types, store_logps=job.settings.store_logps)


def _check_first_rows(job: Job) -> None:
    """Refuse at once what would be wrong, or be refused by the template, in nearly every row."""
    reasons = []
    for content in job.source.rows.select(range(min(FIRST_ROWS, len(job.source.rows)))):
        pair = job.columns.read(content)
        if isinstance(pair, Unusable):
            continue
        chat = job.encoder.render(pair.prompt)
        reasons.append(chat.reason if isinstance(chat, Unusable) else None)
    if reasons and 2 * reasons.count(Reason.ALREADY_RENDERED) > len(reasons):
        raise TokenizerError(
            f"{job.source.name}: prompts begin with a control token of the tokenizer, so they were rendered "
            "before. Pass --no-chat-template to use them as they are."
        )
    if reasons and 2 * reasons.count(Reason.TEMPLATE_REFUSES) > len(reasons):
        raise TokenizerError(
            f"{job.source.name}: the oracle's chat template refuses most of the first conversations. Look at "
            "its roles and their order, or take an oracle with another template."
        )
