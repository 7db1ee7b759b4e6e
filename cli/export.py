"""``sepo export``: an annotated dataset for another trainer."""

from pathlib import Path
from typing import Any

import rich_click as click

from .common import Command, one_line_errors, trust_remote_code_option
from .selecting import SELECTION_OPTIONS, selection_change, selection_options

TARGETS = [
    "llama-factory", "open-instruct", "trl-dpo", "trl-sft", "axolotl", "axolotl-spans", "ms-swift", "tinker",
]  # fmt: skip


@click.command("export", cls=Command, context_settings={"show_default": True})
@click.argument("dataset", metavar="DIR|USER/NAME")
@click.option_panel("Trainer", options=["--to", "--tokenizer", "--output"])
@click.option(
    "--to",
    "target",
    type=click.Choice(TARGETS),
    required=True,
    help="Whose shape to write.",
)
@click.option("--tokenizer", metavar="POLICY", help="The policy or its tokenizer, Hub id or folder.")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new folder.")
@click.option_panel("Selection", options=[*SELECTION_OPTIONS, "--projection", "--weights"])
@selection_options
@click.option(
    "--projection",
    type=click.Choice(["sum", "majority"]),
    default="sum",
    help="sum: select on rewards at the policy's tokens; majority: carry the dataset's masks.",
)
@click.option(
    "--weights",
    type=click.Choice(["mask", "rewards", "tis", "tgdpo", "signed"]),
    default="mask",
    help="Weights instead of masks: for trl-dpo, ms-swift and tinker.",
)
@click.option_panel(
    "Tokens", options=["--max-length", "--chat-template", "--no-chat-template", "--trust-remote-code"]
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    default=2048,
    metavar="N",
    help="Most tokens of prompt and response.",
)
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Jinja file to give the tokenizer. Default: its own; Zephyr's for messages if it has none.",
)
@click.option("--no-chat-template", is_flag=True, help="Use prompts as they are.")
@trust_remote_code_option
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a dataset on the Hub.")
@one_line_errors
def main(dataset: str, chat_template: Path | None, no_chat_template: bool, **options: Any) -> None:
    """Write an annotated dataset in the shape that another trainer reads.

    Masks or weights are at the policy's own tokens; the card holds the command or config to train.

    \b
    Example:
        sepo export me/prefs-sepo --to trl-dpo --tokenizer other/model-8b --output out
        sepo export annotated --to axolotl-spans --selection global --ratio 0.3 --output out
    """
    from sepo_data.exports.exporting import export
    from sepo_data.exports.targets import ExportSettings

    from .reports import describe_dropped
    from .running import quiet_libraries

    if chat_template is not None and no_chat_template:
        raise click.UsageError("--chat-template and --no-chat-template exclude each other.")
    quiet_libraries()
    settings = ExportSettings(
        change=selection_change(options), chat_template=chat_template or not no_chat_template, **options
    )
    report = export(dataset, settings)
    dropped = describe_dropped(report.dropped)
    click.echo(f"{report.records:,} records of {report.rows:,} rows{'; ' if dropped else ''}{dropped}")
    click.echo(f"train from {report.data} as {report.output / 'README.md'} says")
    click.echo(report.output)
