"""What a chat template receives besides the messages: a system prompt, tools, and its own keyword arguments.

The columns are those that TRL reads (``tools``, ``chat_template_kwargs``) and ``system`` from LLaMA-Factory
and axolotl: an oracle trained on such a dataset has seen them.
"""

import json
from collections.abc import Container
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..dataset_spec import DatasetSpec
from ..errors import PreferenceError
from ..pieces import compact
from ..reasons import Reason, Unusable
from ..schema import Row, is_text
from .column_names import SYSTEMS

if TYPE_CHECKING:
    import pyarrow as pa


# parameters of `apply_chat_template` itself, and those that would append text to the response
_RESERVED = {
    "conversation", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "sanitize_control_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What a row passes to the chat template besides the messages.

    Attributes:
        system: Text of a system turn before the prompt.
        tools: JSON schemas of the tools that the model may call.
        template_kwargs: Keyword arguments of the template: ``enable_thinking``, ``documents``, …
    """

    system: str | None = None
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether any of them is set."""
        return bool(self.system or self.tools or self.template_kwargs)


NO_CONTEXT = Context()


@dataclass(frozen=True)
class ContextColumns:
    """Source columns of the context; None if missing. In an annotated dataset they have the fields' names."""

    system: str | None = None
    tools: str | None = None
    chat_template_kwargs: str | None = None

    def items(self) -> list[tuple[str, str]]:
        """The columns that exist: name in an annotated dataset, name in the source."""
        found = ((one.name, getattr(self, one.name)) for one in fields(self))
        return [(name, column) for name, column in found if column is not None]

    def read(self, row: Row) -> Context | Unusable:
        """The context of a row, or why the row cannot be used."""
        system, tools, keywords = (
            row[column] if column is not None else None
            for column in (self.system, self.tools, self.chat_template_kwargs)
        )
        if not (system or tools or keywords):
            return NO_CONTEXT
        try:
            tools, keywords = parsed(tools), parsed(keywords)
            if isinstance(tools, list):
                tools = [parsed(tool) if isinstance(tool, str) else tool for tool in tools]
        except ValueError:
            return Unusable(Reason.CONTEXT_NOT_JSON)
        keywords = keywords or {}
        if not (tools is None or isinstance(tools, list)) or not isinstance(keywords, dict):
            return Unusable(Reason.CONTEXT_NOT_JSON)
        if _RESERVED.intersection(keywords):
            return Unusable(Reason.RESERVED_KEYWORD)
        return Context(system or None, tools or None, keywords)


NO_COLUMNS = ContextColumns()


def annotated_context(names: Container[str]) -> ContextColumns:
    """The context columns of an annotated dataset: all that it has, since ignored ones were not written."""
    return ContextColumns(**{one.name: one.name for one in fields(ContextColumns) if one.name in names})


def context_columns(dataset: str, schema: "pa.Schema", spec: DatasetSpec) -> ContextColumns:
    """Find the context columns by their usual names, or as the user names them.

    Raises:
        PreferenceError: If a named column is missing, or a column has the wrong type.
    """
    named = {"system": spec.system_column, "tools": spec.tools_column}
    found: dict[str, str] = {}
    for role in ("system", "tools", "chat_template_kwargs"):
        usual = [
            name
            for name in (SYSTEMS if role == "system" else (role,))
            if name in schema.names
            and name not in spec.ignore_columns
            and not _is_null(schema.field(name).type)
        ]
        if not named.get(role) and len(usual) > 1:
            problem = f"each of {' and '.join(usual)} may be the system text"
            raise PreferenceError(f"{dataset}: {problem}. Choose one with `system_column`.")
        column = named.get(role) or next(iter(usual), role)
        if column not in schema.names:
            if named.get(role):
                advice = f"Its columns are {', '.join(schema.names)}; name the right one with `{role}_column`"
                raise PreferenceError(f'{dataset}: no column "{column}". {advice}.')
            continue
        if column in spec.ignore_columns or _is_null(schema.field(column).type):
            continue
        if not _TYPES[role](schema.field(column).type):
            problem = f'column "{column}" is {schema.field(column).type}, no {_WORDS[role]}'
            raise PreferenceError(
                f"{dataset}: {problem}, and would be a part of the prompt. Pass `ignore_columns={column}` to "
                "leave it out."
            )
        if column != role and role in schema.names:
            problem = f'column "{role}" would be overwritten by "{column}"'
            raise PreferenceError(f"{dataset}: {problem}. Rename or remove it.")
        found[role] = column
    return ContextColumns(**found)


def parsed(value: object) -> object:
    """Text parsed as JSON; other values without the nulls that only the column's type adds."""
    if isinstance(value, str):
        return json.loads(value) if value.strip() else None
    return compact(value)


def _is_null(kind: "pa.DataType") -> bool:
    return str(kind) == "null"


def _is_json(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(is_text(kind) or "arrow.json" in str(kind) or pa.types.is_nested(kind))


_TYPES = {"system": is_text, "tools": _is_json, "chat_template_kwargs": _is_json}
_WORDS = {"system": "text", "tools": "list of JSON schemas", "chat_template_kwargs": "JSON object"}
