"""The manual of the command line, made from the commands: `python -m kithstream.streams.manual FILE`."""

from __future__ import annotations

import sys
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
    for name in sorted(cli.commands):
        parts.append(f"## {name}\n")
        parts.append(_block(f"kithstream {name}", cli.commands[name]))
    return "\n".join(parts)


def _block(name: str, command: click.Command) -> str:
    context = click.Context(
        command, info_name=name, terminal_width=_WIDTH, help_option_names=["-h", "--help"]
    )
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    return "```text\n{}\n```\n".format("\n".join(lines))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(manual())
