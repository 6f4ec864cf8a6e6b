"""One lineage on its way into the retrieval process: its vectors into an index, its steps into its model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio.to_thread
from aiokafka import AIOKafkaConsumer, TopicPartition

from kithstream.models.model import Model
from kithstream.streams.config import Config
from kithstream.streams.kafka import learned
from kithstream.streams.kafka.names import steps, vectors
from kithstream.streams.kafka.reading import Reading
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.starting import start
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.kafka.tail import Fed, Tail
from kithstream.streams.serve.facts import Facts
from kithstream.streams.serve.vectors import live_index

_log = logging.getLogger(__name__)

HELD_BACK: Final = 20  # milliseconds for which the brokers may hold back a request; see `transport`
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
    ) -> None:
        """`fed` hears in the event loop what each batch of vectors did."""
        self.index = live_index(model, config.index)
        self.model = model
        facts = Facts() if config.ranking.ranker else None
        self.tail = Tail(self.index, config.engine.partitions, facts)
        self.view = reading.view(model, self.index, self.tail)
        self.caught_up = False  # with what was published when following began
        self.behind = 0  # vectors known to be published and not in the index
        self._config = config
        self._reading = reading
        self._follower = follower
        self._fed = fed
        if config.index.background:
            self.index.start()

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
            fetch_max_wait_ms=HELD_BACK,
        )
        consumer.assign(tps)
        await start(consumer, config.kafka)
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
                    _log.info("the index of %s has caught up: %d accounts", self.lineage, len(self.index))
        finally:
            await consumer.stop()

    async def _feed(self, records: Sequence[Record]) -> None:
        self._fed(self, await anyio.to_thread.run_sync(self.tail.feed, records))
