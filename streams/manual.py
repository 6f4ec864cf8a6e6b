"""The manual of the command line, made from the commands: `python -m kithstream.streams.manual FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from kithstream.streams.cli import cli

_WIDTH: Final = 100


def manual() -> str:
    """Return every command's help as one page of Markdown."""
    parts = [
        "# The command line\n",
        "Made from the commands by `python -m kithstream.streams.manual docs/cli.md`; do not edit.\n",
        _block("kithstream", cli),
    ]
    for name, command in commands(cli):
        parts.append(f"## {name}\n")
        parts.append(_block(f"kithstream {name}", command))
    return "\n".join(parts)


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command under the name it is called by, a group before the commands in it."""
    for name, command in sorted(group.commands.items()):
        yield before + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")


def _block(name: str, command: click.Command) -> str:
    context = click.Context(
        command, info_name=name, terminal_width=_WIDTH, help_option_names=["-h", "--help"]
    )
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    return "```text\n{}\n```\n".format("\n".join(lines))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(manual())
