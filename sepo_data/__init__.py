"""Annotate a preference dataset with token-level rewards, store it, share it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    TrainingError,
)
from .rules.weights import weigh_tokens
from .runs.progress import Progress
from .schema import validate
from .selection import SelectionRule, select_tokens
from .settings import AnnotateSettings, ProjectionSettings

if TYPE_CHECKING:
    from .annotated.opening import load_annotated
    from .annotated.publishing import push_annotated
    from .annotation import Report, annotate
    from .projected.pairs import ProjectedPair, project_row

__all__ = [
    "AnnotateSettings",
    "HubError",
    "ModelError",
    "OutputError",
    "PreferenceError",
    "Progress",
    "ProjectedPair",
    "ProjectionSettings",
    "Report",
    "SchemaError",
    "ScoringError",
    "SelectionError",
    "SelectionRule",
    "SepoError",
    "SettingsError",
    "TokenizerError",
    "TrainingError",
    "annotate",
    "load_annotated",
    "project_row",
    "push_annotated",
    "select_tokens",
    "validate",
    "weigh_tokens",
]

_MODULES = {
    "ProjectedPair": "projected.pairs",
    "Report": "annotation",
    "annotate": "annotation",
    "load_annotated": "annotated.opening",
    "project_row": "projected.pairs",
    "push_annotated": "annotated.publishing",
}


def __getattr__(name: str) -> Any:
    """Load what needs the Hub's client when it is asked for: commands read the settings for ``--help``."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
