"""Every expected failure of sepo, so that one ``except SepoError`` is enough.

SepoError
├── SettingsError     a setting out of range, or two that exclude each other
├── PreferenceError   the preference dataset: not found, unreadable, or without pairs
├── TokenizerError    a tokenizer or chat template that cannot tell where a response is
├── ModelError        a model that cannot be loaded, or a pair of models that do not belong together
├── ScoringError      a log-probability that is not a finite number
├── TrainingError     a loss that is not a finite number, or a step that does not fit into memory
├── SelectionError    token rewards from which nothing can be selected
├── SchemaError       a dataset that violates the contract of an annotated dataset
├── OutputError       an output folder that cannot be written, or belongs to another run
└── HubError          the Hub refused, or could not be reached

A message begins with the place, quotes the user's value and ends with what to change.
"""

import os
import re
from collections.abc import Iterator

_SECRETS = re.compile(
    r"(?<=Bearer )[^\s'\"]+"  # a header quoted by the HTTP client
    r"|\bhf_[A-Za-z0-9]{16,}"  # a Hub token
    r"|(?<=://)[^/\s@]*:[^/\s@]*(?=@)"  # user and password of an address
)
# control and format characters that show nothing or turn the direction of writing; joiners stay
_CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


class SepoError(Exception):
    """An expected failure; its text is one line for the user, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(without_secrets(message).splitlines())))


class SettingsError(SepoError):
    """A setting is out of range, or two settings exclude each other."""


class PreferenceError(SepoError):
    """The preference dataset is missing, unreadable, or contains no pairs."""


class TokenizerError(SepoError):
    """A tokenizer or chat template cannot tell where a response is."""


class ModelError(SepoError):
    """A model cannot be loaded, or oracle and reference do not belong together."""


class ScoringError(SepoError):
    """A log-probability is not a finite number."""


class TrainingError(SepoError):
    """The loss is not a finite number, or a training step does not fit into memory."""


class SelectionError(SepoError):
    """Nothing can be selected from the token rewards."""


class SchemaError(SepoError):
    """A dataset violates the contract of an annotated dataset."""


class OutputError(SepoError):
    """The output folder cannot be written, or belongs to another run."""


class HubError(SepoError):
    """The Hub refused a request, or could not be reached."""


def without_secrets(text: str) -> str:
    """The text with tokens and passwords replaced by dots.

    Example:
        >>> without_secrets("https://me:1234@host/file")
        'https://…@host/file'
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = os.environ.get(name, "").strip()
        if len(token) >= 16:  # a shorter one is not a token, and may be part of a word
            text = text.replace(token, "…")
    return _SECRETS.sub("…", text)


def visible(text: str) -> str:
    r"""The text with control and unseen characters escaped; line breaks, tabs and blanks stay.

    Example:
        >>> visible("\x1b[31mred")
        '\\x1b[31mred'
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def counted(number: int, what: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "row"), counted(1200, "row")
        ('1 row', '1,200 rows')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """The first line of another library's exception, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def differences(theirs: object, ours: object, name: str = "") -> Iterator[tuple[str, object, object]]:
    """Where two records differ: the dotted name, and both values."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif theirs != ours:
        yield name, theirs, ours


# what has a hash or a commit in the records of runs, by the name that it has there
_INPUTS = {
    "source": "dataset",
    "dataset": "dataset",
    "oracle": "oracle",
    "ref": "reference",
    "model": "model",
    "questions": "question file",
    "tokenizer_sha256": "tokenizer",
    "chat_template_sha256": "chat template",
}
# facts of a dataset that have another name as settings
_SOURCE_SETTINGS = {"rows": "limit", "part": "split", "config": "config_name"}


def described_differences(theirs: object, ours: object) -> str:
    """Where two records differ, as text: settings in backticks, datasets and models without their hashes.

    Example:
        >>> old = {"source": {"revision": "12ab", "rows": 8}, "settings": {"dtype": "float32"}}
        >>> new = {"source": {"revision": "34cd", "rows": 9}, "settings": {"dtype": "bfloat16"}}
        >>> described_differences(old, new)
        "`dtype` 'float32', this run has 'bfloat16'; another dataset, or another version of it"
    """
    found = list(differences(theirs, ours))
    inputs = dict.fromkeys(filter(None, (_input(name) for name, _, _ in found)))
    settings = [
        f"{_setting(name)} {a!r}, this run has {b!r}"
        for name, a, b in found
        if _input(name) is None and _INPUTS.get(name.partition(".")[0]) not in inputs
    ]
    return "; ".join([*settings, *(f"another {one}, or another version of it" for one in inputs)])


def _input(name: str) -> str | None:
    return _INPUTS.get(name.removeprefix("settings.").removesuffix(".revision"))


def _setting(name: str) -> str:
    section, _, rest = name.partition(".")
    if rest.startswith("set."):
        return f"`training_arguments.{rest.removeprefix('set.')}`"
    if rest.startswith("columns."):
        return f"`{rest.removeprefix('columns.')}_column`"
    if section == "source":
        return f"`{_SOURCE_SETTINGS.get(rest, rest)}`"
    if section in ("settings", "training") or "." not in name:
        return f"`{rest or name}`"
    return name
