"""The ``sepo-train`` commands: one for each stage."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

from .common import (
    Command,
    Group,
    chat_template_options,
    chosen_template,
    column_options,
    config_option,
    one_line_errors,
    read_pairs,
    trust_options,
)
from .selecting import selection_fields, selection_options

RATIO = click.FloatRange(0, 1, min_open=True)
POSITIVE = click.FloatRange(0, min_open=True)


def _read_set(ctx: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in read_pairs(ctx, parameter, pairs).items()}


def _options(*, learning_rate: float, batch_size: int, micro_batch_size: int) -> Callable[[Any], Any]:
    """What all stages take, with this stage's defaults."""
    options: list[Callable[[Any], Any]] = [
        click.option(
            "--dataset", required=True, metavar="DATA", help="Hub id or folder; for sft and dpo also a file."
        ),
        click.option(
            "--split", metavar="NAME", help="Which split to train on. Default: train, or the only one."
        ),
        click.option("--revision", metavar="REV", help="Branch, tag or commit of the dataset on the Hub."),
        click.option(
            "--model-revision", metavar="REV", help="Branch, tag or commit of the model on the Hub."
        ),
        trust_options,
        chat_template_options(
            "Jinja file to give the model. Default: its own; Zephyr's for messages if it has none."
        ),
        click.option(
            "--max-length",
            type=click.IntRange(min=2),
            default=2048,
            metavar="N",
            help="Most tokens of a sequence.",
        ),
        click.option(
            "--fraction", type=RATIO, default=1.0, metavar="F", help="Train on this share of the rows."
        ),
        click.option(
            "--eval-fraction",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.0,
            metavar="F",
            help="Hold this share of them out, and measure there.",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, metavar="N", help="For everything random."
        ),
        click.option(
            "--learning-rate", type=POSITIVE, default=learning_rate, metavar="RATE", help="Its peak."
        ),
        click.option("--epochs", type=POSITIVE, default=1.0, metavar="N", help="How often."),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=batch_size,
            metavar="N",
            help="Examples a step.",
        ),
        click.option(
            "--micro-batch-size",
            type=click.IntRange(min=1),
            default=micro_batch_size,
            metavar="N",
            help="Most examples that a device takes at once.",
        ),
        click.option(
            "--lora-rank",
            type=click.IntRange(min=1),
            metavar="N",
            help="Train a LoRA adapter, not all weights.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="float32",
            help="What the weights are kept in.",
        ),
        click.option(
            "--set",
            "set",
            multiple=True,
            metavar="FIELD=VALUE",
            callback=_read_set,
            help="Any other field of transformers.TrainingArguments.",
        ),
        click.option(
            "--output-dir",
            required=True,
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Becomes the trained model.",
        ),
        click.option(
            "--push-to-hub", metavar="USER/NAME", help="Push the finished model there, in one commit."
        ),
        click.option("--private", is_flag=True, help="Make the model on the Hub private."),
        config_option,
    ]

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


pair_weight_option = click.option(
    "--pair-weight",
    type=click.Choice(["equal", "margin"]),
    default="equal",
    help="Count pairs equally, or by the oracle's margin (annotated datasets).",
)


@click.group("train", cls=Group)
def main() -> None:
    """Train reference (sft), oracle (dpo) and policy (sepo).

    \b
    Example:
        sepo-train sft  --model BASE --dataset CHATS --output-dir ref
        sepo-train dpo  --model ref --dataset PREFS --output-dir oracle
        sepo-annotate   --oracle oracle --ref ref --dataset PREFS --output annotated
        sepo-train sepo --policy ANY-MODEL --dataset annotated --output-dir policy
    """


def _command(name: str) -> Callable[[Any], Any]:
    return main.command(
        name,
        cls=Command,
        context_settings={"auto_envvar_prefix": f"SEPO_TRAIN_{name.upper()}", "show_default": True},
    )


