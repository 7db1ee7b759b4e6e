"""Write an annotated dataset in another trainer's format, with a card that explains how to train.

Rewards are projected and tokens selected as in training; memory holds one range of rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..annotated.annotations import ROWS_AT_ONCE, check_groups, read_annotations
from ..annotated.opening import Annotated, open_annotated
from ..annotated.selecting import rule_masks, source_rows, stored_cutoffs, stored_rewards
from ..errors import PreferenceError
from ..files import check_empty, writing
from ..pieces import as_given, response_text
from ..projected.pairs import ProjectedPair, project_rows
from ..projected.whole import settled
from ..reasons import Drops, Reason, Unusable
from ..schema import PAIR_COLUMNS
from ..selection import SelectionRule
from ..settings import ProjectionSettings
from ..tokens.encoder import ResponseEncoder, bos_ids, response_encoder
from ..tokens.templates import set_chat_template
from .card import render_card
from .settings import ExportReport, ExportSettings
from .target import Record, SelectedText, without_bos
from .targets import TEXT_TARGETS, TOKEN_TARGETS
from .writers import write_records

if TYPE_CHECKING:
    import datasets


def export(dataset: str, settings: ExportSettings) -> ExportReport:
    """Write an annotated dataset in the format of another trainer.

    Args:
        dataset: Annotated dataset, Hub id or folder.
        settings: Everything else.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    annotated = open_annotated(dataset, revision=settings.revision)
    rows = next(iter(annotated.splits.values()))
    output = settings.output
    check_empty(output, but={"data", "train.jsonl", "tokenized"})
    dropped = Drops()
    selection = settings.change.of(annotated.manifest.selection)
    if settings.target in TEXT_TARGETS:
        selection = _settled_texts(rows, annotated.name, selection)
        records = _text_records(annotated, rows, selection, settings.target, dropped)
    else:
        encoder, max_length = _encoder(rows, settings)
        projection = settled(
            rows,
            annotated.name,
            encoder,
            ProjectionSettings(selection, settings.projection, settings.weights, max_length),
        )
        selection = projection.selection
        records = _token_records(rows, encoder, projection, settings.target, dropped)
    target = TEXT_TARGETS.get(settings.target) or TOKEN_TARGETS[settings.target]
    with writing(output):
        data, count = write_records(records, output, target)
        if not count:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.counts.items())
            raise PreferenceError(f"{dataset}: nothing is left to export: {reasons}.")
        report = ExportReport(output, data, len(rows), count, dropped.counts, selection)
        card = render_card(report, annotated, settings, target)
        (output / "README.md").write_text(card, encoding="utf-8")
    return report


def _encoder(rows: "datasets.Dataset", settings: ExportSettings) -> tuple[ResponseEncoder, int]:
    """The policy's tokenizer, prepared as training prepares it, and how much to read with it."""
    from ..models.checkpoints import Trust
    from ..models.description import load_tokenizer

    assert settings.tokenizer is not None
    trust = Trust(remote_code=settings.trust_remote_code)
    tokenizer, context = load_tokenizer(settings.tokenizer, trust=trust)
    schema = rows.select_columns([*PAIR_COLUMNS]).features.arrow_schema
    set_chat_template(tokenizer, settings.chat_template, schema, settings.tokenizer)
    encoder = response_encoder(tokenizer, chat_template=settings.chat_template is not False)
    return encoder, min(settings.max_length, context or settings.max_length)


def _token_records(
    rows: "datasets.Dataset",
    encoder: ResponseEncoder,
    projection: ProjectionSettings,
    target: str,
    dropped: Drops,
) -> Iterator[Record]:
    shape = TOKEN_TARGETS[target]
    begin = bos_ids(encoder.tokenizer) if shape.adds_bos else ()
    for lo in range(0, len(rows), ROWS_AT_ONCE):
        projected = project_rows(rows, encoder, projection, lo, min(lo + ROWS_AT_ONCE, len(rows)))
        dropped.extend(projected.dropped)
        for pair in projected.pairs:
            chosen, rejected = without_bos(pair.chosen, begin), without_bos(pair.rejected, begin)
            yield from shape.records(ProjectedPair(chosen, rejected, row=pair.row))


def _settled_texts(rows: "datasets.Dataset", name: str, selection: SelectionRule) -> SelectionRule:
    if selection.ratio_by is not None:
        check_groups(rows, selection.ratio_by, name)
    if selection.rule != "global":
        return selection
    tables = rows.with_format("arrow").iter(ROWS_AT_ONCE)
    return replace(selection, cutoffs=stored_cutoffs(tables, selection))


def _text_records(
    annotated: Annotated, rows: "datasets.Dataset", selection: SelectionRule, target: str, dropped: Drops
) -> Iterator[Record]:
    """Records of the chosen responses, selected among the tokens that the dataset stores."""
    numbers = source_rows(annotated.manifest, len(rows), annotated.name).tolist()
    for lo in range(0, len(rows), ROWS_AT_ONCE):
        table = rows.with_format("arrow")[lo : lo + ROWS_AT_ONCE]
        rewards = [stored_rewards(both.chosen) for both in read_annotations(table)]
        masks = rule_masks(table, "chosen", rewards, selection, numbers[lo : lo + ROWS_AT_ONCE])
        names = ("prompt", "chosen", "chosen_token_start", "chosen_token_end")
        columns = (table[name].to_pylist() for name in names)
        places = [both.chosen.pieces for both in read_annotations(table)]
        for row, (prompt, chosen, start, end, mask, pieces) in enumerate(
            zip(*columns, masks, places, strict=True), lo
        ):
            several = not isinstance(chosen, str) and len(chosen) > 1
            if several or [piece.field for piece in pieces] != ["content"]:
                dropped.add(Unusable(Reason.SEVERAL_TEXTS), row)
                continue
            spans = [(start[i], end[i]) for i in range(len(start)) if mask[i]]
            if not spans:
                dropped.add(Unusable(Reason.NOTHING_SELECTED), row)
                continue
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else as_given(prompt)
            yield from TEXT_TARGETS[target].records(SelectedText(turns, response_text(chosen), spans))
