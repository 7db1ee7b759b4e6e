"""Options of every command that selects tokens of an annotated dataset again."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rich_click as click

if TYPE_CHECKING:
    from sepo_data.settings import SelectionChange

RATIO = click.FloatRange(0, 1, min_open=True)
SELECTION_OPTIONS = [
    "--ratio", "--chosen-ratio", "--rejected-ratio", "--selection", "--threshold", "--include-tokens",
    "--exclude-tokens", "--ratio-by",
]  # fmt: skip


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add rule, ratios, filters and groups; what is not given stays as annotated."""
    for option in reversed(
        (
            click.option(
                "--ratio", type=RATIO, metavar="R", help="Share of the tokens to select, both sides."
            ),
            click.option(
                "--chosen-ratio", type=RATIO, metavar="R", help="For chosen responses, if it differs."
            ),
            click.option(
                "--rejected-ratio", type=RATIO, metavar="R", help="For rejected ones, if it differs."
            ),
            click.option(
                "--selection",
                type=click.Choice(["ratio", "mass", "global", "threshold", "random", "all"]),
                help="Rule. mass: fewest tokens with this share of the reward; global: share of the "
                "tokens of all responses. Default: as annotated.",
            ),
            click.option(
                "--threshold", type=float, metavar="NATS", help="For --selection threshold: least reward."
            ),
            click.option(
                "--include-tokens",
                multiple=True,
                metavar="REGEX|ID",
                help="Select only from tokens whose text matches; may be repeated.",
            ),
            click.option(
                "--exclude-tokens",
                multiple=True,
                metavar="REGEX|ID",
                help=r"Never select these: \s+ blanks, ^$ the end of the turn; may be repeated.",
            ),
            click.option(
                "--ratio-by", metavar="COLUMN=VALUE:R,…", help="Ratios by group: category=math:0.5,chat:0.2."
            ),
        )
    ):
        command = option(command)
    return command


def selection_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Take these options out of a command's, as fields of `SelectionChange`."""
    ratio = options.pop("ratio")
    names = ("chosen_ratio", "rejected_ratio", "selection", "threshold", "ratio_by")
    found = {name: options.pop(name) for name in names}
    for side in ("chosen_ratio", "rejected_ratio"):
        found[side] = ratio if found[side] is None else found[side]
    for name in ("include_tokens", "exclude_tokens"):
        found[name] = options.pop(name) or None
    return found


def selection_change(options: dict[str, Any]) -> "SelectionChange":
    """Take these options out of a command's."""
    from sepo_data.settings import SelectionChange

    return SelectionChange(**selection_fields(options))
