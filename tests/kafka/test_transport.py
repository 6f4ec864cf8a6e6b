"""Faust with the batching transport, two members, rebalances and kill -9, on a real broker."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from kafka import KafkaProducer
from ordeal import ordeal

from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.transport import fetched

PATIENCE = 30.0  # seconds


def test_sums_are_exact_whoever_comes_goes_or_dies(broker: LocalKafka, tmp_path: Path) -> None:
    outcome = ordeal(broker.servers, tmp_path, rebalances=10, events=60_000)
    assert outcome.found == outcome.expected
    assert sum(outcome.expected.values()) > 200_000
    assert outcome.kills == 2


def test_a_fetch_begins_where_the_consumer_stood(tenant: KafkaConfig) -> None:
    """Not where the last one ended: what another member read and committed meanwhile is not in it."""
    tp = TopicPartition(topics(tenant.prefix).engagements, 0)
    producer = KafkaProducer(bootstrap_servers=tenant.servers)
    for number in range(10):
        producer.send(tp.topic, b"%d" % number, partition=0).get(PATIENCE)
    producer.close()

    async def body() -> list[tuple[int, int, list[bytes]]]:
        consumer = AIOKafkaConsumer(bootstrap_servers=tenant.servers, auto_offset_reset="earliest")
        await consumer.start()
        consumer.assign([tp])
        told = []

        async def take(most: int) -> None:
            fetch = (await fetched(consumer, {tp}, PATIENCE, most))[tp]
            told.append((fetch.begins, fetch.ends, [record.value for record in fetch.records]))

        try:
            await take(3)
            await take(2)
            consumer.seek(tp, 7)
            await take(1)
            consumer.seek(tp, 4)
            await take(2)
            await take(9)
            assert await fetched(consumer, {tp}, 0.05, 9) == {}
        finally:
            await consumer.stop()
        return told

    assert asyncio.run(body()) == [
        (0, 3, [b"0", b"1", b"2"]),
        (3, 5, [b"3", b"4"]),
        (7, 8, [b"7"]),
        (4, 6, [b"4", b"5"]),
        (6, 10, [b"6", b"7", b"8", b"9"]),
    ]
