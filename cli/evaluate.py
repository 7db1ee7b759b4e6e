"""``sepo evaluate``: measure a policy without a judge."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from sepo_data.errors import counted
from sepo_data.evaluation.settings import EvaluateSettings

from .common import importing
from .ending import saved, show
from .options import COUNT, FROM_ZERO, OUTPUT_FILE, command, option, panel
from .shared import (
    ALLOW_PICKLE,
    COLUMNS,
    CONFIG_NAME,
    DATA_REVISION,
    DEVICE,
    DTYPE,
    JSON,
    SPLIT,
    TRUST_REMOTE_CODE,
    limit,
    max_length,
    seed,
)

if TYPE_CHECKING:
    from sepo_data.evaluation.figures import Accuracy, Evaluation


@command(
    "evaluate",
    panel(
        "Required",
        option("--model", "Policy: Hub id or folder.", aliases=["--policy"], required=True, metavar="POLICY"),
        option("--ref", "Reference model.", required=True, metavar="MODEL"),
        option("--dataset", "Preference pairs not used in training.", required=True, metavar="DATA"),
    ),
    panel(
        "Pairs",
        SPLIT,
        limit(EvaluateSettings, "Use only the first N pairs."),
        option(
            "--by",
            "Break accuracies down by this column, such as RewardBench's subset.",
            EvaluateSettings,
            metavar="COLUMN",
        ),
        max_length(),
        CONFIG_NAME,
        DATA_REVISION,
        *COLUMNS,
    ),
    panel(
        "Sampled answers",
        option(
            "--samples",
            "Number of prompts to answer; 0: none.",
            EvaluateSettings,
            type=FROM_ZERO,
            metavar="N",
        ),
        option("--max-new-tokens", "Maximum tokens per answer.", EvaluateSettings, type=COUNT, metavar="N"),
        option("--temperature", "0: greedy.", EvaluateSettings, type=click.FloatRange(min=0), metavar="T"),
        option("--batch-size", "Answers at once.", EvaluateSettings, type=COUNT, metavar="N"),
        seed(EvaluateSettings, "For sampling."),
    ),
    panel(
        "Output",
        option("--output", "Save all metrics as JSON.", type=OUTPUT_FILE, metavar="FILE"),
    ),
    panel(
        "Models",
        option(
            "--oracle",
            "Model that judges sampled answers, by its log-ratio to the reference.",
            metavar="MODEL",
        ),
        DTYPE,
        DEVICE,
        ALLOW_PICKLE,
        TRUST_REMOTE_CODE,
    ),
    [JSON],
    settings=EvaluateSettings,
)
def main(
    model: str,
    ref: str,
    dataset: str,
    settings: EvaluateSettings,
    oracle: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure a policy without a judge: on preference pairs and on sampled answers.

    \b
    Example:
        sepo evaluate --model policy --ref ref --oracle oracle --dataset PREFS --split test
        sepo evaluate --model oracle --ref ref --dataset allenai/reward-bench --split filtered --by subset
    """
    with importing():
        from sepo_data.evaluation.evaluating import evaluate
        from sepo_data.files import json_bytes, write_atomically, writing
    found = evaluate(model, ref, dataset, settings, oracle=oracle)
    if output is not None:
        with writing(output):
            write_atomically(output, json_bytes(json.loads(json.dumps(found.as_dict()))))
    lines = [*_described(found), *([] if output is None else saved(output, None))]
    show(as_json, lines, **found.as_dict())


def _described(found: "Evaluation") -> list[str]:
    """All metrics as text."""
    lost = sum(found.dropped.values())
    lines = [_accuracy("all pairs", found.accuracy) + (f"; {counted(lost, 'row')} dropped" if lost else "")]
    lines += [_accuracy(name, one) for name, one in found.groups.items()]
    chosen, rejected = found.shift["chosen"], found.shift["rejected"]
    lines.append(
        f"log-prob per token against the reference: chosen {chosen:+.4f}, rejected {rejected:+.4f} nats"
    )
    checked = f"self-check: log-probs of single rows differ by at most {found.self_check:.1g} nats"
    if (sampled := found.sampled) is None:
        return [*lines, checked]
    lines += [
        f"{counted(sampled.prompts, 'sampled answer')}: KL from the reference {sampled.kl:.3f} nats per "
        f"answer, {sampled.kl_per_token:.4f} per token",
        f"length {sampled.length:.1f} tokens (reference {sampled.ref_length:.1f}), {sampled.cut:.1%} cut; "
        f"degenerate {sampled.degenerate:.1%} (reference {sampled.ref_degenerate:.1%})",
    ]
    if (wins := sampled.oracle_wins) is not None:
        lines.append(
            f"oracle's reward above the reference's answer: {wins.rate:.1%} "
            f"(95%: {wins.low:.1%} to {wins.high:.1%})"
        )
    return [*lines, checked]


def _accuracy(name: str, found: "Accuracy") -> str:
    return (
        f"{name}: {counted(found.pairs, 'pair')}, accuracy {found.log_ratio:.1%} by log-ratio, "
        f"{found.log_prob:.1%} by log-prob per token (reference {found.ref_log_prob:.1%})"
    )
