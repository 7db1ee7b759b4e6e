"""Which responses were cut during generation, so that no end of turn follows their last token.

A sampler that reaches its length limit leaves an unfinished text. Rendered like a complete one, it would get
an end of turn that was never generated, and an oracle may reward that one token more than any other.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dataset_spec import DatasetSpec
from ..errors import PreferenceError
from ..schema import Row, Sides, is_text

if TYPE_CHECKING:
    import pyarrow as pa


UNCUT = Sides(False, False)
_NAMES = ("truncated", "finish_reason")
_FINISH_REASONS = {"length", "max_tokens", "max_length", "max_output_tokens", "model_length"}  # cut ones


@dataclass(frozen=True)
class EndColumns:
    """Source columns that say which responses were cut; None if there is none: that side was not cut."""

    chosen: str | None = None
    rejected: str | None = None

    def items(self) -> list[tuple[str, str]]:
        """The columns that exist: the side and meaning of each, and its name in the source."""
        sides = {"chosen_truncated": self.chosen, "rejected_truncated": self.rejected}
        return [(what, name) for what, name in sides.items() if name is not None]

    def cut(self, row: Row) -> Sides[bool]:
        """Whether the responses of a row were cut.

        Example:
            >>> EndColumns("truncated", "rejected_finish_reason").cut(
            ...     {"truncated": False, "rejected_finish_reason": "length"}
            ... )
            Sides(chosen=False, rejected=True)
        """
        return Sides(*(name is not None and _says_cut(row[name]) for name in (self.chosen, self.rejected)))


NOWHERE = EndColumns()


def end_columns(dataset: str, schema: "pa.Schema", spec: DatasetSpec) -> EndColumns:
    """Find ``truncated`` (true or false) or ``finish_reason`` (``length``), for one side or for both.

    Raises:
        PreferenceError: If the named column is missing, or a column has the wrong type.
    """
    wanted = (spec.truncated_column,) if spec.truncated_column else _NAMES
    found: dict[str, str | None] = {"chosen": None, "rejected": None}
    for side in found:
        names = [name for base in wanted for name in (f"{side}_{base}", base)]
        there = [name for name in names if name in schema.names and name not in spec.ignore_columns]
        found[side] = next((name for name in there if _can_say(schema.field(name).type)), None)
        if spec.truncated_column and not there:
            advice = f"Its columns are {', '.join(schema.names)}; name the right one with `truncated_column`"
            raise PreferenceError(f'{dataset}: no column "{spec.truncated_column}". {advice}.')
        if there and found[side] is None:
            problem = f'column "{there[0]}" is {schema.field(there[0]).type}'
            raise PreferenceError(
                f"{dataset}: {problem}, and should say which responses were cut. Make it true or false, or "
                f"a finish reason, or pass `ignore_columns={there[0]}`."
            )
    return EndColumns(**found)


def _can_say(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_boolean(kind) or pa.types.is_null(kind) or is_text(kind))


def _says_cut(value: bool | str | None) -> bool:
    return value.strip().lower() in _FINISH_REASONS if isinstance(value, str) else bool(value)
