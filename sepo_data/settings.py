"""The settings of an annotation, checked before any work; the command's options map to them one to one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import SettingsError
from .selection import SELECTIONS, Selection, check_ratio

Projection = Literal["sum", "majority"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
Weights = Literal["mask", "rewards"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

RATIO = 0.3  # the paper's

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass(frozen=True)
class ProjectionSettings:
    """How an annotated row becomes the tokens, masks and weights that a policy trains on.

    Attributes:
        selection: Rule that marks the key tokens, see `selection`.
        chosen_ratio: Share of the chosen response's tokens to mark, in ``(0, 1]``.
        rejected_ratio: Share of the rejected response's tokens to mark, in ``(0, 1]``.
        projection: ``sum`` projects the rewards and selects again on the policy's tokens;
            ``majority`` selects the tokens of which the dataset's own selection covers at
            least half, whatever ``selection`` and the ratios are.
        weights: ``mask`` weighs all selected tokens the same, ``rewards`` by
            `selection.reward_weights`.
        seed: For the rule ``random``, which depends on it and on the number of the row in
            the annotated dataset. The stored masks of a ``random`` annotation depend on the
            row of its source: they come back the same only if no row before was dropped
            (and always with ``majority``); the number of selected tokens is the same anyway.
        max_length: Most tokens of prompt and response together; responses are cut.
    """

    selection: Selection = "ratio"
    chosen_ratio: float = RATIO
    rejected_ratio: float = RATIO
    projection: Projection = "sum"
    weights: Weights = "mask"
    seed: int = 0
    max_length: int = 2048

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            SettingsError: Naming the setting, its value and what it may be.
            SelectionError: If a ratio is out of range.
        """
        check_ratio(self.chosen_ratio, "chosen ratio")
        check_ratio(self.rejected_ratio, "rejected ratio")
        for name, known in (("selection", SELECTIONS), ("projection", PROJECTIONS), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise SettingsError(f'{name} "{getattr(self, name)}" is not one of {", ".join(known)}.')
        if self.max_length < 1:
            raise SettingsError(f"max_length must be at least 1, got {self.max_length}.")
        if self.seed < 0:
            raise SettingsError(f"seed must not be negative, got {self.seed}.")


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
        selection: Rule that marks the key tokens, see `selection`.
        chosen_ratio: Share of the chosen response's tokens to mark, in ``(0, 1]``.
        rejected_ratio: Share of the rejected response's tokens to mark, in ``(0, 1]``.
        seed: For the rule ``random``.
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
    selection: Selection = "ratio"
    chosen_ratio: float = 0.3
    rejected_ratio: float = 0.3
    seed: int = 0
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
            SelectionError: If a ratio is out of range.
        """
        check_ratio(self.chosen_ratio, "chosen ratio")
        check_ratio(self.rejected_ratio, "rejected ratio")
        if self.selection not in SELECTIONS:
            raise SettingsError(f'selection "{self.selection}" is not one of {", ".join(SELECTIONS)}.')
        if self.dtype not in DTYPES:
            raise SettingsError(f'dtype "{self.dtype}" is not one of {", ".join(DTYPES)}.')
        for name in ("max_length", "batch_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, got {value}.")
        if self.seed < 0:
            raise SettingsError(f"seed must not be negative, got {self.seed}.")
        index, count = self.shard
        if not 0 <= index < count:
            raise SettingsError(
                f"shard {index}/{count} does not exist. Count from 0: 0/{count} to {count - 1}/{count}."
            )


def as_annotated(
    made_with: Mapping[str, Any],
    *,
    selection: Selection | None = None,
    chosen_ratio: float | None = None,
    rejected_ratio: float | None = None,
    **others: Any,
) -> ProjectionSettings:
    """The settings with which a dataset was annotated, where no others are asked for.

    Args:
        made_with: What its manifest says under ``selection``.
        selection: Another rule; the ratios stay if both are shares of the tokens.
        chosen_ratio: Another ratio.
        rejected_ratio: Another ratio.
        others: The other fields of `ProjectionSettings`.
    """
    by_tokens = ("ratio", "random")  # their ratios are shares of the tokens, that of mass is of the reward
    same_kind = selection is None or (selection in by_tokens and made_with.get("rule") in by_tokens)
    shares = made_with if same_kind else {}
    return ProjectionSettings(
        selection=selection or made_with.get("rule", "ratio"),
        chosen_ratio=chosen_ratio or shares.get("chosen_ratio", RATIO),
        rejected_ratio=rejected_ratio or shares.get("rejected_ratio", RATIO),
        **others,
    )
