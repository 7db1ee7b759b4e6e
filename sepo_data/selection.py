"""Choose the key tokens of a response from their token rewards.

SePO (arXiv 2408.13518) keeps the highest rewards of the chosen response and the
lowest of the rejected one. Six rules: a share of the tokens (``ratio``, the
paper's), the fewest tokens that carry a share of the reward (``mass``), a share of
all the dataset's tokens (``global``), those beyond a reward (``threshold``), a
random share (``random``, a baseline) and all tokens (``all``, another one). The
token that ends the turn counts as a token: callers put its reward last. No models,
no tokenizers, no files here.
"""

from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .errors import SelectionError, SettingsError
from .rules.cutoffs import Cutoffs, RewardCounts
from .rules.groups import RatioBy
from .rules.shares import tokens_in_share
from .rules.token_filter import TokenFilter
from .schema import SIDES, Side, Sides

Selection = Literal["ratio", "mass", "global", "threshold", "random", "all"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
PER_RESPONSE: tuple[Selection, ...] = ("ratio", "mass", "random", "all")  # these always select something

RATIO = 0.3  # the paper's
GROUPED: tuple[Selection, ...] = ("ratio", "mass", "random")
_ALL_TOKENS = TokenFilter()

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SelectionRule:
    """Which tokens of a response are its key tokens.

    Attributes:
        rule: ``ratio``, ``mass``, ``global``, ``threshold``, ``random`` or ``all``.
        chosen_ratio: Share of a chosen response's tokens, with ``mass`` of its reward, with ``global`` of the
            tokens of all chosen responses, in ``(0, 1]``.
        rejected_ratio: The same for rejected responses.
        seed: For ``random``.
        cutoffs: For ``threshold`` and ``global``, in nats: the lowest reward of a selected chosen token, and
            the highest of a rejected one. None with ``global``: the dataset was not counted yet.
        tokens: Which tokens may be selected; ratios are shares of those.
        ratio_by: Other ratios for groups of rows.
    """

    rule: Selection = "ratio"
    chosen_ratio: float = RATIO
    rejected_ratio: float = RATIO
    seed: int = 0
    cutoffs: Cutoffs | None = None
    tokens: TokenFilter = _ALL_TOKENS
    ratio_by: RatioBy | None = None

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            SettingsError: If the rule is unknown, the seed negative, or two fields exclude each other.
            SelectionError: If a ratio is out of range.
        """
        check_ratio(self.chosen_ratio, "chosen ratio")
        check_ratio(self.rejected_ratio, "rejected ratio")
        if self.rule not in SELECTIONS:
            raise SettingsError(f'`selection` "{self.rule}" is not one of {", ".join(SELECTIONS)}.')
        if self.seed < 0:
            raise SettingsError(f"`seed` must not be negative, got {self.seed}.")
        if self.rule == "threshold" and self.cutoffs is None:
            raise SettingsError("selection threshold needs a number of nats. Pass `threshold=0.5`.")
        if self.cutoffs is not None and self.rule not in ("threshold", "global"):
            raise SettingsError(
                f"a threshold has no effect with {self.rule}. Pass `selection=threshold` with it."
            )
        if self.ratio_by is not None and self.rule not in GROUPED:
            raise SettingsError(
                f"ratios by {self.ratio_by.column} have no effect with {self.rule}. "
                f"Use one of {', '.join(GROUPED)}."
            )

    def mask(
        self, token_rewards: npt.ArrayLike, side: Side, row: int, *, eligible: Mask | None = None
    ) -> Mask:
        """Mark the key tokens of one response.

        Args:
            token_rewards: In nats, ``(T,)``; that of the token that ends the turn comes last.
            side: The side of the response.
            row: Its row, on which ``random`` depends.
            eligible: Which may be selected, ``(T,)``: the known ones that ``tokens`` allows; None: all.

        Returns:
            Bool array, ``(T,)``; all False if no token may be selected, or none is beyond a cutoff.

        Raises:
            SelectionError: If there are no rewards, one that may be selected is NaN, or ``global`` has no
                cutoffs.
        """
        rewards = np.asarray(token_rewards)
        if eligible is not None:
            mask = np.zeros(rewards.shape, dtype=bool)
            if eligible.any():
                mask[eligible] = self.mask(rewards[eligible], side, row)
            return mask
        highest = side == "chosen"
        if self.rule in ("threshold", "global"):
            if self.cutoffs is None:
                raise SelectionError(
                    "selection global ranks the tokens of a whole dataset, but this is one response. Run "
                    "sepo reselect first, or set the rule's cutoffs."
                )
            return select_beyond(rewards, getattr(self.cutoffs, side), highest=highest)
        return select(
            rewards,
            self.rule,
            self.ratio(side),
            highest=highest,
            seed=(self.seed, row, SIDES.index(side)),
        )

    def ratio(self, side: Side) -> float:
        """The ratio of a side's responses."""
        return self.chosen_ratio if side == "chosen" else self.rejected_ratio

    def dataset_cutoffs(self, counts: Sides[RewardCounts]) -> Cutoffs:
        """What ``global`` cuts off at, from all rewards of chosen tokens and the negatives of rejected ones.

        Raises:
            SelectionError: If no token may be selected.
        """
        chosen, rejected = (counts[side].cutoff(self.ratio(side)) for side in SIDES)
        return Cutoffs(chosen, -rejected)

    def of_group(self, value: object) -> "SelectionRule":
        """The rule of a row with this value in the column of ``ratio_by``."""
        if self.ratio_by is None:
            return self
        ratio = self.ratio_by.ratios.get(str(value))
        if ratio is None:
            return replace(self, ratio_by=None)
        return replace(self, ratio_by=None, chosen_ratio=ratio, rejected_ratio=ratio)

    def as_dict(self) -> dict[str, object]:
        """As stored in the manifest, without those of the last three fields that are not set."""
        optional = {"cutoffs": self.cutoffs, "ratio_by": self.ratio_by, "tokens": self.tokens or None}
        return {
            "chosen_ratio": self.chosen_ratio,
            "rejected_ratio": self.rejected_ratio,
            "rule": self.rule,
            "seed": self.seed if self.rule == "random" else None,
            **{name: asdict(value) for name, value in optional.items() if value is not None},
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
    return _first(_ranked(rewards, highest=highest), int(tokens_in_share(ratio, rewards.size)))


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


def select_beyond(token_rewards: npt.ArrayLike, cutoff: float, *, highest: bool) -> Mask:
    """Mark all tokens whose rewards reach a cutoff.

    Args:
        token_rewards: Rewards of one response's tokens, in nats, shape ``(T,)``.
        cutoff: In nats. For ``threshold`` the user's; for ``global`` the reward reached by the share of all
            tokens, see `rules.cutoffs`.
        highest: Mark rewards from the cutoff up (chosen responses) or down (rejected).

    Returns:
        Bool array, ``(T,)``; it may be all False.

    Raises:
        SelectionError: If rewards are empty or NaN.

    Example:
        >>> select_beyond([0.1, 2.0, 0.5], 0.5, highest=True).tolist()
        [False, True, True]
    """
    rewards = _checked(token_rewards, 1.0)
    return rewards >= cutoff if highest else rewards <= cutoff


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
    shuffled = np.random.default_rng(seed).permutation(num_tokens)
    return _first(shuffled, int(tokens_in_share(ratio, num_tokens)))


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
        rule: ``ratio``, ``mass``, ``random`` or ``all``, which need one response and a ratio only.
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
    raise SelectionError(f'`selection` "{rule}" is not known. Use one of {", ".join(PER_RESPONSE)}.')


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
    # Stable, so of equal rewards the earlier token wins. `ranked` in report/rows.js does the same.
    return np.argsort(-rewards if highest else rewards, kind="stable")


def _first(ranked: npt.NDArray[np.intp], count: int) -> Mask:
    mask = np.zeros(ranked.shape, dtype=bool)
    mask[ranked[:count]] = True
    return mask
