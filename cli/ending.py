"""How a command ends: where it saved the result, how long it took, what to do next; or one JSON object."""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MISMATCH = 3  # exit code of verify and diff on a mismatch
_STANDALONE = {"annotate", "inspect", "train"}  # these have their own program, like sepo-train


def elapsed_s() -> float:
    """Seconds since the command began."""
    context = click.get_current_context()
    assert context is not None
    return time.monotonic() - float(context.meta["sepo.began"])


def typed(command: str, *arguments: object) -> str:
    """A command in the style in which the running one was typed: ``sepo-train sft`` or ``sepo train sft``."""
    program, first = Path(sys.argv[0]).name, command.split()[0]
    start = f"sepo-{command}" if program.startswith("sepo-") and first in _STANDALONE else f"sepo {command}"
    return f"{start} {shlex.join(map(str, arguments))}".rstrip()


def saved(
    place: object, url: str | None, following: str | None = None, *, curves: str | None = None
) -> list[str]:
    """The last lines of a run; ``curves`` and ``following`` are commands."""
    lines = [f"saved to {place} in {duration(elapsed_s())}"]
    if url is not None:
        lines.append(f"pushed to {url}")
    if curves is not None:
        lines.append(f"curves: {curves}")
    if following is not None:
        lines.append(f"next: {following}")
    return lines


def show(as_json: bool, lines: Iterable[str], **found: object) -> None:
    """Print the result of a command: text, or one JSON object with the command's name and duration."""
    if not as_json:
        # click leaves colours out of pipes; https://no-color.org asks for the same on a terminal
        click.echo("\n".join(lines), color=False if os.environ.get("NO_COLOR") else None)
        return
    context = click.get_current_context()
    assert context is not None
    root = context.find_root()
    name = context.command_path.removeprefix(str(root.info_name)).strip()
    if root.command.name != "main":  # as sepo-train: the words of `sepo train`
        name = f"{root.command.name} {name}".strip()
    made = {
        "command": name,
        "seconds": round(elapsed_s(), 3),
        **{name: plain(value) for name, value in found.items()},
    }
    click.echo(json.dumps(made, ensure_ascii=False, allow_nan=False))


def plain(value: object) -> object:
    """Convert to JSON: NaN and infinity become null, unknown types text."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return plain_fields(value)
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)


def plain_fields(value: "DataclassInstance") -> dict[str, object]:
    """Convert a dataclass to JSON."""
    return {field.name: plain(getattr(value, field.name)) for field in fields(value)}


def duration(seconds: float) -> str:
    """For example ``4 s``, ``2 min 30 s``, ``1 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
