"""Columns whose names say that a row is more than its texts, or that it is excluded from training."""

from ..dataset_spec import DatasetSpec
from ..errors import PreferenceError
from .column_kinds import sampled
from .opening import Source
from .verdicts import number

_BESIDE = {
    "image": "images", "images": "images", "video": "videos", "videos": "videos", "audio": "sounds",
    "audios": "sounds", "history": "earlier turns",
}  # fmt: skip
_MARKS = ("label", "train", "weight")


def check_texts_alone(dataset: str, source: Source, spec: DatasetSpec) -> None:
    """Refuse columns, such as images, that belong to the prompt but are not read.

    Raises:
        PreferenceError: Naming the column.
    """
    for name, what in _BESIDE.items():
        if name not in source.schema.names or name in (*spec.ignore_columns, spec.prompt_column):
            continue
        values = [value for value in sampled(source.rows, name) if value]
        if values and not (name == "history" and any(isinstance(value, str) for value in values)):
            problem = f'column "{name}" holds {what}, and is not read'
            raise PreferenceError(
                f"{dataset}: {problem}. Pass `ignore_columns={name}` to use the texts alone."
            )


def training_marks(dataset: str, source: Source, spec: DatasetSpec) -> tuple[str, ...]:
    """Columns that say for each row whether to train on it: ``label``, ``train``, ``weight``.

    Raises:
        PreferenceError: If a weight is neither 0 nor 1.
    """
    found = []
    for name in _MARKS:
        if name not in source.schema.names or name in spec.ignore_columns:
            continue
        values = {value for value in sampled(source.rows, name) if value is not None}
        if name == "weight" and any(number(value) is not None for value in values) and not values <= {0, 1}:
            problem = 'column "weight" holds weights other than 0 and 1, which are not read'
            raise PreferenceError(
                f"{dataset}: {problem}. Pass `ignore_columns=weight` to weigh rows the same."
            )
        if values and values <= {0, 1}:
            found.append(name)
    return tuple(found)
