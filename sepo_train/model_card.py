"""The model card: YAML that the Hub accepts, and a page about how the model was trained.

It renders what the training record contains and leaves out the rest. No licence
is derived: a dataset's licence is not that of the weights.
"""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jinja2

from sepo_data.annotated.card import markdown_templates, yaml_header
from sepo_data.files import write_atomically

from .figures import run_warnings, verdict
from .folder import DatasetPart, ModelPart, Record

_LICENCE = ("license", "license_name", "license_link")


def write_card(folder: Path, record: Record) -> None:
    """Write the README.md of a trained model or adapter.

    Args:
        folder: The model's; also tells whether it is an adapter.
        record: What ``sepo_training.json`` says.
    """
    is_adapter = (folder / "adapter_config.json").exists()
    write_atomically(folder / "README.md", render_card(record, is_adapter=is_adapter).encode())


def render_card(record: Record, *, is_adapter: bool) -> str:
    """The text of a model card.

    Args:
        record: What ``sepo_training.json`` says; absent, null and empty facts are left out.
        is_adapter: Whether the model is a PEFT adapter.
    """
    record = _known(record)
    environment = markdown_templates("sepo_train", jinja2.ChainableUndefined)  # missing values are false
    environment.filters |= {"code": _code, "shown": _shown, "figure": _figure}
    metadata = _metadata(record, is_adapter=is_adapter)
    header = yaml_header(metadata)
    names = {"model": _name(record.get("model", {})), "dataset": _name(record.get("dataset", {}))}
    page = environment.get_template("model_card.md.j2")
    figures = record.get("figures", {})
    return f"---\n{header}---\n\n" + page.render(
        r=record,
        names=names,
        is_adapter=is_adapter,
        verdict=verdict(figures),
        warnings=run_warnings(figures),
    )


def _metadata(record: Record, *, is_adapter: bool) -> dict[str, object]:
    model, dataset = record.get("model", {}), record.get("dataset", {})
    licence = model.get("card", {})
    tags = ["sepo", "alignment", record["stage"], *(["lora"] if is_adapter else [])]
    return {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": model["name"]} if model.get("on_hub") else {}),
        **({"datasets": [dataset["name"]]} if dataset.get("on_hub") else {}),
        **{key: licence[key] for key in _LICENCE if key in licence},
        **_language(dataset.get("card", {}).get("language")),
        "tags": list(dict.fromkeys(tags)),
    }


def _language(stated: object) -> dict[str, object]:
    """The dataset's; YAML has read the code of Norwegian, ``no``, as False."""
    if stated is None:
        return {}
    codes = stated if isinstance(stated, list) else [stated]
    return {"language": ["no" if code is False else str(code) for code in codes]}


def _known(value: Any) -> Any:
    """The record without nulls and empty values."""
    if isinstance(value, dict):
        return {
            key: known for key, item in value.items() if (known := _known(item)) not in (None, {}, [], "")
        }
    return value


def _name(facts: ModelPart | DatasetPart) -> str:
    """A name on the Hub, or a folder's last name."""
    name = str(facts.get("name", ""))
    return name if facts.get("on_hub") else re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def _code(text: object) -> str:
    """A code span that is safe in a table cell, without folders of the machine."""
    shown = str(text)
    if PurePosixPath(shown).is_absolute() or PureWindowsPath(shown).is_absolute() or shown.startswith("~"):
        shown = PureWindowsPath(shown).name  # it splits at both slashes
    shown = " ".join(shown.split()).replace("`", "'")
    return f"`{shown or ' '}`".replace("|", r"\|")


def _shown(value: object) -> str:
    """A setting in a table cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{_code(key)} = {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return (
        f"{value:,}" if isinstance(value, int) else str(value) if isinstance(value, float) else _code(value)
    )


def _figure(value: float | None) -> str:
    """A figure with four decimals; very small ones with the digits they need."""
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4f}" if value == 0 or not abs(value) < 1e-3 else f"{value:.2e}"
