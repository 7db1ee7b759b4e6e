"""Which rows of a dataset, and which of its columns: what a user can say about reading one."""

from dataclasses import dataclass
from typing import Literal

PairsOf = Literal["best-worst", "adjacent", "all"]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """How a dataset is read; the settings of annotation, `sft` and `dpo` extend it.

    Attributes:
        config_name: Which configuration, of a dataset that has several.
        split: Which split; None: ``train``.
        revision: Branch, tag or commit of a dataset on the Hub.
        prompt_column: Name of the prompt's column, if it is not ``prompt``.
        chosen_column: Name of the preferred response's column, if it is not ``chosen``.
        rejected_column: Name of the other response's column, if it is not ``rejected``.
        system_column: Name of a column with system texts, if it is not ``system``.
        tools_column: Name of the column with tools, if it is not ``tools``.
        truncated_column: Name of a column that says which responses were cut, if it is not ``truncated``
            or ``finish_reason``; ``chosen_`` and ``rejected_`` may stand before it.
        ignore_columns: Columns to leave out, whatever their names say.
        pairs: Of several answers with scores or ranks, which make pairs: the best and the worst, each with
            the next worse one, or all that differ.
        min_margin: Least difference in score, rank or strength between the two responses of a pair.
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
