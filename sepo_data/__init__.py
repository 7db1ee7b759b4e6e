"""Annotate a preference dataset with token-level rewards, store it, share it."""

from .annotated.opening import load_annotated
from .annotated.publishing import push_annotated
from .annotation import Report, annotate
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
from .projected.pairs import ProjectedPair, project_row
from .rules.weights import weigh_tokens
from .runs.progress import Progress
from .schema import validate
from .selection import SelectionRule, select_tokens
from .settings import AnnotateSettings, ProjectionSettings

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
