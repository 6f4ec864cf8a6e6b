"""One lineage on its way into the retrieval process: its vectors into an index, its steps into its model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio.to_thread
from aiokafka import AIOKafkaConsumer, TopicPartition

from kithstream.models.model import Model
from kithstream.streams.config import Config
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.kafka import learned
from kithstream.streams.kafka.kept import Found, Kept
from kithstream.streams.kafka.names import steps, vectors
from kithstream.streams.kafka.reading import Reading
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.starting import start
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.kafka.tail import Fed, Tail
from kithstream.streams.kafka.transport import hold_back
from kithstream.streams.serve.facts import Facts
from kithstream.streams.serve.vectors import live_index

_log = logging.getLogger(__name__)

FILLING: Final = 600.0  # seconds for which a lineage may be filled without a graph: until then all is scanned
FETCHED: Final = 5000  # vectors of one batch at most
Record = tuple[int, bytes | None, bytes | None]  # partition, key, value


class Feed:
    """A view of the stores, and what keeps it fresh."""

    def __init__(
        self,
        config: Config,
        reading: Reading,
        model: Model,
        follower: Follower,
        fed: Callable[[Feed, Fed], None],
        kept: Kept | None = None,
        found: Found | None = None,
        *,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """`fed` hears in the event loop what each batch of vectors did.

        `kept` takes snapshots, none without; `found` is the one to go on from.
        """
        self.index = live_index(model, config.index) if found is None else found.live
        self.model = model
        if found is not None:
            self.tail = found.tail
        else:
            facts = Facts() if config.ranking.ranker else None
            self.tail = Tail(self.index, config.engine.partitions, facts)
        self.began = {} if found is None else dict(found.positions)  # offsets that reading began at
        self.read = self.saved = self.failed = (
            0  # records; snapshots written, and those that the disk refused
        )
        self.view = reading.view(model, self.index, self.tail)
        self.caught_up = False  # with what was published when following began
        self.behind = 0  # vectors known to be published and not in the index
        self._config = config
        self._reading = reading
        self._follower = follower
        self._fed = fed
        self._kept = kept
        self._clock = clock
        self._snapshot_at = time.monotonic()
        self._unsaved = False
        self._saving: asyncio.Task[None] | None = None
        self._filled = not config.index.background  # no merger is to be started any more
        self._patience = time.monotonic() + FILLING

    @property
    def lineage(self) -> str:
        return self.model.lineage

    async def run(self) -> None:
        """Follow vectors and steps for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._learn())

    def close(self) -> None:
        """Let go of the index."""
        self.index.close()

    async def _learn(self) -> None:
        async def ready() -> None:
            await anyio.to_thread.run_sync(self._reading.step, self._follower)

        kafka = self._config.kafka
        await learned.follow(kafka, steps(kafka.prefix, self.lineage), self._follower, ready)

    async def _follow(self) -> None:
        config = self._config
        topic = vectors(config.kafka.prefix, self.lineage)
        tps = [TopicPartition(topic, number) for number in range(config.engine.partitions)]
        consumer = AIOKafkaConsumer(
            **reach(config.kafka),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_partition_fetch_bytes=4 << 20,
        )
        await start(consumer, config.kafka)
        hold_back(consumer)
        consumer.assign(tps)
        for tp in tps:
            if tp.partition in self.began:
                consumer.seek(tp, self.began[tp.partition])
        try:
            ends = await consumer.end_offsets(tps)
            pause = config.worker.poll_milliseconds / 1000
            while True:
                await asyncio.sleep(pause)  # what comes meanwhile goes into the index together
                batches = await consumer.getmany(timeout_ms=200, max_records=FETCHED)
                records = [(tp.partition, r.key, r.value) for tp, part in batches.items() for r in part]
                if records:
                    await self._feed(records)
                positions = {tp: await consumer.position(tp) for tp in tps}
                self.behind = sum(max((consumer.highwater(tp) or 0) - at, 0) for tp, at in positions.items())
                if not self.caught_up and all(positions[tp] >= end for tp, end in ends.items()):
                    self.caught_up = True
                    _log.info(
                        "the index of %s has caught up: %d accounts, %d records read",
                        self.lineage,
                        len(self.index),
                        self.read,
                    )
                if not self._filled and self.caught_up:
                    self._merge_once_filled()
                if self.caught_up and self._unsaved:
                    await self._save({tp.partition: at for tp, at in positions.items()})
        finally:
            await consumer.stop()
            if self._saving is not None:
                await asyncio.wait([self._saving])

    def _merge_once_filled(self) -> None:
        """Begin to merge once every account has a vector here: one graph of all costs less than many merges."""
        if self.tail.whole or time.monotonic() >= self._patience:
            self._filled = True
            self.index.start()

    async def _save(self, positions: Mapping[int, int]) -> None:
        """Begin a snapshot if one is due; it is written beside what comes meanwhile."""
        seconds, now = self._config.index.snapshot_seconds, time.monotonic()
        if self._kept is None or not 0 < seconds <= now - self._snapshot_at:
            return
        if self._saving is not None and not self._saving.done():
            return
        self._snapshot_at, self._unsaved = now, False
        write = await anyio.to_thread.run_sync(
            self._kept.begin, self.index, self.tail, positions, self._clock()
        )

        async def saving() -> None:
            try:
                await asyncio.to_thread(write)
            except OSError as error:
                self.failed += 1
                _log.error("no snapshot of the index of %s: %s", self.lineage, error)
            else:
                self.saved += 1

        self._saving = asyncio.create_task(saving())

    async def _feed(self, records: Sequence[Record]) -> None:
        self._unsaved = True
        self.read += len(records)
        self._fed(self, await anyio.to_thread.run_sync(self.tail.feed, records))
