"""Tests of the trainer on tiny models: its gradient, its metrics, and how work is divided."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_models import FAMILIES, VOCABULARY, tiny_model, tiny_tokenizer
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from sepo_data.errors import TrainingError
from sepo_data.models.batching import row_padding
from sepo_data.models.logprobs import HEAD_ELEMENTS
from sepo_data.models.packing_check import prepare
from sepo_train.arguments import training_arguments
from sepo_train.batches import Forwards, collate, sequence_logps
from sepo_train.examples import Example, WeightedSequence, all_selected_only, selected_only
from sepo_train.objectives import Objective, dpo_objective, sepo_objective, sft_objective
from sepo_train.settings import SepoSettings
from sepo_train.trainer import ByLength, StageTrainer


def prompt_of(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rng.integers(3, VOCABULARY, int(rng.integers(1, 6)))


def sequence(
    rng: np.random.Generator, prompt: npt.NDArray[np.int64], *, weights: str = "mask"
) -> WeightedSequence:
    response = int(rng.integers(3, 12))
    chance = rng.random(response).astype(np.float32)
    mask = (chance < 0.4).astype(np.float32)
    mask[int(rng.integers(response))] = 1.0
    return WeightedSequence(
        np.concatenate([prompt, rng.integers(3, VOCABULARY, response)]),
        np.arange(prompt.size, prompt.size + response),
        {"mask": mask, "rewards": mask * chance, "all": np.ones(response, np.float32)}[weights],
        length=response,
    )


def pairs(count: int, *, weights: str = "mask", seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    found = []
    for row in range(count):
        prompt = prompt_of(rng)
        sides = (sequence(rng, prompt, weights=weights), sequence(rng, prompt, weights=weights))
        found.append(Example(row, sides, ref_logps=(-20.0, -30.0)))
    return found


def conversations(count: int) -> list[Example]:
    rng = np.random.default_rng(1)
    found = [sequence(rng, prompt_of(rng), weights="all") for _ in range(count)]
    return [Example(row, (item,), items=item.positions.size) for row, item in enumerate(found)]


def train(
    output_dir: Path,
    examples: Sequence[Example],
    objective: Objective,
    *,
    held_out: Sequence[Example] = (),
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
    batch_size: int = 4,
    micro_batch_size: int = 4,
    epochs: float = 1.0,
    model: PreTrainedModel | None = None,
    switches: Sequence[int] = (),
    **training_arguments_: str,
) -> StageTrainer:
    settings = SepoSettings(
        output_dir=output_dir,
        learning_rate=1e-2,
        num_train_epochs=epochs,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        eval_fraction=0.5 if held_out else 0.0,
        training_arguments={"logging_steps": "1", **training_arguments_},
    )
    trainer = StageTrainer(
        model or tiny_model(),
        training_arguments(settings),
        objective,
        [all_selected_only(example, switches) for example in examples],
        held_out,
        tiny_tokenizer(),
        stop,
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def losses(trainer: StageTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def parameters(trainer: StageTrainer) -> Tensor:
    model = cast("PreTrainedModel", trainer.model)
    return torch.cat([weights.detach().flatten() for weights in model.parameters()])


def test_speed_is_tokens_over_the_seconds_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 2))  # every step takes two seconds, and so does what is between two steps
    monkeypatch.setattr("sepo_train.trainer.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    examples = pairs(8)
    quiet: dict[str, Any] = {"logging_steps": "2", "logging_first_step": "false"}
    trainer = train(tmp_path, examples, sepo_objective(1.0, 0.0), **quiet)
    batches = [examples[:4], examples[4:]]  # of a packed batch no token is padding, whoever is in it
    tokens = sum(
        trainer.data_collator([{"input_ids": all_selected_only(one)} for one in batch])["input_ids"].numel()
        for batch in batches
    )
    (speed,) = [entry["tokens_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    assert speed == pytest.approx(tokens / 4)


def test_tokens_after_the_last_selected_one_are_cut() -> None:
    found = selected_only(
        WeightedSequence(
            np.arange(10), np.arange(4, 10), np.array([0, 1, 0, 0.5, 0, 0], np.float32), length=6
        )
    )
    assert found.input_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found.positions.tolist() == [5, 7]
    assert found.weights.tolist() == [1.0, 0.5]
    assert found.length == 6


def naive_loss(model: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """SePO's loss from all logits of each sequence alone."""
    found = []
    for example in examples:
        means = []
        for item in example.sequences:
            ids = torch.from_numpy(item.input_ids)
            logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            places = torch.from_numpy(item.positions)
            weights = torch.from_numpy(item.weights)
            means.append((logps[places - 1, ids[places]] * weights).sum() / weights.sum())
        found.append(-logsigmoid(2.0 * (means[0] - means[1]) - 0.5))
    return torch.stack(found).mean()


def flat_gradient(model: PreTrainedModel) -> Tensor:
    return torch.cat([cast("Tensor", weights.grad).flatten() for weights in model.parameters()])


