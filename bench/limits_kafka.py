"""What Kafka costs without us: the same records sent and fetched by the clients alone, a question that nobody works on.

Broker, clients and workers share the machine's cores, as in `bench.kafka` and `bench.clients`, whose figures ours are.
The clients are kafka-python, which publishers use, and aiokafka, which workers use; neither is librdkafka.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from bench import clients
from bench.distance import Distance, pairs
from bench.kafka import simulated, throughput
from bench.kafka_latency import latency
from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.transport import hold_back

PARTITIONS = 4
SMALL = 19  # bytes of a frame that only tells how far its sender has come
ASKS = 100  # questions a second
MIX = "full mix of a simulated world"


def measure(given: argparse.Namespace) -> Iterator[Distance]:
    """Yield publishing, the whole way and request-reply beside the clients alone, each when it is measured."""
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        with LocalKafka(Path(folder) / "kafka") as broker:
            config = KafkaConfig(servers=broker.servers)
            clients._create(config)
            published = _publish(config, given)
        yield published
        yield _whole(Path(folder), given)
        yield _ask(Path(folder), given)


def _publish(config: KafkaConfig, given: argparse.Namespace) -> Distance:
    events = given.kafka_events
    ours, limit = pairs(
        lambda _: _rate(clients.publish(config, events, 500, 0.0, each=False)),
        lambda _: _rate(clients.raw(config, events)),
        given.runs,
    )
    return Distance(
        "kafka",
        "ingest",
        "publish",
        f"kafka-python {version('kafka-python')}",
        "records of 120 bytes sent one by one, unchecked and not stamped",
        "events_per_second",
        "rate",
        ours,
        limit,
        {"events": events, "batch": 500},
    )


def _whole(folder: Path, given: argparse.Namespace) -> Distance:
    """Published by kafka-python, taken by one process; ours folds them and shows their vectors besides."""
    records = [msgspec.json.encode(event) for event in islice(simulated(given.seed), given.kafka_events)]

    def piped(number: int) -> float:
        with LocalKafka(folder / f"pipe-{number}", heap_mib=1024) as broker:
            return pipe(broker.servers, records)

    ours, limit = pairs(lambda _: _rate(throughput(records, 1, PARTITIONS)), piped, given.runs)
    return Distance(
        "kafka",
        "ingest",
        "Kafka end to end, broker and publisher on the same cores",
        f"kafka-python {version('kafka-python')}, aiokafka {version('aiokafka')}",
        "the same records sent by one process and fetched by another, nothing done with them",
        "events_per_second",
        "rate",
        ours,
        limit,
        {"events": len(records), "partitions": PARTITIONS},
        MIX,
        bar="kafka",
    )


def _ask(folder: Path, given: argparse.Namespace) -> Distance:
    p50: dict[str, list[float]] = {"ours": [], "limit": []}

    def asked(_: int) -> float:
        told = latency(0.0, given.seconds, 1, PARTITIONS, given.seed, ["request_reply"], asks=ASKS)
        times = told["request_reply"]
        p50["ours"].append(times["p50"])
        return float(times["p99"])

    def echoed(number: int) -> float:
        with LocalKafka(folder / f"echo-{number}") as broker:
            config = KafkaConfig(servers=broker.servers)
            clients._create(config)
            told = clients.ask(config, ASKS, given.seconds)
        p50["limit"].append(float(str(told["answer_p50_ms"])))
        return float(str(told["answer_p99_ms"]))

    ours, limit = pairs(asked, echoed, given.runs)
    return Distance(
        "kafka",
        "retrieval",
        f"request-reply over the stream, {ASKS}/s, no events beside",
        f"kafka-python {version('kafka-python')}",
        "an empty answer sent back at once",
        "p99_ms",
        "cost",
        ours,
        limit,
        {"rate": ASKS, "seconds": given.seconds},
        beside={"p50_ms": median(p50["ours"])},
        limit_beside={"p50_ms": median(p50["limit"])},
        bar="stream_100",
    )


def _rate(told: dict[str, object]) -> float:
    return float(str(told["events_per_second"]))


def pipe(servers: str, records: list[bytes]) -> float:
    """Send records, fetch them in another process; return records a second from the first send to the last taken."""
    make_topic(servers, "pipe", PARTITIONS)
    code = f"from bench.limits_kafka import take; take({servers!r}, {len(records)})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as taker:
        assert taker.stdout is not None
        if taker.stdout.readline().strip() != "ready":
            raise RuntimeError("the process that fetches did not start")
        producer = KafkaProducer(bootstrap_servers=servers, batch_size=1 << 17, metrics_enabled=False)
        began = time.perf_counter()
        for number, record in enumerate(records):
            producer.send("pipe", record, partition=number % PARTITIONS)
        producer.flush()
        if taker.stdout.readline().strip() != "done":
            raise RuntimeError("the process that fetches did not get everything")
        seconds = time.perf_counter() - began
        producer.close()
    return len(records) / seconds


def take(servers: str, count: int) -> None:
    """Fetch so many records of the pipe as a worker does, and say so."""

    async def run() -> None:
        consumer = await reading(servers, "pipe", PARTITIONS)
        print("ready", flush=True)
        left = count
        while left > 0:
            for batch in (await consumer.getmany(timeout_ms=1000)).values():
                left -= len(batch)
        print("done", flush=True)
        await consumer.stop()

    asyncio.run(run())


async def reading(servers: str, topic: str, partitions: int) -> AIOKafkaConsumer:
    """Return a started consumer of a whole topic that waits for the brokers as a worker's does."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    hold_back(consumer)
    consumer.assign([TopicPartition(topic, number) for number in range(partitions)])
    return consumer


def make_topic(servers: str, name: str, partitions: int) -> None:
    """Create a topic of one copy."""
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics([NewTopic(name, partitions, 1)])
    admin.close()


async def sent_and_fetched(servers: str, records: int, partitions: int) -> dict[str, float]:
    """Return the CPU that small records take in this process: sent as frames are, over partitions, then fetched."""
    make_topic(servers, "small", partitions)
    failures: list[BaseException] = []
    async with Producer(KafkaConfig(servers=servers), failures.append, linger_milliseconds=3.0) as producer:
        value = bytes(SMALL)
        for number in range(partitions):
            await producer.send("small", number, value)
        await producer.settle()
        began = time.process_time()
        for number in range(records):
            await producer.send("small", number % partitions, value)
        await producer.settle()
        sending = time.process_time() - began
    if failures:
        raise failures[0]
    consumer = await reading(servers, "small", partitions)
    began, left = time.process_time(), records + partitions
    while left > 0:
        left -= sum(map(len, (await consumer.getmany(timeout_ms=1000)).values()))
    fetching = time.process_time() - began
    await consumer.stop()
    each = 1e6 / records
    return {
        "records": records,
        "partitions": partitions,
        "send_us": round(sending * each, 2),
        "fetch_us": round(fetching * each, 2),
        "record_us": round((sending + fetching) * each, 2),
    }
