"""Annotate a preference dataset with token-level rewards, store it, share it."""

from .annotate import Progress, Report, annotate
from .errors import (
    HubError,
    ModelError,
    OutputError,
    PreferenceError,
    SchemaError,
    ScoringError,
    SelectionError,
    SepoError,
    SettingsError,
    TokenizerError,
)
from .hub import load_annotated, push_annotated
from .schema import validate
from .selection import select_tokens
from .settings import AnnotateSettings

__all__ = [
    "AnnotateSettings",
    "HubError",
    "ModelError",
    "OutputError",
    "PreferenceError",
    "Progress",
    "Report",
    "SchemaError",
    "ScoringError",
    "SelectionError",
    "SepoError",
    "SettingsError",
    "TokenizerError",
    "annotate",
    "load_annotated",
    "push_annotated",
    "select_tokens",
    "validate",
]
