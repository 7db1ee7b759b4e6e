"""Separate ratios for groups of rows: more of the tokens of maths, fewer of chat."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import SelectionError, SettingsError


@dataclass(frozen=True)
class RatioBy:
    """Ratios by the value of a column; other rows keep the rule's.

    Attributes:
        column: A column of the dataset.
        ratios: Share of the tokens to select on both sides, in ``(0, 1]``, by the column's value as text.
    """

    column: str
    ratios: dict[str, float]

    def __post_init__(self) -> None:
        """Refuse invalid shares.

        Raises:
            SelectionError: Naming the group.
        """
        for group, ratio in self.ratios.items():
            if not 0 < ratio <= 1:
                raise SelectionError(f'ratio of "{group}" must be in (0, 1], got {ratio}. For 30% write 0.3.')

    @classmethod
    def parse(cls, text: str) -> "RatioBy":
        """Read ``column=value:ratio,value:ratio``.

        Raises:
            SettingsError: If the text has another form.
            SelectionError: If a ratio is out of range.

        Example:
            >>> RatioBy.parse("category=math:0.5,chat:0.2")
            RatioBy(column='category', ratios={'math': 0.5, 'chat': 0.2})
        """
        column, _, groups = text.partition("=")
        pairs = [group.rpartition(":") for group in groups.split(",")]
        try:
            ratios = {value.strip(): float(ratio) for value, _, ratio in pairs}
        except ValueError:
            ratios = {}
        if not column.strip() or len(ratios) < len(pairs) or "" in ratios:
            raise SettingsError(
                f'ratio by "{text}" is not column=value:ratio,value:ratio, like category=math:0.5,chat:0.2.'
            )
        return cls(column.strip(), ratios)

    def check_groups(self, values: Iterable[object], name: str) -> None:
        """Check that every group occurs; ``name`` is the dataset's name in messages.

        Raises:
            SettingsError: Naming the first that does not, and some that do.
        """
        known = {str(value) for value in values}
        for group in self.ratios:
            if group not in known:
                shown = ", ".join(sorted(known)[:5]) + (", …" if len(known) > 5 else "")
                problem = f'no row of {name} has "{group}" in column {self.column}'
                raise SettingsError(f"{problem}. It holds {shown}. Correct `ratio_by`.")
