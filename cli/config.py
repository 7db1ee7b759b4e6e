"""``--config FILE``: a command's options from YAML; environment and flags win."""

from pathlib import Path

import rich_click as click

from .options import FILE, Option


def _read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **_checked(path, _load(path), ctx.command.params)}


def _load(path: Path) -> dict[str, object]:
    """The options in a file, by flag without its dashes."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise click.BadParameter(f"{path} is not valid YAML: {reason}") from error
    if not isinstance(values, dict):
        raise click.BadParameter(f"{path} must contain options, one per line, like `dataset: me/prefs`.")
    return {str(key).replace("_", "-"): value for key, value in values.items()}


def _checked(path: Path, values: dict[str, object], params: list[click.Parameter]) -> dict[str, object]:
    """The same, by click's names."""
    known = {
        spelling.removeprefix("--"): one
        for one in params
        if isinstance(one, Option) and one is not CONFIG
        for spelling in (*one.opts, *one.aliases)
    }
    if unknown := sorted(values.keys() - known.keys()):
        raise click.BadParameter(f"{path} has unknown options: {', '.join(unknown)}. See --help.")
    return {str(known[name].name): _value(path, name, known[name], value) for name, value in values.items()}


def _value(path: Path, name: str, option: Option, value: object) -> object:
    """The value as the option expects it."""
    if value is None:
        raise click.BadParameter(f"{path}: {name} has no value. Set one, or remove the line.")
    if isinstance(value, bool) != option.is_flag:
        wanted = (
            "true or false" if option.is_flag else "a value; quote words that YAML reads as true or false"
        )
        raise click.BadParameter(f"{path}: {name} is {str(value).lower()}, it must be {wanted}.")
    if isinstance(value, dict) and option.multiple:
        return [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list | dict) and not option.multiple:
        raise click.BadParameter(f"{path}: {name} is {value!r}, it must be a single value.")
    return value


CONFIG = Option(
    "--config",
    type=FILE,
    callback=_read_config,
    is_eager=True,
    expose_value=False,
    metavar="FILE",
    help="YAML file with any of these options; environment variables and flags override it.",
)
