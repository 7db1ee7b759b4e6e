"""Columns whose names say that a row is more than its texts, or that it is excluded from training."""

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from ..dataset_spec import DatasetSpec
from ..errors import PreferenceError
from ..schema import is_text
from .column_kinds import Column, sampled, sampled_rows
from .column_names import PROMPT_TEXTS
from .opening import Source
from .scores import grade
from .shapes import OF_A_TEMPLATE

if TYPE_CHECKING:
    import pyarrow as pa

_BESIDE = {
    "image": "images", "images": "images", "image_path": "images", "image_paths": "images",
    "image_url": "images", "image_urls": "images", "video": "videos", "videos": "videos", "audio": "sounds",
    "audios": "sounds", "history": "earlier turns",
}  # fmt: skip
_IMAGE = "<image>"  # its place in a text
_MARKS = ("label", "kto_tag", "train", "weight")
_MARKS_IN_WORDS = {"yes", "no"}


def check_texts_alone(dataset: str, source: Source, spec: DatasetSpec) -> None:
    """Refuse columns, such as images, that belong to the prompt but are not read.

    Raises:
        PreferenceError: Naming the column.
    """
    by_type = {field.name: "files of images or sounds" for field in source.schema if _is_file(field.type)}
    for name, what in {**by_type, **_BESIDE}.items():
        if name not in source.schema.names or name in (*spec.ignore_columns, spec.prompt_column):
            continue
        values = [value for value in sampled(source.rows, name) if value]
        if values and not (name == "history" and any(isinstance(value, str) for value in values)):
            problem = f'column "{name}" holds {what}, and is not read'
            raise PreferenceError(
                f"{dataset}: {problem}. Pass `ignore_columns={name}` to use the texts alone."
            )


def _is_file(kind: "pa.DataType") -> bool:
    """Whether a column holds images, sounds or videos as `datasets` stores them."""
    import pyarrow as pa

    is_object = pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}
    return is_object and pa.types.is_binary(kind.field("bytes").type)


def check_markup(
    dataset: str, source: Source, spec: DatasetSpec, prompt: Column, sides: Sequence[Column]
) -> None:
    """Refuse responses that a template has rendered, and prompts with the places of images.

    Raises:
        PreferenceError: Naming their columns.
    """
    rows = sampled_rows(source.rows.select_columns([column.name for column in (prompt, *sides)]))
    asked, *answers = ([_words(one.read(row, set())) for row in rows] for one in (prompt, *sides))
    rendered = [
        2 * sum(map(bool, map(OF_A_TEMPLATE.match, texts))) > len(rows) for texts in (asked, *answers)
    ]
    if any(rendered) and not rendered[0]:
        problem = f'the texts of "{sides[0 if rendered[1] else 1].name}" are rendered with a chat template'
        raise PreferenceError(f"{dataset}: {problem}, and those of the prompt are not. Take its markup out.")
    known = any(_BESIDE.get(name) == "images" for name in spec.ignore_columns)
    if not known and 2 * sum(_IMAGE in text for text in asked) > len(rows):
        problem = f'"{prompt.name}" holds {_IMAGE}, the place of an image that is not read'
        raise PreferenceError(f"{dataset}: {problem}. Take it out of the texts, or leave these rows out.")


def check_whole_prompt(dataset: str, source: Source, prompt: Column, others: Container[str]) -> None:
    """Refuse a text column that belongs to a prompt but is not part of it.

    Raises:
        PreferenceError: Naming its column.
    """
    for name in PROMPT_TEXTS:
        if name not in others or name == prompt.name or not is_text(source.schema.field(name).type):
            continue
        rows = sampled_rows(source.rows.select_columns([prompt.name, name]))
        texts = [(_words(prompt.read(row, set())), _words(row[name])) for row in rows]
        missing = [part not in whole and whole not in part for whole, part in texts if part and whole]
        if 2 * sum(missing) > len(missing):
            problem = f'column "{name}" may belong to the prompt, and "{prompt.name}" lacks its texts'
            advice = f"Write them into it, or pass `ignore_columns={name}`"
            raise PreferenceError(f"{dataset}: {problem}. {advice}.")


def _words(content: object) -> str:
    """A text, or those of messages, with single spaces."""
    texts = content if isinstance(content, list) else [content]
    found = [one.get("content") if isinstance(one, dict) else one for one in texts]
    return " ".join(" ".join(text.split()) for text in found if isinstance(text, str))


def training_marks(
    dataset: str, source: Source, spec: DatasetSpec, marks: Sequence[str] = _MARKS
) -> tuple[str, ...]:
    """Columns that say of every row whether it is to be trained on: ``label``, ``train``, ``weight``, ….

    Args:
        dataset: Its name in messages.
        source: Its rows.
        spec: Which columns to ignore.
        marks: Names of such columns; next to a pair, a label is none.

    Raises:
        PreferenceError: If a weight is neither 0 nor 1, or a mark is a word.
    """
    found = []
    for name in marks:
        if name not in source.schema.names or name in spec.ignore_columns:
            continue
        given = {value for value in sampled(source.rows, name) if value is not None}
        values = set(map(grade, given))
        if name == "weight" and values != {None} and not values <= {0, 1}:
            problem = 'column "weight" holds weights other than 0 and 1, which are not read'
            raise PreferenceError(
                f"{dataset}: {problem}. Pass `ignore_columns=weight` to weigh rows the same."
            )
        if given and {str(value).strip().lower() for value in given} <= _MARKS_IN_WORDS:
            words = ", ".join(sorted(map(repr, given)))
            problem = f'column "{name}" may say which rows to train on, and its values are {words}'
            raise PreferenceError(
                f"{dataset}: {problem}. Make them true and false, or pass `ignore_columns={name}`."
            )
        if values and values <= {0, 1}:
            found.append(name)
    return tuple(found)
