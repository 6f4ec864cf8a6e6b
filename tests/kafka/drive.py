"""A stream of owned partitions fed from a real broker without Faust: every step is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from kithstream.models.model import Model
from kithstream.streams.config import Config, EngineConfig, KafkaConfig, StoreConfig, WorkerConfig
from kithstream.streams.events import wire as events
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka import wire
from kithstream.streams.kafka.names import topics, vectors
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.kafka.stream import Stream
from kithstream.streams.kafka.topics import Ends, identities
from kithstream.streams.kafka.transport import Fetch

PARTITIONS = 3
SALT = b"salt" * 4
MODEL = Model.day_zero(0)


class Listener:
    """What the retrieval process would hear; it holds nothing open."""

    def __init__(self) -> None:
        self.heard: list[wire.ToRetrieval] = []

    def tell(self, message: wire.ToRetrieval) -> None:
        self.heard.append(message)

    async def release(self, number: int) -> None:
        self.heard.append(wire.Closing(number))


class Drive:
    """One stream process' insides over a broker; `await` it through `asyncio.run`."""

    def __init__(
        self,
        kafka: KafkaConfig,
        folder: Path,
        *,
        worker: WorkerConfig | None = None,
        now: int,
        name: str = "w1",
    ) -> None:
        section = msgspec.structs.replace(worker or WorkerConfig(), data=str(folder))
        self.config = Config(
            kafka=kafka,
            worker=section,
            engine=EngineConfig(partitions=PARTITIONS),
            store=StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20),
        )
        self.names = topics(kafka.prefix)
        self.vectors = vectors(kafka.prefix, MODEL.lineage)
        self.now = now
        self.seconds = 0.0  # of the monotonic clock
        self.listener = Listener()
        self.failures: list[BaseException] = []
        self._name = name
        self._consumer = KafkaConsumer(bootstrap_servers=kafka.servers, fetch_max_wait_ms=100)
        self._generation = 0

    async def __aenter__(self) -> Self:
        self.producer = Producer(self.config.kafka, self.failures.append)
        await self.producer.start()
        self.stream = Stream(
            self.config,
            self.names,
            MODEL,
            Follower(MODEL),
            self.producer,
            self.listener,
            worker=self._name,
            salt=SALT,
            clock=lambda: self.now,
            offsets=self._offsets,
            identities=partial(identities, self.config.kafka),
            monotonic=lambda: self.seconds,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self.stream.shards.values():  # as kill -9 would: nothing is finished
            shard.partition.store.close()
        await self.producer.stop()
        self._consumer.close()
        assert not self.failures

    async def own(self, numbers: Collection[int] = range(PARTITIONS), generation: int = 0) -> None:
        """Be assigned partitions."""
        self._generation = generation or self._generation + 1
        await self.stream.assigned(numbers, self._generation)

    async def settle(self) -> None:
        """Feed what the topics hold until nothing moves any more, and publish the vectors."""
        await self.producer.settle()
        moved = True
        while moved:
            moved = False
            for topic, fold in (
                (self.names.engagements, self.stream.act),
                (self.names.edges, self.stream.hear),
            ):
                for number in list(self.stream.shards):
                    at = self.stream.position(topic, number)
                    assert at is not None
                    fetch = self.fetch(topic, number, at)
                    if fetch.ends > at:
                        assert await fold(number, fetch) is None
                        moved = True
            await self.stream.work()
            await self.producer.settle()
        await self.stream.flush()
        await self.producer.settle()

    def fetch(self, topic: str, number: int, begin: int) -> Fetch:
        """Read a topic's partition from an offset to its end."""
        records = self.read(topic, number, begin)
        ends = max([begin, *(record.offset + 1 for record in records)])
        return Fetch(begin, ends, records)

    def read(self, topic: str, number: int, begin: int = 0) -> list[Any]:
        """Return the records of a partition from an offset on."""
        tp = TopicPartition(topic, number)
        self._consumer.assign([tp])
        end = self._consumer.end_offsets([tp])[tp]
        self._consumer.seek(tp, max(begin, self._consumer.beginning_offsets([tp])[tp]))
        found: list[Any] = []
        while self._consumer.position(tp) < end:
            found += self._consumer.poll(1000).get(tp, [])
        return found

    def everywhere(self, topic: str) -> list[Any]:
        """Return the records of all partitions of a topic."""
        return [record for number in range(PARTITIONS) for record in self.read(topic, number)]

    def dead(self) -> list[wire.DeadLetter]:
        """Return the dead letters."""
        decode = msgspec.json.Decoder(wire.DeadLetter).decode
        return [decode(record.value) for record in self.everywhere(self.names.dead_letters)]

    def publish(self, given: Iterable[Event | bytes], partition: int | None = None) -> None:
        """Publish events, each to its own partition unless one is said."""
        producer = KafkaProducer(bootstrap_servers=self.config.kafka.servers, acks="all")
        for event in given:
            raw = event if isinstance(event, bytes) else events.encode(event)
            actor = event.actor if isinstance(event, Event) else ""
            place = self.stream.shards.route[actor] if partition is None else partition
            producer.send(self.names.engagements, raw, key=actor.encode() or None, partition=place)
        producer.close()

    async def _offsets(self, topic: str, numbers: Collection[int]) -> Ends:
        tps = [TopicPartition(topic, number) for number in numbers]
        first, end = self._consumer.beginning_offsets(tps), self._consumer.end_offsets(tps)
        return Ends(
            {tp.partition: at for tp, at in first.items()}, {tp.partition: at for tp, at in end.items()}
        )


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; one that hangs fails."""
    asyncio.run(asyncio.wait_for(coroutine, 60))
