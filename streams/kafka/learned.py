"""Reads the topic of a model's steps: a worker keeps its model at the newest, a trainer looks where it had come to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.steps import Follower

FETCHED: Final = 20_000  # records of one batch at most
_WAIT: Final = 500  # milliseconds for which a fetch may wait


async def catch_up(config: KafkaConfig, topic: str, follower: Follower) -> None:
    """Bring a model to the newest step that is published now. Nobody may read it meanwhile."""
    consumer, tp = await _reading(config, topic)
    try:
        end = (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            await _feed(consumer, tp, follower)
            follower.apply()
    finally:
        await consumer.stop()


async def follow(
    config: KafkaConfig, topic: str, follower: Follower, ready: Callable[[], Awaitable[None]]
) -> None:
    """Read steps for ever; `ready` is awaited when the follower has something to apply."""
    consumer, tp = await _reading(config, topic)
    try:
        while True:
            if await _feed(consumer, tp, follower):
                await ready()
    finally:
        await consumer.stop()


async def _reading(config: KafkaConfig, topic: str) -> tuple[AIOKafkaConsumer, TopicPartition]:
    tp = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(
        **reach(config),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 << 20,
        fetch_max_wait_ms=_WAIT,
    )
    consumer.assign([tp])
    await consumer.start()
    return consumer, tp


async def _feed(consumer: AIOKafkaConsumer, tp: TopicPartition, follower: Follower) -> bool:
    batch = await consumer.getmany(tp, timeout_ms=_WAIT, max_records=FETCHED)
    pairs = [(record.key, record.value) for record in batch.get(tp, ())]
    return await asyncio.to_thread(follower.feed, pairs) if pairs else False
