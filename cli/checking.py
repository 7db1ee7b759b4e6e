"""``sepo verify`` and ``sepo diff``: what somebody else has published, checked and compared."""

import sys
from pathlib import Path

import rich_click as click

from .common import Command, one_line_errors, trust_options


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("dataset", metavar="DIR|USER/NAME")
@click.option("--oracle", metavar="MODEL", help="Default: the one on the Hub that the manifest names.")
@click.option("--ref", metavar="MODEL", help="As --oracle.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a dataset on the Hub.")
@click.option("--rows", type=click.IntRange(min=1), default=32, metavar="N", help="Rows to score again.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="What to compute in. Default: as the dataset was.",
)
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps, …")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The one that it was annotated with, if it was a file.",
)
@trust_options
@one_line_errors
def verify(
    dataset: str,
    oracle: str | None,
    ref: str | None,
    revision: str | None,
    rows: int,
    dtype: str | None,
    device: str,
    chat_template: Path | None,
    allow_pickle: bool,
    trust_remote_code: bool,
) -> None:
    """Score a sample of an annotated dataset again: do these models give these rewards?

    Exits with 1 if they do not.

    \b
    Example:
        sepo verify me/prefs-sepo
        sepo verify annotated --oracle me/oracle --ref me/sft --rows 100
    """
    from sepo_data.models.checkpoints import Trust
    from sepo_data.verification import verify

    from .reports import describe_verification
    from .running import quiet_libraries

    quiet_libraries()
    found = verify(
        dataset,
        oracle,
        ref,
        revision=revision,
        num_rows=rows,
        dtype=dtype,  # type: ignore[arg-type]  # click has checked it
        device=device,
        trust=Trust(allow_pickle, trust_remote_code),
        chat_template=chat_template,
    )
    click.echo(describe_verification(found))
    if not found.holds:
        click.echo(f"Error: {dataset}: these models do not give what the dataset holds.", err=True)
        sys.exit(1)
    click.echo("these models give what the dataset holds")


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@one_line_errors
def diff(first: str, second: str) -> None:
    """Compare two annotations of the same pairs: ranks, masks, and both oracles' accuracy.

    A and B are folders or Hub ids. Their models, precisions and tokenizers may differ:
    rewards are compared at the tokens of A.

    \b
    Example:
        sepo diff me/prefs-sepo-1b me/prefs-sepo-8b
    """
    from sepo_data.annotated.opening import open_annotated
    from sepo_data.comparison import compare_annotations

    from .reports import describe_comparison
    from .running import quiet_libraries

    quiet_libraries()
    opened = [open_annotated(name) for name in (first, second)]
    rows = [next(iter(annotated.splits.values())) for annotated in opened]
    click.echo(describe_comparison(compare_annotations(*rows)))
