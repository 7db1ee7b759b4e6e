"""Options that several commands have."""

from typing import Any

import rich_click as click

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.settings import AnnotateSettings, ProjectionSettings, SelectionChange

from .options import COUNT, FILE, FROM_ZERO, SHARE, Option, option

DEVICE = option("--device", "auto, cpu, cuda, cuda:1, mps, …", AnnotateSettings, metavar="DEVICE")
DTYPE = option("--dtype", "What to compute in.", AnnotateSettings)
DTYPE_AS_MADE = option(
    "--dtype", "What to compute in. Default: as the dataset was.", AnnotateSettings, default=None
)
ALLOW_PICKLE = option(
    "--allow-pickle", "Open weights that are pickles, which can run code.", AnnotateSettings
)
TRUST_REMOTE_CODE = option(
    "--trust-remote-code", "Run Python code that comes with a model.", AnnotateSettings
)

JSON = option("--json", "Print one JSON object on stdout instead of text.", field="as_json", is_flag=True)

SPLIT = option("--split", "Which split. Default: train, or the only one.", DatasetSpec, metavar="NAME")
CONFIG_NAME = option(
    "--config-name", "Which configuration, of a dataset that has several.", DatasetSpec, metavar="NAME"
)
DATA_REVISION = option(
    "--revision", "Branch, tag or commit of the dataset on the Hub.", DatasetSpec, metavar="REV"
)


def _split_commas(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for name in names for part in name.split(","))


COLUMNS = [
    option("--prompt-column", "If it is not called prompt.", DatasetSpec, metavar="NAME"),
    option("--chosen-column", "If it is not called chosen.", DatasetSpec, metavar="NAME"),
    option("--rejected-column", "If it is not called rejected.", DatasetSpec, metavar="NAME"),
    option("--system-column", "System texts, if not in system.", DatasetSpec, metavar="NAME"),
    option("--tools-column", "Tools for the chat template, if not in tools.", DatasetSpec, metavar="NAME"),
    option(
        "--truncated-column",
        "Which responses were cut, if not in truncated or finish_reason.",
        DatasetSpec,
        metavar="NAME",
    ),
    option(
        "--ignore-columns",
        "Leave this column out, whatever its name means. Several: repeat it, or commas.",
        DatasetSpec,
        metavar="NAME",
        callback=_split_commas,
    ),
    option("--pairs", "Which of several answers with scores or ranks make pairs.", DatasetSpec),
    option(
        "--min-margin",
        "Least difference in score, rank or strength between the responses of a pair.",
        DatasetSpec,
        metavar="X",
    ),
]


def reasoning(settings: type, verb: str) -> Option:
    """What becomes of the responses' reasoning."""
    return option(
        "--reasoning",
        f"Reasoning of responses: {verb} it, let it be context only, or drop such rows.",
        settings,
    )


def max_length(description: str = "Most tokens of prompt and response.", least: int = 2) -> Option:
    """``--max-length``, with the default of all settings that have it."""
    return option(
        "--max-length", description, ProjectionSettings, type=click.IntRange(min=least), metavar="N"
    )


def chat_template(description: str) -> list[Option]:
    """``--chat-template FILE`` and ``--no-chat-template``, one setting."""
    return [
        option("--chat-template", description, type=FILE, metavar="FILE"),
        option("--no-chat-template", "Use prompts as they are.", is_flag=True),
    ]


def annotated_argument() -> list[click.Parameter]:
    """The annotated dataset that a command reads."""
    return [click.RichArgument(["dataset"], metavar="DIR|USER/NAME")]


def seed(settings: type, description: str, **other: Any) -> Option:
    """``--seed``."""
    return option("--seed", description, settings, type=FROM_ZERO, metavar="N", **other)


def limit(settings: type, description: str) -> Option:
    """``--limit``."""
    return option("--limit", description, settings, type=COUNT, metavar="N")


def push_options(what: str) -> list[Option]:
    """``--push-to-hub`` and ``--private`` of what is made."""
    return [
        option(
            "--push-to-hub", f"Push the finished {what} there, in one commit.", AnnotateSettings,
            metavar="USER/NAME",
        ),
        option("--private", f"Make the {what} on the Hub private.", AnnotateSettings),
    ]  # fmt: skip


NO_REPORT = option(
    "--no-report", "Push neither a page (report.html) nor charts in the card.", AnnotateSettings
)


def read_pairs(ctx: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """``field=value`` of an option that may be repeated, or from a config file a mapping."""
    found = {}
    for pair in pairs:
        name, equals, value = str(pair).partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not field=value, like {parameter.opts[0]} {pair}=1.")
        found[name.strip()] = value.strip()
    return found


def _or_none(
    ctx: click.Context, parameter: click.Parameter, found: tuple[str, ...]
) -> tuple[str, ...] | None:
    return found or None


RATIO_HELP = "Share of the tokens to select, both sides."
SIDE_RATIOS = [
    option("--chosen-ratio", "For chosen responses, if it differs.", type=SHARE, metavar="R"),
    option("--rejected-ratio", "For rejected responses, if it differs.", type=SHARE, metavar="R"),
]
# of every command that selects tokens of an annotated dataset again; what is not given stays as annotated
SELECTION = [
    option("--ratio", RATIO_HELP, type=SHARE, metavar="R"),
    *SIDE_RATIOS,
    option(
        "--selection",
        "Rule. mass: fewest tokens with this share of the reward; global: share of the tokens of all "
        "responses. Default: as annotated.",
        SelectionChange,
    ),
    option("--threshold", "For --selection threshold: least reward.", SelectionChange, metavar="NATS"),
    option(
        "--ratio-by", "Ratios by group: category=math:0.5,chat:0.2.", SelectionChange,
        metavar="COLUMN=VALUE:R,…",
    ),
    option(
        "--include-tokens",
        "Select only from tokens whose text matches; may be repeated.",
        SelectionChange,
        metavar="REGEX|ID",
        callback=_or_none,
    ),
    option(
        "--exclude-tokens",
        r"Never select these: \s+ blanks, ^$ the end of the turn; may be repeated.",
        SelectionChange,
        metavar="REGEX|ID",
        callback=_or_none,
    ),
]  # fmt: skip
PROJECTION = option(
    "--projection",
    "sum: select on rewards at the policy's tokens; majority: carry the dataset's masks.",
    ProjectionSettings,
)


def weights(description: str) -> Option:
    """``--weights``."""
    return option("--weights", description, ProjectionSettings)
