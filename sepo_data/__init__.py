"""Annotate a preference dataset with token-level rewards, store it, share it."""

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

__all__ = [
    "HubError",
    "ModelError",
    "OutputError",
    "PreferenceError",
    "SchemaError",
    "ScoringError",
    "SelectionError",
    "SepoError",
    "SettingsError",
    "TokenizerError",
]
