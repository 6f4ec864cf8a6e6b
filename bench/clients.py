"""The Kafka clients' own part: events published a second, and a question's way there and back, without a worker.

    python -m bench.clients publish --events 100000 --batch 500
    python -m bench.clients ask --rate 100 --seconds 20

Starts a broker of its own, or takes `--servers`. What answers the questions is another process that sends an
empty answer back at once. Prints one JSON object; times in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from kithstream.streams.clients import EventPublisher, RetrievalClient
from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.wire import Reply, Request
from kithstream.streams.serve.answers import Answer, Question


def publish(config: KafkaConfig, events: int, batch: int, linger: float, each: bool) -> dict[str, object]:
    """Publish follows in calls of `batch`: each waited for, or all at the end."""
    made = [
        [
            {"signal": "follow", "actor": f"a{n % 9973}", "target": f"t{n % 7919}"}
            for n in range(at, at + batch)
        ]
        for at in range(0, events, batch)
    ]
    spent: list[float] = []
    with EventPublisher(config, linger=linger) as publisher:
        publisher.publish(made[0])
        started, cpu = time.perf_counter(), time.process_time()
        for call in made:
            before = time.perf_counter()
            if each:
                publisher.publish(call)
            else:
                publisher.send(call)
            spent.append((time.perf_counter() - before) * 1000)
        publisher.flush()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "events_per_second": round(events / seconds),
        "events_per_cpu_second": round(events / cpu),
        **_spread("call", spent),
    }


def raw(config: KafkaConfig, events: int) -> dict[str, object]:
    """Send as many bytes with kafka-python alone, for comparison."""
    value = b"x" * 120
    producer = KafkaProducer(bootstrap_servers=config.servers, batch_size=1 << 17, metrics_enabled=False)
    topic = topics(config.prefix).engagements
    producer.send(topic, value, b"a0", partition=0).get(10)
    started = time.perf_counter()
    for n in range(events):
        producer.send(topic, value, b"a0", partition=n % 3)
    producer.flush()
    seconds = time.perf_counter() - started
    producer.close()
    return {"events_per_second": round(events / seconds)}


def ask(config: KafkaConfig, rate: float, seconds: float) -> dict[str, object]:
    """Ask at a steady rate, each when it is due; times count from then."""
    echo = subprocess.Popen(
        [sys.executable, "-m", "bench.clients", "echo", "--servers", config.servers],
        stdout=subprocess.PIPE,
        text=True,
    )
    with echo, RetrievalClient(config) as client:
        assert echo.stdout is not None
        echo.stdout.readline()
        spent: list[float] = []
        futures: list[Future[Answer]] = []
        for n in range(50):
            client.ask(f"u{n}")
        started = time.perf_counter()
        for n in range(int(rate * seconds)):
            due = started + n / rate
            wait_until(due)

            def answered(_: Future[Answer], due: float = due) -> None:
                spent.append((time.perf_counter() - due) * 1000)

            futures.append(client.submit(Question(f"u{n}"), deadline=5.0))
            futures[-1].add_done_callback(answered)
        wait(futures)
        failed = sum(future.exception() is not None for future in futures)
        echo.terminate()
    return {"asked": len(futures), "failed": failed, **_spread("answer", spent)}


def wait_until(due: float) -> None:
    """Return at a time of `time.perf_counter`, at once if it is over."""
    while (ahead := due - time.perf_counter()) > 0:
        time.sleep(ahead)


def respond(config: KafkaConfig) -> None:
    """Send an empty answer for every question, until ended."""
    consumer = KafkaConsumer(bootstrap_servers=config.servers, metrics_enabled=False)
    parts = [TopicPartition(topics(config.prefix).requests, number) for number in range(3)]
    consumer.assign(parts)
    for part, end in consumer.end_offsets(parts).items():
        consumer.seek(part, end)
    producer = KafkaProducer(
        bootstrap_servers=config.servers, acks=1, enable_idempotence=False, metrics_enabled=False
    )
    print("ready", flush=True)
    while True:
        for records in consumer.poll(1000).values():
            for record in records:
                request = msgspec.json.decode(record.value, type=Request)
                answer = Answer(request.account, [], 0, "none", 0, 0, "", "none")
                reply = msgspec.json.encode(Reply(request.id, answer))
                producer.send(request.reply_topic, reply, partition=request.reply_partition)


def _spread(name: str, spent: list[float]) -> dict[str, float]:
    spent = sorted(spent)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {f"{name}_{p}_ms": round(spent[int(share * (len(spent) - 1))], 2) for p, share in at.items()}


def _create(config: KafkaConfig) -> None:
    names = topics(config.prefix)
    admin = KafkaAdminClient(bootstrap_servers=config.servers)
    there = admin.list_topics()
    counts = {names.engagements: 3, names.requests: 3, names.replies: 8}
    wanted = [NewTopic(name, count, 1) for name, count in counts.items() if name not in there]
    if wanted:
        admin.create_topics(wanted)
    admin.close()


def main() -> None:
    """Run one measurement and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("publish", "raw", "ask", "echo"))
    parser.add_argument("--servers", default="", help="a broker that is there; else one is started")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=500, help="events of one call")
    parser.add_argument("--linger", type=float, default=0.0, help="seconds")
    parser.add_argument("--each", action="store_true", help="wait for each call's token")
    parser.add_argument("--rate", type=float, default=100.0, help="questions a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    with ExitStack() as stack:
        servers = given.servers
        if not servers:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            servers = stack.enter_context(LocalKafka(Path(folder))).servers
        config = KafkaConfig(servers=servers)
        if given.what == "echo":
            respond(config)
        _create(config)
        if given.what == "publish":
            figures = publish(config, given.events, given.batch, given.linger, given.each)
        elif given.what == "raw":
            figures = raw(config, given.events)
        else:
            figures = ask(config, given.rate, given.seconds)
        machine = f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}"
        print(json.dumps({**vars(given), **figures, "machine": machine}))


if __name__ == "__main__":
    main()
