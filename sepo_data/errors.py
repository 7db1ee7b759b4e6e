"""Every expected failure of sepo, so that one ``except SepoError`` is enough.

SepoError
├── SettingsError     a setting out of range, or two that exclude each other
├── PreferenceError   the preference dataset: not found, not readable, no pair of texts in it
├── TokenizerError    a tokenizer or chat template that cannot say where a response stands
├── ModelError        a model that cannot be loaded, or a pair of models that do not belong together
├── ScoringError      a log-probability that is not a finite number
├── TrainingError     a loss that is not a finite number, or a step that does not fit into memory
├── SelectionError    token rewards that nothing can be selected from
├── SchemaError       a dataset that does not keep the contract of an annotated dataset
├── OutputError       an output folder that cannot be written, or holds another run
└── HubError          the Hub refused, or could not be reached

A message starts with the place, quotes the user's value and ends with what to change.
"""


class SepoError(Exception):
    """An expected failure; its text is one line for the user."""


class SettingsError(SepoError):
    """A setting is out of range, or two settings exclude each other."""


class PreferenceError(SepoError):
    """The preference dataset is missing, unreadable, or holds no pairs."""


class TokenizerError(SepoError):
    """A tokenizer or chat template cannot say where a response stands."""


class ModelError(SepoError):
    """A model cannot be loaded, or oracle and reference do not belong together."""


class ScoringError(SepoError):
    """A log-probability is not a finite number."""


class TrainingError(SepoError):
    """The loss is not a finite number, or a training step does not fit into memory."""


class SelectionError(SepoError):
    """Token rewards that nothing can be selected from."""


class SchemaError(SepoError):
    """A dataset does not keep the contract of an annotated dataset."""


class OutputError(SepoError):
    """The output folder cannot be written, or belongs to another run."""


class HubError(SepoError):
    """The Hub refused a request, or could not be reached."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's exception says, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
