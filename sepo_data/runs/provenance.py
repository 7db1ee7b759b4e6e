"""The facts about a run that its manifest keeps."""

import math
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from ..annotated.card import CARRIED_OVER
from ..annotated.manifest import RunRecord, ScoredRows, Scoring, SourceRecord
from ..files import text_sha256
from ..schema import PAIR_COLUMNS, SCHEMA_VERSION
from ..settings import AnnotateSettings
from ..sources.opening import Source
from ..sources.preferences import PairColumns
from ..tokens.encoder import ResponseEncoder, tokenizer_hash

if TYPE_CHECKING:
    from ..models.description import PairFacts


_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "huggingface_hub", "numpy", "pyarrow")


def run_record(
    source: Source,
    columns: PairColumns,
    facts: "PairFacts",
    encoder: ResponseEncoder,
    settings: AnnotateSettings,
    max_length: int,
) -> RunRecord:
    """The facts about a run that are known before its first row."""
    template = encoder.tokenizer.get_chat_template() if encoder.chat_template else None
    oracle, ref = (checkpoint.revisions for checkpoint in facts.checkpoints)
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        sepo_version=version("sepo"),
        scoring=Scoring(
            schema_version=SCHEMA_VERSION,
            source=_scored_rows(source, columns),
            oracle=oracle,
            ref=ref,
            tokenizer_sha256=tokenizer_hash(encoder),
            chat_template_sha256=None if template is None else text_sha256(template),
            dtype=settings.dtype,
            max_length=max_length,
            reasoning=settings.reasoning,
            store_logps=settings.store_logps,
        ),
        selection=settings.selection,
        source=_source_record(source, settings.license),
        oracle=facts.oracle,
        ref=facts.ref,
        environment={
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    )


def _scored_rows(source: Source, columns: PairColumns) -> ScoredRows:
    return ScoredRows(
        revision=source.revision,
        config=source.config,
        split=source.split,
        rows=len(source.rows),
        columns={name: getattr(columns, name) for name in PAIR_COLUMNS}
        | source.origins
        | dict([*columns.context.items(), *columns.ends.items()]),
        pairs=source.pairs_from,
        part=source.part,
    )


def _source_record(source: Source, licence: str | None) -> SourceRecord:
    return SourceRecord(
        name=source.name,
        config=source.config,
        on_hub=not source.revision.startswith("sha256:"),
        card={**({"license": licence} if licence else {}), **carried_over(source.card)},
        restricted=source.restricted,
        repairs=source.repairs,
    )


def carried_over(card: dict[str, object]) -> dict[str, object]:
    """Licence, language and gating from the source's card, which a derived dataset must keep."""
    return {
        key: _plain(value)
        for key, value in card.items()
        if key in CARRIED_OVER or str(key).startswith("extra_gated_")
    }


def _plain(value: object, depth: int = 0) -> object:
    """Convert YAML to JSON; YAML allows dates, keys that are not text, and lists that contain themselves."""
    if isinstance(value, dict | list) and depth == 6:
        return str(type(value).__name__)
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value).encode("utf-8", "replace").decode()
