"""How computing in less than float32 changes a run's rewards and masks, measured on its own rows.

A reward is a small difference of two nearly equal numbers, so rounding that is negligible
in a log-prob can decide which tokens are selected. A run in bfloat16, float16 or
TF32 scores a few of its rows in float32 too. No models here.
"""

from dataclasses import asdict, dataclass

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
        """A warning to read before training on these masks, or nothing; ``dtype`` is the run's setting."""
        if self.overlap >= ENOUGH_OVERLAP:
            return []
        exact = (
            "Set NVIDIA_TF32_OVERRIDE=0 and choose another `output`"
            if dtype == "float32"
            else "Pass `dtype=float32`"
        )
        return [
            f"{compute_dtype(dtype)} selects different tokens than float32: {self.overlap:.1%} are the "
            f"same, since the rounding of a reward ({self.noise:.4f} nats) is large compared with the "
            f"rewards ({self.reward_spread:.4f} nats). {exact}, or train the oracle longer."
        ]

    def as_dict(self) -> dict[str, object]:
        """The figures as the manifest stores them."""
        return asdict(self)


def compute_dtype(dtype: str) -> str:
    """The compute dtype of such a run; float32 means TF32 here."""
    return "TF32" if dtype == "float32" else dtype
