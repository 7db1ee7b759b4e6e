"""The ``sepo-inspect`` command."""

from typing import TYPE_CHECKING

import rich_click as click

from sepo_data.settings import ProjectionSettings

from .options import FROM_ZERO, command, option, panel
from .shared import TRUST_REMOTE_CODE, annotated_argument, max_length

if TYPE_CHECKING:
    import datasets

    from sepo_data.tokens.encoder import ResponseEncoder


@command(
    "inspect",
    annotated_argument(),
    panel(
        "What to show",
        option("--row", "Which row to show.", type=FROM_ZERO, default=0, metavar="N"),
        option(
            "--tokenizer",
            "Preview the projection on the tokens of this policy: a model or tokenizer, Hub id or folder.",
            metavar="POLICY",
        ),
        max_length(
            "With --tokenizer: most tokens of prompt and response together, or what the policy reads.",
            least=1,
        ),
        TRUST_REMOTE_CODE,
    ),
)
def main(dataset: str, row: int, tokenizer: str | None, max_length: int, trust_remote_code: bool) -> None:
    """Show a row of an annotated dataset, selected tokens in brackets, and its oracle's health.

    \b
    Example:
        sepo-inspect me/prefs-sepo --row 3
        sepo-inspect me/prefs-sepo --tokenizer other/model-8b
    """
    from sepo_data import SettingsError
    from sepo_data.annotated.health import HealthMeter
    from sepo_data.annotated.opening import open_annotated
    from sepo_data.schema import PAIR_COLUMNS
    from sepo_data.tokens.encoder import response_encoder
    from sepo_data.tokens.templates import set_chat_template

    from .reports import describe_health, describe_row
    from .running import quiet_libraries

    quiet_libraries()

    annotated = open_annotated(dataset)
    encoder = None
    if tokenizer is not None:
        from sepo_data.models.checkpoints import Trust
        from sepo_data.models.description import load_tokenizer

        policy, context = load_tokenizer(tokenizer, trust=Trust(remote_code=trust_remote_code))
        max_length = min(max_length, context or max_length)
        schema = next(iter(annotated.splits.values())).select_columns([*PAIR_COLUMNS]).features.arrow_schema
        set_chat_template(policy, True, schema, tokenizer)  # as training does
        encoder = response_encoder(policy)
    for split, rows in annotated.splits.items():
        if row >= len(rows):
            raise SettingsError(f"{dataset}, split {split}: no row {row}, it has {len(rows):,}.")
        meter = HealthMeter()
        for table in rows.with_format("arrow").iter(1000):
            meter.add(table)
        click.echo(describe_row(rows[row], row))
        click.echo("\n".join(["", f"{split}: {len(rows):,} pairs", *describe_health(meter.health())]))
        if encoder is not None:
            click.echo(f"\non the tokens of {tokenizer}, row {row}")
            settings = ProjectionSettings(annotated.manifest.selection, max_length=max_length)
            _show_policy(rows, encoder, settings, row)


def _show_policy(
    rows: "datasets.Dataset", encoder: "ResponseEncoder", settings: ProjectionSettings, row: int
) -> None:
    from tqdm import tqdm

    from sepo_data.projected.pairs import project_rows
    from sepo_data.projected.transfer import transfer_report

    from .reports import describe_projected, describe_transfer

    shown = project_rows(rows, encoder, settings, row, row + 1)
    for pair in shown.pairs:
        click.echo(describe_projected(rows[row], pair))
    for reason in shown.dropped:
        click.echo(f"cannot be trained on: {reason}")
    with tqdm(total=len(rows), unit="pair", disable=None) as bar:
        transfer = transfer_report(rows, encoder, settings, lambda done: bar.update(len(done.pairs)))
    click.echo("\n".join(["", *describe_transfer(transfer)]))


if __name__ == "__main__":
    main()
