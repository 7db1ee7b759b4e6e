"""Choose the key tokens of a response from their token rewards.

SePO (arXiv 2408.13518) keeps the highest rewards of the chosen response and the
lowest of the rejected one. Four rules: a share of the tokens (``ratio``, the
paper's), the fewest tokens that carry a share of the reward (``mass``), a random
share (``random``, a baseline) and all tokens (``all``, another one). The token
that ends the turn counts as a token: callers put its reward last. No models, no
tokenizers, no files here.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .errors import SelectionError, SettingsError
from .schema import SIDES, Side

Selection = Literal["ratio", "mass", "random", "all"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)

RATIO = 0.3  # the paper's
_SHARES_OF_TOKENS: tuple[Selection, ...] = ("ratio", "random")  # the ratio of mass is a share of the reward

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SelectionRule:
    """Which tokens of a response are its key tokens.

    Attributes:
        rule: ``ratio``, ``mass``, ``random`` or ``all``.
        chosen_ratio: Share of a chosen response's tokens, or with ``mass`` of its reward, in ``(0, 1]``.
        rejected_ratio: The same for rejected responses.
        seed: For ``random``.
    """

    rule: Selection = "ratio"
    chosen_ratio: float = RATIO
    rejected_ratio: float = RATIO
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            SettingsError: If the rule is unknown or the seed negative.
            SelectionError: If a ratio is out of range.
        """
        check_ratio(self.chosen_ratio, "chosen ratio")
        check_ratio(self.rejected_ratio, "rejected ratio")
        if self.rule not in SELECTIONS:
            raise SettingsError(f'selection "{self.rule}" is not one of {", ".join(SELECTIONS)}.')
        if self.seed < 0:
            raise SettingsError(f"seed must not be negative, got {self.seed}.")

    def mask(self, token_rewards: npt.ArrayLike, side: Side, row: int) -> Mask:
        """Mark the key tokens of one response.

        Args:
            token_rewards: In nats, ``(T,)``; that of the token that ends the turn is the last.
            side: Of which response.
            row: Its row, on which ``random`` depends.

        Returns:
            Bool array, ``(T,)``, at least one True.

        Raises:
            SelectionError: If rewards are empty or NaN.
        """
        highest = side == "chosen"
        return select(
            token_rewards,
            self.rule,
            self.chosen_ratio if highest else self.rejected_ratio,
            highest=highest,
            seed=(self.seed, row, SIDES.index(side)),
        )

    def changed(
        self,
        rule: Selection | None = None,
        chosen_ratio: float | None = None,
        rejected_ratio: float | None = None,
    ) -> "SelectionRule":
        """Another rule or ratio; ratios stay unless one rule's are shares of the tokens, the other's not."""
        same_kind = rule is None or {rule, self.rule} <= set(_SHARES_OF_TOKENS)
        kept = self if same_kind else SelectionRule(seed=self.seed)
        return replace(
            kept,
            rule=rule or self.rule,
            chosen_ratio=chosen_ratio or kept.chosen_ratio,
            rejected_ratio=rejected_ratio or kept.rejected_ratio,
        )

    def as_dict(self) -> dict[str, str | float | int | None]:
        """As the manifest stores it: the seed only where it matters."""
        return {
            "chosen_ratio": self.chosen_ratio,
            "rejected_ratio": self.rejected_ratio,
            "rule": self.rule,
            "seed": self.seed if self.rule == "random" else None,
        }


def select_tokens(token_rewards: npt.ArrayLike, ratio: float, *, highest: bool) -> Mask:
    """Mark the tokens with the most extreme rewards.

    Args:
        token_rewards: Rewards of one response's tokens, in nats, shape ``(T,)``.
        ratio: Share of the tokens to mark, in ``(0, 1]``. The paper uses 0.3.
        highest: Mark the highest (chosen responses) or lowest (rejected) rewards.

    Returns:
        Bool array, ``(T,)``, ``max(1, floor(ratio * T + 1e-9))`` of them True; of
        equal rewards the earlier wins.

    Raises:
        SelectionError: If ``ratio`` is out of range, or rewards are empty or NaN.

    Example:
        >>> select_tokens(np.array([0.1, 2.0, -1.0, 0.5]), 0.5, highest=True).tolist()
        [False, True, False, True]
    """
    rewards = _checked(token_rewards, ratio)
    return _first(_ranked(rewards, highest=highest), _share(ratio, rewards.size))


def select_mass(token_rewards: npt.ArrayLike, share: float, *, highest: bool) -> Mask:
    """Mark the fewest tokens that carry a share of the side's reward.

    On the chosen side the mass is the sum of the positive rewards, on the rejected
    side that of the negative ones: a ratio that adapts to each response.

    Args:
        token_rewards: Rewards of one response's tokens, in nats, shape ``(T,)``.
        share: Share of the mass to carry, in ``(0, 1]``.
        highest: Positive mass (chosen responses) or negative mass (rejected).

    Returns:
        Bool array, ``(T,)``, at least one True; of equal rewards the earlier wins.

    Raises:
        SelectionError: If ``share`` is out of range, or rewards are empty or NaN.

    Example:
        >>> select_mass(np.array([3.0, -9.0, 1.0, 6.0]), 0.6, highest=True).tolist()
        [False, False, False, True]
    """
    rewards = _checked(token_rewards, share)
    ranked = _ranked(rewards, highest=highest)
    gains = np.clip(rewards[ranked] * (1 if highest else -1), 0, None)
    carried = np.cumsum(gains)
    # 1e-12 of the total: three thirds of a mass are the mass, whatever the order of the sum
    count = int(np.searchsorted(carried, carried[-1] * (share - 1e-12))) + 1
    return _first(ranked, min(count, rewards.size))


