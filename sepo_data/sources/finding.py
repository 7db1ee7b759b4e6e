"""Which columns hold the pair: found by names, types and values, or named by the user."""

from collections.abc import Sequence
from dataclasses import replace

from ..dataset_spec import DatasetSpec
from ..errors import PreferenceError
from ..schema import PAIR_COLUMNS
from .answer_layouts import find_answers
from .answers import paired
from .column_kinds import Column, find_kind, sampled, sampled_rows
from .column_names import (
    ANSWERS,
    PROMPTS,
    Tags,
    belongs_behind,
    response_pairs,
    sides_by_name,
    tags_of,
    third_response,
)
from .marks import check_markup, check_whole_prompt
from .opening import Source
from .pair_layouts import PairLayout
from .verdicts import Verdict, find_verdict

HUMAN = "\n\nHuman:"
_EVIDENT = 8  # two answers may begin with a shorter prompt by chance


def with_pairs(dataset: str, source: Source, spec: DatasetSpec) -> Source:
    """The source itself; if it holds several answers instead of pairs, the pairs made from them.

    Raises:
        PreferenceError: If no prompt has two answers.
    """
    names = _names(source, spec)
    if spec.chosen_column or spec.rejected_column or sides_by_name(names):
        return source
    answers = find_answers(dataset, source, spec, names)
    return source if answers is None else paired(dataset, source, answers)


def _names(source: Source, spec: DatasetSpec) -> list[str]:
    """The columns to look at: an empty prompt is none."""
    empty = {field.name for field in source.schema if str(field.type) == "null"}.intersection(
        ("prompt", *PROMPTS)
    )
    return [name for name in source.schema.names if name not in {*spec.ignore_columns, *empty}]


def find_pair(dataset: str, source: Source, spec: DatasetSpec) -> tuple[PairLayout, Verdict | None]:
    """Find the columns of the pair by their names, types and values.

    Returns:
        Where the pair is, and the verdict that each row is checked against, if more columns say which
        response is better.

    Raises:
        PreferenceError: If there is no pair, or a column holds neither texts nor messages.
    """
    names = _names(source, spec)
    sides, tags, decides, decisive = _find_sides(dataset, source, spec, names)
    chosen, rejected = (_readable(dataset, source, name) for name in sides)
    prompt, more = _find_prompt(dataset, source, spec, names, (chosen, rejected))
    used = [column.name for column in (prompt, chosen, rejected, more) if column is not None]
    if len(set(used)) < len(used):
        raise PreferenceError(f"{dataset}: prompt, chosen and rejected must be three columns, not {used}.")
    layout = _settled(dataset, source, PairLayout(prompt, chosen, rejected, more))
    if layout.prompt is not None:
        check_markup(dataset, source, spec, layout.prompt, (layout.chosen, layout.rejected))
    if prompt is not None and spec.prompt_column is None:
        check_whole_prompt(dataset, source, prompt, [name for name in names if name not in used])
    if layout.prompt is not None and {column.kind for column in layout.columns} == {"text"}:
        repeated = _repeat_prompt(dataset, source, layout)
        transcripts = not repeated and all(_is_whole(source, side) for side in (chosen, rejected))
        layout = replace(layout, repeats_prompt=repeated, transcripts=transcripts)
    others = [name for name in names if name not in sides]
    found = decisive or find_verdict(dataset, source, others, sides, tags, decides=decides)
    verdict = _checked(dataset, source, spec, found, sides, decides=decides)
    inside = verdict is not None and not set(verdict.columns).isdisjoint(sides)
    return (replace(layout, verdict=verdict), None) if decides or inside else (layout, verdict)


def _find_sides(
    dataset: str, source: Source, spec: DatasetSpec, names: Sequence[str]
) -> tuple[tuple[str, str], Tags, bool, Verdict | None]:
    """The two response columns, the tags in their names, whether a verdict decides, and that verdict."""
    usual = sides_by_name(names)
    unnamed = spec.chosen_column is None and spec.rejected_column is None
    if unnamed and usual is not None and _are_names(source, usual, names):
        usual = None
    if unnamed and usual is None:
        for first, second, tags in response_pairs(names):
            if find_kind(source, first) is not None and find_kind(source, second) is not None:
                _refuse_third(dataset, names, (first, second), tags)
                return (first, second), tags, True, None
        for name in ANSWERS:
            if name in names and any(isinstance(value, list) for value in sampled(source.rows, name)):
                problem = f'column "{name}" holds several answers, and nothing says which of them is better'
                advice = "Give each answer a score, or add a column scores with a list of theirs"
                raise PreferenceError(f"{dataset}: {problem}. {advice}.")
    chosen, rejected = usual or PAIR_COLUMNS[1:]
    sides = (spec.chosen_column or chosen, spec.rejected_column or rejected)
    for role, name in zip(PAIR_COLUMNS[1:], sides, strict=True):
        _check_name(dataset, names, role, name, sides)
    named_tags = tags_of(*sides)
    if named_tags is None:
        return sides, ("chosen", "rejected"), False, None
    others = [name for name in names if name not in sides]
    decisive = find_verdict(dataset, source, others, sides, named_tags, decides=True)
    return sides, named_tags, decisive is not None, decisive


