"""Which columns hold the pair, and how rows in another form become prompt, chosen and rejected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ..dataset_spec import DatasetSpec
from ..errors import PreferenceError
from ..reasons import Reason, Unusable
from ..schema import PAIR_COLUMNS, Message
from .column_kinds import Column, Content, find_kind, sampled
from .column_names import PROMPT_NAMES, SIDES_NAMES
from .mending import Mended
from .opening import Source

HUMAN = "\n\nHuman:"
UNDOUBLED = "prompts that both responses repeated, taken out of them"
_EVIDENT = 8  # a shorter prompt may begin two answers by chance


@dataclass(frozen=True)
class PairLayout:
    """Where a source keeps its pair.

    Attributes:
        prompt: Column of the prompt; None: it is inside the other two.
        chosen: Column of the preferred response.
        rejected: Column of the other.
        input: Column of a text that belongs behind the prompt, as Alpaca's datasets have it.
        repeats_prompt: Whether the texts of both responses begin with the prompt.
        transcripts: Whether they are transcripts that hold it.
    """

    prompt: Column | None
    chosen: Column
    rejected: Column
    input: Column | None = None
    repeats_prompt: bool = False
    transcripts: bool = False

    @property
    def columns(self) -> list[Column]:
        """Those that there are."""
        return [
            column for column in (self.prompt, self.input, self.chosen, self.rejected) if column is not None
        ]

    @property
    def as_it_is(self) -> bool:
        """Whether rows can be read without a change."""
        of_sides = {self.chosen.kind, self.rejected.kind}
        lone = self.prompt is not None and self.prompt.kind == "messages" and of_sides == {"text"}
        plain = all(column.as_it_is for column in self.columns) and self.input is None
        repeated = self.repeats_prompt or self.transcripts
        return plain and len(of_sides) == 1 and not lone and not repeated

    def make(self, row: Mapping[str, Any], repaired: set[str]) -> Mended:
        """A row's prompt, chosen and rejected, as texts or messages."""
        read = {column.name: column.read(row, repaired) for column in self.columns}
        for content in read.values():
            if isinstance(content, Unusable):
                return content
        found = cast("dict[str, Content]", read)
        prompt = found[self.prompt.name] if self.prompt is not None else None
        chosen, rejected = found[self.chosen.name], found[self.rejected.name]
        if self.input is not None and isinstance(prompt, str) and (more := found[self.input.name]):
            prompt = f"{prompt}\n{more}"
        if self.prompt is not None and self.prompt.kind == "turns":
            return _interleaved(prompt, chosen, rejected)
        chosen, rejected = _lone_text(chosen), _lone_text(rejected)
        if isinstance(chosen, str) and isinstance(rejected, str):
            if isinstance(prompt, list):
                chosen, rejected = [_answer(chosen)], [_answer(rejected)]
            elif self.repeats_prompt and prompt:
                prompt, chosen, rejected = _undoubled(prompt, chosen, rejected, repaired)
        elif isinstance(chosen, str) and rejected:
            chosen = [*rejected[:-1], _answer(chosen)]
        elif isinstance(rejected, str) and chosen:
            rejected = [*chosen[:-1], _answer(rejected)]
        sides = {"chosen": chosen, "rejected": rejected}
        if not self.transcripts:
            return sides if self.prompt is None else {"prompt": prompt, **sides}
        held = all(isinstance(side, str) and str(prompt or "").strip() in side for side in sides.values())
        return sides if held else Unusable(Reason.PROMPT_DISAGREES)


def find_pair(dataset: str, source: Source, spec: DatasetSpec) -> PairLayout:
    """Find the columns of the pair by their names, types and values.

    Raises:
        PreferenceError: If there is no pair, or a column holds neither texts nor messages.
    """
    names = [name for name in source.schema.names if name not in spec.ignore_columns]
    usual = next((pair for pair in SIDES_NAMES if set(pair) <= set(names)), PAIR_COLUMNS[1:])
    sides = (spec.chosen_column or usual[0], spec.rejected_column or usual[1])
    for role, name in zip(PAIR_COLUMNS[1:], sides, strict=True):
        _check_name(dataset, names, role, name)
    chosen, rejected = (_readable(dataset, source, name) for name in sides)
    prompt, more = _find_prompt(dataset, source, spec, names, (chosen, rejected))
    used = [column.name for column in (prompt, chosen, rejected) if column is not None]
    if len(set(used)) < len(used):
        raise PreferenceError(f"{dataset}: prompt, chosen and rejected must be three columns, not {used}.")
    layout = _settled(PairLayout(prompt, chosen, rejected, more))
    if layout.prompt is None or {column.kind for column in layout.columns} != {"text"}:
        return layout
    repeated = _repeat_prompt(source, layout)
    transcripts = not repeated and all(_is_whole(source, side) for side in (layout.chosen, layout.rejected))
    return replace(layout, repeats_prompt=repeated, transcripts=transcripts)


