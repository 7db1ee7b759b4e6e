"""The settings of an annotation, checked before any work; the command's options map to them one to one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .errors import SettingsError
from .selection import SelectionRule

Projection = Literal["sum", "majority"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
Weights = Literal["mask", "rewards"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

DEFAULT_SELECTION = SelectionRule()


@dataclass(frozen=True)
class ProjectionSettings:
    """How an annotated row becomes the tokens, masks and weights that a policy trains on.

    Attributes:
        selection: Which tokens are the key tokens. ``random`` depends on the number of the row in the
            annotated dataset. The stored masks of a ``random`` annotation depend on the row of its
            source: they come back the same only if no row before was dropped (and always with
            ``majority``); the number of selected tokens is the same anyway.
        projection: ``sum`` projects the rewards and selects again on the policy's tokens;
            ``majority`` selects the tokens of which the dataset's own selection covers at
            least half, whatever ``selection`` is.
        weights: ``mask`` weighs all selected tokens the same, ``rewards`` by
            `selection.reward_weights`.
        max_length: Most tokens of prompt and response together; responses are cut.
    """

    selection: SelectionRule = DEFAULT_SELECTION
    projection: Projection = "sum"
    weights: Weights = "mask"
    max_length: int = 2048

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            SettingsError: Naming the setting, its value and what it may be.
        """
        for name, known in (("projection", PROJECTIONS), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise SettingsError(f'{name} "{getattr(self, name)}" is not one of {", ".join(known)}.')
        if self.max_length < 1:
            raise SettingsError(f"max_length must be at least 1, got {self.max_length}.")


@dataclass(frozen=True)
class AnnotateSettings:
    """Everything about a run but the dataset and the two models.

    Attributes:
        output: Folder that becomes the annotated dataset.
        config_name: Which configuration, of a dataset that has several.
        split: Which split to annotate.
        revision: Branch, tag or commit of a dataset on the Hub.
        prompt_column: Name of the prompt's column, if it is not ``prompt``.
        chosen_column: Name of the preferred response's column, if it is not ``chosen``.
        rejected_column: Name of the other response's column, if it is not ``rejected``.
        oracle_revision: Branch, tag or commit of an oracle on the Hub.
        ref_revision: Branch, tag or commit of a reference on the Hub.
        allow_pickle: Open weights that are pickles, which can run code.
        trust_remote_code: Run Python code that comes with a model.
        selection: Which tokens are the key tokens.
        chat_template: Render prompts with the oracle's chat template, if it has one.
        max_length: Most tokens of prompt and response together; responses are cut.
        dtype: What the models compute in; the log-softmax is float32 always.
        device: ``auto``, or a torch device such as ``cuda:1`` or ``cpu``.
        batch_tokens: Most tokens in a forward pass; None: what suits the device.
        sequential: Load oracle and reference one after the other; where memory does not hold
            both it is done anyway.
        store_logps: Keep the log-probs of both models beside the rewards.
        limit: Annotate the first rows only.
        shard: ``(i, n)``: this process does the i-th of n parts, counted from 0.
        push_to_hub: Repository that the finished dataset is pushed to.
        private: Make that repository private; it is anyway if the source is gated or private.
        license: Licence for the card, if the source's card states none.
    """

    output: Path
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    prompt_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    oracle_revision: str | None = None
    ref_revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    selection: SelectionRule = DEFAULT_SELECTION
    chat_template: bool = True
    max_length: int = 2048
    dtype: Dtype = "float32"
    device: str = "auto"
    batch_tokens: int | None = None
    sequential: bool = False
    store_logps: bool = False
    limit: int | None = None
    shard: tuple[int, int] = (0, 1)
    push_to_hub: str | None = None
    private: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            SettingsError: Naming the setting, its value and what it may be.
        """
        if self.dtype not in DTYPES:
            raise SettingsError(f'dtype "{self.dtype}" is not one of {", ".join(DTYPES)}.')
        for name in ("max_length", "batch_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, got {value}.")
        index, count = self.shard
        if not 0 <= index < count:
            raise SettingsError(
                f"shard {index}/{count} does not exist. Count from 0: 0/{count} to {count - 1}/{count}."
            )