def _refuse_third(dataset: str, names: Sequence[str], pair: tuple[str, str], tags: Tags) -> None:
    if third := third_response(names, pair, tags):
        problem = f"{', '.join((*pair, third))} are more than two responses"
        advice = "Put them into a list responses, with one of their scores, or pass `ignore_columns` with all"
        raise PreferenceError(f"{dataset}: {problem}. {advice} but two.")


def _are_names(source: Source, sides: tuple[str, str], names: Sequence[str]) -> bool:
    """Whether chosen and rejected only name one of two responses in other columns."""
    for first, second, _ in response_pairs(names):
        if first not in sides and second not in sides:
            rows = sampled_rows(source.rows.select_columns([*sides, first, second]))
            found = [(row[side], (row[first], row[second])) for row in rows for side in sides]
            named = [len(str(value).split()) == 1 and value not in texts for value, texts in found if value]
            if 2 * sum(named) > len(named):
                return True
    return False


def _checked(
    dataset: str,
    source: Source,
    spec: DatasetSpec,
    verdict: Verdict | None,
    sides: tuple[str, str],
    *,
    decides: bool,
) -> Verdict | None:
    """The verdict with the requested margin, after checking it on sampled rows."""
    if verdict is None:
        if decides:
            problem = f"{sides[0]} and {sides[1]} are two responses, and no column says which is better"
            raise PreferenceError(f"{dataset}: {problem}. Pass `chosen_column` and `rejected_column`.")
        if spec.min_margin is not None:
            raise PreferenceError(
                f"{dataset}: `min_margin` needs scores of both responses, and none of its columns "
                f"{', '.join(source.schema.names)} holds any. Leave it out."
            )
        return None
    verdict = replace(verdict, min_margin=spec.min_margin, decides=decides)
    rows = sampled_rows(source.rows.select_columns(list(verdict.columns)))
    margins = [verdict.margin(row) for row in rows]
    if not decides and 2 * sum((margin or 0) < 0 for margin in margins) > len(margins):
        prefer = "prefers" if len(verdict.columns) == 1 else "prefer"
        problem = f"{verdict.words} {prefer} the rejected response in most rows"
        swap = f"`chosen_column={sides[1]}` `rejected_column={sides[0]}`"
        ignore = f"`ignore_columns={','.join(verdict.columns)}`"
        raise PreferenceError(f"{dataset}: {problem}. Swap them with {swap}, or pass {ignore}.")
    return verdict


def _find_prompt(
    dataset: str, source: Source, spec: DatasetSpec, names: Sequence[str], sides: Sequence[Column]
) -> tuple[Column | None, Column | None]:
    """The prompt column, and the column of a text appended to it."""
    if spec.prompt_column is not None or "prompt" in names:
        name = spec.prompt_column or "prompt"
        _check_name(dataset, names, "prompt", name, (name,))
        return _readable(dataset, source, name), None
    if all(_is_whole(source, side) for side in sides):
        return None, None
    taken = {side.name for side in sides}
    found = [
        column
        for name in PROMPTS
        if name in names and name not in taken and (column := find_kind(source, name)) is not None
    ]
    if belongs_behind([column.name for column in found]):
        return found[0], found[1]
    if len(found) > 1:
        which = ", ".join(column.name for column in found)
        raise PreferenceError(
            f"{dataset}: the prompt may be in any of its columns {which}. Name it with `prompt_column`, or "
            "leave the others out with `ignore_columns`."
        )
    return (found[0] if found else None), None


