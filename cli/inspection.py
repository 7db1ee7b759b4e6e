"""The ``sepo-inspect`` command."""

from typing import TYPE_CHECKING

from sepo_data.settings import ProjectionSettings

from .common import importing
from .options import FROM_ZERO, command, option, panel
from .shared import JSON, TRUST_REMOTE_CODE, annotated_argument, max_length

if TYPE_CHECKING:
    import datasets

    from sepo_data.projected.transfer import Transfer
    from sepo_data.tokens.encoder import ResponseEncoder


@command(
    "inspect",
    annotated_argument(),
    panel(
        "What to show",
        option("--row", "Row to show.", type=FROM_ZERO, default=0, metavar="N"),
        option(
            "--tokenizer",
            "Preview the projection on the tokens of this policy: a model or tokenizer, Hub id or folder.",
            metavar="POLICY",
        ),
        max_length(
            "With --tokenizer: maximum tokens of prompt and response; at most the policy's context.",
            least=1,
        ),
        TRUST_REMOTE_CODE,
    ),
    [JSON],
)
def main(
    dataset: str, row: int, tokenizer: str | None, max_length: int, trust_remote_code: bool, as_json: bool
) -> None:
    """Show a row of an annotated dataset with its rewards, and its oracle's health.

    Selected tokens are in brackets; on a terminal with colours (not with NO_COLOR) all tokens are coloured by
    their rewards, blue above 0 and orange below. `sepo report` makes a page of it.

    \b
    Example:
        sepo-inspect me/prefs-sepo --row 3
        sepo-inspect me/prefs-sepo --tokenizer other/model-8b
    """
    with importing():
        from sepo_data import SettingsError
        from sepo_data.annotated.health import health_of
        from sepo_data.annotated.opening import open_annotated
        from sepo_data.errors import counted
        from sepo_data.projected.whole import settled
        from sepo_data.report.layers import policy_encoder

        from .ending import show, typed
        from .reports import describe_health, describe_transfer
        from .rows import describe_row

    annotated = open_annotated(dataset)
    encoder, reads = None, None
    if tokenizer is not None:
        policy_rows = next(iter(annotated.splits.values()))
        encoder, reads = policy_encoder(tokenizer, policy_rows, trust_remote_code=trust_remote_code)
    by_policy = reads is not None and reads < max_length
    max_length = min(max_length, reads or max_length)
    lines: list[str] = []
    splits: dict[str, object] = {}
    for split, rows in annotated.splits.items():
        if row >= len(rows):
            raise SettingsError(f"{dataset}, split {split}: no row {row}, it has {len(rows):,}.")
        health = health_of(rows.with_format("arrow").iter(1000))
        lines += [describe_row(rows[row], row), "", f"{split}: {counted(len(rows), 'pair')}"]
        lines += describe_health(health)
        facts = {"pairs": len(rows), "health": health, "warnings": health.warnings(), "row": rows[row]}
        if encoder is not None:
            rule = annotated.manifest.selection
            settings = settled(rows, annotated.name, encoder, ProjectionSettings(rule, max_length=max_length))
            shown, transfer = _on_policy(rows, encoder, settings, row)
            lines += [
                "",
                f"on the tokens of {tokenizer}, row {row}",
                *shown,
                "",
                *describe_transfer(transfer, by_policy=by_policy),
            ]
            facts |= {"transfer": transfer, "transfer_warnings": transfer.warnings(by_policy=by_policy)}
        splits[str(split)] = facts
    lines.append(f"next: {typed('report', dataset, '--row', row)}")
    show(as_json, lines, dataset=dataset, splits=splits)


def _on_policy(
    rows: "datasets.Dataset", encoder: "ResponseEncoder", settings: ProjectionSettings, row: int
) -> tuple[list[str], "Transfer"]:
    """A row on a policy's tokens, and how much of all rows survives projection."""
    from tqdm import tqdm

    from sepo_data.projected.pairs import project_rows
    from sepo_data.projected.transfer import transfer_report

    from .rows import describe_projected

    found = project_rows(rows, encoder, settings, row, row + 1)
    lines = [describe_projected(rows[row], pair) for pair in found.pairs]
    lines += [f"cannot be trained on: {reason}" for reason in found.dropped]
    with tqdm(total=len(rows), unit="pair", disable=None) as bar:
        transfer = transfer_report(rows, encoder, settings, lambda done: bar.update(len(done.pairs)))
    return lines, transfer


if __name__ == "__main__":
    main()
