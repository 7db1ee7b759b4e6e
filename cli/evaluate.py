"""``sepo evaluate``: what can be said of a policy without a judge."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from .common import Command, one_line_errors, trust_options

if TYPE_CHECKING:
    from sepo_data.evaluation.figures import Accuracy, Evaluation


@click.command("evaluate", cls=Command, context_settings={"show_default": True})
@click.option_panel(
    "Models",
    options=["--model", "--ref", "--oracle", "--dtype", "--device", "--allow-pickle", "--trust-remote-code"],
)
@click.option("--model", required=True, metavar="POLICY", help="The policy, Hub id or folder.")
@click.option("--ref", required=True, metavar="MODEL", help="What it was trained from.")
@click.option("--oracle", metavar="MODEL", help="Judges sampled answers by its log-ratio to the reference.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps, …")
@trust_options
@click.option_panel(
    "Pairs",
    options=["--dataset", "--config-name", "--split", "--revision", "--by", "--limit", "--max-length"],
)
@click.option("--dataset", required=True, metavar="DATA", help="Preference pairs that were not trained on.")
@click.option("--config-name", metavar="NAME", help="Which configuration, of a dataset that has several.")
@click.option("--split", metavar="NAME", help="Which split. Default: train.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the dataset on the Hub.")
@click.option("--by", metavar="COLUMN", help="Accuracies by its values, such as subset of RewardBench.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N pairs only.")
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    default=2048,
    metavar="N",
    help="Tokens of prompt and response.",
)
@click.option_panel(
    "Sampled answers", options=["--samples", "--max-new-tokens", "--temperature", "--batch-size", "--seed"]
)
@click.option(
    "--samples", type=click.IntRange(min=0), default=64, metavar="N", help="Prompts to answer; 0: none."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, metavar="N", help="Tokens of an answer."
)
@click.option("--temperature", type=click.FloatRange(min=0), default=1.0, metavar="T", help="0: greedy.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, metavar="N", help="Answers at once.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="For sampling.")
@click.option_panel("Output", options=["--output"])
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="All figures as JSON.")
@one_line_errors
def main(
    model: str,
    ref: str,
    oracle: str | None,
    dataset: str,
    output: Path | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    **options: Any,
) -> None:
    """Measure a policy without a judge: on preference pairs, and on answers that it samples.

    \b
    Example:
        sepo evaluate --model policy --ref ref --oracle oracle --dataset PREFS --split test
        sepo evaluate --model oracle --ref ref --dataset allenai/reward-bench --split filtered --by subset
    """
    from sepo_data.evaluation.evaluating import evaluate
    from sepo_data.evaluation.settings import EvaluateSettings
    from sepo_data.files import json_bytes, write_atomically, writing
    from sepo_data.models.checkpoints import Trust

    from .running import quiet_libraries

    quiet_libraries()
    settings = EvaluateSettings(trust=Trust(allow_pickle, trust_remote_code), **options)
    found = evaluate(model, ref, dataset, settings, oracle=oracle)
    click.echo("\n".join(_described(found)))
    if output is not None:
        with writing(output):
            write_atomically(output, json_bytes(json.loads(json.dumps(found.as_dict()))))
        click.echo(output)


def _described(found: "Evaluation") -> list[str]:
    """All figures, for people."""
    lost = sum(found.dropped.values())
    lines = [_accuracy("all pairs", found.accuracy) + (f"; {lost:,} rows dropped" if lost else "")]
    lines += [_accuracy(name, one) for name, one in found.groups.items()]
    chosen, rejected = found.shift["chosen"], found.shift["rejected"]
    lines.append(
        f"log-prob per token against the reference: chosen {chosen:+.4f}, rejected {rejected:+.4f} nats"
    )
    if (sampled := found.sampled) is None:
        return lines
    lines += [
        f"{sampled.prompts:,} sampled answers: KL from the reference {sampled.kl:.3f} nats per answer, "
        f"{sampled.kl_per_token:.4f} per token",
        f"length {sampled.length:.1f} tokens (reference {sampled.ref_length:.1f}), {sampled.cut:.1%} cut; "
        f"degenerate {sampled.degenerate:.1%} (reference {sampled.ref_degenerate:.1%})",
    ]
    if (wins := sampled.oracle_wins) is not None:
        lines.append(
            f"oracle's reward above the reference's answer: {wins.rate:.1%} "
            f"(95%: {wins.low:.1%} to {wins.high:.1%})"
        )
    return lines


def _accuracy(name: str, found: "Accuracy") -> str:
    return (
        f"{name}: {found.pairs:,} pairs, accuracy {found.log_ratio:.1%} by log-ratio, {found.log_prob:.1%} "
        f"by log-prob per token (reference {found.ref_log_prob:.1%})"
    )
