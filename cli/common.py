"""What all commands share: one-line errors, logging, and how they import what they need."""

import functools
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ParamSpec, TextIO

import rich_click as click
from click.exceptions import NoArgsIsHelpError

from .suggestions import explained

P = ParamSpec("P")


class _OneLine:
    """Reports wrong arguments in one line and exits with 2."""

    name: str | None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Click's method; it leaves the command out of some of its errors."""
        try:
            rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        return rest

    def main(self, *args: Any, **extra: Any) -> Any:
        """Click's method, as an entry point."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})  # type: ignore[misc]
        except NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            name = error.ctx.command_path if error.ctx else self.name
            click.echo(f"Error: {with_flags(explained(error), error.ctx)} See `{name} --help`.", err=True)
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)


class Command(_OneLine, click.RichCommand):
    """A command."""


class Group(_OneLine, click.RichGroup):  # type: ignore[misc]
    """A group of commands."""


_SETTING = re.compile(r"`([a-z_]+)(?:\.(\w+))?(?:=([^`]*))?`")


def with_flags(text: str, context: click.Context | None = None) -> str:
    """Replace settings named in backticks by the flags of a command, by default the running one.

    The library says `` `max_length` `` or `` `dtype=float32` ``, which suits callers in
    Python; users of a command read ``--max-length`` and ``--dtype float32``.
    """
    context = context or click.get_current_context(silent=True)
    if context is None:
        return text
    flags = {
        name: one.opts[0]
        for one in context.command.params
        for name in (one.name, getattr(one, "field", None))
        if isinstance(one, click.Option)
    }

    def flag(found: re.Match[str]) -> str:
        name, part, value = found.groups()
        if name not in flags:
            return found[0]
        typed = flags[name] if part is None else f"{flags[name]} {part}"
        if value in (None, "True"):
            return typed
        if value == "False":
            return f"--no-{typed.removeprefix('--')}"
        return f"{typed} {value}" if part is None else f"{typed}={value}"

    return _SETTING.sub(flag, text)


class _Lines(logging.Formatter):
    """The bare message; our own warnings begin with ``warning:``."""

    def format(self, record: logging.LogRecord) -> str:
        """As printed."""
        ours = record.name == "sepo" and record.levelno >= logging.WARNING
        from sepo_data.errors import visible, without_secrets

        text = f"{'warning: ' if ours else ''}{super().format(record)}"
        return with_flags(visible(without_secrets(text)))


class _BesideBars(logging.StreamHandler[TextIO]):
    """Log lines on stderr that do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print above the bar, if there is one."""
        from tqdm import tqdm

        with tqdm.external_write_mode():
            super().emit(record)


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Exit 1 with one line on an expected failure, 130 on Ctrl-C; log to stderr."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from sepo_data.errors import SepoError

        # read when torch is loaded: threads that spin while waiting take cores away from others
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        handler = _BesideBars()
        handler.setFormatter(_Lines())
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        logging.getLogger("sepo").setLevel(logging.INFO)
        try:
            command(*args, **kwargs)
        except SepoError as error:
            click.echo(f"Error: {with_flags(' '.join(str(error).split()))}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("Stopped. Finished work is kept.", err=True)
            sys.exit(130)

    return wrapped


@contextmanager
def importing(*heavy: str) -> Iterator[None]:
    """Import a command's modules without garbage collection, which takes a quarter of their time for nothing.

    Modules live as long as the process, so later collections leave them out as well. Afterwards other
    libraries' deprecation warnings are hidden, and their progress bars kept out of log files.

    Args:
        heavy: Modules that the command would import later.
    """
    gc.disable()
    try:
        yield
        for module in heavy:
            import_module(module)
        _quiet_libraries()
    finally:
        if not gc.get_freeze_count():  # a caller with several commands may have garbage, which would stay
            gc.freeze()
        gc.enable()


def _quiet_libraries() -> None:
    import datasets
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty():
        disable_progress_bars()
        datasets.disable_progress_bars()
        if "transformers" in sys.modules:  # else it asks huggingface_hub when it is imported
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()
