"""Options shared by several commands."""

from typing import Any

import rich_click as click

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.settings import AnnotateSettings, ProjectionSettings, SelectionChange

from .options import COUNT, FILE, FROM_ZERO, SHARE, Option, option

DEVICE = option("--device", "auto, cpu, cuda, cuda:1, mps, …", AnnotateSettings, metavar="DEVICE")
DTYPE = option("--dtype", "Compute dtype.", AnnotateSettings)
DTYPE_AS_MADE = option(
    "--dtype", "Compute dtype. Default: that of the annotation.", AnnotateSettings, default=None
)
ALLOW_PICKLE = option("--allow-pickle", "Load pickled weights, which can run code.", AnnotateSettings)
TRUST_REMOTE_CODE = option("--trust-remote-code", "Run Python code shipped with a model.", AnnotateSettings)

JSON = option("--json", "Print one JSON object on stdout instead of text.", field="as_json", is_flag=True)

SPLIT = option("--split", "Split. Default: train, or the only one.", DatasetSpec, metavar="NAME")
CONFIG_NAME = option(
    "--config-name", "Configuration, if the dataset has several.", DatasetSpec, metavar="NAME"
)
DATA_REVISION = option(
    "--revision", "Branch, tag or commit of the dataset on the Hub.", DatasetSpec, metavar="REV"
)


def _split_commas(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for name in names for part in name.split(","))


COLUMNS = [
    option("--prompt-column", "Prompt column. Default: found by name.", DatasetSpec, metavar="NAME"),
    option("--chosen-column", "Chosen column. Default: found by name.", DatasetSpec, metavar="NAME"),
    option("--rejected-column", "Rejected column. Default: found by name.", DatasetSpec, metavar="NAME"),
    option("--system-column", "System prompt column, if not system.", DatasetSpec, metavar="NAME"),
    option(
        "--tools-column",
        "Column with the tools for the chat template, if not tools.",
        DatasetSpec,
        metavar="NAME",
    ),
    option(
        "--truncated-column",
        "Column that tells which responses were cut, if not truncated or finish_reason.",
        DatasetSpec,
        metavar="NAME",
    ),
    option(
        "--ignore-columns",
        "Ignore this column, whatever its name means. Repeatable, or separated by commas.",
        DatasetSpec,
        metavar="NAME",
        callback=_split_commas,
    ),
    option("--pairs", "Which pairs to make from several answers with scores or ranks.", DatasetSpec),
    option(
        "--min-margin",
        "Minimum difference in score, rank or strength between the responses of a pair.",
        DatasetSpec,
        metavar="X",
    ),
]


def reasoning(settings: type, verb: str) -> Option:
    """``--reasoning``, what to do with the responses' reasoning."""
    return option(
        "--reasoning",
        f"Reasoning in responses: {verb} it, use it as context only, or drop such rows.",
        settings,
    )


def max_length(description: str = "Maximum tokens of prompt and response.", least: int = 2) -> Option:
    """``--max-length``, with the default of all settings that have it."""
    return option(
        "--max-length", description, ProjectionSettings, type=click.IntRange(min=least), metavar="N"
    )


def chat_template(description: str) -> list[Option]:
    """``--chat-template FILE`` and ``--no-chat-template``, one setting."""
    return [
        option("--chat-template", description, type=FILE, metavar="FILE"),
        option("--no-chat-template", "Use prompts as they are, without a chat template.", is_flag=True),
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
    """``--push-to-hub`` and ``--private`` of the result."""
    return [
        option(
            "--push-to-hub", f"Push the finished {what} to this repository, in one commit.", AnnotateSettings,
            metavar="USER/NAME",
        ),
        option("--private", "Make the repository private.", AnnotateSettings),
    ]  # fmt: skip


NO_REPORT = option(
    "--no-report", "Push neither a page (report.html) nor charts in the card.", AnnotateSettings
)


def read_pairs(ctx: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """Parse ``field=value`` of a repeatable option, or a mapping from a config file."""
    found = {}
    for pair in pairs:
        name, equals, value = str(pair).partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not field=value, like {parameter.opts[0]} {pair}=VALUE.")
        found[name.strip()] = value.strip()
    return found


def read_steps(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Parse steps of a repeatable option, which may contain commas."""
    parts = [part.strip() for one in values for part in str(one).split(",")]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise click.BadParameter(f"{wrong[0]!r} is not a step, as in {parameter.opts[0]} 4,8,16.")
    return tuple(map(int, parts))


def _or_none(
    ctx: click.Context, parameter: click.Parameter, found: tuple[str, ...]
) -> tuple[str, ...] | None:
    return found or None


RATIO_HELP = "Share of tokens to select, on both sides."
SIDE_RATIOS = [
    option("--chosen-ratio", "Ratio for chosen responses.", type=SHARE, metavar="R"),
    option("--rejected-ratio", "Ratio for rejected responses.", type=SHARE, metavar="R"),
]
# for commands that select tokens of an annotated dataset anew; options left out keep their annotated values
SELECTION = [
    option("--ratio", RATIO_HELP, type=SHARE, metavar="R"),
    *SIDE_RATIOS,
    option(
        "--selection",
        "Rule. mass: fewest tokens with this share of the reward; global: share of the tokens of all "
        "responses. Default: as annotated.",
        SelectionChange,
    ),
    option("--threshold", "For --selection threshold: minimum reward.", SelectionChange, metavar="NATS"),
    option(
        "--ratio-by", "Ratios by group: category=math:0.5,chat:0.2.", SelectionChange,
        metavar="COLUMN=VALUE:R,…",
    ),
    option(
        "--include-tokens",
        "Select only tokens whose text matches; repeatable.",
        SelectionChange,
        metavar="REGEX|ID",
        callback=_or_none,
    ),
    option(
        "--exclude-tokens",
        r"Never select these: \s+ blanks, ^$ the end of the turn; repeatable.",
        SelectionChange,
        metavar="REGEX|ID",
        callback=_or_none,
    ),
    option("--no-eos", "Never select the end of the turn.", SelectionChange),
]  # fmt: skip
PROJECTION = option(
    "--projection",
    "sum: project rewards, then select; majority: project the dataset's masks.",
    ProjectionSettings,
)


def weights(description: str) -> Option:
    """``--weights``."""
    return option("--weights", description, ProjectionSettings)
