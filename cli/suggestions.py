"""Suggestions for options and commands that do not exist."""

from collections.abc import Iterator
from difflib import get_close_matches

import rich_click as click
from click.exceptions import NoSuchCommand

RESUMING = {"--resume", "--resume-from-checkpoint", "--continue", "--restart"}
REPLACING = {"--overwrite", "--overwrite-output-dir", "--force"}
# names in other tools; the first name that the command has is suggested
OTHER_NAMES = {
    "--lr": ["--learning-rate"],
    "--num-train-epochs": ["--epochs"],
    "--num-epochs": ["--epochs"],
    "--train-batch-size": ["--batch-size"],
    "--gradient-accumulation-steps": ["--batch-size"],
    "--per-device-train-batch-size": ["--micro-batch-size", "--batch-tokens", "--batch-size"],
    "--batch-size": ["--batch-tokens"],
    "--bs": ["--batch-size", "--batch-tokens"],
    "--lora": ["--lora-rank"],
    "--lora-r": ["--lora-rank"],
    "--use-peft": ["--lora-rank"],
    "--model": ["--oracle and --ref", "--tokenizer"],
    "--model-name-or-path": ["--model", "--policy", "--oracle and --ref"],
    "--policy": ["--model", "--tokenizer"],
    "--reference": ["--ref"],
    "--ref-model": ["--ref"],
    "--reference-model": ["--ref"],
    "--oracle-model": ["--oracle"],
    "--data": ["--dataset"],
    "--dataset-name": ["--dataset"],
    "--input": ["--dataset", "--prompts"],
    "--train-file": ["--dataset"],
    "--out": ["--output"],
    "--output-path": ["--output"],
    "--save-dir": ["--output"],
    "--top-k": ["--ratio"],
    "--k": ["--ratio"],
    "--max-tokens": ["--max-new-tokens", "--max-length"],
    "--max-seq-length": ["--max-length"],
    "--max-model-len": ["--max-length"],
    "--precision": ["--dtype"],
    "--torch-dtype": ["--dtype"],
    "--bf16": ["--dtype bfloat16"],
    "--fp16": ["--dtype float16"],
    "--hub-model-id": ["--push-to-hub"],
    "--push": ["--push-to-hub"],
    "--max-samples": ["--limit", "--fraction", "--rows"],
    "--limit": ["--fraction", "--rows"],
    "--name": ["--config-name"],
}
# the most wanted fields of TrainingArguments
TRAINING_FIELDS = {
    "--warmup-steps", "--warmup-ratio", "--weight-decay", "--lr-scheduler-type", "--save-steps",
    "--eval-steps", "--logging-steps", "--gradient-checkpointing", "--report-to", "--optim",
    "--deepspeed", "--fsdp", "--run-name", "--max-grad-norm", "--save-total-limit",
}  # fmt: skip
# models that a stage of training does not take, and why
NOT_TAKEN = {
    ("dpo", "--ref"): "The reference is the model that training starts from: leave it out.",
    ("dpo", "--ref-model"): "The reference is the model that training starts from: leave it out.",
    ("sepo", "--oracle"): "The oracle's rewards are in the dataset: leave it out.",
    ("sepo", "--ref"): "The loss needs no reference: leave it out.",
    ("sepo", "--ref-model"): "The loss needs no reference: leave it out.",
}
STAGES = {"reference": "sft", "ref": "sft", "oracle": "dpo", "policy": "sepo", "rm": "dpo", "simpo": "sepo"}


def explained(error: click.UsageError) -> str:
    """Explain what is wrong with the arguments and, if it can be guessed, what was meant."""
    if isinstance(error, NoSuchCommand):
        return _no_command(error)
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        return f"No such option {error.option_name}. {_meant(error.option_name, error.ctx)}".rstrip()
    return " ".join(error.format_message().split())  # click lists choices in lines of their own


def _no_command(error: NoSuchCommand) -> str:
    stage = STAGES.get(error.command_name)
    known = error.ctx.command.commands if error.ctx and isinstance(error.ctx.command, click.Group) else {}
    if stage in known:
        return f"No such command {error.command_name}. Did you mean {stage}?"
    return error.format_message()


def _meant(typed: str, context: click.Context) -> str:
    """Advice for an unknown option, or an empty text."""
    given = typed.replace("_", "-").lower()
    flags = [flag for one in context.command.params for flag in (*one.opts, *getattr(one, "aliases", []))]
    if given in RESUMING:
        return "Runs resume by themselves: leave it out."
    if given in REPLACING:
        return "Nothing is overwritten: choose another --output, or delete that folder."
    if advice := NOT_TAKEN.get((str(context.command.name), given)):
        return advice
    if given in TRAINING_FIELDS and "--set" in flags:
        return f"Pass it as --set {given.removeprefix('--').replace('-', '_')}=VALUE."
    named = [name for name in OTHER_NAMES.get(given, []) if name.split()[0] in flags]
    begun = [flag for flag in flags if flag.startswith(given) and len(given) > 3]
    for found in (given in flags and [given], named, begun, get_close_matches(given, flags, cutoff=0.75)):
        if found:
            return f"Did you mean {found[0]}?"
    if elsewhere := sorted({*_having(given, context.find_root())}):
        return f"That is an option of {' and of '.join(elsewhere[:2])}."
    return ""


def _having(flag: str, root: click.Context) -> Iterator[str]:
    """The commands that have an option."""
    groups = [(str(root.info_name), root.command)]
    for name, command in groups:
        if isinstance(command, click.Group):
            groups += [(f"{name} {word}", one) for word, one in command.commands.items()]
        elif any(flag in one.opts for one in command.params):
            yield name
