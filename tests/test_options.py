"""Tests of what all commands share: panels, defaults from the settings, other spellings, config files."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import rich_click as click
from click.testing import CliRunner, Result

from cli.ending import duration, typed
from cli.main import main
from cli.options import Option, command, option, panel
from sepo_data import SettingsError
from sepo_data.settings import DTYPES, AnnotateSettings


def all_commands(group: click.Group = main, *words: str) -> Iterator[tuple[str, click.Command]]:
    for name, found in group.commands.items():
        if isinstance(found, click.Group):
            yield from all_commands(found, *words, name)
        else:
            yield " ".join([*words, name]), found


COMMANDS = dict(all_commands())


def invoke(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment)


@dataclass(frozen=True)
class Inner:
    """Nested settings."""

    rule: Literal["a", "b"] = "b"


@dataclass(frozen=True)
class Settings:
    """Filled by the command below."""

    output_dir: Path
    inner: Inner
    steps: int = 7
    loud: bool = False
    names: tuple[str, ...] = ()


@command(
    "made",
    panel(
        "All",
        option("--output", "Where.", Settings, "output_dir", aliases=["--out"]),
        option("--rule", "Which.", Inner),
        option("--steps", "How many.", Settings),
        option("--loud", "Say more.", Settings),
        option("--names", "Some.", Settings),
        option("--other", "Fills nothing."),
    ),
    settings=Settings,
)
def made(settings: Settings, other: str | None) -> None:
    """Print what it is given."""
    click.echo(repr((settings, other)))


def test_a_command_is_given_the_settings_that_its_options_say() -> None:
    given = ["--output", "x", "--rule", "a", "--loud", "--names", "n", "--names", "m", "--other", "o"]
    found = CliRunner().invoke(made, given)
    assert found.stdout.strip() == repr((Settings(Path("x"), Inner("a"), 7, True, ("n", "m")), "o"))
    assert repr((Settings(Path("y"), Inner()), None)) in CliRunner().invoke(made, ["--out", "y"]).stdout


def test_choices_defaults_and_what_is_required_come_from_the_settings() -> None:
    options = {one.name: one for one in made.params if isinstance(one, Option)}
    assert options["output"].required
    assert not options["steps"].required
    assert options["steps"].default == 7
    assert isinstance(options["rule"].type, click.Choice)
    assert options["rule"].type.choices == ("a", "b")
    assert options["rule"].default == "b"
    dtype = next(one for one in COMMANDS["annotate"].params if one.name == "dtype")
    assert isinstance(dtype.type, click.Choice)
    assert dtype.type.choices == DTYPES
    assert dtype.default == AnnotateSettings.dtype


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_its_options_in_panels_required_ones_first(words: str) -> None:
    options = [one for one in COMMANDS[words].params if isinstance(one, Option)]
    required = [one.required for one in options]
    assert required == sorted(required, reverse=True)
    assert [
        one.opts[0] for one in options if one.panel is None and one.opts[0] not in ("--config", "--json")
    ] == []


@pytest.mark.parametrize("words", [*COMMANDS, "train"])
def test_every_command_says_its_version(words: str) -> None:
    found = invoke(*words.split(), "--version")
    assert found.exit_code == 0
    assert found.stdout.startswith("sepo, version ")


def test_other_spellings_are_read_and_not_shown() -> None:
    given = ["--model", "m", "--dataset", "d", "--output-dir", "o"]
    params = COMMANDS["train sepo"].make_context("sepo", given).params
    assert (params["policy"], params["output"]) == ("m", Path("o"))
    shown = invoke("train", "sepo", "--help").stdout
    assert "--output-dir" not in shown
    assert "--model " not in shown


def test_an_option_in_the_environment_is_called_as_it_is_typed() -> None:
    found = COMMANDS["train sepo"].make_context
    environment = {"SEPO_TRAIN_SEPO_EPOCHS": "3", "SEPO_TRAIN_SEPO_OUTPUT": "o"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        context = found("sepo", ["--policy", "m", "--dataset", "d"], auto_envvar_prefix="SEPO_TRAIN_SEPO")
    assert context.params["epochs"] == 3
    assert context.params["output"] == Path("o")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Choose another `output_dir`.", "Choose another --output."),
        ("Pass `rule=a`, or `loud=True`.", "Pass --rule a, or --loud."),
        ("Leave out `loud=False`.", "Leave out --no-loud."),
        ("Pass `names.one=1`.", "Pass --names one=1."),
        ("`unknown` stays, and `hf auth login` too.", "`unknown` stays, and `hf auth login` too."),
    ],
)
def test_a_message_names_the_flags_of_the_command_that_was_typed(message: str, shown: str) -> None:
    @command("fails", [*made.params], settings=Settings)
    def fails(settings: Settings, other: str | None) -> None:
        """Fail with a warning."""
        logging.getLogger("sepo").warning(message)
        raise SettingsError(message)

    found = CliRunner().invoke(fails, ["--output", "x"])
    assert found.exit_code == 1
    assert found.stderr.splitlines()[-1] == f"Error: {shown}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("output: false\n", "output is false, it must be a value; quote words"),
        ("private: 3\n", "private is 3, it must be true or false"),
        ("output:\n", "output has no value"),
        ("output: [a, b]\n", "output is ['a', 'b'], it must be a single value"),
        ("otput: a\n", "unknown options: otput"),
        ("config: a\n", "unknown options: config"),
    ],
)
def test_a_wrong_line_of_a_config_is_named(tmp_path: Path, content: str, message: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(content)
    found = invoke("train", "sepo", "--policy", "m", "--dataset", "d", "--config", config)
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_config_may_use_another_spelling_and_a_mapping(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("output_dir: o\nmodel: m\nset: {weight_decay: 0.1}\nprivate: true\n")
    context = COMMANDS["train sepo"].make_context("sepo", ["--dataset", "d", "--config", str(config)])
    assert context.params["output"] == Path("o")
    assert context.params["policy"] == "m"
    assert context.params["set"] == {"weight_decay": "0.1"}
    assert context.params["private"] is True


def test_the_next_command_is_written_as_the_last_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/sepo-train", "sepo"])
    assert typed("inspect", "my out") == "sepo-inspect 'my out'"
    assert typed("train dpo", "--model", Path("ref")) == "sepo-train dpo --model ref"
    assert typed("evaluate", "--model", "p") == "sepo evaluate --model p"  # has no program of its own
    monkeypatch.setattr("sys.argv", ["/usr/bin/sepo", "train", "sepo"])
    assert typed("inspect", "out") == "sepo inspect out"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (150, "2 min 30 s"), (3900, "1 h 5 min")]
)
def test_a_duration_is_read_at_a_glance(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