def loss_of(
    model: PreTrainedModel, examples: Sequence[Example], head_elements: int = HEAD_ELEMENTS
) -> Tensor:
    """SePO's loss as the trainer computes it."""
    selected = [Example(e.row, tuple(map(selected_only, e.sequences)), e.items) for e in examples]
    batch = collate(selected, Forwards(row_padding(model)))
    found = sequence_logps(model, batch, head_elements=head_elements)
    padded = torch.nn.utils.rnn.pad_sequence(found, True)
    return sepo_objective(2.0, 0.5)(padded, batch).losses.mean()


@pytest.mark.parametrize("head", ["whole", "in parts"])
@pytest.mark.parametrize("path", ["packed", "plain"])
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gpt_oss"}))  # its experts know no doubles
def test_the_gradient_is_that_of_the_naive_formula_on_all_logits(family: str, path: str, head: str) -> None:
    examples = pairs(5, weights="rewards")
    model = tiny_model(family).double()
    naive_loss(model, examples).backward()
    expected = flat_gradient(model)
    model.zero_grad()

    if path == "packed":
        prepare(model, 64)
    loss_of(model, examples, 7 * VOCABULARY if head == "in parts" else HEAD_ELEMENTS).backward()

    gradient = flat_gradient(model)
    # log-softmax is float32 here, whatever the model computes in
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(
    ("examples", "objective"),
    [
        (conversations(8), sft_objective),
        (pairs(8), sepo_objective(1.0, 0.0)),
        (pairs(8), dpo_objective(0.1, 0.0)),
    ],
    ids=["sft", "sepo", "dpo"],
)
def test_one_times_four_trains_like_four_times_one(
    tmp_path: Path, examples: list[Example], objective: Objective
) -> None:
    # conversations have different numbers of tokens: a mean of means would differ.
    # Plain SGD: Adam divides by the gradient's size, and blows up rounding where that is almost 0
    plain: dict[str, Any] = {"optim": "sgd", "max_grad_norm": "0"}
    whole = train(tmp_path / "4x1", examples, objective, micro_batch_size=4, **plain)
    parts = train(tmp_path / "1x4", examples, objective, micro_batch_size=1, **plain)
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-5)
    assert len(losses(whole)) == 2
    torch.testing.assert_close(parameters(whole), parameters(parts), rtol=1e-5, atol=1e-6)
    moved = parameters(whole) - torch.cat([weights.flatten() for weights in tiny_model().parameters()])
    assert moved.abs().max() > 1e-3


def test_every_epoch_has_an_order_of_its_own_and_every_process_the_same() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = ByLength([5] * 40, batch_size=4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(7, 1) == order(7, 1)
    orders = [order(7, 0), order(7, 1), order(8, 0)]
    assert all(sorted(one) == list(range(40)) for one in orders)
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_the_loss_of_a_step_is_the_mean_over_its_pairs(tmp_path: Path) -> None:
    examples = pairs(4)
    logged = losses(train(tmp_path, examples, sepo_objective(2.0, 0.5), micro_batch_size=2))
    assert logged == pytest.approx([naive_loss(tiny_model(), examples).item()], rel=1e-5)


def test_sft_weighs_every_token_of_a_step_the_same(tmp_path: Path) -> None:
    examples = conversations(4)
    logged = losses(train(tmp_path, examples, sft_objective, micro_batch_size=1))
    model, total = tiny_model(), 0.0
    for example in examples:
        ids = torch.from_numpy(example.sequences[0].input_ids)
        places = torch.from_numpy(example.sequences[0].positions)
        logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)[places - 1, ids[places]]
        total -= logps.sum().item()
    assert logged == pytest.approx([total / sum(example.items for example in examples)], rel=1e-5)


