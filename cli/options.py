"""Options as values: type, choices and default come from the settings class whose field they set.

A command consists of its options by panel and the settings they fill, see `command`.
"""

import copy
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import rich_click as click

from sepo_data.schema import SIDES

from .common import Command, one_line_errors


class Share(click.FloatRange):
    """A number in (0, 1]."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert to a number, with a hint for percentages."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            if str(value).rstrip("%").isdecimal() and 1 < int(str(value).rstrip("%")) <= 100:
                share = int(str(value).rstrip("%")) / 100
                self.fail(f"{value} is not a share in (0, 1]. Did you mean {share:g}?", param, ctx)
            raise error


SHARE = Share(0, 1, min_open=True)
POSITIVE = click.FloatRange(0, min_open=True)
COUNT = click.IntRange(min=1)
FROM_ZERO = click.IntRange(min=0)


class UserPath(click.Path):
    """A path that may begin with ``~``, which no shell expands in a config file or after ``=``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A `Path`."""
        return super().convert(Path(value).expanduser(), param, ctx)


FILE = UserPath(exists=True, dir_okay=False, path_type=Path)
OUTPUT_FILE = UserPath(dir_okay=False, path_type=Path)


class Option(click.RichOption):
    """An option of a command.

    Attributes:
        field: The field of the settings that it fills.
        aliases: Other spellings, not shown in ``--help``.
    """

    def __init__(
        self, flag: str, *, field: str | None = None, aliases: Iterable[str] = (), **other: Any
    ) -> None:
        super().__init__([flag, flag.removeprefix("--").replace("-", "_")], **other)
        self.field = field or self.name
        self.aliases = [*aliases]

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """With the other spellings."""
        shown, self.opts = self.opts, [*self.opts, *self.aliases]
        super().add_to_parser(parser, ctx)
        self.opts = shown


def option(
    flag: str, description: str, settings: type | None = None, field: str | None = None, **other: Any
) -> Option:
    """Declare an option.

    Args:
        flag: As typed, ``--learning-rate``.
        description: One line.
        settings: The dataclass that it fills; supplies type, choices and default.
        field: The field's name, if it differs from the flag's.
        other: Arguments of `click.Option`, which override those from the field.
    """
    if settings is not None:
        other = {**_read(settings, field or flag.removeprefix("--").replace("-", "_")), **other}
    return Option(flag, help=description, field=field, **other)


def panel(name: str, *options: Option) -> list[click.Parameter]:
    """These options under a heading of ``--help``."""
    found = [copy.copy(option) for option in options]
    for one in found:
        one.panel = name
    return [*found]


def command(
    name: str, *parameters: list[click.Parameter], settings: type | None = None, env: str | None = None
) -> Callable[[Callable[..., None]], Command]:
    """Turn a function into a command.

    Args:
        name: As it is typed.
        parameters: Its arguments and, by panel, its options.
        settings: What its options fill; passed to the function as ``settings``. Options that fill no
            field are passed by name.
        env: Prefix of the environment variables that options are read from.
    """

    def decorate(function: Callable[..., None]) -> Command:
        @functools.wraps(function)
        def run(**options: object) -> None:
            options = _by_field(options)
            if settings is not None:
                options["settings"] = _filled(settings, options)
            function(**options)

        made: Command = click.command(
            name,
            cls=Command,
            params=[one for some in parameters for one in some],
            context_settings={"show_default": True, "auto_envvar_prefix": env},
        )(click.version_option(version("sepo"), prog_name="sepo")(one_line_errors(run)))
        return made

    return decorate


def _read(settings: type, name: str) -> dict[str, object]:
    """What a field says about its option."""
    (field,) = (one for one in fields(settings) if one.name == name)
    hint = get_type_hints(settings)[name]
    if get_origin(hint) in (Union, UnionType):
        hint = next(one for one in get_args(hint) if one is not NoneType)
    found: dict[str, object] = (
        {"default": field.default} if field.default is not MISSING else {"required": True}
    )
    if hint is bool:
        return {**found, "is_flag": True}
    if get_origin(hint) is Literal:
        return {**found, "type": click.Choice(get_args(hint))}
    if get_origin(hint) is tuple:
        return {**found, "multiple": True}
    return {**found, "type": UserPath(path_type=Path) if hint is Path else hint}


def _by_field(options: dict[str, object]) -> dict[str, object]:
    """The options by the fields that they fill; shorthands such as ``--ratio`` are expanded."""
    context = click.get_current_context()
    assert context is not None
    context.meta["sepo.began"] = time.monotonic()
    names = {one.name: one.field for one in context.command.params if isinstance(one, Option)}
    found = {names.get(name, name): value for name, value in options.items()}
    if "no_chat_template" in found:
        if found.pop("no_chat_template"):
            if found["chat_template"] is not None:
                raise click.UsageError("--chat-template and --no-chat-template exclude each other.")
            found["chat_template"] = False
        found["chat_template"] = True if found["chat_template"] is None else found["chat_template"]
    if "ratio" in found:
        ratio = found.pop("ratio")
        for name in (f"{side}_ratio" for side in SIDES):
            found[name] = ratio if found[name] is None else found[name]
    return found


def _filled(settings: type, options: dict[str, object]) -> object:
    """Take the options out that fill these settings, or settings in them."""
    hints = get_type_hints(settings)
    names = [field.name for field in fields(settings)]
    given = {name: options.pop(name) for name in names if name in options}
    for name in names:
        if name not in given and is_dataclass(hints[name]):
            given[name] = _filled(hints[name], options)
    return settings(**given)
