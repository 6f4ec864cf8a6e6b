"""The lineages of an embedded runtime: which it serves, which it served before, which it is asked to serve.

A folder beside the stores. A request is a file that appears whole; whoever runs the directory takes it up, at once or
when it is opened next, so that publishing needs no connection to it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from kithstream.models import checkpoint
from kithstream.models.features import SCHEMA
from kithstream.models.lineage import lineage_of_content
from kithstream.streams.errors import StoreRefused

NAME: Final = "models"  # of the folder, beside the stores
_STATE: Final = "lineages.json"
_WANTED: Final = "wanted.json"
Read = TypeVar("Read")


class Known(msgspec.Struct, frozen=True):
    """One lineage that was published."""

    lineage: str
    dim: int
    step: int  # of what was published


class State(msgspec.Struct, frozen=True):
    """What is served; empty names before anything was published."""

    serving: str = ""
    former: str = ""
    known: Sequence[Known] = ()


class Wanted(msgspec.Struct, frozen=True):
    """A request."""

    lineage: str
    known: Known | None = None  # None for one that was served before


class Lineages:
    """The folder of a runtime's directory."""

    def __init__(self, runtime: Path) -> None:
        self._folder = runtime / NAME

    @property
    def state(self) -> State:
        """What is served; raises StoreRefused for a damaged file."""
        return self._read(_STATE, State) or State()

    def file(self, lineage: str) -> Path:
        """Return where a lineage's model lies: as it was published, or as it was when another took its place."""
        return self._folder / f"{lineage}.safetensors"

    def publish(self, file: Path) -> Wanted:
        """Ask for a checkpoint's model, as a lineage named by the file's content.

        Raises CheckpointError, and StoreRefused if it is the one that is served.
        """
        header = checkpoint.read_header(file, SCHEMA.hash)
        lineage = lineage_of_content(file)
        self._refuse_served(lineage)
        self._folder.mkdir(exist_ok=True)
        if not self.file(lineage).exists():
            aside = self.file(lineage).with_suffix(".writing")
            shutil.copyfile(file, aside)
            os.replace(aside, self.file(lineage))
        wanted = Wanted(lineage, Known(lineage, header.tower.dim, header.step))
        self._write(_WANTED, wanted)
        return wanted

    def point(self, lineage: str = "") -> Wanted:
        """Ask for a lineage that was served or published before; empty is the former one. Raises StoreRefused."""
        state = self.state
        wanted = Wanted(lineage or state.former)
        if not wanted.lineage:
            raise StoreRefused("nothing was served before: there is nothing to go back to")
        self._refuse_served(wanted.lineage)
        if not self.file(wanted.lineage).exists():
            known = ", ".join(sorted(file.stem for file in self._folder.glob("*.safetensors"))) or "none"
            raise StoreRefused(f"lineage is {wanted.lineage!r}, expected one of {known}")
        self._write(_WANTED, wanted)
        return wanted

    @property
    def wanted(self) -> Wanted | None:
        """The request that waits, if any."""
        return self._read(_WANTED, Wanted)

    def take(self, wanted: Wanted, former: str) -> None:
        """Note that a request was met, and which lineage was served before it."""
        state = self.state
        known = [one for one in state.known if wanted.known is None or one.lineage != wanted.lineage]
        if wanted.known is not None:
            known.append(wanted.known)
        self._write(_STATE, State(wanted.lineage, former, known))
        if self.wanted == wanted:  # and not one that came meanwhile
            (self._folder / _WANTED).unlink()

    def refuse(self, wanted: Wanted) -> None:
        """Let go of a request that cannot be met."""
        if self.wanted == wanted:
            (self._folder / _WANTED).unlink()

    def _refuse_served(self, lineage: str) -> None:
        if self.state.serving == lineage:
            raise StoreRefused(f"lineage {lineage} is the one that is served")

    def _read(self, name: str, kind: type[Read]) -> Read | None:
        file = self._folder / name
        try:
            return msgspec.json.decode(file.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise StoreRefused(f"{file}: {error}") from error

    def _write(self, name: str, value: msgspec.Struct) -> None:
        self._folder.mkdir(exist_ok=True)
        aside = self._folder / f"{name}.{os.getpid()}.{time.monotonic_ns()}"
        aside.write_bytes(msgspec.json.encode(value))
        os.replace(aside, self._folder / name)
