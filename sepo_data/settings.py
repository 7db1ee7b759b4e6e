"""The settings of an annotation, checked before any work; the command's options map to them one to one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from .dataset_spec import DatasetSpec
from .errors import SettingsError
from .rules.cutoffs import Cutoffs
from .rules.groups import RatioBy
from .rules.token_filter import END_OF_TURN, TokenFilter
from .rules.weights import WEIGHTS, Weights
from .selection import GROUPED, PER_RESPONSE, Selection, SelectionRule

Projection = Literal["sum", "majority"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

Reasoning = Literal["score", "skip", "refuse"]
REASONINGS: tuple[Reasoning, ...] = get_args(Reasoning)

DEFAULT_SELECTION = SelectionRule()
_SHARES_OF_TOKENS: set[Selection] = {"ratio", "global", "random"}  # mass takes a share of the reward


@dataclass(frozen=True)
class SelectionChange:
    """Changes to an existing selection; None: unchanged.

    Attributes:
        selection: Another rule.
        chosen_ratio: Another ratio of chosen responses.
        rejected_ratio: Another ratio of rejected ones.
        threshold: For the rule ``threshold``, in nats: chosen tokens from it up, rejected ones from its
            negative down.
        include_tokens: See `TokenFilter`.
        exclude_tokens: The same.
        no_eos: Never select the token that ends the turn, whatever else is excluded.
        ratio_by: As `RatioBy.parse` reads it.
    """

    selection: Selection | None = None
    chosen_ratio: float | None = None
    rejected_ratio: float | None = None
    threshold: float | None = None
    include_tokens: tuple[str, ...] | None = None
    exclude_tokens: tuple[str, ...] | None = None
    no_eos: bool = False
    ratio_by: str | None = None

    def of(self, was: SelectionRule) -> SelectionRule:
        """The changed rule; ratios are kept unless they mean something else under the new rule.

        Raises:
            SettingsError: If the changes exclude each other.
            SelectionError: If a ratio is out of range.
        """
        rule = self.selection or was.rule
        kept = was if rule == was.rule or {rule, was.rule} <= _SHARES_OF_TOKENS else SelectionRule()
        ratios = {
            name: ratio
            for name in ("chosen_ratio", "rejected_ratio")
            if (ratio := getattr(self, name)) is not None
        }
        cutoffs = was.cutoffs if rule == was.rule and not ratios else None
        if self.threshold is not None:
            cutoffs = Cutoffs(self.threshold, -self.threshold)
        ratio_by = kept.ratio_by if rule in GROUPED else None
        include = was.tokens.include if self.include_tokens is None else self.include_tokens
        exclude = was.tokens.exclude if self.exclude_tokens is None else self.exclude_tokens
        if self.no_eos and END_OF_TURN not in exclude:
            exclude = (*exclude, END_OF_TURN)
        return replace(
            kept,
            rule=rule,
            seed=was.seed,
            cutoffs=cutoffs,
            tokens=TokenFilter(include, exclude),
            ratio_by=ratio_by if self.ratio_by is None else RatioBy.parse(self.ratio_by),
            **ratios,
        )


@dataclass(frozen=True)
class ProjectionSettings:
    """How an annotated row becomes the tokens, masks and weights that a policy trains on.

    Attributes:
        selection: Which tokens are the key tokens. ``random`` depends on the number of the row in the
            annotated dataset. The stored masks of a ``random`` annotation depend on the row of its
            source: they come back the same only if no row before was dropped (and always with
            ``majority``); the number of selected tokens is the same anyway.
        projection: ``sum`` projects the rewards and selects again on the policy's tokens;
            ``majority`` selects tokens that the dataset's own selection covers by at
            least half, whatever ``selection`` is.
        weights: ``mask`` weights all selected tokens equally; for the others see `rules.weights`.
        max_length: Maximum tokens of prompt and response together; responses are cut.
        reasoning: ``skip`` selects no token of the responses' reasoning, ``refuse`` drops rows that have any.
    """

    selection: SelectionRule = DEFAULT_SELECTION
    projection: Projection = "sum"
    weights: Weights = "mask"
    max_length: int = 2048
    reasoning: Reasoning = "score"

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            SettingsError: Naming the setting, its value and the valid ones.
        """
        for name, known in (("projection", PROJECTIONS), ("weights", WEIGHTS), ("reasoning", REASONINGS)):
            if getattr(self, name) not in known:
                raise SettingsError(f'`{name}` "{getattr(self, name)}" is not one of {", ".join(known)}.')
        if self.max_length < 1:
            raise SettingsError(f"`max_length` must be at least 1, got {self.max_length}.")

    def of_group(self, value: object) -> "ProjectionSettings":
        """The settings of a row with this value in the column of the selection's ``ratio_by``."""
        if self.selection.ratio_by is None:
            return self
        return replace(self, selection=self.selection.of_group(value))