def select_random(num_tokens: int, ratio: float, *, seed: tuple[int, ...]) -> Mask:
    """Mark a random share of the tokens: the baseline that any selection has to beat.

    Args:
        num_tokens: ``T``, at least 1.
        ratio: Share of the tokens to mark, in ``(0, 1]``.
        seed: What the choice depends on, for instance ``(seed, row, side)``; the
            same numbers mark the same tokens, however the data is batched.

    Returns:
        Bool array, ``(T,)``, as many True as ``select_tokens`` would mark.

    Raises:
        SelectionError: If ``ratio`` is out of range, or there are no tokens.
    """
    _checked(np.zeros(num_tokens), ratio)
    return _first(np.random.default_rng(seed).permutation(num_tokens), _share(ratio, num_tokens))


def select(
    token_rewards: npt.ArrayLike,
    rule: Selection,
    ratio: float,
    *,
    highest: bool,
    seed: tuple[int, ...] = (0,),
) -> Mask:
    """Mark the key tokens of one response by the rule with this name.

    Args:
        token_rewards: Rewards of one response's tokens, in nats, shape ``(T,)``.
        rule: ``ratio``, ``mass``, ``random`` or ``all``.
        ratio: Share of the tokens, or with ``mass`` of the reward, in ``(0, 1]``.
        highest: True for chosen responses, False for rejected ones.
        seed: For ``random``, see `select_random`.

    Returns:
        Bool array, ``(T,)``, at least one True.

    Raises:
        SelectionError: If the rule is unknown, ``ratio`` out of range, or rewards are empty or NaN.
    """
    if rule == "ratio":
        return select_tokens(token_rewards, ratio, highest=highest)
    if rule == "mass":
        return select_mass(token_rewards, ratio, highest=highest)
    if rule == "random":
        return select_random(np.size(token_rewards), ratio, seed=seed)
    if rule == "all":
        return select_tokens(token_rewards, 1.0, highest=highest)
    raise SelectionError(f'selection "{rule}" is not known. Use one of {", ".join(SELECTIONS)}.')


def reward_weights(token_rewards: npt.ArrayLike, mask: Mask, *, highest: bool) -> npt.NDArray[np.float32]:
    """Weigh the selected tokens by how far the oracle is behind them.

    With a log-ratio ``r`` of oracle to reference, ``sigmoid(r)`` is the probability that
    of the two the oracle wrote the token: p_oracle / (p_oracle + p_ref).

    Args:
        token_rewards: Rewards of one response's tokens, in nats, ``(T,)``; NaN = unknown.
        mask: The selected ones, ``(T,)``.
        highest: ``sigmoid(r)`` for chosen responses, ``sigmoid(-r)`` for rejected ones.

    Returns:
        Weights in ``[0, 1]``, ``(T,)``; 0 for tokens that are unknown or not selected.

    Example:
        >>> reward_weights([0.0, 2.0], np.array([True, False]), highest=True)
        array([0.5, 0. ], dtype=float32)
    """
    rewards = np.asarray(token_rewards, dtype=np.float64) * (1 if highest else -1)
    weights, known = np.zeros(rewards.shape, dtype=np.float32), mask & ~np.isnan(rewards)
    weights[known] = np.exp(-np.logaddexp(0, -rewards[known]))  # the sigmoid, without overflow
    return weights


def check_ratio(ratio: float, name: str = "ratio") -> None:
    """Refuse a share outside ``(0, 1]`` with a `SelectionError` that names the setting."""
    if not 0 < ratio <= 1:
        raise SelectionError(f"{name} must be in (0, 1], got {ratio}. For 30% pass 0.3.")


def _checked(token_rewards: npt.ArrayLike, ratio: float) -> npt.NDArray[np.float64]:
    check_ratio(ratio)
    rewards = np.asarray(token_rewards, dtype=np.float64)
    if rewards.size == 0 or np.isnan(rewards).any():
        raise SelectionError("token rewards must be non-empty and not NaN")
    return rewards


def _ranked(rewards: npt.NDArray[np.float64], *, highest: bool) -> npt.NDArray[np.intp]:
    return np.argsort(-rewards if highest else rewards, kind="stable")


def _share(ratio: float, num_tokens: int) -> int:
    return max(1, int(ratio * num_tokens + 1e-9))  # 0.29 * 100 is 28.999…


def _first(ranked: npt.NDArray[np.intp], count: int) -> Mask:
    mask = np.zeros(ranked.shape, dtype=bool)
    mask[ranked[:count]] = True
    return mask
