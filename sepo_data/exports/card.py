"""The card of an export: what it was made from, and how to train from it."""

from importlib.metadata import version
from pathlib import Path, PurePath
from string import Template

from ..annotated.card import CARRIED_OVER, markdown_templates, yaml_header
from ..annotated.opening import Annotated
from ..projected.pairs import ProjectedPair
from .settings import ExportReport, ExportSettings
from .target import SelectedText, Target


def render_card(
    report: ExportReport,
    annotated: Annotated,
    settings: ExportSettings,
    target: Target[ProjectedPair] | Target[SelectedText],
) -> str:
    """The README.md of an export."""
    source = annotated.manifest.source
    model = _model(settings.tokenizer)
    header = {
        **{key: source.card[key] for key in CARRIED_OVER if key in source.card},
        "tags": ["sepo", settings.target],
        "sepo": {
            "dataset": f"{annotated.name}@{annotated.revision}",
            "target": settings.target,
            "selection": report.selection.as_dict(),
            "weights": settings.weights,
        },
    }
    page = markdown_templates("sepo_data.exports").get_template("export_card.md.j2")
    return f"---\n{yaml_header(header)}---\n\n" + page.render(
        report=report,
        annotated=annotated,
        settings=settings,
        version=version("sepo"),
        tokenizer=model if settings.tokenizer else None,
        data=target.file,
        recipe=Template(target.recipe.strip("\n")).substitute(
            DATA=target.file, MODEL=model, LENGTH=settings.max_length
        ),
    )


def _model(tokenizer: str | None) -> str:
    """What a recipe calls the policy: a name on the Hub, or a folder without its parents."""
    if tokenizer is None:
        return "MODEL"
    return PurePath(tokenizer).name if Path(tokenizer).exists() else tokenizer
