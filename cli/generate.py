"""``sepo generate``: answers of a model for benchmarks and their judges."""

from pathlib import Path
from typing import Any

import rich_click as click

from .common import Command, one_line_errors, trust_options


@click.command("generate", cls=Command, context_settings={"show_default": True})
@click.option_panel("Model", options=[
    "--model", "--revision", "--server", "--model-name", "--dtype", "--device", "--chat-template",
    "--no-chat-template", "--allow-pickle", "--trust-remote-code",
])  # fmt: skip
@click.option("--model", required=True, metavar="MODEL", help="Hub id or folder; what a server calls it.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
@click.option("--server", metavar="URL", help="OpenAI-compatible server, such as http://host:8000/v1.")
@click.option("--model-name", metavar="NAME", help="What the judge calls the model. Default: its name.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps, …")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Jinja file to give the model. Default: its own; Zephyr's for messages if it has none.",
)
@click.option("--no-chat-template", is_flag=True, help="Use prompts as they are.")
@trust_options
@click.option_panel("Questions and answers", options=["--prompts", "--format", "--limit", "--output"])
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The benchmark's question file.",
)
@click.option(
    "--format",
    type=click.Choice(["alpaca-eval", "arena-hard", "mt-bench", "jsonl"]),
    required=True,
    help="Whose; jsonl: a prompt a line, text or messages.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Answer the first N questions only.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The answer file."
)
@click.option_panel(
    "Sampling", options=["--temperature", "--top-p", "--max-new-tokens", "--seed", "--batch-size"]
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="T",
    help="0: greedy. MT-Bench and Arena-Hard have their own.",
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, metavar="P", help="Nucleus sampling."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=1024,
    metavar="N",
    help="Tokens of an answer.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="For sampling.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=16, metavar="N", help="Questions answered at once."
)
@one_line_errors
def main(model: str, chat_template: Path | None, no_chat_template: bool, **options: Any) -> None:
    """Answer a benchmark's questions, in the file that its judge takes.

    The same command goes on where it was stopped.

    \b
    Example:
        sepo generate --model policy --prompts alpaca_eval.json --format alpaca-eval --output answers.json
    """
    from tqdm import tqdm
    from transformers.utils import logging as transformers_logging

    from sepo_data.generation.generating import GenerateSettings, generate

    from .running import quiet_libraries

    if chat_template is not None and no_chat_template:
        raise click.UsageError("--chat-template and --no-chat-template exclude each other.")
    quiet_libraries()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    settings = GenerateSettings(chat_template=chat_template or not no_chat_template, **options)
    with tqdm(unit="question", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        count = generate(model, settings, on_chunk=show)
    click.echo(f"{count:,} questions answered")
    click.echo(settings.output)
