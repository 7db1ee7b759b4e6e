"""Write tables, figures and docs/evidence.md from the results of `grid.py`; no number is typed by hand.

    python benchmarks/evidence/report.py [--output out/evidence] [--docs docs]

Intervals are 95%, from a paired bootstrap over prompts and seeds: two arms that are compared are resampled
together, with the same prompts and seeds.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import yaml
from frontier import Numbers, at_kl, gold_at_kl

matplotlib.use("svg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RESAMPLES = 2000
COLOURS = [
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
    "#8C6D1F",
]  # Okabe and Ito


@dataclass(frozen=True)
class Arm:
    """The runs of an arm for one gold: a list of checkpoints per seed."""

    name: str
    gold: str
    rate: float
    runs: list[list[dict[str, Any]]]

    def at(self, target: float) -> dict[int, Numbers]:
        """Gold of every prompt at a KL, by seed: the seeds that reached it, if at least half of them did."""
        found = {run[0]["seed"]: gold_at_kl(run, self.gold, target) for run in self.runs}
        there = {seed: values for seed, values in found.items() if values is not None}
        return there if 2 * len(there) >= len(found) else {}

    def beside(self, name: str, target: float) -> float | None:
        """Mean over the runs of another measure at a KL."""
        reached = (at_kl(run, lambda checkpoint: checkpoint[name], target) for run in self.runs)
        found = [value for value in reached if value is not None]
        return float(np.mean(found)) if 2 * len(found) >= len(self.runs) else None

    @cached_property
    def accuracy(self) -> float:
        """Accuracy of the last checkpoint on held-out pairs."""
        return float(np.mean([run[-1]["accuracy"] for run in self.runs]))

    @property
    def last(self) -> str:
        """Mean gold and KL of the last checkpoint measured."""
        golds = [np.mean(run[-1]["golds"][self.gold]) for run in self.runs]
        return f"{np.mean(golds):.1f} at {np.mean([run[-1]['kl'] for run in self.runs]):.1f}"

    @cached_property
    def seconds(self) -> float:
        """Mean training time, all steps."""
        return float(np.mean([run[0]["seconds"] for run in self.runs]))


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """``1.23 ± 0.20``: the mean and half the width of the interval."""
        return f"{self.mean:.2f} ± {(self.high - self.low) / 2:.2f}"

    @property
    def percent(self) -> str:
        """A ratio: ``85% (80% to 91%)``."""
        return f"{self.mean:.0%} ({self.low:.0%} to {self.high:.0%})"

    @property
    def signed(self) -> str:
        """A difference with its sign: ``+1.23 ± 0.20``, bold where the interval excludes zero."""
        text = f"{self.mean:+.2f} ± {(self.high - self.low) / 2:.2f}"
        return f"**{text}**" if self.low > 0 or self.high < 0 else text


def stacked(by_seed: dict[int, Numbers]) -> Numbers:
    """``(seeds, prompts)``."""
    return np.array(list(by_seed.values()))


def interval(values: Numbers, divisor: Numbers | None = None) -> Interval:
    """Interval of the mean of ``(seeds, prompts)``, or of the ratio of two means, by resampling both axes."""
    draw = np.random.default_rng(0)
    seeds, prompts = values.shape
    divisors = np.ones_like(values) if divisor is None else divisor
    means = []
    for _ in range(RESAMPLES):
        drawn = np.ix_(draw.integers(seeds, size=seeds), draw.integers(prompts, size=prompts))
        means.append(values[drawn].mean() / divisors[drawn].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean() / divisors.mean()), float(low), float(high))


def read_arms(results: Path) -> dict[tuple[str, str, str, str], Arm]:
    """By model, gold, arm and split: the measurements at the chosen learning rate."""
    runs: dict[tuple[str, ...], dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in map(json.loads, results.read_text().splitlines()):
        if line["split"] != "choosing":
            key = (line["model"], line["gold"], line["arm"], line["split"], line["rate"])
            runs[key][line["seed"]].append(line)
    arms = {}
    for (model, gold, name, split, rate), by_seed in runs.items():
        ordered = [sorted(by_seed[seed], key=lambda line: line["step"]) for seed in sorted(by_seed)]
        arms[model, gold, name, split] = Arm(name, gold, float(rate), ordered)
    return arms


def difference(arm: Arm, other: Arm, target: float) -> Interval | None:
    """Difference of two arms at a KL, paired over the seeds that both have."""
    ours, theirs = arm.at(target), other.at(target)
    common = sorted(ours.keys() & theirs.keys())
    return interval(np.array([ours[seed] - theirs[seed] for seed in common])) if common else None


def share_of_gain(arm: Arm, other: Arm, target: float) -> Interval | None:
    """Gain of an arm over the reference at a KL, divided by that of another arm; paired like `difference`."""
    ours, theirs = arm.at(target), other.at(target)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    start = {run[0]["seed"]: np.array(run[0]["golds"][arm.gold]) for run in arm.runs}
    gain = np.array([ours[seed] - start[seed] for seed in common])
    return interval(gain, np.array([theirs[seed] - start[seed] for seed in common]))


def table(arms: Sequence[Arm], against: Arm, targets: Sequence[float]) -> str:
    """One row per arm: gold at each KL, differences from one arm, and other measures."""
    head = ["arm", "rate", *(f"gold at KL {t}" for t in targets)]
    head += [f"minus {against.name}, KL {t}" for t in targets[:3]]
    head += [f"NLL at KL {targets[2]}", f"distinct words at KL {targets[2]}", "last", "accuracy", "seconds"]
    rows = []
    for arm in arms:
        at = [arm.at(target) for target in targets]
        row = [arm.name, f"{arm.rate:.1e}", *(str(interval(stacked(one))) if one else "—" for one in at)]
        gaps = [None if arm is against else difference(arm, against, t) for t in targets[:3]]
        row += ["—" if gap is None else gap.signed for gap in gaps]
        beside = [arm.beside(name, targets[2]) for name in ("nll", "distinct")]
        row += ["—" if one is None else f"{one:.2f}" for one in beside]
        rows.append([*row, arm.last, f"{arm.accuracy:.0%}", f"{arm.seconds:.0f}"])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(arms: Sequence[Arm], path: Path, limit: float, gold: str) -> None:
    """Plot gold against KL for each arm: the mean over its seeds, with intervals."""
    plt.rcParams |= {"svg.hashsalt": "sepo", "svg.fonttype": "none", "font.size": 9}
    grid = np.linspace(0.5, limit, 60)
    drawing, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for arm, colour in zip(arms, COLOURS * 2, strict=False):
        there = [(kl, stacked(found)) for kl in grid if (found := arm.at(float(kl)))]
        if not there:
            continue
        some = there[:: max(1, len(there) // 12)]
        bands = [interval(found) for _, found in some]
        axes.plot(
            [kl for kl, _ in there],
            [found.mean() for _, found in there],
            color=colour,
            label=arm.name,
            lw=1.6,
        )
        axes.fill_between(
            [kl for kl, _ in some],
            [band.low for band in bands],
            [band.high for band in bands],
            color=colour,
            alpha=0.15,
            lw=0,
        )
    axes.set(xlabel="KL from the reference, nats per continuation", ylabel=f"gold: {gold}", xlim=(0, limit))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    drawing.savefig(path, metadata={"Date": None})
    plt.close(drawing)


def main() -> None:
    """Write the page and its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("out/evidence"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--plan", type=Path, default=HERE / "arms.yaml")
    chosen = parser.parse_args()
    plan = yaml.safe_load(chosen.plan.read_text())
    arms = read_arms(chosen.output / "results.jsonl")
    questions: dict[str, dict[str, str]] = {}
    for name, question in plan["questions"].items():
        split = question.get("split", "report")
        place = question["model"], question["gold"]
        found = [arms[(*place, arm, split)] for arm in question["arms"] if (*place, arm, split) in arms]
        against = arms.get((*place, question.get("against", "SePO"), split))
        if not found or against is None:
            continue
        shown = found if against in found else [against, *found]
        file = f"evidence_{name.replace(' ', '_')}.svg"
        figure(shown, chosen.docs / file, plan["targets"][-1], question["gold"])
        reference = interval(np.array([run[0]["golds"][question["gold"]] for run in against.runs]))
        questions[name] = {
            "table": table(shown, against, plan["targets"]),
            "figure": file,
            "seeds": str(len(found[0].runs)),
            "reference": str(reference),
        }
    found = {path.stem: json.loads(path.read_text()) for path in sorted(chosen.output.glob("*.json"))}
    templates = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(HERE),
    )

    def gap(name: str, other: str, target: float, question: str = "key tokens") -> str:
        """A difference, formatted for a sentence."""
        asked = plan["questions"][question]
        key = asked["model"], asked["gold"]
        ours, theirs = (arms.get((*key, one, asked.get("split", "report"))) for one in (name, other))
        between = difference(ours, theirs, target) if ours and theirs else None
        return "(not measured)" if between is None else between.signed.replace("**", "")

    def kept(name: str, other: str, target: float, question: str) -> str:
        """Gain of an arm as a percentage of another arm's gain, formatted for a sentence."""
        asked = plan["questions"][question]
        key = asked["model"], asked["gold"]
        ours, theirs = (arms.get((*key, one, asked.get("split", "report"))) for one in (name, other))
        share = share_of_gain(ours, theirs, target) if ours and theirs else None
        return "(not measured)" if share is None else share.percent

    pages: dict[str, list[str]] = defaultdict(list)
    for name, question in plan["questions"].items():
        pages[question.get("page", "evidence")].append(name)
    for page, names in pages.items():
        answered = {name: questions[name] for name in names if name in questions}
        if not answered:
            continue
        missing = [name for name in names if name not in answered]
        template = templates.get_template(f"{page}.md.j2")
        text = template.render(q=answered, missing=missing, plan=plan, gap=gap, kept=kept, **found)
        (chosen.docs / f"{page}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
