"""Which columns hold the conversations for fine-tuning, and how other layouts are converted to them."""

from dataclasses import dataclass

from ..dataset_spec import DatasetSpec
from ..errors import PreferenceError
from ..reasons import Unusable
from ..schema import Row
from .column_kinds import Column, find_kind
from .column_names import CHATS, COMPLETIONS, PROMPTS, belongs_behind
from .marks import check_whole_prompt
from .mending import Mended
from .opening import Source

MESSAGES = ("messages",)
COMPLETION = ("prompt", "completion")
_SAME = ("completion", "response", "output")  # no order between them, unlike a solution and its short answer


@dataclass(frozen=True)
class ChatLayout:
    """Where a source keeps its conversations: in one column, or as prompt and completion.

    Attributes:
        columns: The messages column, or the prompt and completion columns.
        input: Column of a text to append to the prompt, as in Alpaca's datasets.
    """

    columns: tuple[Column, ...]
    input: Column | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns after conversion."""
        return MESSAGES if len(self.columns) == 1 else COMPLETION

    @property
    def as_it_is(self) -> bool:
        """Whether rows can be read without conversion."""
        plain = all(column.as_it_is for column in self.columns) and self.input is None
        return plain and len({column.kind for column in self.columns}) == 1

    def make(self, row: Row, repaired: set[str]) -> Mended:
        """A row's messages, or its prompt and completion, both as text or both as messages."""
        found = []
        for column in (*self.columns, *([self.input] if self.input else [])):
            content = column.read(row, repaired)
            if isinstance(content, Unusable):
                return content
            found.append(content)
        if len(self.columns) == 1:
            return {"messages": found[0]}
        prompt, completion, *more = found
        if more and more[0] and isinstance(prompt, str):
            prompt = f"{prompt}\n{more[0]}"
        if {column.kind for column in self.columns} != {"text"}:
            prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            completion = (
                [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
            )
        return {"prompt": prompt, "completion": completion}


def find_chats(dataset: str, source: Source, spec: DatasetSpec) -> ChatLayout:
    """Find the conversation columns by their names, types and values.

    Raises:
        PreferenceError: If there are none.
    """
    names = [name for name in source.schema.names if name not in spec.ignore_columns]
    kinds = {
        name: column
        for name in (*CHATS, "prompt", *PROMPTS, *COMPLETIONS)
        if name in names and (column := find_kind(source, name)) is not None and column.kind != "turns"
    }
    for name in CHATS:
        if name in kinds and kinds[name].kind == "messages":
            return ChatLayout((kinds[name],))
    completions = [kinds[name] for name in COMPLETIONS if name in kinds]
    alike = [column.name for column in completions if column.name in _SAME]
    if len(alike) > 1:
        problem = f"the response may be in any of its columns {', '.join(alike)}"
        raise PreferenceError(f"{dataset}: {problem}. Leave the others out with `ignore_columns`.")
    prompts = [kinds[name] for name in PROMPTS if name in kinds and name not in CHATS]
    if completions and "prompt" in kinds:
        others = [name for name in names if name != completions[0].name]
        check_whole_prompt(dataset, source, kinds["prompt"], others)
        return ChatLayout((kinds["prompt"], completions[0]))
    if completions and belongs_behind([prompt.name for prompt in prompts]):
        return ChatLayout((prompts[0], completions[0]), prompts[1])
    if completions and len(prompts) == 1:
        return ChatLayout((prompts[0], completions[0]))
    raise PreferenceError(f"{dataset}: {_problem(source, names, prompts if completions else [])}.")


def _problem(source: Source, names: list[str], prompts: list[Column]) -> str:
    """Why no conversations were found, and what to do."""
    if prompts:
        which = ", ".join(prompt.name for prompt in prompts)
        return f"the prompt may be in any of its columns {which}. Leave the others out with `ignore_columns`"
    found = [name for name in (*MESSAGES, *COMPLETION) if name in names]
    if "messages" in found or set(COMPLETION) <= set(found):
        types = ", ".join(f'"{name}" is {source.schema.field(name).type}' for name in found)
        advice = "Make messages a list of objects, each with a role and a content that are text"
        return f"{types}. {advice}, or prompt and completion both text or both such lists"
    advice = "Rename them to messages, or to prompt and completion"
    if "chosen" in names:
        advice = "To train on the chosen responses of a preference dataset add `side=chosen`"
    return f"no conversations in its columns {', '.join(names)}. {advice}"
