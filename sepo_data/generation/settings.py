"""The settings of a generation, checked before any work."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingsError
from ..settings import DTYPES, Dtype
from .benchmarks import FORMATS, Format


@dataclass(frozen=True)
class GenerateSettings:
    """How to answer.

    Attributes:
        prompts: A benchmark's question file.
        format: Whose.
        output: The answer file.
        model_name: What the judge is to call the model; None: the last part of its name.
        server: Address of a server that speaks OpenAI's chat protocol; None: in this process.
        temperature: Of questions whose benchmark says none.
        top_p: Sample from the most likely tokens that have this probability together.
        max_new_tokens: Maximum tokens of an answer.
        seed: For sampling.
        batch_size: Questions in a chunk, answered at once.
        limit: The first questions only.
        dtype: What the model computes in.
        device: ``auto``, or a torch device.
        chat_template: As in training.
        revision: Branch, tag or commit of a model on the Hub.
        allow_pickle: Load pickled weights.
        trust_remote_code: Run Python code shipped with a model.
    """

    prompts: Path
    format: Format
    output: Path
    model_name: str | None = None
    server: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    seed: int = 0
    batch_size: int = 16
    limit: int | None = None
    dtype: Dtype = "float32"
    device: str = "auto"
    chat_template: bool | Path = True
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            SettingsError: Naming the setting, its value and the valid ones.
        """
        for name, known in (("format", FORMATS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise SettingsError(f'`{name}` "{getattr(self, name)}" is not one of {", ".join(known)}.')
        for name in ("max_new_tokens", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"`{name}` must be at least 1, got {value}.")
        if self.server is not None and not self.server.startswith(("http://", "https://")):
            raise SettingsError(f"`server` {self.server} is no URL. Give one like http://localhost:8000/v1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise SettingsError("`temperature` must not be negative, and `top_p` must be in (0, 1].")
