"""What all commands share: a config file under the flags, and failures as one line."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import rich_click as click
from click.exceptions import NoArgsIsHelpError

P = ParamSpec("P")


class _OneLine:
    """Says what is wrong with the arguments in one line, and exits 2."""

    name: str | None

    def main(self, *args: Any, **extra: Any) -> Any:
        """As click's own, standing alone."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})  # type: ignore[misc]
        except NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            name = error.ctx.command_path if error.ctx else self.name
            click.echo(f"Error: {error.format_message()} See `{name} --help`.", err=True)
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)


class Command(_OneLine, click.RichCommand):
    """A command."""


class Group(_OneLine, click.RichGroup):  # type: ignore[misc]
    """A group of commands."""


class _Lines(logging.Formatter):
    """The bare message; our own warnings say that they are."""

    def format(self, record: logging.LogRecord) -> str:
        """As printed."""
        ours = record.name == "sepo" and record.levelno >= logging.WARNING
        from sepo_data.errors import visible, without_secrets

        return visible(without_secrets(f"{'warning: ' if ours else ''}{super().format(record)}"))


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Exit 1 with one line on an expected failure, 130 on Ctrl-C; log to stderr."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from sepo_data.errors import SepoError

        # read when torch is loaded: threads that spin while they wait take the cores from the others
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        handler = logging.StreamHandler()
        handler.setFormatter(_Lines())
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        logging.getLogger("sepo").setLevel(logging.INFO)
        try:
            command(*args, **kwargs)
        except SepoError as error:
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("Stopped. Nothing that was finished is lost.", err=True)
            sys.exit(130)

    return wrapped


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config FILE``: YAML with the command's own option names; environment and flags win over it."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_read_config,
        is_eager=True,
        expose_value=False,
        metavar="FILE",
        help="YAML file with any of these options; environment variables and flags win over it.",
    )(command)


def _read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    import yaml

    if path is None:
        return
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise click.BadParameter(f"{path} is not valid YAML: {reason}") from error
    if not isinstance(values, dict):
        raise click.BadParameter(f"{path} must hold options, like `dataset: me/prefs`, one a line.")
    known = {name for option in ctx.command.params for name in option.opts}
    names = {str(key).replace("_", "-"): value for key, value in values.items()}
    unknown = sorted(name for name in names if f"--{name}" not in known or name in ("config", "help"))
    if unknown:
        raise click.BadParameter(f"{path} has unknown options: {', '.join(unknown)}. See --help.")
    lists = {option.opts[0] for option in ctx.command.params if getattr(option, "multiple", False)}
    for name, value in names.items():
        if isinstance(value, list | dict) and f"--{name}" not in lists:
            raise click.BadParameter(f"{path}: {name} is {value!r}, it must be a single value.")
    names = {
        name: [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else value
        for name, value in names.items()
    }
    by_name = {option.opts[0].removeprefix("--"): option.name for option in ctx.command.params}
    ctx.default_map = {**(ctx.default_map or {}), **{by_name.get(n, n): value for n, value in names.items()}}


def read_pairs(ctx: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """``field=value`` of an option that may be repeated, or from a config file a mapping."""
    found = {}
    for pair in pairs:
        name, equals, value = str(pair).partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not field=value, like {parameter.opts[0]} {pair}=1.")
        found[name.strip()] = value.strip()
    return found


def column_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a user can say about reading a dataset of others, see `sepo_data.dataset_spec`."""
    for option in (
        click.option(
            "--ignore-columns",
            multiple=True,
            metavar="NAME",
            callback=lambda ctx, parameter, names: tuple(n for name in names for n in name.split(",")),
            help="Leave this column out, whatever its name means. Several: repeat it, or commas.",
        ),
        click.option(
            "--truncated-column",
            metavar="NAME",
            help="Which responses were cut, if not in truncated or finish_reason.",
        ),
        click.option("--tools-column", metavar="NAME", help="Tools for the chat template, if not in tools."),
        click.option("--system-column", metavar="NAME", help="System texts, if not in system."),
        click.option("--rejected-column", metavar="NAME", help="If it is not called rejected."),
        click.option("--chosen-column", metavar="NAME", help="If it is not called chosen."),
        click.option("--prompt-column", metavar="NAME", help="If it is not called prompt."),
        click.option(
            "--config-name", metavar="NAME", help="Which configuration, of a dataset that has several."
        ),
    ):
        command = option(command)
    return command


def chat_template_options(file_help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--chat-template FILE`` and ``--no-chat-template``; `chosen_template` makes a setting of both."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        none = click.option("--no-chat-template", is_flag=True, help="Use prompts as they are.")
        file = click.option(
            "--chat-template",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help=file_help,
        )
        return file(none(command))

    return add


def chosen_template(chat_template: Path | None, no_chat_template: bool) -> bool | Path:
    """The setting ``chat_template`` of the two options."""
    if chat_template is not None and no_chat_template:
        raise click.UsageError("--chat-template and --no-chat-template exclude each other.")
    return chat_template or not no_chat_template


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--allow-pickle`` and ``--trust-remote-code``."""
    return click.option(
        "--allow-pickle", is_flag=True, help="Open weights that are pickles, which can run code."
    )(trust_remote_code_option(command))


def trust_remote_code_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--trust-remote-code``."""
    return click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with a model.")(
        command
    )
