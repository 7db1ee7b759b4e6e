"""Which rows and columns of a dataset to read: everything a user can specify about reading."""

from dataclasses import dataclass
from typing import Literal

PairsOf = Literal["best-worst", "adjacent", "all"]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """How a dataset is read; the settings of annotation, `sft`, `dpo` and evaluation extend it.

    Attributes:
        config_name: Configuration, if the dataset has several.
        split: Split; None: ``train``.
        revision: Branch, tag or commit of a dataset on the Hub.
        prompt_column: Prompt column, if it is not ``prompt``.
        chosen_column: Column of the preferred response, if it is not ``chosen``.
        rejected_column: Column of the other response, if it is not ``rejected``.
        system_column: Column with system prompts, if it is not ``system``.
        tools_column: Column with tools, if it is not ``tools``.
        truncated_column: Column that tells which responses were cut, if it is not ``truncated``
            or ``finish_reason``; may be prefixed with ``chosen_`` and ``rejected_``.
        ignore_columns: Columns to ignore, whatever their names mean.
        pairs: Which pairs to make from several answers with scores or ranks: the best and the worst, each
            with the next worse one, or all that differ.
        min_margin: Minimum difference in score, rank or strength between the two responses of a pair.
    """

    config_name: str | None = None
    split: str | None = None
    revision: str | None = None
    prompt_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    system_column: str | None = None
    tools_column: str | None = None
    truncated_column: str | None = None
    ignore_columns: tuple[str, ...] = ()
    pairs: PairsOf = "best-worst"
    min_margin: float | None = None


DEFAULT_SPEC = DatasetSpec()
