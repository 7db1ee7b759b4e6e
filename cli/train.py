"""The ``sepo-train`` commands, one per stage."""

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

import rich_click as click

from sepo_train.settings import DpoSettings, SepoSettings, SftSettings, TrainSettings

from .common import Group, importing
from .config import CONFIG
from .ending import plain_fields, saved, show, typed
from .options import COUNT, POSITIVE, SHARE, Option, command, option, panel
from .shared import (
    ALLOW_PICKLE,
    COLUMNS,
    CONFIG_NAME,
    DATA_REVISION,
    JSON,
    PROJECTION,
    SELECTION,
    SPLIT,
    TRUST_REMOTE_CODE,
    chat_template,
    max_length,
    push_options,
    read_pairs,
    read_steps,
    reasoning,
    seed,
    weights,
)

if TYPE_CHECKING:
    from sepo_train.training import Training


def _read_set(ctx: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in read_pairs(ctx, parameter, pairs).items()}


def _required(*model: Option, data: str) -> list[click.Parameter]:
    return panel(
        "Required",
        *model,
        option("--dataset", data, required=True, metavar="DATA"),
        option(
            "--output",
            "Where to save the model.",
            TrainSettings,
            "output_dir",
            aliases=["--output-dir"],
            metavar="DIR",
        ),
    )


def _training(stage: type[TrainSettings], *more: Option) -> list[click.Parameter]:
    """Hyperparameters, with the defaults of the stage."""
    return panel(
        "Training",
        option("--learning-rate", "Peak learning rate.", stage, type=POSITIVE, metavar="RATE"),
        option("--epochs", "Training epochs.", stage, "num_train_epochs", type=POSITIVE, metavar="N"),
        option("--max-steps", "Train for N steps instead of --epochs.", stage, type=COUNT, metavar="N"),
        option(
            "--max-kl",
            "Measure the KL divergence from the start in nats per answer of 64 tokens, and end the training "
            "beyond this; inf: only measure.",
            stage,
            type=POSITIVE,
            metavar="NATS",
        ),
        option(
            "--save-at",
            "Keep checkpoints of these steps: 4,8,16.",
            stage,
            metavar="STEPS",
            callback=read_steps,
        ),
        option("--batch-size", "Examples per step.", stage, type=COUNT, metavar="N"),
        option("--micro-batch-size", "Batch size per device.", stage, type=COUNT, metavar="N"),
        *more,
        option(
            "--lora-rank",
            "Train a LoRA adapter of this rank instead of all weights.",
            stage,
            type=COUNT,
            metavar="N",
        ),
        option("--dtype", "Weight dtype.", stage),
        seed(stage, "Random seed."),
        option(
            "--set",
            "Any other field of transformers.TrainingArguments.",
            field="training_arguments",
            multiple=True,
            metavar="FIELD=VALUE",
            callback=_read_set,
        ),
    )


def _data(*columns: Option) -> list[click.Parameter]:
    return panel(
        "Data",
        SPLIT,
        option("--fraction", "Train on this share of the rows.", TrainSettings, type=SHARE, metavar="F"),
        option(
            "--eval-fraction",
            "Hold out this share of the rows for evaluation.",
            TrainSettings,
            type=click.FloatRange(0, 1, max_open=True),
            metavar="F",
        ),
        max_length("Maximum tokens per sequence."),
        reasoning(TrainSettings, "train on"),
        DATA_REVISION,
        *columns,
    )


MODEL = [
    *chat_template("Jinja chat template. Default: the model's; Zephyr's for messages if it has none."),
    option(
        "--model-revision", "Branch, tag or commit of the model on the Hub.", TrainSettings, metavar="REV"
    ),
    ALLOW_PICKLE,
    TRUST_REMOTE_CODE,
]
OUTPUT = panel(
    "Output",
    option(
        "--dry-run",
        "Estimate the cost and dropped rows from a few steps; write nothing.",
        is_flag=True,
    ),
    *push_options("model"),
)
PAIR_WEIGHT = option(
    "--pair-weight",
    "Count pairs equally, or by the oracle's margin (annotated datasets).",
    DpoSettings,
)


@click.group("train", cls=Group)
@click.command_panel("Stages", commands=["sft", "dpo", "sepo"])
@click.version_option(version("sepo"), prog_name="sepo")
def main() -> None:
    """Train reference (sft), oracle (dpo) and policy (sepo).

    \b
    Example:
        sepo-train sft  --model BASE --dataset CHATS --output ref
        sepo-train dpo  --model ref --dataset PREFS --output oracle
        sepo-annotate   --oracle oracle --ref ref --dataset PREFS --output annotated
        sepo-train sepo --policy ANY-MODEL --dataset annotated --output policy
    """


@command(
    "sft",
    _required(
        option("--model", "Base model: Hub id or folder.", required=True, metavar="MODEL"),
        data="Conversations: Hub id, folder or file.",
    ),
    _training(SftSettings),
    _data(
        option("--side", "Train on this side of a preference dataset.", SftSettings), CONFIG_NAME, *COLUMNS
    ),
    panel("Model", *MODEL),
    OUTPUT,
    [CONFIG, JSON],
    settings=SftSettings,
    env="SEPO_TRAIN_SFT",
)
def sft(model: str, dataset: str, settings: SftSettings, dry_run: bool, as_json: bool) -> None:
    """Stage 1, the reference: fine-tune a model on the assistant's tokens of conversations.

    \b
    Example:
        sepo-train sft --model BASE --dataset HuggingFaceH4/ultrachat_200k --split train_sft --output ref
    """
    with importing():
        from sepo_train.stages import sft_training
    following = typed("train dpo", "--model", settings.output_dir, "--dataset", "PREFS", "--output", "oracle")
    _train(lambda: sft_training(model, dataset, settings), settings, following, dry_run, as_json)


