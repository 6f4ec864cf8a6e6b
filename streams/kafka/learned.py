"""Reads compacted topics of one partition: of a model's steps, and of the lineages that were published."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition

from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.starting import start

FETCHED: Final = 20_000  # records of one batch at most
_WAIT: Final = 500  # milliseconds for which a fetch may wait


class Reader(Protocol):
    """Takes the records of a topic; what it makes of them is applied apart, under whatever lock that needs."""

    at: int  # offset of the record to be read next: whoever follows after catching up reads nothing twice

    def feed(self, pairs: Iterable[tuple[bytes | None, bytes | None]]) -> bool:
        """Take records in their order; True if there is something to apply."""
        ...

    def apply(self) -> int:
        """Apply what was fed."""
        ...


async def catch_up(config: KafkaConfig, topic: str, reader: Reader) -> None:
    """Read what a topic holds now, and apply it."""
    consumer, tp = await _reading(config, topic, reader)
    try:
        end = (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            await _feed(consumer, tp, reader)
            reader.apply()
    finally:
        await consumer.stop()


async def follow(
    config: KafkaConfig, topic: str, reader: Reader, ready: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Read a topic for ever, on from where the reader stands; `ready` is awaited when there is something to apply."""
    consumer, tp = await _reading(config, topic, reader)
    try:
        while True:
            if await _feed(consumer, tp, reader) and ready is not None:
                await ready()
    finally:
        await consumer.stop()


async def _reading(
    config: KafkaConfig, topic: str, reader: Reader
) -> tuple[AIOKafkaConsumer, TopicPartition]:
    tp = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(
        **reach(config),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 << 20,
        fetch_max_wait_ms=_WAIT,
    )
    consumer.assign([tp])
    await start(consumer, config)
    if reader.at:
        consumer.seek(tp, reader.at)
    return consumer, tp


async def _feed(consumer: AIOKafkaConsumer, tp: TopicPartition, reader: Reader) -> bool:
    batch = await consumer.getmany(tp, timeout_ms=_WAIT, max_records=FETCHED)
    pairs = [(record.key, record.value) for record in batch.get(tp, ())]
    moved = await asyncio.to_thread(reader.feed, pairs) if pairs else False
    reader.at = await consumer.position(tp)
    return moved
