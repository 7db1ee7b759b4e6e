"""What the commands print on stdout: a report of a run, a plan, a comparison."""

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from sepo_data.annotated.health import Health
from sepo_data.annotated.precision import Precision, compute_dtype
from sepo_data.annotation import Report
from sepo_data.errors import counted
from sepo_data.schema import SIDES

from .common import with_flags

if TYPE_CHECKING:
    from sepo_data.comparison import Comparison
    from sepo_data.planning import Plan
    from sepo_data.projected.transfer import Transfer
    from sepo_data.verification import Verification
    from sepo_train.folder import Record
    from sepo_train.planning import TrainPlan


def describe_report(report: Report) -> list[str]:
    """Counts and the oracle's health."""
    if report.manifest is None:
        return [
            f"this shard is done; other shards have to score {counted(report.missing, 'more chunk')}. "
            "The last worker assembles the dataset"
        ]
    manifest, counts = report.manifest, report.manifest.counts
    dropped = describe_dropped(counts.dropped)
    lines = [
        f"annotated {counts.annotated:,} of {counted(counts.rows, 'row')}{'; ' if dropped else ''}{dropped}"
    ]
    lines += [f"note: {count:,} {what}" for what, count in counts.notes.items()]
    lines += describe_health(manifest.health)
    if manifest.precision is not None:
        lines += describe_precision(manifest.precision, manifest.scoring.dtype)
    if manifest.self_check is not None:
        lines.append(f"self-check: log-probs of single rows differ by at most {manifest.self_check:.1g} nats")
    return lines


def report_facts(report: Report) -> dict[str, object]:
    """The same, for ``--json``."""
    facts = {
        "output": report.output,
        "finished": report.manifest is not None,
        "missing_chunks": report.missing,
    }
    if report.manifest is None:
        return facts
    manifest, counts = report.manifest, report.manifest.counts
    rows = {
        "read": counts.rows,
        "annotated": counts.annotated,
        "dropped": counts.dropped,
        "notes": counts.notes,
    }
    return {
        **facts,
        "rows": rows,
        "health": manifest.health,
        "precision": manifest.precision,
        "self_check": manifest.self_check,
        "warnings": manifest.warnings(),
    }


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """For example ``dropped 13: 9 empty response, 4 no common prompt``."""
    if not dropped:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    return f"dropped {sum(dropped.values()):,}: {reasons}"


def describe_health(health: Health) -> list[str]:
    """The oracle's metrics, with warnings if they are poor."""
    lines = [
        f"reward accuracy {health.accuracy:.1%} (inverted {health.inverted:.1%}), mean margin "
        f"{health.margin:+.3f} nats, mean |reward| {health.token_reward:.4f} nats per token",
        f"length: margin and difference in tokens correlate {health.length_correlation:+.2f}; "
        f"chosen is longer in {health.chosen_longer:.1%} of the pairs",
    ]
    for name in SIDES:
        side = getattr(health, name)
        lines.append(
            f"{name}: {side.selected:.1%} of {side.tokens:,} tokens selected, carrying "
            f"{side.reward_carried:.1%} of the |reward|; {side.eos_selected:.1%} of the selected end a turn; "
            f"{side.truncated:,} truncated"
        )
    return lines + [_warning(warning) for warning in health.warnings()]


def _warning(text: str) -> str:
    return f"warning: {with_flags(text)}"


def describe_precision(precision: Precision, dtype: str) -> list[str]:
    """How the precision of a run changed its selection, with a warning if it changed a lot."""
    return [
        f"{compute_dtype(dtype)} against float32, on {precision.pairs} pairs: {precision.overlap:.1%} of the "
        f"selected tokens are the same; rewards differ by {precision.noise:.4f} nats (root mean square), and "
        f"have a standard deviation of {precision.reward_spread:.4f}",
        *(_warning(warning) for warning in precision.warnings(dtype)),
    ]


def describe_verification(found: "Verification") -> list[str]:
    """How far the stored rewards of a sample differ from those of the models now."""
    lines = []
    if found.moved:
        lines.append(
            f"{found.moved:,} of {counted(found.rows, 'row')} have other tokens now: the dataset was "
            "made with another tokenizer, chat template or maximum length"
        )
    if found.tokens:
        lines += [
            f"{counted(found.rows - found.moved, 'row')}, {counted(found.tokens, 'token')} scored again",
            f"largest difference of a reward {found.largest_difference:.2g} nats, root mean square "
            f"{found.noise:.2g}; rounding explains {found.tolerance:.2g} nats",
            f"{found.equal_masks:.2%} of the mask entries are the same",
        ]
        if found.by_rule < 1:
            lines.append(f"{1 - found.by_rule:.2%} do not follow from the rule and the dataset's own rewards")
    return lines


