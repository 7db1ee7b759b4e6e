"""The ``sepo-inspect`` command."""

import rich_click as click

from .common import Command, one_line_errors


@click.command("inspect", cls=Command, context_settings={"show_default": True})
@click.argument("dataset", metavar="DIR|USER/NAME")
@click.option("--row", type=click.IntRange(min=0), default=0, metavar="N", help="Which row to show.")
@one_line_errors
def main(dataset: str, row: int) -> None:
    """Show a row of an annotated dataset, selected tokens in brackets, and its oracle's health.

    \b
    Example:
        sepo-inspect me/prefs-sepo --row 3
    """
    from sepo_data import SettingsError
    from sepo_data.health import HealthMeter
    from sepo_data.hub import load_annotated

    from .reports import describe_health, describe_row
    from .running import quiet_libraries

    quiet_libraries()

    for split, rows in load_annotated(dataset).items():
        if row >= len(rows):
            raise SettingsError(f"{dataset}, split {split}: no row {row}, it has {len(rows):,}.")
        meter = HealthMeter()
        for table in rows.with_format("arrow").iter(1000):
            meter.add(table)
        click.echo(describe_row(rows[row], row))
        click.echo("\n".join(["", f"{split}: {len(rows):,} pairs", *describe_health(meter.health())]))


if __name__ == "__main__":
    main()
