"""``sepo generate``: a model's answers for benchmarks and their judges."""

import rich_click as click

from sepo_data.errors import counted
from sepo_data.generation.settings import GenerateSettings

from .common import importing
from .ending import saved
from .options import COUNT, FILE, SHARE, command, option, panel
from .shared import ALLOW_PICKLE, DEVICE, DTYPE, TRUST_REMOTE_CODE, chat_template, limit, seed


@command(
    "generate",
    panel(
        "Required",
        option(
            "--model",
            "Hub id or folder; with --server, the server's name for it.",
            required=True,
            metavar="MODEL",
        ),
        option("--prompts", "The benchmark's question file.", GenerateSettings, type=FILE, metavar="FILE"),
        option(
            "--format",
            "Format of the benchmark; jsonl: one prompt per line, text or messages.",
            GenerateSettings,
        ),
        option("--output", "The answer file.", GenerateSettings, metavar="FILE"),
    ),
    panel(
        "Sampling",
        option(
            "--temperature",
            "0: greedy. MT-Bench and Arena-Hard set their own.",
            GenerateSettings,
            type=click.FloatRange(min=0),
            metavar="T",
        ),
        option("--top-p", "Nucleus sampling.", GenerateSettings, type=SHARE, metavar="P"),
        option("--max-new-tokens", "Maximum tokens per answer.", GenerateSettings, type=COUNT, metavar="N"),
        seed(GenerateSettings, "For sampling."),
        option("--batch-size", "Questions per batch.", GenerateSettings, type=COUNT, metavar="N"),
        limit(GenerateSettings, "Answer only the first N questions."),
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
            "Model name for the judge. Default: its own.",
            GenerateSettings,
            metavar="NAME",
        ),
        DTYPE,
        DEVICE,
        option("--revision", "Branch, tag or commit of a model on the Hub.", GenerateSettings, metavar="REV"),
        *chat_template("Jinja chat template. Default: the model's; Zephyr's for messages if it has none."),
        ALLOW_PICKLE,
        TRUST_REMOTE_CODE,
    ),
    settings=GenerateSettings,
)
def main(model: str, settings: GenerateSettings) -> None:
    """Answer a benchmark's questions and write the file its judge expects.

    An interrupted run resumes with the same command.

    \b
    Example:
        sepo generate --model policy --prompts alpaca_eval.json --format alpaca-eval --output answers.json
    """
    with importing():
        from tqdm import tqdm
        from transformers.utils import logging as transformers_logging

        from sepo_data.generation.generating import generate

    transformers_logging.set_verbosity_error()
    with tqdm(unit="question", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        count = generate(model, settings, on_chunk=show)
    click.echo(f"{counted(count, 'question')} answered")
    click.echo("\n".join(saved(settings.output, None)))