def describe_comparison(found: "Comparison") -> list[str]:
    """A comparison of two annotations."""
    first, second = found.accuracies
    lines = [
        f"{counted(found.pairs, 'pair')} in both; {found.only_first:,} only in A, "
        f"{found.only_second:,} only in B",
        f"reward accuracy {first:.1%} (A), {second:.1%} (B); {found.agreement:.1%} of the pairs are ordered "
        "alike",
    ]
    for name in SIDES:
        side = getattr(found, name)
        line = (
            f"{name}: rank correlation of the token rewards {side.rank_correlation:+.3f}, overlap of the "
            f"selected text {side.mask_overlap:.1%}; {side.same_tokens:.1%} of the responses have the same "
            "tokens"
        )
        if not math.isnan(side.largest_difference):
            line += f", whose rewards differ by at most {side.largest_difference:.2g} nats"
        lines.append(line)
    return lines


def describe_plan(plan: "Plan") -> list[str]:
    """What a run would cost and drop."""
    source = "" if plan.sampled == plan.rows else f" (from {plan.sampled:,} of them)"
    lines = [
        *plan.reading,
        f"{plan.name}: {counted(plan.rows, 'row')}, about {plan.tokens:,} tokens of prompts and "
        f"responses{source}",
        f"longest response with its prompt: {plan.longest:,} tokens; "
        f"{counted(plan.truncated, 'response')} cut at {plan.max_length:,}",
        describe_dropped(plan.dropped).replace("dropped", "would drop") or "no rows would be dropped",
        f"about {timedelta(seconds=max(1, round(plan.seconds)))} on {plan.device}, "
        f"peak memory about {plan.memory_bytes / 2**30:.1f} GiB (measured on a few rows, with the longest)",
    ]
    if plan.push_to_hub:
        lines.append(f"would push to {plan.push_to_hub}")
    return [*lines, "dry run: nothing was written"]


def describe_training(record: "Record") -> list[str]:
    """Counts, figures before and after, and what to make of them."""
    from sepo_train.figures import SHOWN, run_warnings, verdict

    rows, figures = record["rows"], record["figures"]
    held_out = f", evaluated on {rows['held_out']:,}" if rows["held_out"] else ""
    dropped = describe_dropped(rows["dropped"])
    lines = [f"trained on {counted(rows['used'], 'row')}{held_out}{'; ' if dropped else ''}{dropped}"]
    lines += [f"note: {count:,} {what}" for what, count in rows["notes"].items()]
    if figures:
        changes = [
            f"{label} {figures['start'][name]:{form}}"
            + (f" -> {figures['end'][name]:{form}}" if figures["end"] != figures["start"] else "")
            for name, label, form in SHOWN
            if name in figures["start"] and name in figures["end"]
        ]
        lines.append(f"{'eval' if figures['held_out'] else 'training batches'}: {', '.join(changes)}")
    if record.get("self_check") is not None:
        lines.append(
            f"self-check: log-probs of single rows differ by at most {record['self_check']:.1g} nats"
        )
    lines += [_warning(warning) for warning in run_warnings(figures)]
    if found := verdict(figures):
        lines.append(f"verdict: {found}")
    return lines


def describe_training_plan(plan: "TrainPlan") -> list[str]:
    """What a training run would cost and drop."""
    held_out = f", {counted(plan.held_out, 'example')} for evaluation" if plan.held_out else ""
    return [
        f"{plan.name}: {counted(plan.examples, 'example')}{held_out}; {counted(plan.tokens, 'token')} per "
        f"epoch, {plan.longest:,} in the longest",
        describe_dropped(plan.dropped).replace("dropped", "would drop") or "no rows would be dropped",
        f"{counted(plan.steps, 'step')} of {counted(plan.batch_size, 'example')}",
        f"about {timedelta(seconds=max(1, round(plan.seconds)))} on {plan.device}, peak memory about "
        f"{plan.memory_bytes / 2**30:.1f} GiB (measured on a few small steps, with the longest examples)",
        "dry run: nothing was written",
    ]


def describe_transfer(transfer: "Transfer", *, by_policy: bool = False) -> list[str]:
    """How much of an annotation survives on a policy's tokens, with warnings if it is little."""
    lost = describe_dropped(transfer.dropped)
    lines = [
        f"{transfer.pairs:,} of {counted(transfer.rows, 'row')} can be trained on{'; ' if lost else ''}{lost}"
    ]
    for name in SIDES:
        side = transfer[name]
        lines += [
            f"{name}: {side.tokens:,} tokens, {side.one_to_one:.1%} are one of the oracle's, "
            f"{side.merged:.1%} merge several, {side.split:.1%} are a part of one, "
            f"{side.crossing:.1%} cross its bounds",
            f"{name}: {side.selected:.1%} selected; {side.recall:.1%} of the text that the dataset's masks "
            f"select is kept (overlap over union {side.iou:.1%})",
            f"{name}: {side.reward_cut:.1%} of the |reward| is cut off, {side.without_reward:.1%} of the "
            "tokens have no reward"
            + ("" if side.unknown is None else f", {side.unknown:.1%} are unknown tokens"),
        ]
    return lines + [_warning(warning) for warning in transfer.warnings(by_policy=by_policy)]
