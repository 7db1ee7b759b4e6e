"""The settings of an export, checked before any work, and its report."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingsError
from ..rules.weights import Weights
from ..selection import SelectionRule
from ..settings import Projection, SelectionChange
from .targets import TEXT_TARGETS, TOKEN_TARGETS, WEIGHTED_TARGETS

AS_ANNOTATED = SelectionChange()


@dataclass(frozen=True)
class ExportSettings:
    """How to export an annotated dataset.

    Attributes:
        target: A name of ``TOKEN_TARGETS`` or ``TEXT_TARGETS``.
        output: A new folder.
        tokenizer: The policy's, Hub id or folder; None for a target that tokenises itself.
        revision: Branch, tag or commit of a dataset on the Hub.
        change: Changes to the dataset's selection.
        projection: As in `ProjectionSettings`.
        weights: As in `ProjectionSettings`; ``mask`` only, if the target does not support weights.
        max_length: Maximum tokens of prompt and response together.
        chat_template: A Jinja file for the tokenizer; True: its own, or for messages a default one;
            False: none.
        trust_remote_code: Run Python code shipped with a tokenizer.
    """

    target: str
    output: Path
    tokenizer: str | None = None
    revision: str | None = None
    change: SelectionChange = AS_ANNOTATED
    projection: Projection = "sum"
    weights: Weights = "mask"
    max_length: int = 2048
    chat_template: bool | Path = True
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            SettingsError: Naming the setting, its value and the valid ones.
        """
        names = [*TOKEN_TARGETS, *TEXT_TARGETS]
        if self.target not in names:
            raise SettingsError(f'`target` "{self.target}" is not one of {", ".join(names)}.')
        if self.weights != "mask" and self.target not in WEIGHTED_TARGETS:
            usable = ", ".join(WEIGHTED_TARGETS)
            raise SettingsError(
                f"{self.target} reads masks, not weights. Leave out `weights`, or use {usable}."
            )
        if self.target in TOKEN_TARGETS and self.tokenizer is None:
            raise SettingsError(
                f"{self.target} reads token ids. Pass `tokenizer=MODEL`, the policy or its tokenizer."
            )
        if self.target in TEXT_TARGETS and (self.tokenizer is not None or self.projection != "sum"):
            raise SettingsError(
                f"{self.target} reads text and tokenises it itself. Leave out `tokenizer` and `projection`."
            )


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        output: The folder.
        data: The path for the trainer.
        rows: Rows of the dataset.
        records: Records written.
        dropped: Rows left out, by reason.
        selection: What was selected, with the cutoffs of ``global``.
    """

    output: Path
    data: Path
    rows: int
    records: int
    dropped: dict[str, int]
    selection: SelectionRule
