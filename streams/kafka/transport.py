"""A Faust transport that hands an agent whole polls instead of records, and seeks to the stores' offsets.

Faust costs some 70 us an event, whatever the agent does, and waits for each to be taken before it hands out the next.
For the *hot* topics this transport therefore delivers one stream event per topic and poll, whose value is a `Fetch` by
partition; agents stay Faust agents, and Faust keeps the group, the assignment, flow control and commits. It rests on
the inside of faust-streaming 0.15.3 and aiokafka 0.14.0.

What Faust commits is for the eyes of operators. The truth is the offset in the partition's store: on assignment the
consumer seeks there, and what it commits is that offset, so holes in the offsets cannot stall the commits. A fetch
says where it begins, so that an agent sees for itself whether anything between its state and the fetch is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import faust
from faust.serializers import codecs
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

SCHEME: Final = "kithstream"  # of the brokers' URL
HELD_BACK: Final = 20  # milliseconds for which the brokers may hold back a request for records
RAW: Final = "kithstream-raw"  # the codec that leaves a value as it is


class Fetch(NamedTuple):
    """Consecutive records of one partition."""

    begins: int  # every record from this offset to `ends` is here
    ends: int
    records: Sequence[Any]  # as aiokafka has them: offset, timestamp (ms), key, value, headers


Fetches = Mapping[int, Fetch]  # by partition: what one poll brought of a topic


class _Parcel(NamedTuple):
    """What one poll brought of a topic, in the shape of a record of one of its partitions: that is what Faust wants."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    headers: tuple[tuple[str, bytes], ...]
    key: None
    value: Fetches
    checksum: None
    serialized_key_size: int
    serialized_value_size: int


class Stores(Protocol):
    """The states that the hot topics are folded into."""

    async def assigned(self, partitions: Collection[TP], generation: int) -> None:
        """Open the states of these partitions, close all others. Nothing is delivered before it returns."""
        ...

    async def revoked(self, partitions: Collection[TP]) -> None:
        """Leave nothing half done: another worker may own these partitions once it returned."""
        ...

    def position(self, tp: TP) -> int | None:
        """Return the offset to read a hot topic's partition on from; None where there is no state."""
        ...


class App(faust.App):
    """A Faust application whose hot topics are folded into stores."""

    hot: Sequence[str] = ()  # handed out in this order
    pace: float = 0.0  # seconds between two polls at least
    stores: Stores


class _Thread(driver.AIOKafkaConsumerThread):
    """The thread that fetches. Where a fetch begins is noted here, so that one lost on its way leaves a hole."""

    app: App
    ended: dict[TP, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ended = {}
        self._polled = 0.0

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # aiokafka leaves out of a request the partitions whose last records are not taken yet, and sends no other
        # while the brokers hold that one back: on a quiet cluster a record would wait for Faust's 1.5 s.
        consumer._fetch_max_wait_ms = HELD_BACK
        return consumer

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Mapping[TP, list[Any]]:
        await asyncio.sleep(self._polled + self.app.pace - time.monotonic())
        records = dict(await super()._fetch_records(consumer, active_partitions, timeout, max_records))
        self._polled = time.monotonic()
        found: dict[str, dict[TP, Fetch]] = {}
        for tp in [tp for tp in records if tp.topic in self.app.hot]:
            found.setdefault(tp.topic, {})[tp] = self._fetch(consumer, tp, records.pop(tp))
        first: dict[TP, list[Any]] = {}
        for topic in self.app.hot:
            if fetches := found.get(topic):
                carrier = next(iter(fetches))
                first[carrier] = [_parcel(carrier, fetches)]
        return first | records

    def _fetch(self, consumer: Any, tp: TP, records: Sequence[Any]) -> Fetch:
        first, last = records[0], records[-1]
        begins = min(self.ended.get(tp, first.offset), first.offset)
        # Beyond the last record where markers or compaction left holes behind it.
        ends = max(consumer._subscription.subscription.assignment.state_value(tp).position, last.offset + 1)
        self.ended[tp] = ends
        return Fetch(begins, ends, records)


def _parcel(carrier: TP, fetches: Mapping[TP, Fetch]) -> _Parcel:
    last = fetches[carrier].records[-1]
    value = {tp.partition: fetch for tp, fetch in fetches.items()}
    return _Parcel(
        carrier.topic,
        carrier.partition,
        last.offset,
        last.timestamp,
        last.timestamp_type,
        (),
        None,
        value,
        None,
        0,
        0,
    )


class Consumer(driver.Consumer):
    """Faust's consumer, with fetches for the hot topics and the stores' offsets for the group's."""

    app: App
    _thread: _Thread

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await super().on_partitions_revoked(revoked)
        await self.app.stores.revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await self.app.stores.assigned(assigned, generation_id)
        await super().on_partitions_assigned(assigned, generation_id)

    async def perform_seek(self) -> None:
        """Seek to the committed offsets, and in the hot topics to those of the stores."""
        await super().perform_seek()
        for tp in self.assignment():
            if tp.topic in self.app.hot and (position := self.app.stores.position(tp)) is not None:
                await self.reseek(tp, position)

    async def reseek(self, tp: TP, position: int) -> None:
        """Read a hot topic's partition on from an offset."""
        await self.seek(tp, position)
        self._thread.ended[tp] = position
        self._read_offset[tp] = None
        self._committed_offset[tp] = None

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if tp.topic not in self.app.hot:
            await super()._add_gap(tp, offset_from, offset_to)

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic not in self.app.hot:
            offset: int | None = super()._new_offset(tp)
            return offset
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return self.app.stores.position(tp)


class Transport(driver.Transport):
    """Faust's aiokafka transport with the consumer above."""

    Consumer = Consumer


class _Raw(codecs.Codec):
    def _loads(self, s: Any) -> Any:
        return s

    def _dumps(self, s: Any) -> Any:
        return s


def register() -> None:
    """Make the URL scheme and the codec known to Faust; again makes no difference."""
    TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"
    codecs.register(RAW, _Raw())