@dataclass(frozen=True)
class AnnotateSettings(DatasetSpec):
    """The settings of a run, except the dataset and the two models.

    Attributes:
        output: Folder of the annotated dataset.
        oracle_revision: Branch, tag or commit of an oracle on the Hub.
        ref_revision: Branch, tag or commit of a reference on the Hub.
        base: Base model of adapters, if not the one they name.
        allow_pickle: Load pickled weights, which can run code.
        trust_remote_code: Run Python code shipped with a model.
        selection: Which tokens are the key tokens.
        chat_template: A Jinja file to render prompts with; True: the oracle's own template, if it has
            one; False: none.
        max_length: Maximum tokens of prompt and response together; responses are cut.
        reasoning: Whether to score the reasoning of responses, use it as context only, or drop such rows.
        dtype: Compute dtype of the models; the log-softmax is always float32.
        device: ``auto``, or a torch device such as ``cuda:1`` or ``cpu``.
        batch_tokens: Maximum tokens per forward pass; None: chosen for the device.
        sequential: Load oracle and reference one after the other; automatic if memory cannot
            hold both.
        store_logps: Also store the log-probs of both models.
        limit: Annotate the first rows only.
        streaming: Leave the dataset on the Hub and read its rows, which have to be parquet, from there.
        shard: ``(i, n)``: this process does the i-th of n parts, counted from 0.
        push_to_hub: Repository that the finished dataset is pushed to.
        private: Make that repository private; it is anyway if the source is gated or private.
        no_report: Push neither a page nor charts in the card.
        license: Licence for the card, if the source's card states none.
    """

    output: Path
    oracle_revision: str | None = None
    ref_revision: str | None = None
    base: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    selection: SelectionRule = DEFAULT_SELECTION
    chat_template: bool | Path = True
    max_length: int = 2048
    reasoning: Reasoning = "score"
    dtype: Dtype = "float32"
    device: str = "auto"
    batch_tokens: int | None = None
    sequential: bool = False
    store_logps: bool = False
    limit: int | None = None
    streaming: bool = False
    shard: tuple[int, int] = (0, 1)
    push_to_hub: str | None = None
    private: bool = False
    no_report: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            SettingsError: Naming the setting, its value and the valid ones.
        """
        for name, known in (("dtype", DTYPES), ("reasoning", REASONINGS)):
            if getattr(self, name) not in known:
                raise SettingsError(f'`{name}` "{getattr(self, name)}" is not one of {", ".join(known)}.')
        for name in ("max_length", "batch_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"`{name}` must be at least 1, got {value}.")
        if self.private and self.push_to_hub is None:
            raise SettingsError("`private` is for a repository. Pass `push_to_hub` with it.")
        if self.selection.rule not in PER_RESPONSE or self.selection.ratio_by or self.selection.tokens:
            raise SettingsError(
                f"annotation selects by {', '.join(PER_RESPONSE)}, among all tokens. Annotate by one of "
                "them, then run sepo reselect, which needs no models."
            )
        index, count = self.shard
        if not 0 <= index < count:
            raise SettingsError(
                f"shard {index}/{count} does not exist. Count from 0: 0/{count} to {count - 1}/{count}."
            )
