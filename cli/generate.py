"""``sepo generate``: answers of a model for benchmarks and their judges."""

import rich_click as click

from sepo_data.errors import counted
from sepo_data.generation.settings import GenerateSettings

from .options import COUNT, FILE, SHARE, command, option, panel
from .shared import ALLOW_PICKLE, DEVICE, DTYPE, TRUST_REMOTE_CODE, chat_template, limit, seed


@command(
    "generate",
    panel(
        "Required",
        option("--model", "Hub id or folder; what a server calls it.", required=True, metavar="MODEL"),
        option("--prompts", "The benchmark's question file.", GenerateSettings, type=FILE, metavar="FILE"),
        option("--format", "Whose; jsonl: one prompt per line, text or messages.", GenerateSettings),
        option("--output", "The answer file.", GenerateSettings, metavar="FILE"),
    ),
    panel(
        "Sampling",
        option(
            "--temperature",
            "0: greedy. MT-Bench and Arena-Hard have their own.",
            GenerateSettings,
            type=click.FloatRange(min=0),
            metavar="T",
        ),
        option("--top-p", "Nucleus sampling.", GenerateSettings, type=SHARE, metavar="P"),
        option("--max-new-tokens", "Tokens of an answer.", GenerateSettings, type=COUNT, metavar="N"),
        seed(GenerateSettings, "For sampling."),
        option("--batch-size", "Questions answered at once.", GenerateSettings, type=COUNT, metavar="N"),
        limit(GenerateSettings, "Answer the first N questions only."),
    ),
    panel(
        "Model",
        option(
            "--server",
            "OpenAI-compatible server, such as http://host:8000/v1.",
            GenerateSettings,
            metavar="URL",
        ),
        option(
            "--model-name",
            "What the judge calls the model. Default: its name.",
            GenerateSettings,
            metavar="NAME",
        ),
        DTYPE,
        DEVICE,
        option("--revision", "Branch, tag or commit of a model on the Hub.", GenerateSettings, metavar="REV"),
        *chat_template(
            "Jinja file to give the model. Default: its own; Zephyr's for messages if it has none."
        ),
        ALLOW_PICKLE,
        TRUST_REMOTE_CODE,
    ),
    settings=GenerateSettings,
)
def main(model: str, settings: GenerateSettings) -> None:
    """Answer a benchmark's questions, in the file that its judge takes.

    The same command goes on where it was stopped.

    \b
    Example:
        sepo generate --model policy --prompts alpaca_eval.json --format alpaca-eval --output answers.json
    """
    from tqdm import tqdm
    from transformers.utils import logging as transformers_logging

    from sepo_data.generation.generating import generate

    from .running import quiet_libraries

    quiet_libraries()
    transformers_logging.set_verbosity_error()
    with tqdm(unit="question", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        count = generate(model, settings, on_chunk=show)
    click.echo(f"{counted(count, 'question')} answered")
    click.echo(settings.output)
