"""The settings of an evaluation, checked before any work."""

from dataclasses import dataclass

from ..dataset_spec import DatasetSpec
from ..errors import SettingsError
from ..settings import Dtype


@dataclass(frozen=True)
class EvaluateSettings(DatasetSpec):
    """How to evaluate.

    Attributes:
        by: Column whose values the accuracies are broken down by.
        limit: The first pairs only.
        samples: How many prompts, evenly spread, to sample answers to; 0: none.
        max_new_tokens: Maximum tokens of a sampled answer.
        temperature: To sample at; the KL divergence is that of the policy at 1.
        batch_size: Answers at once.
        seed: For sampling.
        max_length: Maximum tokens of prompt and response of a pair.
        dtype: What the models compute in.
        device: ``auto``, or a torch device.
        allow_pickle: Load pickled weights, which can run code.
        trust_remote_code: Run Python code shipped with a model.
    """

    by: str | None = None
    limit: int | None = None
    samples: int = 64
    max_new_tokens: int = 256
    temperature: float = 1.0
    batch_size: int = 16
    seed: int = 0
    max_length: int = 2048
    dtype: Dtype = "float32"
    device: str = "auto"
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            SettingsError: Naming the setting, its value and the valid ones.
        """
        for name, least in (("limit", 1), ("samples", 0), ("max_new_tokens", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"`{name}` must be at least {least}, got {value}.")