def _is_whole(source: Source, side: Column) -> bool:
    """Whether a column holds whole conversations or transcripts, including the prompt."""
    contents = [side.read({side.name: value}, set()) for value in sampled(source.rows, side.name) if value]
    if side.kind == "text":
        whole = [isinstance(text, str) and text.lstrip().startswith(HUMAN.lstrip()) for text in contents]
    else:
        whole = [isinstance(turns, list) and len(turns) > 1 for turns in contents]
    return bool(whole) and 2 * sum(whole) > len(whole)


def _repeat_prompt(dataset: str, source: Source, layout: PairLayout) -> bool:
    """Whether responses begin with the prompt; if they hold it after another beginning they are refused."""
    assert layout.prompt is not None
    columns = (layout.prompt, layout.chosen, layout.rejected)
    texts = [
        [str(column.read({column.name: value}, set()) or "") for value in sampled(source.rows, column.name)]
        for column in columns
    ]
    given = [row for row in zip(*texts, strict=True) if all(row) and len(row[0].strip()) >= _EVIDENT]
    begin = [
        [side.startswith(prompt.rstrip()) and side.strip() != prompt.strip() for side in sides]
        for prompt, *sides in given
    ]
    most, least = 0.9 * len(given), 0.1 * len(given)
    if not given or sum(map(all, begin)) >= most:
        return bool(given)
    counts = [sum(one) for one in zip(*begin, strict=True)]
    if max(counts) >= most and min(counts) <= least:
        name = (layout.chosen if counts[0] >= most else layout.rejected).name
        problem = f'the texts of "{name}" begin with those of "{layout.prompt.name}", the other ones do not'
        raise PreferenceError(f"{dataset}: {problem}. Take them out.")
    hold = [
        rejected.startswith(chosen[: chosen.find(prompt.strip()) + len(prompt.strip())])
        for prompt, chosen, rejected in given
        if prompt.strip() in chosen
    ]
    if sum(hold) >= most and not all(_is_whole(source, side) for side in columns[1:]):
        problem = f'"{layout.chosen.name}" and "{layout.rejected.name}" hold "{layout.prompt.name}" again'
        raise PreferenceError(f"{dataset}: {problem}, after other text. Take it out of them.")
    return False


def _settled(dataset: str, source: Source, layout: PairLayout) -> PairLayout:
    """Keep lists of texts as turns only if prompt and responses all are such lists; otherwise as text.

    Raises:
        PreferenceError: If a list of several texts is a response: nothing says whose each is.
    """
    columns = (layout.prompt, layout.chosen, layout.rejected)
    if all(column is not None and column.kind == "turns" for column in columns):
        return layout
    lists = [column for column in columns if column is not None and column.kind == "turns"]
    alone = {column.name: _hold_one_text(source, column) for column in lists}
    for column in lists:
        if not alone[column.name] and not column.from_text:
            problem = f'column "{column.name}" holds lists of texts, and nothing says whose each is'
            raise PreferenceError(f"{dataset}: {problem}. Make it a list of messages with role and content.")
    both = bool(alone.get(layout.chosen.name) and alone.get(layout.rejected.name))
    return replace(
        layout,
        prompt=layout.prompt and _as_text(layout.prompt, unless=alone.get(layout.prompt.name, False)),
        chosen=_as_text(layout.chosen, unless=both),
        rejected=_as_text(layout.rejected, unless=both),
    )


def _as_text(column: Column, *, unless: bool) -> Column:
    """A column of lists stored as text, unchanged."""
    return replace(column, kind="text", as_it_is=True) if column.from_text and not unless else column


def _hold_one_text(source: Source, column: Column) -> bool:
    """Whether all of a column's lists hold one text."""
    found = [column.read({column.name: value}, set()) for value in sampled(source.rows, column.name) if value]
    return all(isinstance(texts, list) and len(texts) == 1 for texts in found)


def _check_name(dataset: str, names: Sequence[str], role: str, name: str, used: Sequence[str]) -> None:
    if name not in names and (whole := name.split(".")[0]) in names:
        problem = f'no column "{name}", and a path into "{whole}" is not read'
        raise PreferenceError(f"{dataset}: {problem}. Pass `{role}_column={whole}`: its text is found in it.")
    if name not in names:
        advice = f"Its columns are {', '.join(names)}; name the right one with `{role}_column`"
        raise PreferenceError(f'{dataset}: no column "{name}". {advice}.')
    if role in names and role not in used:
        problem = f'column "{role}" would be overwritten by "{name}"'
        raise PreferenceError(f"{dataset}: {problem}. Rename or remove it, or leave out `{role}_column`.")


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
