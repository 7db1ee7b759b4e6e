"""Tests of the losses against arithmetic done by hand."""

import pytest
import torch

from sepo_train.losses import dpo_loss, sepo_loss, sft_loss


def test_sft_loss_is_the_mean_of_the_trained_tokens() -> None:
    # first: -1, -3 -> 2;  second: -5 alone -> 5;  the -99s are padding or somebody else's
    logps = torch.tensor([[-1.0, -99.0, -3.0], [-5.0, -99.0, -99.0]])
    mask = torch.tensor([[True, False, True], [True, False, False]])
    torch.testing.assert_close(sft_loss(logps, mask), torch.tensor([2.0, 5.0]))


def dpo(beta: float, label_smoothing: float) -> float:
    # log-ratios: chosen -10 - -12 = 2, rejected -20 - -17 = -3, so the difference is 5
    loss = dpo_loss(
        torch.tensor([-10.0]),
        torch.tensor([-20.0]),
        torch.tensor([-12.0]),
        torch.tensor([-17.0]),
        beta=beta,
        label_smoothing=label_smoothing,
    )
    return float(loss)


def test_dpo_loss_is_that_of_the_difference_of_the_log_ratios() -> None:
    assert dpo(0.1, 0.0) == pytest.approx(0.4740770)  # log(1 + e^-0.5)
    assert dpo(1.0, 0.0) == pytest.approx(0.00671535)  # log(1 + e^-5)


def test_label_smoothing_mixes_in_the_loss_of_the_swapped_pair() -> None:
    # 0.9 log(1 + e^-0.5) + 0.1 log(1 + e^0.5) = 0.9 * 0.4740770 + 0.1 * 0.9740770
    assert dpo(0.1, 0.1) == pytest.approx(0.5240770)


def sepo(
    chosen_mask: list[float], rejected_mask: list[float], *, scale: float = 1.0, margin: float = 0.0
) -> float:
    loss = sepo_loss(
        torch.tensor([[-1.0, -99.0, -3.0]]),
        torch.tensor([[-5.0, -99.0]]),
        torch.tensor([chosen_mask]),
        torch.tensor([rejected_mask]),
        scale=scale,
        margin=margin,
    )
    return float(loss)


def test_sepo_loss_is_the_mean_gap_of_selected_tokens() -> None:
    # chosen: selected -1, -3 -> mean -2;  rejected: selected -5;  the -99s are not selected
    # gap 3, so loss = log(1 + e^-3) = 0.0485874
    assert sepo([1, 0, 1], [1, 0]) == pytest.approx(0.0485874)


def test_scale_multiplies_the_gap_and_margin_is_taken_off_it() -> None:
    # 0.5 * 3 - 1 = 0.5
    assert sepo([1, 0, 1], [1, 0], scale=0.5, margin=1.0) == pytest.approx(0.4740770)


def test_weights_make_the_mean_a_weighted_one() -> None:
    # chosen: (1 * -1 + 0.5 * -3) / 1.5 = -5/3; rejected -5 whatever its weight; gap 10/3
    assert sepo([1, 0, 0.5], [0.25, 0]) == pytest.approx(0.0350524)


def test_a_mask_of_booleans_counts_like_ones() -> None:
    loss = sepo_loss(
        torch.tensor([[-1.0, -99.0, -3.0]]),
        torch.tensor([[-5.0, -99.0]]),
        torch.tensor([[True, False, True]]),
        torch.tensor([[True, False]]),
    )
    torch.testing.assert_close(loss, torch.tensor([0.0485874]))


def test_one_pair_does_not_touch_another() -> None:
    chosen, rejected = torch.tensor([[-2.0], [-1.0]]), torch.tensor([[-5.0], [-1.0]])
    ones = torch.ones(2, 1)
    # gaps 3 and 0: log(1 + e^-3), log 2
    torch.testing.assert_close(sepo_loss(chosen, rejected, ones, ones), torch.tensor([0.0485874, 0.6931472]))
