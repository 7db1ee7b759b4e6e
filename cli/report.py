"""``sepo report``: an HTML page of an annotated dataset or a training run."""

from pathlib import Path

import rich_click as click

from .common import importing
from .options import FROM_ZERO, OUTPUT_FILE, command, option, panel
from .shared import DATA_REVISION, TRUST_REMOTE_CODE, annotated_argument


@command(
    "report",
    annotated_argument(),
    panel(
        "Page",
        option(
            "--output",
            "Where to write the page. Default: report.html, in DIR or the working directory.",
            aliases=["-o"],
            type=OUTPUT_FILE,
            metavar="FILE",
        ),
        option(
            "--rows", "Number of rows to show, chosen by margin.", type=FROM_ZERO, default=200, metavar="N"
        ),
        option("--row", "Also show this row; repeatable.", type=FROM_ZERO, multiple=True, metavar="I"),
        option("--by", "Compare the values of this column, such as category.", metavar="COLUMN"),
    ),
    panel(
        "Below the oracle's tokens",
        option(
            "--tokenizer",
            "Show the tokens of this policy and its projected rewards: a model or tokenizer.",
            metavar="POLICY",
        ),
        option("--against", "Show another annotation of the same pairs.", metavar="DIR|USER/NAME"),
        TRUST_REMOTE_CODE,
    ),
    panel("Data", DATA_REVISION),
)
def main(
    dataset: str,
    output: Path | None,
    rows: int,
    row: tuple[int, ...],
    by: str | None,
    tokenizer: str | None,
    against: str | None,
    trust_remote_code: bool,
    revision: str | None,
) -> None:
    """Write an HTML page of an annotated dataset or a training run.

    For a dataset, it shows the oracle's health, charts of all rows, and rows to read; for a folder of
    sepo-train, curves, figures before and after training, and a verdict. The page is one file that needs
    no network: open it, mail it, publish it.

    \b
    Example:
        sepo report annotated
        sepo report me/prefs-sepo --rows 50 --row 13 --by category --output prefs.html
        sepo report annotated-1b --tokenizer other/model-8b --against annotated-8b
        sepo report policy
    """
    with importing():
        from sepo_data import SettingsError
        from sepo_data.report.page import report
        from sepo_train.folder import RECORD_NAME
        from sepo_train.run_report import report_run

    folder = Path(dataset).expanduser()
    if (folder / RECORD_NAME).is_file():
        for name, given in {"by": by, "row": row, "tokenizer": tokenizer, "against": against}.items():
            if given:
                raise SettingsError(f"{dataset} is a training run. Leave out `{name}`.")
        click.echo(report_run(folder, output))
        return
    page = report(
        dataset,
        output,
        rows=rows,
        wanted=row,
        by=by,
        revision=revision,
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
        against=against,
    )
    click.echo(page)
