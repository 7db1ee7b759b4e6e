"""Render self-contained HTML pages: the parts that all pages share."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from ..errors import OutputError, visible
from ..files import write_atomically
from .drawing import Chart, svg

PACKAGE = "sepo_data.report"
LONGEST = 80  # characters shown of a token or a group's value in a table


def render(
    template: str,
    *,
    package: str = PACKAGE,
    scripts: Sequence[str] = (),
    charts: Sequence[Chart] = (),
    **facts: object,
) -> str:
    """Render a page as HTML.

    Args:
        template: Name of a template that extends ``page.html.j2``.
        package: The package that contains it.
        scripts: Files of this package to run besides ``page.js``.
        charts: Charts to draw; the template gets them as ``charts``.
        facts: Other variables of the template.

    Raises:
        SettingsError: If there are charts and matplotlib is not installed.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in {PACKAGE, package}]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters |= {
        "shown": _shown,
        "short": _short,
        "minus": _minus,
        "blanks": _with_blanks,
        "coded": _coded,
    }
    return environment.get_template(template).render(
        version=version("sepo"),
        style=Markup(_resource("page.css")),
        scripts=[_script(name) for name in ("page.js", *scripts)],
        charts=[(chart, Markup(svg(chart))) for chart in charts],
        **facts,
    )


def write_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}). Choose another `output`."
        ) from error


def _script(name: str) -> dict[str, str]:
    text = _resource(name)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": Markup(text), "sha256": digest}


def _resource(name: str) -> str:
    return files(PACKAGE).joinpath(name).read_text("utf-8")


def _shown(text: object) -> str:
    return visible(str(text))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _minus(text: str) -> str:
    """Replace hyphens before numbers by minus signs."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def _coded(text: str) -> Markup:
    """Mark up names of settings in backticks as code."""
    parts = re.split(r"`([^`]*)`", _shown(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts)
    )


def _with_blanks(text: str) -> str:
    """The text of a token with blanks and invisible characters made visible."""
    marked = visible(text).replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return re.sub(r"\s", lambda blank: ascii(blank[0])[1:-1], marked)
