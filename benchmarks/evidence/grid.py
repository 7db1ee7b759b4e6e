"""Run the experiment of ``arms.yaml``: data, oracles, annotations, policies and their measurements.

    python benchmarks/evidence/grid.py [--output out/evidence] [--questions NAME ...]

Runs sepo's own commands in-process and appends results as JSON lines. Existing results are not computed
again, so the same command resumes an interrupted run. `report.py` turns them into tables, figures and pages.
"""

import os

os.environ["OMP_NUM_THREADS"] = (
    "1"  # one worker per core, and numbers that do not depend on the number of cores
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from data import flipped, make_data, other_prompts, read_rows, write_rows
from fetch import fetch
from filelock import FileLock
from frontier import score
from stories import Stories, load, measured, response_logps

HERE = Path(__file__).parent
SAMPLING_SEED = 7
PAIRS_SCORED = 200


@dataclass(frozen=True)
class Experiment:
    """A parsed ``arms.yaml`` and the folder of its results."""

    plan: dict[str, Any]
    output: Path

    @property
    def results(self) -> Path:
        """File with one line per checkpoint."""
        return self.output / "results.jsonl"

    def reference(self, model: str) -> Stories:
        """Load a model, once per process."""
        return _loaded(self.plan["models"][model]["folder"])

    def oracle(self, model: str, gold: str, name: str) -> Path:
        """Folder of an oracle and its annotation."""
        return self.folder(model) / gold / "oracles" / name.replace(" ", "-").replace("%", "pc")

    def folder(self, model: str) -> Path:
        """Folder of a model's data, oracles and annotations."""
        return self.output / model


@dataclass(frozen=True)
class Run:
    """One training and its measurements."""

    model: str
    gold: str
    arm: str
    rate: float
    seed: int
    split: str

    @property
    def held_out(self) -> str:
        """Split whose pairs the accuracy is measured on."""
        return "choosing" if self.split == "choosing" else "report"

    @property
    def sampling_seed(self) -> int:
        """Seed of the measured texts; differs for each training seed."""
        return SAMPLING_SEED + 1000 * self.seed

    @property
    def key(self) -> dict[str, Any]:
        """The fields that identify the run in the results."""
        return {name: getattr(self, name) for name in ("model", "gold", "arm", "rate", "seed", "split")}


def main() -> None:
    """Answer all questions in the order of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("out/evidence"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plan", type=Path, default=HERE / "arms.yaml")
    parser.add_argument("--questions", nargs="+", metavar="NAME", help="Answer only these questions.")
    chosen = parser.parse_args()
    experiment = Experiment(yaml.safe_load(chosen.plan.read_text()), chosen.output)
    questions = {
        name: experiment.plan["questions"][name] for name in chosen.questions or experiment.plan["questions"]
    }
    for model in experiment.plan["models"].values():
        if model.get("fetch"):
            fetch(Path(model["folder"]))
    context = multiprocessing.get_context("spawn")
    with context.Pool(chosen.workers, _quiet, (chosen.output,)) as pool:
        each: Callable[..., list[Any]] = partial(_each, pool)
        for model in experiment.plan["models"]:  # in order: a model may reuse the data of an earlier one
            each(partial(prepare_data, experiment), [model])
        for name, question in questions.items():
            began = time.monotonic()
            arms = [(question["model"], question["gold"], arm) for arm in question["arms"]]
            of_arm = experiment.plan["arms"]
            needed = {  # DPO and SFT need no annotation
                (of_arm[arm].get("from", model), gold, of_arm[arm].get("oracle", "full"))
                for model, gold, arm in arms
                if of_arm[arm]["stage"] == "sepo"
            }
            each(partial(prepare_oracle, experiment), sorted(needed))
            climbing = {(model, "valence", of_arm[arm].get("rate_of", arm)) for model, _, arm in arms}
            each(partial(climb, experiment), sorted(climbing))
            rates = {arm: climb(experiment, arm) for arm in arms}  # reads their results
            runs = [
                Run(*arm, rates[arm], seed, question.get("split", "report"))
                for seed in range(question["seeds"])
                for arm in arms
            ]
            each(partial(perform, experiment), runs)
            print(f"{name}: {len(arms)} arms, {len(runs)} runs, {time.monotonic() - began:.0f} s", flush=True)


def _each(pool: Any, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return list(pool.imap(work, items))


def _quiet(output: Path) -> None:
    """Send the output of the commands to a log file per worker."""
    output.mkdir(parents=True, exist_ok=True)
    log = (output / f"worker-{os.getpid()}.log").open("a", buffering=1)
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    os.environ["HF_DATASETS_CACHE"] = str(output / "cache")
    import torch

    torch.set_num_threads(1)


def command(*arguments: object) -> None:
    """Run a sepo command as a shell would."""
    from sepo_cli.main import main as sepo

    try:
        sepo([*map(str, arguments)])
    except SystemExit as stopped:
        if stopped.code:
            raise RuntimeError(f"sepo {' '.join(map(str, arguments))}: exit {stopped.code}") from None


def prepare_data(experiment: Experiment, model: str) -> None:
    """Make prompts and pairs of both golds, or copy those of another model."""
    spec, folder = experiment.plan["models"][model], experiment.folder(model)
    if "data_of" not in spec:
        make_data(experiment.reference(model), folder, spec["prompts"], spec["new_tokens"])
        return
    other = experiment.folder(spec["data_of"])
    for file in (path for path in other.rglob("*.json*") if "oracles" not in path.parts):
        copy = folder / file.relative_to(other)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def prepare_oracle(experiment: Experiment, which: tuple[str, str, str]) -> None:
    """Train an oracle and annotate all training pairs with it."""
    model, gold, name = which
    spec, folder = experiment.plan["oracles"][name], experiment.folder(model) / gold
    reference = experiment.plan["models"][model]["folder"]
    rate = 3e-4 * 64 / experiment.reference(model).width  # wider models diverge at 3e-4
    place = experiment.oracle(model, gold, name)
    if (place / "annotated" / "README.md").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    rows = read_rows(folder / "train.jsonl")
    if spec.get("ends"):  # as if the texts were complete
        rows = [{**row, "truncated": False} for row in rows]
    write_rows(place / "annotate.jsonl", rows)
    rows = flipped(rows, spec.get("flipped", 0))
    rows = rows[: round(spec.get("fraction", 1) * len(rows))]
    write_rows(place / "pairs.jsonl", rows)
    command(
        "train", "dpo", "--model", reference, "--dataset", place / "pairs.jsonl", "--output-dir",
        place / "oracle", "--no-chat-template", "--batch-size", 64, "--micro-batch-size", 32,
        "--learning-rate", rate, "--epochs", 2,
    )  # fmt: skip
    oracle, ref = (reference, place / "oracle") if spec.get("swapped") else (place / "oracle", reference)
    command(
        "annotate", "--oracle", oracle, "--ref", ref, "--dataset", place / "annotate.jsonl", "--output",
        place / "annotated", "--no-chat-template",
    )  # fmt: skip


def climb(experiment: Experiment, arm: tuple[str, str, str]) -> float:
    """Tune the learning rate of an arm by hill climbing, always on the tuning prompts and ``valence``."""
    plan = experiment.plan
    model, _, name = arm
    if "rate_of" in plan["arms"][name]:
        return climb(experiment, (model, "valence", plan["arms"][name]["rate_of"]))

    def reached(rate: float) -> tuple[int, float]:
        run = Run(model, "valence", name, rate, 0, "choosing")
        return score(perform(experiment, run), "valence", plan["climbed_on"])

    best, seen = plan["rate"], {plan["rate"]: reached(plan["rate"])}
    for factor in (2, 0.5):
        while best * factor not in seen:
            seen[best * factor] = reached(best * factor)
            if seen[best * factor] <= seen[best]:
                break
            best *= factor
        if best != plan["rate"]:
            break  # a higher rate was better, so lower ones need no try
    return float(best)


def perform(experiment: Experiment, run: Run) -> list[dict[str, Any]]:
    """Train a policy and measure the reference and its checkpoints, or read the results if they exist."""
    found = sorted(_kept(experiment, run.key), key=lambda line: line["step"])
    if found:
        return found
    folder = experiment.output / "runs" / "-".join(map(str, run.key.values())).replace("/", "_")
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    command(*_training(experiment, run, folder))
    seconds = time.monotonic() - began
    lines = [{**line, "seconds": seconds} for line in _measures(experiment, run, folder)]
    with FileLock(experiment.output / "results.lock"), experiment.results.open("a") as file:
        file.writelines(json.dumps(run.key | line) + "\n" for line in lines)
    shutil.rmtree(folder)
    return lines


def _kept(experiment: Experiment, key: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if experiment.results.exists():
        for line in experiment.results.read_text().splitlines():
            found = json.loads(line)
            if all(found[name] == value for name, value in key.items()):
                yield found


def _training(experiment: Experiment, run: Run, folder: Path) -> list[object]:
    """Arguments of an arm's training command."""
    plan = experiment.plan
    arm, pairs = plan["arms"][run.arm], experiment.folder(run.model) / run.gold
    flag, dataset = "--model", pairs / "train.jsonl"
    if arm["stage"] == "sepo":
        oracle = experiment.oracle(arm.get("from", run.model), run.gold, arm.get("oracle", "full"))
        flag, dataset = "--policy", oracle / "annotated"
    return [
        "train", arm["stage"], flag, plan["models"][run.model]["folder"], "--dataset", dataset,
        "--output-dir", folder, "--learning-rate", run.rate, "--seed", run.seed, *plan["train"],
        "--set", f"max_steps={_checkpoints(plan, run)[-1]}",
        *arm.get("options", []),
    ]  # fmt: skip


def _checkpoints(plan: dict[str, Any], run: Run) -> list[int]:
    """Steps at which a policy is measured; training ends at the last."""
    steps: list[int] = plan["models"][run.model].get("checkpoints", plan["checkpoints"])
    return steps


def _measures(experiment: Experiment, run: Run, folder: Path) -> Iterator[dict[str, Any]]:
    plan, reference = experiment.plan, experiment.reference(run.model)
    prompts = _prompts(experiment, run)
    new_tokens = plan["models"][run.model]["new_tokens"]
    checkpoints = _checkpoints(plan, run)
    for step in (0, *checkpoints):
        if step:
            policy = load(folder / f"checkpoint-{step}")
            found = measured(policy, reference, prompts, new_tokens, run.sampling_seed)
        else:
            policy, found = reference, _of_reference(reference, prompts, new_tokens, run.sampling_seed)
        kl = float(np.mean(found.kl))
        is_last = step == checkpoints[-1] or kl > plan["stop_at"]
        yield {
            "step": step,
            "kl": kl,
            "golds": {name: np.round(values, 2).tolist() for name, values in found.golds.items()},
            "nll": float(np.mean(found.nll)),
            "distinct": float(np.mean(found.distinct)),
            "accuracy": _accuracy(experiment, run, policy) if is_last else None,
            "sample": found.texts[0],
        }
        if is_last:
            return


def _prompts(experiment: Experiment, run: Run) -> tuple[str, ...]:
    plan = experiment.plan
    if run.split == "elsewhere":
        prompts = other_prompts(plan["elsewhere"])
    else:
        prompts = json.loads((experiment.folder(run.model) / "prompts.json").read_text())[run.split]
    return tuple(prompts[: plan["models"][run.model].get("measured")])


def _accuracy(experiment: Experiment, run: Run, policy: Stories) -> float:
    """Share of held-out pairs whose chosen response gained more than the rejected one; ties count half."""
    file = experiment.folder(run.model) / run.gold / f"{run.held_out}.jsonl"
    reference, pairs = experiment.reference(run.model), _pairs(file)
    moved = {
        side: response_logps(policy, pairs, side) - _logps_of_reference(reference, file, side)
        for side in ("chosen", "rejected")
    }
    margin = moved["chosen"] - moved["rejected"]
    return float(((margin > 0) + 0.5 * (margin == 0)).mean())


# All runs of a model share the measurements of its reference; these caches live as long as the process.
_loaded = cache(load)
_of_reference = cache(lambda reference, *settings: measured(reference, reference, *settings))


@cache
def _logps_of_reference(reference: Stories, pairs: Path, side: str) -> npt.NDArray[np.float64]:
    return response_logps(reference, _pairs(pairs), side)


def _pairs(file: Path) -> list[dict[str, Any]]:
    return read_rows(file)[:PAIRS_SCORED]


if __name__ == "__main__":
    main()
