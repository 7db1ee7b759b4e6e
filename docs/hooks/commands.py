"""The page of commands, made from what `--help` prints: rich-click gives other generators nothing to read."""

from collections.abc import Iterator

import click
from click.testing import CliRunner

from cli.main import main

MARKER = "<!-- commands -->"


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something."""
    if not isinstance(command, click.Group):
        yield words
        return
    for name in command.commands:
        yield from commands(command.commands[name], (*words, name))


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put a section for each command in the place of the marker (a hook of mkdocs)."""
    if MARKER not in markdown:
        return markdown
    sections = []
    for words in commands(main, ()):
        found = CliRunner().invoke(
            main, [*words, "--help"], prog_name="sepo", env={"COLUMNS": "100"}, catch_exceptions=False
        )
        sections.append(f"## sepo {' '.join(words)}\n\n```text\n{found.output.strip()}\n```\n")
    return markdown.replace(MARKER, "\n".join(sections))
