"""Faust with the batching transport, two members, rebalances and kill -9, on a real broker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.protocol.fetch import FetchRequest
from kafka import KafkaProducer
from ordeal import ordeal

from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.transport import HELD_BACK, QUIET, fetched, hold_back

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


def test_a_request_that_leaves_out_a_partition_is_not_held_back_for_long(tenant: KafkaConfig) -> None:
    """What comes to that partition, once its records are taken, waits for the brokers' answer to the others."""
    tps = [TopicPartition(topics(tenant.prefix).engagements, number) for number in range(2)]
    producer = KafkaProducer(bootstrap_servers=tenant.servers)
    producer.send(tps[0].topic, b"0", partition=0).get(PATIENCE)
    producer.close()

    async def body() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=tenant.servers, auto_offset_reset="earliest")
        await consumer.start()
        hold_back(consumer)
        asked: asyncio.Queue[tuple[frozenset[int], int]] = asyncio.Queue()
        send = consumer._client.send

        async def noted(node: int, request: Any, **how: Any) -> Any:
            if isinstance(request, FetchRequest):
                partitions = frozenset(part[0] for _, parts in request.topics for part in parts)
                asked.put_nowait((partitions, request._max_wait_ms))
            return await send(node, request, **how)

        async def held_back(*partitions: int) -> int:
            """For how many milliseconds the next request for these alone may be."""
            while True:
                these, milliseconds = await asyncio.wait_for(asked.get(), PATIENCE)
                if these == set(partitions):
                    return milliseconds

        consumer._client.send = noted
        consumer.assign(tps)
        try:
            assert await held_back(0, 1) == QUIET
            assert await held_back(1) == HELD_BACK  # the record of 0 is here and nobody takes it
            assert [r.value for r in (await fetched(consumer, {*tps}, PATIENCE, 9))[tps[0]].records] == [b"0"]
            assert await held_back(0, 1) == QUIET
            consumer.pause(tps[1])
            assert await held_back(0) == HELD_BACK
        finally:
            await consumer.stop()

    asyncio.run(body())