def _find_prompt(
    dataset: str, source: Source, spec: DatasetSpec, names: Sequence[str], sides: Sequence[Column]
) -> tuple[Column | None, Column | None]:
    """The column of the prompt, and of a text behind it."""
    if spec.prompt_column is not None or "prompt" in names:
        name = spec.prompt_column or "prompt"
        _check_name(dataset, names, "prompt", name)
        return _readable(dataset, source, name), None
    if all(_is_whole(source, side) for side in sides):
        return None, None
    taken = {side.name for side in sides}
    found = [
        column
        for name in PROMPT_NAMES
        if name in names and name not in taken and (column := find_kind(source, name)) is not None
    ]
    if [column.name for column in found] == ["instruction", "input"]:
        return found[0], found[1]
    if len(found) > 1:
        which = ", ".join(column.name for column in found)
        raise PreferenceError(
            f"{dataset}: the prompt may be in any of its columns {which}. Name it with --prompt-column, or "
            "leave the others out with --ignore-columns."
        )
    return (found[0] if found else None), None


def _is_whole(source: Source, side: Column) -> bool:
    """Whether a column holds whole conversations or transcripts, the prompt included."""
    contents = [side.read({side.name: value}, set()) for value in sampled(source.rows, side.name) if value]
    if side.kind == "text":
        whole = [isinstance(text, str) and text.lstrip().startswith(HUMAN.lstrip()) for text in contents]
    else:
        whole = [isinstance(turns, list) and len(turns) > 1 for turns in contents]
    return bool(whole) and 2 * sum(whole) > len(whole)


def _repeat_prompt(source: Source, layout: PairLayout) -> bool:
    assert layout.prompt is not None
    names = (layout.prompt.name, layout.chosen.name, layout.rejected.name)
    prompts, *sides = (sampled(source.rows, name) for name in names)
    evident = [
        all(side.startswith(prompt.rstrip()) for side in responses)
        for prompt, *responses in zip(prompts, *sides, strict=True)
        if all((prompt, *responses)) and len(prompt.strip()) >= _EVIDENT
    ]
    return bool(evident) and sum(evident) >= 0.9 * len(evident)


def _undoubled(prompt: str, chosen: str, rejected: str, repaired: set[str]) -> tuple[str, str, str]:
    """Prompt and responses whose concatenations are the texts that were given as responses."""
    said = prompt.rstrip()
    if not (chosen.startswith(said) and rejected.startswith(said)):
        return prompt, chosen, rejected
    end = len(said)
    while chosen[end : end + 1].isspace() and chosen[end : end + 1] == rejected[end : end + 1]:
        end += 1
    repaired.add(UNDOUBLED)
    return chosen[:end], chosen[end:], rejected[end:]


def _settled(layout: PairLayout) -> PairLayout:
    """Lists of texts are turns only where prompt and responses are such lists; elsewhere text stays text."""
    columns = (layout.prompt, layout.chosen, layout.rejected)
    if all(column is not None and column.kind == "turns" for column in columns):
        return layout
    prompt, chosen, rejected = (
        replace(column, kind="text", as_it_is=True) if column is not None and column.from_text else column
        for column in columns
    )
    assert chosen is not None
    assert rejected is not None
    return replace(layout, prompt=prompt, chosen=chosen, rejected=rejected)


def _interleaved(prompt: Content, chosen: Content, rejected: Content) -> Mended:
    """The conversations whose user and assistant turns are given as two lists of texts."""
    if not (isinstance(prompt, list) and isinstance(chosen, list) and isinstance(rejected, list)):
        return Unusable(Reason.EMPTY_RESPONSE if prompt else Reason.PROMPT_MISSING)
    if not len(prompt) == len(chosen) == len(rejected):
        return Unusable(Reason.NO_COMMON_PROMPT)
    asked = [{"role": "user", "content": text} for text in prompt]
    return {
        "prompt": asked[:1],
        **{
            side: [turn for pair in zip(asked, map(_answer, texts), strict=True) for turn in pair]
            for side, texts in (("chosen", chosen), ("rejected", rejected))
        },
    }


def _lone_text(content: Content) -> Content:
    """The text of a list that holds one alone."""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], str):
        return content[0]
    return content


def _answer(text: Any) -> Message:
    return {"role": "assistant", "content": text}


def _check_name(dataset: str, names: Sequence[str], role: str, name: str) -> None:
    if name not in names and (whole := name.split(".")[0]) in names:
        problem = f'no column "{name}", and a path into "{whole}" is not read'
        raise PreferenceError(f"{dataset}: {problem}. Pass --{role}-column {whole}: its text is found in it.")
    if name not in names:
        advice = f"Its columns are {', '.join(names)}; name the right one with --{role}-column"
        raise PreferenceError(f'{dataset}: no column "{name}". {advice}.')
    if role in names and name != role:
        problem = f'column "{role}" would be overwritten by "{name}"'
        raise PreferenceError(f"{dataset}: {problem}. Rename or remove it, or leave out --{role}-column.")


def _readable(dataset: str, source: Source, name: str) -> Column:
    column = find_kind(source, name)
    if column is not None:
        return column
    if name in source.json_columns:
        problem = f'column "{name}" mixes types or holds too large a number'
        raise PreferenceError(f"{dataset}: {problem}. Give it one type.")
    problem = f'column "{name}" is {source.schema.field(name).type}'
    advice = "It must be text, or a list of messages, each with a role and a content that are text"
    raise PreferenceError(f"{dataset}: {problem}. {advice}.")
