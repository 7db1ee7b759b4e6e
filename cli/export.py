"""``sepo export``: an annotated dataset for another trainer."""

import rich_click as click

from sepo_data.errors import counted
from sepo_data.exports.settings import ExportSettings
from sepo_data.exports.targets import TEXT_TARGETS, TOKEN_TARGETS, WEIGHTED_TARGETS

from .common import importing
from .ending import saved
from .options import command, option, panel
from .shared import (
    DATA_REVISION,
    PROJECTION,
    SELECTION,
    TRUST_REMOTE_CODE,
    annotated_argument,
    chat_template,
    max_length,
    weights,
)


@command(
    "export",
    annotated_argument(),
    panel(
        "Required",
        option(
            "--to",
            "Target trainer.",
            ExportSettings,
            "target",
            type=click.Choice([*TOKEN_TARGETS, *TEXT_TARGETS]),
        ),
        option("--output", "A new folder.", ExportSettings, metavar="DIR"),
    ),
    panel(
        "Tokens",
        option("--tokenizer", "Policy or its tokenizer: Hub id or folder.", ExportSettings, metavar="POLICY"),
        max_length(),
        *chat_template(
            "Jinja chat template. Default: the tokenizer's; Zephyr's for messages if it has none."
        ),
        TRUST_REMOTE_CODE,
    ),
    panel(
        "Selection",
        *SELECTION,
        PROJECTION,
        weights(f"Weights instead of masks; only for {', '.join(WEIGHTED_TARGETS)}."),
    ),
    panel("Data", DATA_REVISION),
    settings=ExportSettings,
)
def main(dataset: str, settings: ExportSettings) -> None:
    """Write an annotated dataset in the format of another trainer.

    Masks or weights refer to the policy's own tokens; the card has the command or config to train.

    \b
    Example:
        sepo export me/prefs-sepo --to trl-dpo --tokenizer other/model-8b --output out
        sepo export annotated --to axolotl-spans --selection global --ratio 0.3 --output out
    """
    with importing():
        from sepo_data.exports.exporting import export

        from .reports import describe_dropped
    report = export(dataset, settings)
    dropped = describe_dropped(report.dropped)
    click.echo(
        f"{counted(report.records, 'record')} of {counted(report.rows, 'row')}"
        f"{'; ' if dropped else ''}{dropped}"
    )
    click.echo("\n".join(saved(report.output, None)))
    click.echo(f"next: train from {report.data} as {report.output / 'README.md'} says")
