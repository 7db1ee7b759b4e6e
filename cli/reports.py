"""What the commands print on stdout: a report of a run, a plan, a row with its selected tokens."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import rich_click as click

from sepo_data.annotate import Report
from sepo_data.health import Health
from sepo_data.planning import Plan
from sepo_data.preferences import response_text
from sepo_data.schema import SIDES


def describe_report(report: Report) -> str:
    """Counts, the oracle's health and, last, where the dataset is."""
    if report.manifest is None:
        return f"this shard is done. When all are: sepo merge {report.output}\n{report.output}"
    counts, health = report.manifest["counts"], report.health
    assert health is not None
    dropped = describe_dropped(counts["dropped"])
    lines = [
        f"annotated {counts['annotated']:,} of {counts['rows']:,} rows{'; ' if dropped else ''}{dropped}"
    ]
    lines += [f"note: {count:,} {what}" for what, count in counts["notes"].items()]
    lines += describe_health(health)
    lines.append(str(report.output) if report.commit is None else f"{report.output}\n{report.commit}")
    return "\n".join(lines)


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """For example ``dropped 13: 9 empty response, 4 no common prompt``."""
    if not dropped:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    return f"dropped {sum(dropped.values()):,}: {reasons}"


def describe_health(health: Health) -> list[str]:
    """The oracle's figures, and a warning where they are poor."""
    lines = [
        f"reward accuracy {health.accuracy:.1%} (inverted {health.inverted:.1%}), mean margin "
        f"{health.margin:+.3f} nats, mean |reward| {health.token_reward:.4f} nats a token",
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
    return lines + [f"warning: {warning}" for warning in health.warnings()]


def describe_plan(plan: Plan) -> str:
    """What a run would cost and drop."""
    source = "" if plan.sampled == plan.rows else f" (from {plan.sampled:,} of them)"
    lines = [
        f"{plan.name}: {plan.rows:,} rows, about {plan.tokens:,} tokens of prompts and responses{source}",
        f"longest response with its prompt: {plan.longest:,} tokens; {plan.truncated:,} responses are cut at "
        f"{plan.max_length:,}",
        describe_dropped(plan.dropped).replace("dropped", "would drop") or "would drop nothing",
        f"about {timedelta(seconds=max(1, round(plan.seconds)))} on {plan.device}, "
        f"peak memory about {plan.memory_bytes / 2**30:.1f} GiB (measured on a few rows, with the longest)",
    ]
    if plan.push_to_hub:
        lines.append(f"would push to {plan.push_to_hub}")
    return "\n".join([*lines, "dry run: nothing was written"])


def describe_row(row: Mapping[str, Any], number: int) -> str:
    """One pair, selected tokens marked: bold on a terminal, in brackets everywhere."""
    lines = [f"row {number}"]
    prompt = row["prompt"]
    turns = [("prompt", prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
    lines += [f"{click.style(role + ':', dim=True)} {content}" for role, content in turns]
    for side, colour in zip(SIDES, ("green", "red"), strict=True):
        head = click.style(f"{side} ({row[f'{side}_reward']:+.2f} nats):", fg=colour)
        lines.append(f"{head} {marked_response(row, side, colour)}")
    return "\n".join(lines)


def marked_response(row: Mapping[str, Any], side: str, colour: str) -> str:
    """The response, its selected tokens in brackets, neighbours joined; ``[end]`` is the end of the turn."""
    response = response_text(row[side])
    pieces, done = [], 0
    for start, end in _selected_spans(row, side):
        # blanks in front of a word belong to its token; outside the bracket they read better
        shown = response[max(start, done) : end].lstrip()
        if shown:
            marked = click.style(f"[{shown}]", fg=colour, bold=True)
            pieces += [response[done : end - len(shown)], marked]
            done = end
    pieces.append(response[done:])
    if row[f"{side}_eos_mask"]:
        pieces.append(click.style("[end]", fg=colour, bold=True))
    return "".join(pieces) + ("" if row[f"{side}_eos_reward"] is not None else " … (cut)")


def _selected_spans(row: Mapping[str, Any], side: str) -> list[tuple[int, int]]:
    """Spans of the selected tokens, those that touch merged."""
    spans: list[tuple[int, int]] = []
    columns = (row[f"{side}_token_start"], row[f"{side}_token_end"], row[f"{side}_token_mask"])
    for start, end, selected in zip(*columns, strict=True):
        if selected and spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        elif selected:
            spans.append((start, end))
    return spans
