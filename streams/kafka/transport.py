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
from aiokafka.errors import ConsumerStoppedError
from faust.serializers import codecs
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

SCHEME: Final = "kithstream"  # of the brokers' URL
HELD_BACK: Final = 20  # milliseconds for which a broker may hold back a request that leaves out partitions
QUIET: Final = 100  # and one that asks for all of a consumer's: then the next record of any ends the wait
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
    """The thread that fetches. What was polled of a hot topic goes on as one parcel."""

    app: App

    def __post_init__(self) -> None:
        super().__post_init__()
        self._polled = 0.0

    async def on_start(self) -> None:
        """Connect, and ask for records as `hold_back` says."""
        await super().on_start()
        hold_back(self._ensure_consumer())

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Mapping[TP, list[Any]]:
        await asyncio.sleep(self._polled + self.app.pace - time.monotonic())
        if not self.consumer.flow_active:
            return {}
        fetches = await fetched(consumer, active_partitions, timeout or 0.0, max_records)
        self._polled = time.monotonic()
        found: dict[str, dict[TP, Fetch]] = {}
        for tp in [tp for tp in fetches if tp.topic in self.app.hot]:
            found.setdefault(tp.topic, {})[tp] = fetches.pop(tp)
        first: dict[TP, list[Any]] = {}
        for topic in self.app.hot:
            if of_topic := found.get(topic):
                carrier = next(iter(of_topic))
                first[carrier] = [_parcel(carrier, of_topic)]
        return first | {tp: list(fetch.records) for tp, fetch in fetches.items()}

    async def seek_within(self, tp: TP, position: int) -> None:
        """Seek in this thread: aiokafka's consumer is not safe for two."""
        self._ensure_consumer().seek(tp, position)


def hold_back(consumer: Any) -> None:
    """Have a started consumer of aiokafka, assigned to nothing yet, tell brokers how long they may hold back requests.

    It leaves out of a request the partitions whose last records are not taken yet, and sends a broker no other while
    that one is held back: their next records would wait as long. A request that leaves out nothing is answered by any
    record at once, so it may be held back for longer, and a quiet cluster has fewer to answer.
    """
    fetcher = consumer._fetcher
    planned = fetcher._get_actions_per_node

    def plan(assignment: Any) -> Any:
        out = fetcher._records or any(assignment.state_value(tp).paused for tp in assignment.tps)
        fetcher._fetch_max_wait_ms = HELD_BACK if out else QUIET
        return planned(assignment)

    fetcher._get_actions_per_node = plan


async def fetched(consumer: Any, partitions: set[TP], seconds: float, most: int | None) -> dict[TP, Fetch]:
    """Return what has come of a consumer's partitions; wait for something so many seconds at most.

    A fetch begins where the consumer stood when it was taken, and nowhere else. Where the last one ended is no
    substitute: on assignment the consumer is set to what another member has committed, and may be asked there for
    records before it is set back to the state's offset. Raises ConsumerStoppedError once it is closed.
    """
    fetcher = consumer._fetcher
    if consumer._closed or fetcher._closed:
        raise ConsumerStoppedError
    with consumer._subscription.fetch_context():
        found = await _taken(consumer, partitions, most)
        if found or not seconds:
            return found
        waiter = fetcher._create_fetch_waiter()
        done, _ = await asyncio.wait([waiter], timeout=seconds)
        if not done or fetcher._closed:
            waiter.cancel()
            return {}
        waiter.result()  # raises what the brokers have refused
        return await _taken(consumer, partitions, most)


async def _taken(consumer: Any, partitions: set[TP], most: int | None) -> dict[TP, Fetch]:
    subscription = consumer._subscription
    while subscription.reassignment_in_progress:
        await subscription.wait_for_assignment()
    # From here on nothing is waited for, so that nobody can seek between a look and what is taken.
    stood = _positions(consumer)
    records = await consumer._fetcher.fetched_records(partitions, timeout=0, max_records=most)
    stands = _positions(consumer, records)
    return {
        # Beyond the last record where markers or compaction left holes behind it.
        tp: Fetch(stood.get(tp, of[0].offset), max(stands.get(tp, 0), of[-1].offset + 1), of)
        for tp, of in records.items()
    }


def _positions(consumer: Any, tps: Collection[TP] | None = None) -> dict[TP, int]:
    """Where a consumer stands in these partitions, or in all of which it holds records."""
    subscription = consumer._subscription.subscription
    if subscription is None or subscription.assignment is None:
        return {}
    wanted = list(consumer._fetcher._records) if tps is None else tps
    states = {tp: subscription.assignment.state_value(tp) for tp in wanted}
    return {tp: state.position for tp, state in states.items() if state and state.has_valid_position}


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
        await self._thread.call_thread(self._thread.seek_within, tp, position)
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
