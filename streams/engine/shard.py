"""One partition with both of its stages: what a runtime holds of each partition that it owns."""

from __future__ import annotations

import gc
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from kithstream.streams.config import EngineConfig
from kithstream.streams.engine import frames
from kithstream.streams.engine.actors import Acted, Actors, Decoded, Record
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.partition import Partition, outbox_key
from kithstream.streams.engine.routing import Route
from kithstream.streams.engine.slots import ReadStore, Slot
from kithstream.streams.engine.targets import Heard, Targets
from kithstream.streams.state.profiles import Profile
from kithstream.streams.state.recent import Recent


class Waiting(NamedTuple):
    """A frame in an outbox: where it lies, its number there, and where it goes."""

    source: int
    number: int
    destination: int
    raw: bytes


class Readable(Protocol):
    """A partition as questions read it."""

    @property
    def store(self) -> ReadStore: ...

    @property
    def communities(self) -> Slot | None: ...

    def load_rows(self, keys: Iterable[bytes]) -> dict[bytes, bytearray]: ...

    def load_recents(self, keys: Iterable[bytes]) -> dict[bytes, Recent]: ...

    def load_profiles(self, accounts: Iterable[str]) -> dict[str, Profile]: ...

    def profile(self, account: str) -> Profile: ...

    def is_deleted(self, account: str) -> bool: ...

    def deleted_of(self, accounts: Collection[str]) -> set[str]: ...

    def fingerprint(self, account: str) -> bytes: ...

    def contacts(self, account: str) -> set[bytes]: ...


class Reads(Protocol):
    """The partitions of accounts as far as they can be read here."""

    @property
    def route(self) -> Route: ...

    def at(self, number: int) -> Readable:
        """Return a partition; raises KeyError if it is not here."""
        ...


class Held(Protocol):
    """The partitions of accounts as far as they are here, and written here."""

    @property
    def config(self) -> EngineConfig: ...

    @property
    def route(self) -> Route: ...

    def at(self, number: int) -> Partition:
        """Return a partition; raises KeyError if it is not here."""
        ...

    def here(self) -> Iterator[Partition]:
        """Yield the partitions that are here."""
        ...


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold the search for cyclic garbage back: folding makes thousands of objects a batch, and no cycle."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Shard:
    """Folds one partition's part of the log and the frames sent to it; one thread at a time."""

    def __init__(self, partition: Partition, route: Route) -> None:
        self.partition = partition
        self._actors = Actors(partition, route)
        self._targets = Targets(partition, route)

    def decode(self, records: Sequence[Record], offsets: Iterable[int]) -> Decoded:
        """Return the usable events of a poll batch, dead letters and strays."""
        with uncollected():
            return self._actors.decode(records, offsets)

    def act(self, decoded: Decoded, next_offset: int) -> Acted:
        """Fold decoded events; the partition's offset becomes `next_offset`."""
        with uncollected():
            return self._actors.apply(decoded, next_offset)._replace(dead=decoded.dead)

    def hear(self, raw: Iterable[bytes], next_offset: int = 0) -> Heard:
        """Fold frames; again or out of order makes no difference.

        Raises ValueError (msgspec.DecodeError is one) for bytes that are no frame; then nothing was written.
        """
        with uncollected():
            return self._hear(raw, next_offset)

    def check(self, raw: bytes) -> None:
        """Raise ValueError for bytes that are no frame."""
        self._decoded(raw)

    def _hear(self, raw: Iterable[bytes], next_offset: int) -> Heard:
        partition = self.partition
        received = [self._decoded(frame) for frame in raw]
        heard, edges, told = dict(partition.heard), partition.edges, partition.told
        watermark, expired, retracted = partition.watermark, partition.expired, partition.retracted
        buried = {f for frame in received for f in frame.deleted} - partition.deleted
        try:
            return self._targets.apply(received, next_offset)
        except (ValueError, LookupError, OverflowError, TypeError, struct.error) as error:
            partition.heard, partition.edges, partition.told = heard, edges, told
            partition.watermark, partition.expired, partition.retracted = watermark, expired, retracted
            partition.deleted -= buried
            partition.forget()  # the caches may be ahead of the store
            raise ValueError(f"a frame cannot be folded: {error}") from error

    def _decoded(self, raw: bytes) -> Frame:
        frame = frames.decode(raw)
        if frame.source not in self.partition.heard:
            raise ValueError(f"source is {frame.source}, there are {self.partition.partitions} partitions")
        return frame

    def work(self) -> int:
        """Do a bounded piece of background work; 0 when nothing is left."""
        return self._actors.work() + self._targets.work()

    def compact(self) -> int:
        """Rewrite the files that may still hold deleted accounts; return how many accounts those were."""
        return self._actors.compact()

    def waiting(self) -> list[Waiting]:
        """Return the frames that no destination has acknowledged, oldest first."""
        partition = self.partition
        return [
            Waiting(partition.number, number, destination, raw)
            for number, (destination, raw) in sorted(partition.outbox.items())
        ]

    def acknowledge(self, frame: Waiting) -> None:
        """Forget a frame that its destination holds for good."""
        partition = self.partition
        if partition.outbox.pop(frame.number, None) is not None:
            partition.acknowledged.append(outbox_key(frame.number, frame.destination))

    def told(self) -> bytes:
        """Return an empty frame that tells how far this partition's frames have come."""
        partition = self.partition
        return frames.encode(
            Frame(
                partition.watermark,
                source=partition.number,
                upto=partition.applied,
                appended=partition.appended,
            )
        )


class Shards(dict[int, Shard]):
    """The shards of the partitions that a worker owns at the moment, by number."""

    def __init__(self, partitions: int, config: EngineConfig) -> None:
        super().__init__()
        self.config = config
        self.route = Route(partitions)

    def at(self, number: int) -> Partition:
        return self[number].partition

    def here(self) -> Iterator[Partition]:
        return (shard.partition for shard in self.values())