@pytest.mark.parametrize("stop_after", [0, 1, 2])
@pytest.mark.parametrize("stage", ["sepo", "sft"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, stage: str, stop_after: int) -> None:
    examples = pairs(8) if stage == "sepo" else conversations(8)
    arguments: dict[str, Any] = {
        "objective": sepo_objective(1.0, 0.0) if stage == "sepo" else sft_objective,
        "held_out": (pairs(3, seed=9) if stage == "sepo" else conversations(3)),
        "train_sampling_strategy": "random" if stage == "sepo" else "group_by_length",
        "epochs": 2.0,
        "micro_batch_size": 2,
    }

    def dropping() -> PreTrainedModel:
        return tiny_model(attention_dropout=0.2)  # the state of the random numbers counts, too

    whole = train(tmp_path / "whole", examples, model=dropping(), **arguments)
    steps = iter(range(10))
    first = train(
        tmp_path / "parts", examples, model=dropping(), stop=lambda: next(steps) == stop_after, **arguments
    )
    assert first.state.global_step == stop_after + 1
    second = train(tmp_path / "parts", examples, model=dropping(), resume=True, **arguments)
    assert second.state.global_step == whole.state.global_step == 4
    assert torch.equal(parameters(whole), parameters(second))
    assert losses(whole) == losses(second)


def test_held_out_figures_are_those_of_the_whole_set(tmp_path: Path) -> None:
    held_out = pairs(5, seed=4)
    trainer = train(tmp_path, pairs(4), sepo_objective(2.0, 0.5), held_out=held_out, micro_batch_size=2)
    model = tiny_model()
    first = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert first["eval_loss"] == pytest.approx(naive_loss(model, held_out).item(), rel=1e-5)
    means: dict[str, list[float]] = {"selected": [], "all": []}
    for example in held_out:
        for item in example.sequences:
            ids, places = torch.from_numpy(item.input_ids), torch.from_numpy(item.positions)
            with torch.no_grad():
                logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)[places - 1, ids[places]]
            means["all"].append(float(logps.mean()))
            means["selected"].append(float(logps[torch.from_numpy(item.weights) > 0].mean()))
    gaps = np.subtract(means["selected"][0::2], means["selected"][1::2])
    assert first["eval_margin"] == pytest.approx(gaps.mean(), rel=1e-4)
    assert first["eval_accuracy"] == pytest.approx((gaps > 0).mean())
    assert first["eval_logps/chosen"] == pytest.approx(np.mean(means["selected"][0::2]), rel=1e-5)
    assert first["eval_logps/rejected_all"] == pytest.approx(np.mean(means["all"][1::2]), rel=1e-5)
    all_gaps = np.subtract(means["all"][0::2], means["all"][1::2])
    assert first["eval_margin_all"] == pytest.approx(all_gaps.mean(), rel=1e-4)
    assert first["eval_accuracy_all"] == pytest.approx((all_gaps > 0).mean())
    lengths = np.mean([[item.length for item in example.sequences] for example in held_out], axis=0)
    assert lengths[0] != lengths[1]
    assert [first["eval_length/chosen"], first["eval_length/rejected"]] == pytest.approx(lengths.tolist())
    step = next(entry for entry in trainer.state.log_history if "loss" in entry)
    trained = np.mean([[item.length for item in example.sequences] for example in pairs(4)], axis=0)
    assert [step["length/chosen"], step["length/rejected"]] == pytest.approx(trained.tolist())
    assert first["eval_drift/chosen_all"] == 0.0


def test_drift_is_the_change_since_the_first_evaluation(tmp_path: Path) -> None:
    trainer = train(tmp_path, pairs(8), sepo_objective(1.0, 0.0), held_out=pairs(3, seed=3), epochs=3.0)
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    change = entries[-1]["eval_logps/chosen"] - entries[0]["eval_logps/chosen"]
    assert entries[-1]["eval_drift/chosen"] == pytest.approx(change)
    assert change != 0.0


def test_a_collapse_of_the_chosen_log_probs_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # nothing holds the chosen responses up when only the rejected ones' fall is rewarded
    def falling(token_logps: Tensor, batch: dict[str, Tensor]) -> Any:
        outcome = sepo_objective(1.0, 0.0)(token_logps, batch)
        return outcome._replace(losses=token_logps.sum(-1).view(-1, 2).sum(-1))

    train(tmp_path, pairs(8), falling, epochs=10.0)
    said = [record for record in caplog.records if "collapses" in record.getMessage()]
    assert len(said) == 1
    assert "`learning_rate`" in said[0].getMessage()


def test_gradient_checkpointing_changes_no_number(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", pairs(8), sepo_objective(1.0, 0.0))
    saving = train(tmp_path / "saving", pairs(8), sepo_objective(1.0, 0.0), activation_checkpointing="true")
    assert losses(plain) == pytest.approx(losses(saving), rel=1e-6)


def test_the_loss_falls(tmp_path: Path) -> None:
    found = losses(train(tmp_path, pairs(4), sepo_objective(1.0, 0.0), epochs=8.0))
    assert found[-1] < 0.8 * found[0]
    assert all(math.isfinite(loss) for loss in found)


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_change(tmp_path: Path) -> None:
    def broken(token_logps: Tensor, batch: dict[str, Tensor]) -> Any:
        outcome = sepo_objective(1.0, 0.0)(token_logps, batch)
        return outcome._replace(losses=outcome.losses * float("nan"))

    with pytest.raises(
        TrainingError, match=r"step 1: the loss is not a finite number\. Lower `learning_rate`"
    ):
        train(tmp_path, pairs(4), broken)


def test_a_collapse_of_the_tokens_that_are_not_selected_shows_on_held_out_pairs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # the selected tokens of chosen responses rise, and whatever else the policy says falls with the rejected
    def unheeding(token_logps: Tensor, batch: dict[str, Tensor]) -> Any:
        outcome = sepo_objective(1.0, 0.0)(token_logps, batch)
        figures = {**outcome.figures, "logps/chosen": torch.zeros(len(batch["items"]))}
        return outcome._replace(losses=token_logps.sum(-1).view(-1, 2).sum(-1), figures=figures)

    train(tmp_path, pairs(8), unheeding, held_out=pairs(4, seed=2), epochs=30.0)
    (said,) = [record.getMessage() for record in caplog.records if "collapses" in record.getMessage()]
    assert said.startswith("all tokens of chosen responses are")
