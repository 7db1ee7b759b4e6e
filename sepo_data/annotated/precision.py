"""What computing in less than float32 does to a run's rewards and masks, measured on rows of its own.

A reward is a small difference of two nearly equal numbers, so rounding that no one would
notice in a log-prob can decide which tokens are selected. A run in bfloat16, float16 or
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
        """What a user should know before training on these masks; ``dtype`` is the run's setting."""
        if self.overlap >= ENOUGH_OVERLAP:
            return []
        exact = (
            "Set NVIDIA_TF32_OVERRIDE=0 and choose another `output`"
            if dtype == "float32"
            else "Pass `dtype=float32`"
        )
        return [
            f"{compute_dtype(dtype)} selects other tokens than float32 would: {self.overlap:.1%} are the "
            f"same, since the rounding of a reward ({self.noise:.4f} nats) is large beside the rewards "
            f"({self.reward_spread:.4f} nats). {exact}, or train the oracle longer."
        ]

    def as_dict(self) -> dict[str, object]:
        """The figures as the manifest stores them."""
        return asdict(self)


def compute_dtype(dtype: str) -> str:
    """What a run that this module is asked about computes in: float32 is TF32 then."""
    return "TF32" if dtype == "float32" else dtype
