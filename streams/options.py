"""What commands share: how a runtime is opened, what is printed, and how a user's mistake is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

if TYPE_CHECKING:
    from kithstream.streams.config import Config
    from kithstream.streams.serve.embedded import Embedded

F = TypeVar("F", bound=Callable[..., object])
# What `kithstream[server]` brings, by the names under which it is imported.
EXTRA: Final = frozenset(
    (
        "aiokafka",
        "faust",
        "hnswlib",
        "numpy",
        "prometheus_client",
        "pyarrow",
        "rich",
        "rocksdict",
        "safetensors",
    )
).union(("starlette", "structlog", "torch", "uvicorn"))


class Refused(click.ClickException):
    """What the user asked for cannot be done: one line, exit status 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"Error: {' '.join(self.format_message().split())}", err=True)


class Commands(click.Group):
    """A group whose commands tell a user's mistake in one line; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        from kithstream.streams.errors import KithstreamError

        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly
        except (KithstreamError, OSError) as error:
            raise Refused(str(error)) from error
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in EXTRA:
                raise
            raise Refused(f"{error.name} is not installed: pip install 'kithstream[server]'") from error


@contextmanager
def told() -> Iterator[None]:
    """Turn a ValueError about what the user handed over into one line."""
    try:
        yield
    except ValueError as error:
        raise Refused(str(error)) from error


def settings(command: F) -> F:
    """Add --config and -o, for commands that open a runtime."""
    command = click.option(
        "-o", "--option", "options", multiple=True, metavar="SECTION.KEY=VALUE", help="Set one setting."
    )(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Settings in a TOML file.",
    )(command)


def as_json(command: F) -> F:
    """Add --json."""
    return click.option("--json", "machine", is_flag=True, help="Print JSON for a machine.")(command)


def directory(command: F) -> F:
    """Add --path, of a runtime that exists."""
    return click.option(
        "--path",
        required=True,
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Directory of an embedded runtime.",
    )(command)


def at(command: F) -> F:
    """Add --at."""
    return click.option(
        "--at",
        type=click.Choice(["now", "newest"]),
        default="now",
        show_default=True,
        help="The time to answer at: the present, or that of the newest event.",
    )(command)


def read_settings(config_file: Path | None, options: tuple[str, ...]) -> Config:
    """Return the settings of a command line."""
    from kithstream.streams.config import load

    with told():
        return load(config_file, options=options)


@contextmanager
def existing(path: Path, config: Config, moment: str) -> Iterator[Embedded]:
    """Open a runtime that is there, with everything published folded in."""
    from kithstream.streams.backup import LAYOUT
    from kithstream.streams.clock import StreamClock, newest
    from kithstream.streams.events.stamp import wall_clock

    if not (path / LAYOUT).is_file():
        raise Refused(f"{path} holds no runtime: {LAYOUT} is missing")
    clock = StreamClock(newest(path)) if moment == "newest" else wall_clock
    with runtime(path, config, clock) as live:
        live.catch_up()
        yield live


@contextmanager
def runtime(path: Path, config: Config, clock: Callable[[], int]) -> Iterator[Embedded]:
    """Open a runtime that folds when it is told to; a wrong model or wrong settings are told in one line."""
    from kithstream.streams.serve.embedded import open as open_runtime

    with told():
        live = open_runtime(path, config=config, clock=clock, start=False)
    with live:
        yield live


def say(text: str) -> None:
    """Print a line that is no data, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(values: Mapping[str, object], machine: bool) -> None:
    """Print a flat result: one line of JSON, or a line a value."""
    if machine:
        click.echo(json.dumps(values))
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value}")