@command(
    "dpo",
    _required(
        option("--model", "Reference: Hub id or folder.", required=True, metavar="MODEL"),
        data="Preferences: Hub id, folder or file.",
    ),
    _training(
        DpoSettings,
        option(
            "--beta",
            "DPO's beta: a larger one keeps the model closer to the reference.",
            DpoSettings,
            type=POSITIVE,
            metavar="B",
        ),
        option(
            "--label-smoothing",
            "Assumed share of mislabelled pairs.",
            DpoSettings,
            type=click.FloatRange(0, 0.5, max_open=True),
            metavar="S",
        ),
        PAIR_WEIGHT,
    ),
    _data(CONFIG_NAME, *COLUMNS),
    panel("Model", *MODEL),
    OUTPUT,
    [CONFIG, JSON],
    settings=DpoSettings,
    env="SEPO_TRAIN_DPO",
)
def dpo(model: str, dataset: str, settings: DpoSettings, dry_run: bool, as_json: bool) -> None:
    """Stage 2, the oracle: train a model with DPO from itself as the reference.

    \b
    Example:
        sepo-train dpo --model ref --dataset PREFS --fraction 0.3 --output oracle
    """
    with importing():
        from sepo_train.stages import dpo_training
    models = ("--oracle", settings.output_dir, "--ref", model)
    following = typed("annotate", *models, "--dataset", dataset, "--output", "annotated")
    _train(lambda: dpo_training(model, dataset, settings), settings, following, dry_run, as_json)


@command(
    "sepo",
    _required(
        option(
            "--policy",
            "Policy, any causal language model: Hub id or folder.",
            aliases=["--model"],
            required=True,
            metavar="MODEL",
        ),
        data="Annotated dataset: Hub id or folder.",
    ),
    _training(
        SepoSettings,
        option("--loss", "dpo: DPO's loss on the selected tokens, against the initial policy.", SepoSettings),
        option(
            "--beta",
            "For --loss dpo: a larger one keeps the policy closer to the initial one.",
            SepoSettings,
            type=POSITIVE,
            metavar="B",
        ),
        option("--scale", "Factor on the gap in the loss.", SepoSettings, type=POSITIVE, metavar="S"),
        option("--margin", "Target for the scaled gap.", SepoSettings, metavar="M"),
        PAIR_WEIGHT,
    ),
    panel(
        "Selection", *SELECTION, PROJECTION, weights("Count selected tokens equally, or by their rewards.")
    ),
    _data(),
    panel("Model", *MODEL),
    OUTPUT,
    [CONFIG, JSON],
    settings=SepoSettings,
    env="SEPO_TRAIN_SEPO",
)
def sepo(policy: str, dataset: str, settings: SepoSettings, dry_run: bool, as_json: bool) -> None:
    """Stage 3, the policy: train any model on the key tokens of an annotated dataset.

    \b
    Example:
        sepo-train sepo --policy OTHER/MODEL --dataset me/prefs-sepo --output policy
    """
    with importing():
        from sepo_train.stages import sepo_training
    following = typed("evaluate", "--model", settings.output_dir, "--ref", policy, "--dataset", "PREFS")
    _train(lambda: sepo_training(policy, dataset, settings), settings, following, dry_run, as_json)


for stage in (sft, dpo, sepo):
    main.add_command(stage)


def _train(
    training: Callable[[], "Training"],
    settings: TrainSettings,
    following: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    from transformers.utils import logging as transformers_logging

    from sepo_data.hub.errors import page_of
    from sepo_train.figures import run_warnings, verdict
    from sepo_train.planning import plan_training
    from sepo_train.training import run_training

    from .reports import describe_training, describe_training_plan
    from .running import ProgressBar, Stop

    transformers_logging.set_verbosity_error()  # of tied heads and the like
    if dry_run:
        plan = plan_training(training())
        facts = plain_fields(plan)
        facts["seconds_estimated"] = facts.pop("seconds")
        show(as_json, describe_training_plan(plan), dry_run=True, **facts)
        return
    progress = ProgressBar(Stop("train", "step"), "step")
    try:
        report = run_training(training(), stop=progress.stop.asked, progress=progress)
    finally:
        progress.finish()
    if report.record is None:
        progress.stop.exit()
    if os.environ.get("RANK", "0") == "0":
        record = report.record
        url = None if report.commit is None else page_of("", str(settings.push_to_hub))
        curves = typed("report", report.output_dir)
        lines = [*describe_training(record), *saved(report.output_dir, url, following, curves=curves)]
        facts = {name: record.get(name) for name in ("rows", "figures", "cost", "distance")}
        facts |= {"verdict": verdict(record["figures"]), "warnings": run_warnings(record["figures"])}
        show(as_json, lines, output=report.output_dir, url=url, **facts)


if __name__ == "__main__":
    main()
