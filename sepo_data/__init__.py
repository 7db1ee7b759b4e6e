"""Annotate a preference dataset with token-level rewards, store it, share it."""

from importlib import import_module
from typing import TYPE_CHECKING

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
    from .annotated.opening import Annotated, load_annotated, open_annotated
    from .annotation import Report, annotate
    from .comparison import Comparison, compare_annotations
    from .evaluation.evaluating import evaluate
    from .evaluation.figures import Evaluation
    from .evaluation.settings import EvaluateSettings
    from .exports.exporting import export
    from .exports.settings import ExportReport, ExportSettings
    from .generation.generating import generate
    from .generation.settings import GenerateSettings
    from .planning import Plan, plan
    from .projected.pairs import ProjectedPair, ProjectedRows, project_row, project_rows
    from .report.notebook import show
    from .report.publishing import push_annotated
    from .reselection import reselect
    from .tokens.encoder import response_encoder
    from .verification import Verification, verify

__all__ = [
    "AnnotateSettings",
    "Annotated",
    "Comparison",
    "EvaluateSettings",
    "Evaluation",
    "ExportReport",
    "ExportSettings",
    "GenerateSettings",
    "HubError",
    "ModelError",
    "OutputError",
    "Plan",
    "PreferenceError",
    "Progress",
    "ProjectedPair",
    "ProjectedRows",
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
    "Verification",
    "annotate",
    "compare_annotations",
    "evaluate",
    "export",
    "generate",
    "load_annotated",
    "open_annotated",
    "plan",
    "project_row",
    "project_rows",
    "push_annotated",
    "reselect",
    "response_encoder",
    "select_tokens",
    "show",
    "validate",
    "verify",
    "weigh_tokens",
]

_MODULES = {
    "Annotated": "annotated.opening",
    "Comparison": "comparison",
    "EvaluateSettings": "evaluation.settings",
    "Evaluation": "evaluation.figures",
    "ExportReport": "exports.settings",
    "ExportSettings": "exports.settings",
    "GenerateSettings": "generation.settings",
    "Plan": "planning",
    "ProjectedPair": "projected.pairs",
    "ProjectedRows": "projected.pairs",
    "Report": "annotation",
    "Verification": "verification",
    "annotate": "annotation",
    "compare_annotations": "comparison",
    "evaluate": "evaluation.evaluating",
    "export": "exports.exporting",
    "generate": "generation.generating",
    "load_annotated": "annotated.opening",
    "open_annotated": "annotated.opening",
    "plan": "planning",
    "project_row": "projected.pairs",
    "project_rows": "projected.pairs",
    "push_annotated": "report.publishing",
    "reselect": "reselection",
    "response_encoder": "tokens.encoder",
    "show": "report.notebook",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    """Import what needs the Hub's client on demand: commands read the settings for ``--help``."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
