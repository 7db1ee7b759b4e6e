"""What computing in less than float32 does to a run's rewards and masks, measured on rows of its own.

A reward is a small difference of two nearly equal numbers, so rounding that no one would
notice in a log-prob can decide which tokens are selected. A run in bfloat16, float16 or
TF32 scores a few of its rows in float32 too. No models here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .rows import EncodedPair
from .schema import SIDES
from .scoring import Logps, ScoredSide
from .settings import AnnotateSettings
from .tables import side_masks

PAIRS = 32  # scored twice
ENOUGH_OVERLAP = 0.95  # below it a run warns


@dataclass(frozen=True)
class Precision:
    """How far rewards and masks are from those of float32.

    Attributes:
        pairs: Pairs that were scored twice, the first of the run.
        tokens: Their response tokens, the ends of turns included.
        reward_spread: Standard deviation of their rewards in float32, in nats.
        noise: Root mean square of the differences in reward, in nats.
        overlap: Share of the tokens selected in float32 that are selected by the run.
    """

    pairs: int
    tokens: int
    reward_spread: float
    noise: float
    overlap: float

    def warnings(self, dtype: str) -> list[str]:
        """What a user should know before training on these masks; ``dtype`` is the run's setting."""
        if self.overlap >= ENOUGH_OVERLAP:
            return []
        exact = (
            "Set NVIDIA_TF32_OVERRIDE=0 and choose another --output"
            if dtype == "float32"
            else "Pass --dtype float32"
        )
        return [
            f"{computed_in(dtype)} selects other tokens than float32 would: {self.overlap:.1%} are the same, "
            f"since the rounding of a reward ({self.noise:.4f} nats) is large beside the rewards "
            f"({self.reward_spread:.4f} nats). {exact}, or train the oracle longer."
        ]

    def as_dict(self) -> dict[str, object]:
        """The figures as the manifest stores them."""
        return asdict(self)


def computed_in(dtype: str) -> str:
    """What a run that this module is asked about computes in: float32 is TF32 then."""
    return "TF32" if dtype == "float32" else dtype


def precision_from_dict(stored: Mapping[str, object] | None) -> Precision | None:
    """The figures of a manifest; None if the run was in float32."""
    return None if stored is None else Precision(**stored)  # type: ignore[arg-type]


def compare(
    pairs: Sequence[EncodedPair],
    exact: Mapping[str, ScoredSide],
    scored: Mapping[str, ScoredSide],
    settings: AnnotateSettings,
) -> Precision:
    """Compare the log-probs of a run with those in float32 of its first pairs.

    Args:
        pairs: The pairs of ``scored``.
        exact: Log-probs in float32 by side, of the first of the pairs.
        scored: Log-probs of the run by side, of all of them.
        settings: Selection rule and ratios.
    """
    rewards: list[Logps] = []
    differences: list[Logps] = []
    selected = both = 0
    for side in SIDES:
        right = exact[side].rewards
        found = scored[side].rewards[: len(right)]
        masks = [side_masks(pairs[: len(right)], side, values, settings) for values in (right, found)]
        selected += sum(int(mask.sum()) for mask in masks[0])
        both += sum(int((one & other).sum()) for one, other in zip(*masks, strict=True))
        rewards += right
        differences += [one - other for one, other in zip(found, right, strict=True)]
    flat = np.concatenate(rewards)
    return Precision(
        pairs=len(rewards) // len(SIDES),
        tokens=flat.size,
        reward_spread=float(flat.std(dtype=np.float64)),
        noise=float(np.sqrt(np.square(np.concatenate(differences), dtype=np.float64).mean())),
        overlap=both / selected,
    )
