"""The settings of the three stages, checked before any work; the commands' options map to them one to one.

The defaults are those of the authors' released scripts (arXiv 2408.13518's
repository) where those state one; `docs/training_options.md` lists them with their sources.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.errors import SettingsError
from sepo_data.rules.weights import PAIR_WEIGHTS, PairWeight, Weights
from sepo_data.schema import Side
from sepo_data.selection import Selection, SelectionRule, check_ratio
from sepo_data.settings import (
    DTYPES,
    REASONINGS,
    Dtype,
    Projection,
    ProjectionSettings,
    Reasoning,
    SelectionChange,
)

Loss = Literal["sepo", "dpo"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings shared by all stages.

    Attributes:
        output_dir: Where to save the model.
        model_revision: Branch, tag or commit of a model on the Hub.
        allow_pickle: Load pickled weights, which can run code.
        trust_remote_code: Run Python code shipped with a model.
        chat_template: A Jinja file to use; True: the model's own template, or for messages a
            default one; False: none.
        max_length: Maximum tokens per sequence; longer responses are cut.
        reasoning: Whether to train on the reasoning of responses, use it as context only, or drop such rows.
        fraction: Share of the rows to use, drawn with ``seed``, in ``(0, 1]``.
        eval_fraction: Share of the used rows to hold out, in ``[0, 1)``.
        seed: Seeds the draws above, the order of the data, dropout, and ``random`` selection, which
            depends on the seed and a row's number in the dataset alone.
        learning_rate: Peak learning rate.
        num_train_epochs: Training epochs.
        max_steps: Number of steps instead of ``num_train_epochs``; None: as many as the epochs have.
        max_kl: Measure at every log how far the policy is from the model it started from, and end the
            training beyond this KL divergence, in nats per answer of `distance.NEW_TOKENS` tokens;
            infinity only measures; None: neither.
        save_at: Steps whose checkpoints are kept, whatever others are removed.
        batch_size: Examples per step, over all devices.
        micro_batch_size: Batch size per device; gradients are accumulated up to ``batch_size``.
        dtype: Weight dtype; bfloat16 and float16 make sense with LoRA.
        lora_rank: Train a LoRA adapter of this rank on all linear layers instead of all weights.
        push_to_hub: Repository to push the finished model to.
        private: Make that repository private.
        training_arguments: Any other field of ``transformers.TrainingArguments``, as text.
    """

    output_dir: Path
    model_revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    chat_template: bool | Path = True
    max_length: int = 2048
    reasoning: Reasoning = "score"
    fraction: float = 1.0
    eval_fraction: float = 0.0
    seed: int = 0
    learning_rate: float
    num_train_epochs: float = 1.0
    max_steps: int | None = None
    max_kl: float | None = None
    save_at: tuple[int, ...] = ()
    batch_size: int
    micro_batch_size: int
    dtype: Dtype = "float32"
    lora_rank: int | None = None
    push_to_hub: str | None = None
    private: bool = False
    training_arguments: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            SettingsError: Naming the setting, its value and the valid ones.
            SelectionError: If a ratio is out of range.
        """
        check_ratio(self.fraction, "fraction")
        if not 0 <= self.eval_fraction < 1:
            raise SettingsError(f"`eval_fraction` must be in [0, 1), got {self.eval_fraction}.")
        for name, known in (("dtype", DTYPES), ("reasoning", REASONINGS)):
            if getattr(self, name) not in known:
                raise SettingsError(f'`{name}` "{getattr(self, name)}" is not one of {", ".join(known)}.')
        for name in ("max_length", "max_steps", "batch_size", "micro_batch_size", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"`{name}` must be at least 1, got {value}.")
        for name in ("learning_rate", "num_train_epochs"):
            _check_positive(name, getattr(self, name))
        if self.max_kl is not None and not self.max_kl > 0:
            raise SettingsError(f"`max_kl` must be above 0, got {self.max_kl}. `max_kl=inf` only measures.")
        if self.private and self.push_to_hub is None:
            raise SettingsError("`private` is for a repository. Pass `push_to_hub` with it.")
        if any(step < 1 for step in self.save_at):
            raise SettingsError(f"`save_at` must be steps from 1 on, got {min(self.save_at)}.")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"`seed` must be in [0, 2**32), got {self.seed}.")


@dataclass(frozen=True, kw_only=True)
class SftSettings(TrainSettings, DatasetSpec):
    """Stage 1, the reference.

    Attributes:
        side: Train on this side of a preference dataset; None: the dataset has conversations.
    """

    side: Side | None = None
    learning_rate: float = 5e-6
    batch_size: int = 256
    micro_batch_size: int = 4


@dataclass(frozen=True, kw_only=True)
class DpoSettings(TrainSettings, DatasetSpec):
    """Stage 2, the oracle.

    Attributes:
        beta: A larger one keeps the oracle closer to its reference.
        label_smoothing: Assumed share of mislabelled pairs, in ``[0, 0.5)``.
        pair_weight: ``equal``, or for an annotated dataset by the oracle's ``margin``, see
            `rules.weights.margin_weight`.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    pair_weight: PairWeight = "equal"
    learning_rate: float = 5e-7
    batch_size: int = 256
    micro_batch_size: int = 2

    def __post_init__(self) -> None:
        """As for all stages."""
        super().__post_init__()
        _check_positive("beta", self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise SettingsError(f"`label_smoothing` must be in [0, 0.5), got {self.label_smoothing}.")
        _check_pair_weight(self.pair_weight)


@dataclass(frozen=True, kw_only=True)
class SepoSettings(TrainSettings):
    """Stage 3, the policy.

    Attributes:
        split: Split to train on; None: ``train``, or the only one.
        revision: Branch, tag or commit of a dataset on the Hub.
        selection: Rule that selects the key tokens, see `sepo_data.selection`; None: the one
            that the dataset was annotated with.
        chosen_ratio: Share of the chosen response's tokens to select, in ``(0, 1]``; None: as
            annotated, or 0.3 if that used another rule.
        rejected_ratio: The same for the rejected response.
        threshold: For selection ``threshold``, in nats.
        include_tokens: Select from these tokens only, see `rules.token_filter`; None: as annotated.
        exclude_tokens: Never select these; None: as annotated.
        no_eos: Never select the token that ends the turn.
        ratio_by: Ratios for groups of rows, as ``column=value:ratio,value:ratio``; None: as annotated.
        projection: ``sum`` selects on the rewards at the policy's own tokens, ``majority``
            carries the masks of the dataset.
        weights: ``mask`` counts selected tokens equally; the others: `rules.weights`.
        pair_weight: ``equal``, or by the oracle's ``margin``, see `rules.weights.margin_weight`.
        loss: ``sepo``, or ``dpo``: DPO's loss with the log-ratios of the selected tokens only, against
            the initial policy.
        beta: For ``dpo``, a larger one keeps the policy closer to the initial one.
        scale: For ``sepo``, factor on the gap in the loss.
        margin: For ``sepo``, target for the scaled gap.
    """

    split: str | None = None
    revision: str | None = None
    selection: Selection | None = None
    chosen_ratio: float | None = None
    rejected_ratio: float | None = None
    threshold: float | None = None
    include_tokens: tuple[str, ...] | None = None
    exclude_tokens: tuple[str, ...] | None = None
    no_eos: bool = False
    ratio_by: str | None = None
    projection: Projection = "sum"
    weights: Weights = "mask"
    pair_weight: PairWeight = "equal"
    loss: Loss = "sepo"
    beta: float = 0.1
    scale: float = 1.0
    margin: float = 0.0
    learning_rate: float = 5e-7
    batch_size: int = 128
    micro_batch_size: int = 2

    def __post_init__(self) -> None:
        """As for all stages."""
        super().__post_init__()
        for name in ("chosen_ratio", "rejected_ratio"):
            if (ratio := getattr(self, name)) is not None:
                check_ratio(ratio, name.replace("_", " "))
        _check_positive("scale", self.scale)
        _check_positive("beta", self.beta)
        if self.loss not in LOSSES:
            raise SettingsError(f'loss "{self.loss}" is not one of {", ".join(LOSSES)}.')
        _check_pair_weight(self.pair_weight)
        if not math.isfinite(self.margin):
            raise SettingsError(f"`margin` must be a finite number, got {self.margin}.")
        if self.projection == "majority" and self._change() != SelectionChange():
            raise SettingsError(
                "projection majority carries the masks of the dataset, so a selection or a ratio has "
                "no effect. Leave them out, or use `projection=sum`."
            )
        self.projection_settings(SelectionRule(), self.max_length)

    def _change(self) -> SelectionChange:
        return SelectionChange(**{one.name: getattr(self, one.name) for one in fields(SelectionChange)})

    def projection_settings(self, annotated_with: SelectionRule, max_length: int) -> ProjectionSettings:
        """How to project annotated rows onto the policy's tokens.

        Args:
            annotated_with: The rule of the dataset's own masks.
            max_length: Maximum tokens of the policy.
        """
        rule = self._change().of(annotated_with)
        return ProjectionSettings(
            replace(rule, seed=self.seed), self.projection, self.weights, max_length, self.reasoning
        )

    def with_selection(self, rule: SelectionRule) -> "SepoSettings":
        """The settings with all defaults resolved, as kept in the record."""
        return replace(
            self,
            selection=rule.rule,
            chosen_ratio=rule.chosen_ratio,
            rejected_ratio=rule.rejected_ratio,
            include_tokens=rule.tokens.include or None,
            exclude_tokens=rule.tokens.exclude or None,
        )


def _check_pair_weight(pair_weight: str) -> None:
    if pair_weight not in PAIR_WEIGHTS:
        raise SettingsError(f'`pair_weight` "{pair_weight}" is not one of {", ".join(PAIR_WEIGHTS)}.')


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise SettingsError(f"`{name}` must be a finite number above 0, got {value}.")