@_command("sft")
@click.option("--model", required=True, metavar="MODEL", help="Base model, Hub id or folder.")
@click.option(
    "--side", type=click.Choice(["chosen", "rejected"]), help="Train on this side of a preference dataset."
)
@column_options
@_options(learning_rate=5e-6, batch_size=256, micro_batch_size=4)
@one_line_errors
def sft(model: str, dataset: str, **options: Any) -> None:
    """Stage 1, the reference: fine-tune a model on the assistant's tokens of conversations.

    \b
    Example:
        sepo-train sft --model BASE --dataset HuggingFaceH4/ultrachat_200k --split train_sft --output-dir ref
    """
    from sepo_train import SftSettings, train_sft

    settings = SftSettings(**_settings(**options))
    _train(lambda stop: train_sft(model, dataset, settings, stop=stop))


@_command("dpo")
@click.option("--model", required=True, metavar="MODEL", help="The reference, Hub id or folder.")
@click.option(
    "--beta", type=POSITIVE, default=0.1, metavar="B", help="How strongly it is held to the reference."
)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 0.5, max_open=True),
    default=0.0,
    metavar="S",
    help="Assumed share of pairs that are the wrong way round.",
)
@pair_weight_option
@column_options
@_options(learning_rate=5e-7, batch_size=256, micro_batch_size=2)
@one_line_errors
def dpo(model: str, dataset: str, **options: Any) -> None:
    """Stage 2, the oracle: train a model with DPO from itself as the reference.

    \b
    Example:
        sepo-train dpo --model ref --dataset PREFS --fraction 0.3 --output-dir oracle
    """
    from sepo_train import DpoSettings, train_dpo

    settings = DpoSettings(**_settings(**options))
    _train(lambda stop: train_dpo(model, dataset, settings, stop=stop))


@_command("sepo")
@click.option("--policy", required=True, metavar="MODEL", help="Any causal language model, Hub id or folder.")
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
    help="Count selected tokens equally, or by their rewards.",
)
@pair_weight_option
@click.option(
    "--loss",
    type=click.Choice(["sepo", "dpo"]),
    default="sepo",
    help="dpo: DPO's loss on the selected tokens, against the policy as it starts.",
)
@click.option(
    "--beta", type=POSITIVE, default=0.1, metavar="B", help="For --loss dpo: how much it is held there."
)
@click.option("--scale", type=POSITIVE, default=1.0, metavar="S", help="Factor of the gap in the loss.")
@click.option("--margin", type=float, default=0.0, metavar="M", help="What the scaled gap should exceed.")
@_options(learning_rate=5e-7, batch_size=128, micro_batch_size=2)
@one_line_errors
def sepo(policy: str, dataset: str, **options: Any) -> None:
    """Stage 3, the policy: train any model on the key tokens of an annotated dataset.

    \b
    Example:
        sepo-train sepo --policy OTHER/MODEL --dataset me/prefs-sepo --output-dir policy
    """
    from sepo_train import SepoSettings, train_sepo

    settings = SepoSettings(**selection_fields(options), **_settings(**options))
    _train(lambda stop: train_sepo(policy, dataset, settings, stop=stop))


def _settings(
    *, chat_template: Path | None, no_chat_template: bool, epochs: float, **options: Any
) -> dict[str, Any]:
    """The options as a stage's settings have them."""
    training_arguments = options.pop("set")
    return {
        **options,
        "training_arguments": training_arguments,
        "num_train_epochs": epochs,
        "chat_template": chosen_template(chat_template, no_chat_template),
    }


def _train(train: Callable[[Callable[[], bool]], Any]) -> None:
    from transformers.utils import logging as transformers_logging

    from .reports import describe_training
    from .running import Stop, quiet_libraries

    quiet_libraries()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # of tied heads and the like
    stop = Stop("train", "step")
    try:
        report = train(stop.asked)
    finally:
        stop.release()
    if report.record is None:
        stop.exit()
    if os.environ.get("RANK", "0") == "0":
        click.echo(describe_training(report))


if __name__ == "__main__":
    main()
