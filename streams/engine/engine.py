"""The two stages over P partitions. No Kafka, no HTTP, no clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.actors import Acted, Change, DeadLetter, Record
from kithstream.streams.engine.partition import Partition
from kithstream.streams.engine.routing import Route
from kithstream.streams.engine.shard import Shard, Waiting
from kithstream.streams.engine.slots import Limits
from kithstream.streams.engine.targets import Heard
from kithstream.streams.events.wire import Event
from kithstream.streams.state.protocol import Store


class Settled(NamedTuple):
    """What exchanging frames until none waits has done."""

    touched: set[str]
    changes: list[tuple[str, str, int, bool]]  # (target, actor, family, present)
    frames: int


Before = Callable[[Sequence[Event]], None]


class Engine:
    """Stores of P partitions and the stages that fold into them; one thread at a time."""

    def __init__(
        self,
        stores: Sequence[Store],
        config: EngineConfig,
        *,
        salt: bytes,
        versions: Mapping[str, KnownFor] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Take over stores; `versions` of communities that they hold and that are not given are let go of."""
        self.config = config
        self.route = Route(len(stores))
        self.partitions = [
            Partition(store, number, len(stores), config, salt=salt, versions=versions, limits=limits)
            for number, store in enumerate(stores)
        ]
        self._agree_on_slots()
        self._shards = [Shard(partition, self.route) for partition in self.partitions]

    def at(self, number: int) -> Partition:
        """Return a partition."""
        return self.partitions[number]

    def here(self) -> Iterator[Partition]:
        """Yield every partition."""
        return iter(self.partitions)

    @property
    def watermark(self) -> int:
        """The newest event time of any partition, in microseconds."""
        return max(partition.watermark for partition in self.partitions)

    def apply(
        self, number: int, records: Sequence[Record], first_offset: int, before: Before | None = None
    ) -> Acted:
        """Fold consecutive records of one partition's log; those below its offset are skipped.

        `before` sees the usable events while the rows are still as they were.
        """
        partition = self.partitions[number]
        skipped = max(partition.applied - first_offset, 0)
        records = records[skipped:]
        if not records:
            return Acted(set(), [], [], 0, [])
        first_offset += skipped
        shard, next_offset = self._shards[number], first_offset + len(records)
        decoded = shard.decode(records, range(first_offset, next_offset))
        if decoded.moved:
            offset, _, place = decoded.moved[0]
            raise ValueError(f"record {offset} of partition {number} is about an actor of partition {place}")
        if before is not None:
            before(decoded.events)
        return shard.act(decoded, next_offset)

    def waiting(self) -> list[Waiting]:
        """Return the frames that no destination has acknowledged, oldest first."""
        return [frame for shard in self._shards for frame in shard.waiting()]

    def deliver(self, destination: int, raw: Iterable[bytes]) -> Heard:
        """Fold frames at their destination; again or out of order makes no difference."""
        return self._shards[destination].hear(raw)

    def acknowledge(self, frame: Waiting) -> None:
        """Forget a frame that its destination has written."""
        self._shards[frame.source].acknowledge(frame)

    def exchange(self) -> Settled:
        """Deliver every waiting frame, the replies to them too. Tells what background work touched as well."""
        settled = Settled(set(), [], 0)
        for partition in self.partitions:
            settled.touched.update(partition.reworked)
            partition.reworked.clear()
        count = 0
        while waiting := self.waiting():
            by_destination: dict[int, list[Waiting]] = {}
            for frame in waiting:
                by_destination.setdefault(frame.destination, []).append(frame)
            for destination, batch in by_destination.items():
                heard = self.deliver(destination, [frame.raw for frame in batch])
                settled.touched.update(heard.touched)
                settled.changes.extend(heard.changes)
                for frame in batch:
                    self.acknowledge(frame)
            count += len(waiting)
        return settled._replace(frames=count)

    def work(self) -> int:
        """Do a bounded piece of background work in each partition; 0 when nothing is left."""
        if self._filled():
            for partition in self.partitions:
                partition.switch()
            return 1
        return sum(shard.work() for shard in self._shards)

    @property
    def working(self) -> bool:
        """True if background work waits."""
        return any(partition.working for partition in self.partitions)

    def take_left(self) -> list[str]:
        """Return the accounts whose deletion was finished since the last call: no store names them any more."""
        left = [account for partition in self.partitions for account in partition.left]
        if left:
            self._forget_acknowledged()  # the frames that told of them
        for partition in self.partitions:
            partition.left.clear()
        return left

    def compact(self) -> int:
        """Rewrite the files that may still hold deleted accounts; other threads may read and write meanwhile."""
        return sum(shard.compact() for shard in self._shards)

    def _forget_acknowledged(self) -> None:
        for partition in self.partitions:
            partition.forget_acknowledged()

    def adopt(self, known: KnownFor) -> bool:
        """Begin to fill a version of communities beside the one that is read; False if it is held already.

        `work` fills it, and reads it in place of the other one when every partition is done.
        """
        turn = 1 + max((slot.record.turn for p in self.partitions for slot in p.slots), default=0)
        adopted = [partition.adopt(known, turn) for partition in self.partitions]
        return any(adopted)

    @property
    def communities(self) -> str:
        """The version of communities that is read; empty if there is none, or not the same everywhere."""
        read = {"" if (slot := p.communities) is None else slot.known.version for p in self.partitions}
        return read.pop() if len(read) == 1 else ""

    def _filled(self) -> bool:
        """True if a version that is not read yet is whole everywhere and nothing of it is on its way."""
        return (
            any(partition.unread is not None for partition in self.partitions)
            and all(partition.filled for partition in self.partitions)
            and not any(partition.outbox for partition in self.partitions)
        )

    def _agree_on_slots(self) -> None:
        """Adopt everywhere what is newest, and what is read, of any: one may have come back from an older copy."""
        held = {slot.known.version: slot for p in self.partitions for slot in p.slots}
        for slot in sorted(held.values(), key=lambda slot: slot.record.turn)[-2:]:
            for partition in self.partitions:
                newest = max((own.record.turn for own in partition.slots), default=0)
                if partition.communities is None or slot.record.turn > newest:
                    partition.adopt(slot.known, slot.record.turn)

    def settle(self) -> Settled:
        """Exchange and work until the state is at rest."""
        total = self.exchange()
        while self.work():
            more = self.exchange()
            total.touched.update(more.touched)
            total.changes.extend(more.changes)
        self._forget_acknowledged()
        self.compact()
        return total

    def close(self) -> None:
        """Close the stores; nothing is pending, since every batch was written."""
        self._forget_acknowledged()
        for partition in self.partitions:
            partition.store.close()


__all__ = ["Acted", "Change", "DeadLetter", "Engine", "Record", "Settled", "Waiting"]
