"""Where a pass gets its records: a file of events, or the log of an embedded runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from kithstream.streams.backup import LAYOUT
from kithstream.streams.communities import folder as communities
from kithstream.streams.engine.actors import Record as Logged
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import StoreRefused
from kithstream.streams.events.record import Record
from kithstream.streams.examples.capture import Capture, Polled
from kithstream.streams.training import placed


class FileSource:
    """A file of events in its order; each was published when it happened."""

    salt: Final = b""

    def __init__(self, name: str, partitions: int, events: Callable[[], Iterable[Record]]) -> None:
        """`events` reads the file from its beginning."""
        self.name = name
        self.partitions = partitions
        self._events = events

    def prepare(self, work: Path) -> bool:
        return False

    def begin(self, capture: Capture) -> None:
        raise AssertionError("a file begins with nothing")

    def read(self, positions: Mapping[int, int], events: int) -> Generator[Polled, None, None]:
        encode = msgspec.json.Encoder().encode
        route, offsets = Route(self.partitions), dict(positions)
        for event in islice(self._events(), events, None):
            number = route[event["actor"]]
            offset = offsets.get(number, 0)
            offsets[number] = offset + 1
            yield Polled(number, offset, Logged(event["time"], encode(event)))


class LogSource:
    """The log of an embedded runtime, in use or not, from its first record or from a checkpoint on."""

    def __init__(self, path: Path, checkpoint: Path | None = None) -> None:
        """Raises StoreRefused if there is no runtime, or if the checkpoint is of another one."""
        self._path = path
        self._checkpoint = checkpoint
        layout = _layout(path)
        if checkpoint is not None and _layout(checkpoint) != layout:
            raise StoreRefused(f"{checkpoint} is a checkpoint of another runtime than {path}")
        self.partitions = layout.partitions
        self.salt = bytes.fromhex(layout.salt)
        self.name = f"log {path}" + (f" from {checkpoint}" if checkpoint is not None else "")

    def prepare(self, work: Path) -> bool:
        if self._checkpoint is None:
            return False
        shutil.copytree(self._checkpoint / "state", work / "state")
        versions = self._checkpoint / communities.NAME
        if versions.exists():
            shutil.copytree(versions, work / communities.NAME)
        return True

    def begin(self, capture: Capture) -> None:
        """A checkpoint is at rest."""

    def read(self, positions: Mapping[int, int], events: int) -> Generator[Polled, None, None]:
        for one in placed(self._path, positions):
            yield Polled(one.partition, one.offset, one.record)


class _Layout(msgspec.Struct, frozen=True):
    partitions: int
    salt: str


def _layout(path: Path) -> _Layout:
    file = path / LAYOUT
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Layout)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreRefused(f"{path} holds no runtime: {file.name} cannot be read ({error})") from error
