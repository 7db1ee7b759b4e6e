"""``sepo verify`` and ``sepo diff``: check and compare published datasets."""

import sys
from pathlib import Path

import rich_click as click

from sepo_data.settings import Dtype

from .common import importing
from .ending import MISMATCH, plain_fields, show
from .options import COUNT, FILE, command, option, panel
from .shared import (
    ALLOW_PICKLE,
    DATA_REVISION,
    DEVICE,
    DTYPE_AS_MADE,
    JSON,
    TRUST_REMOTE_CODE,
    annotated_argument,
)


@command(
    "verify",
    annotated_argument(),
    panel(
        "Models",
        option("--oracle", "Default: the one on the Hub that the manifest names.", metavar="MODEL"),
        option("--ref", "As --oracle.", metavar="MODEL"),
        ALLOW_PICKLE,
        TRUST_REMOTE_CODE,
    ),
    panel(
        "Scoring",
        option("--rows", "Rows to score again.", type=COUNT, default=32, metavar="N"),
        DTYPE_AS_MADE,
        DEVICE,
        option(
            "--chat-template",
            "The template used for annotation, if it was a file.",
            type=FILE,
            metavar="FILE",
        ),
    ),
    panel("Data", DATA_REVISION),
    [JSON],
)
def verify(
    dataset: str,
    oracle: str | None,
    ref: str | None,
    revision: str | None,
    rows: int,
    dtype: Dtype | None,
    device: str,
    chat_template: Path | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Score a sample of an annotated dataset again and compare the rewards.

    Exits with 3 if they differ.

    \b
    Example:
        sepo verify me/prefs-sepo
        sepo verify annotated --oracle me/oracle --ref me/sft --rows 100
    """
    with importing():
        from sepo_data.models.checkpoints import Trust
        from sepo_data.verification import verify

        from .reports import describe_verification
    found = verify(
        dataset,
        oracle,
        ref,
        revision=revision,
        num_rows=rows,
        dtype=dtype,
        device=device,
        trust=Trust(allow_pickle, trust_remote_code),
        chat_template=chat_template,
    )
    verdict = "give" if found.holds else "do not give"
    lines = [*describe_verification(found), f"these models {verdict} the rewards of the dataset"]
    show(as_json, lines, dataset=dataset, holds=found.holds, **plain_fields(found))
    if not found.holds:
        sys.exit(MISMATCH)


@command(
    "diff", [click.RichArgument(["first"], metavar="A"), click.RichArgument(["second"], metavar="B")], [JSON]
)
def diff(first: str, second: str, as_json: bool) -> None:
    """Compare two annotations of the same pairs: ranks, masks, and both oracles' accuracy.

    A and B are folders or Hub ids. Their models, precisions and tokenizers may differ:
    rewards are compared at the tokens of A. Exits with 3 if pairs, tokens or masks differ,
    or rewards by more than rounding.

    \b
    Example:
        sepo diff me/prefs-sepo-1b me/prefs-sepo-8b
    """
    with importing():
        from sepo_data.annotated.opening import open_annotated
        from sepo_data.comparison import compare_annotations

        from .reports import describe_comparison
    opened = [open_annotated(name) for name in (first, second)]
    rows = [next(iter(annotated.splits.values())) for annotated in opened]
    found = compare_annotations(*rows)
    lines = [*describe_comparison(found), f"the annotations {'are the same' if found.same else 'differ'}"]
    show(as_json, lines, first=first, second=second, same=found.same, **plain_fields(found))
    if not found.same:
        sys.exit(MISMATCH)
