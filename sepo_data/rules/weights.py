"""Weights of selected tokens and of pairs in the loss, as functions of the rewards.

``tis`` and ``tgdpo`` are formulae of other methods, whose losses are weighted sums: in SePO's weighted
mean only relative weights matter, so constant factors drop out. With selection ``all`` they weight
every token, as in the papers.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import SettingsError

Weights = Literal["mask", "rewards", "tis", "tgdpo", "signed"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

TIS_K, TIS_MU, TIS_LOW, TIS_HIGH = 1.0, 1.0, -0.5, 1.5
TGDPO_ALPHA, DPO_BETA = 0.5, 0.1
LEAST_PAIR_WEIGHT = 1e-6  # a step's loss is a weighted mean: never 0/0

Numbers = npt.NDArray[np.float64]


def weigh_tokens(
    token_rewards: npt.ArrayLike, mask: npt.NDArray[np.bool_], weights: Weights, *, highest: bool
) -> npt.NDArray[np.float32]:
    """Weight the selected tokens of one response by the formula with this name.

    Args:
        token_rewards: Rewards of one response's tokens, in nats, ``(T,)``; NaN = unknown.
        mask: The selected ones, ``(T,)``.
        weights: ``mask``, ``rewards``, ``tis``, ``tgdpo`` or ``signed``.
        highest: True for chosen responses, False for rejected ones.

    Returns:
        Weights of 0 or more, ``(T,)``; 0 for tokens that are not selected and, except with ``mask``, for
        unknown ones.

    Raises:
        SettingsError: If the formula is unknown.

    Example:
        >>> weigh_tokens([0.0, 2.0], np.array([True, False]), "rewards", highest=True)
        array([0.5, 0. ], dtype=float32)
    """
    if weights == "mask":
        return mask.astype(np.float32)
    if weights not in _FORMULAE:
        raise SettingsError(f'`weights` "{weights}" is not one of {", ".join(WEIGHTS)}.')
    rewards = np.asarray(token_rewards, dtype=np.float64)
    found, known = np.zeros(rewards.shape, dtype=np.float32), mask & ~np.isnan(rewards)
    found[known] = _FORMULAE[weights](rewards[known], 1.0 if highest else -1.0)
    return found


def reward_weights(rewards: Numbers, sign: float) -> Numbers:
    """How strongly the oracle supports a token; ``sign`` is 1 for chosen, -1 for rejected responses.

    With a log-ratio ``r`` of oracle to reference, ``sigmoid(r)`` is the probability that
    of the two the oracle wrote the token: p_oracle / (p_oracle + p_ref).
    """
    return np.exp(-np.logaddexp(0, -sign * rewards))  # the sigmoid, without overflow


def tis_weights(rewards: Numbers, sign: float) -> Numbers:
    """Estimated importance of a token: ``k exp(±mu clamp(r, -0.5, 1.5))``, k and mu 1.

    Source:
        TIS-DPO, arXiv 2410.04350: mu is positive for chosen and negative for rejected responses. Its
        two contrasted models are the oracle and the reference here.
    """
    return TIS_K * np.exp(sign * TIS_MU * np.clip(rewards, TIS_LOW, TIS_HIGH))


def tgdpo_weights(rewards: Numbers, sign: float) -> Numbers:
    """Guidance by the implicit reward ``beta r``: ``1 ± alpha beta r``, alpha 0.5, beta 0.1.

    Source:
        TGDPO, arXiv 2506.14574. Below 0, for rewards beyond 20 nats against their side, it is 0 here:
        a weighted mean cannot have negative weights.
    """
    return np.maximum(0, 1 + sign * TGDPO_ALPHA * DPO_BETA * rewards)


def signed_weights(rewards: Numbers, sign: float) -> Numbers:
    """The size of the reward where it has its side's sign, else 0: ``max(0, ±r)``.

    Source:
        Ours: a token counts in proportion to the oracle's evidence for the side that it is on. The tokens
        are those of ``mass`` with ratio 1.
    """
    return np.maximum(0, sign * rewards)


_FORMULAE = {
    "rewards": reward_weights,
    "tis": tis_weights,
    "tgdpo": tgdpo_weights,
    "signed": signed_weights,
}

PairWeight = Literal["equal", "margin"]
PAIR_WEIGHTS: tuple[PairWeight, ...] = get_args(PairWeight)


def margin_weight(chosen_reward: float, rejected_reward: float) -> float:
    """The weight of a pair: the probability that the oracle gives to its label.

    Args:
        chosen_reward: Sum of the chosen response's rewards, in nats.
        rejected_reward: The same of the rejected response.

    Returns:
        ``sigmoid(beta (chosen - rejected))``, beta 0.1, in ``[1e-6, 1]``: near 0 for pairs that the oracle
        orders the other way, one half where it is undecided.

    Source:
        The Bradley-Terry model with DPO's implicit rewards, arXiv 2305.18290, eq. 1 and 6.

    Example:
        >>> round(margin_weight(10.0, 0.0), 4)
        0.7311
    """
    margin = DPO_BETA * (chosen_reward - rejected_reward)
    return max(LEAST_PAIR_WEIGHT, float(np.exp(-np.logaddexp(0, -margin))))
