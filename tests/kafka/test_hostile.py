"""Bad input to a real worker, on every topic that it reads: it goes on, and everything is accounted for."""

from __future__ import annotations

from collections import Counter
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hostile import frames, junk, records
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from test_hostile import seal
from workers import Worker, ends_of, holds

from kithstream.models.lineage import day_zero_lineage
from kithstream.streams.clients import RetrievalClient
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.engine import frames as wire_frames
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.routing import Route
from kithstream.streams.events import wire as events
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka import names
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.topics import create, wanted
from kithstream.streams.kafka.wire import PROGRESS, DeadLetter

PARTITIONS = 3
LINEAGE = day_zero_lineage(0)
_numbers = count(1)


@pytest.fixture
def town(broker: LocalKafka) -> KafkaConfig:
    """A tenant with every topic, made as `kithstream topics create` makes them."""
    kafka = KafkaConfig(servers=broker.servers, prefix=f"hostile{next(_numbers)}.")
    create(kafka, wanted(Config(kafka=kafka, engine=EngineConfig(partitions=PARTITIONS)), LINEAGE))
    return kafka


def letters(kafka: KafkaConfig) -> list[DeadLetter]:
    """All dead letters."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.servers)
    parts = [TopicPartition(names.topics(kafka.prefix).dead_letters, n) for n in range(PARTITIONS)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    ends, found = consumer.end_offsets(parts), []
    while any(consumer.position(part) < ends[part] for part in parts):
        for batch in consumer.poll(1000).values():
            found += [msgspec.json.decode(record.value, type=DeadLetter) for record in batch]
    consumer.close()
    return found


def test_a_worker_goes_on_whatever_its_topics_hold(town: KafkaConfig, tmp_path: Path) -> None:
    name, route = names.topics(town.prefix), Route(PARTITIONS)
    now = wall_clock()
    some = list(records(7, 3000, now, large=0.001))
    genuine = wire_frames.encode(Frame(now, states=[b"u1\0Au2\0", b"\0" * 14], upto=1))
    bad_frames = list(frames(8, 400, genuine, seal))
    control = [Event("c1", "profile", "u1", now - 5, language="de"), Event("c2", "profile", "u2", now - 4)]
    with Worker(town, tmp_path / "one", PARTITIONS) as worker:
        worker.ready()
        first = worker.retrieval
        producer = KafkaProducer(bootstrap_servers=town.servers, acks="all", max_request_size=4 << 20)
        stuff = list(junk(9, 200))
        sending = []

        def send(topic: str, raw: bytes | None, key: bytes | None, partition: int) -> None:
            sending.append(producer.send(topic, raw, key=key, partition=partition))

        for at, sent in enumerate(some):
            key = None if sent.event is None else sent.event.actor.encode()
            place = at % PARTITIONS if sent.event is None or at % 50 == 0 else route[sent.event.actor]
            send(name.engagements, sent.raw, key, place)
        for at, raw in enumerate(bad_frames):
            send(name.edges, raw, None, at % PARTITIONS)
        send(name.engagements, None, b"nobody", 0)
        for at, raw in enumerate(stuff):
            key = (PROGRESS, b"u1", b"", b"\xff\xfe", b"0", b"\0step", b"\0current")[at % 7]
            for topic in (name.requests, name.control, name.owners, names.vectors(town.prefix, LINEAGE)):
                send(topic, raw, key, at % PARTITIONS)
            for topic in (name.training, name.models, names.steps(town.prefix, LINEAGE)):
                send(topic, raw, key, 0)
        for event in control:
            send(name.control, events.encode(event), None, route[event.actor])
        for one in sending:
            one.get(60)
        producer.close()
        meant = [sent.event for sent in some if sent.event is not None] + control
        refused = sum(sent.event is None for sent in some) + 1
        sought = {name.engagements: refused, name.edges: len(bad_frames), name.control: len(stuff)}

        def buried() -> bool:
            return sum(ends_of(town, name.dead_letters, PARTITIONS).values()) >= sum(sought.values())

        worker.until(buried, f"for {sought}")

        def published() -> str:
            found = ends_of(town, name.engagements, PARTITIONS)
            return ",".join(f"{n}:{end}" for n, end in found.items())

        worker.until(lambda: worker.get(f"/v1/candidates/u1?after={published()}")[0] == 200, "for all")
        with RetrievalClient(town) as client:
            assert client.ask("u1", 5, after=published(), deadline=30.0).candidates
        assert worker.retrieval == first, worker.log()[-3000:]
        worker.stop()
    found = letters(town)
    assert Counter(letter.topic for letter in found) == sought
    for letter in found:
        assert letter.reason
        assert 0 < len(letter.detail) <= 400
        assert letter.detail.isprintable()
        assert len(letter.record) < 1_500_000
        assert letter.size >= 0
    assert {letter.reason for letter in found if letter.topic == name.edges} == {"malformed_frame"}
    assert len({letter.reason for letter in found}) >= 9
    assert max(letter.size for letter in found) > 900_000  # the ids of a megabyte
    holds([tmp_path / "one"], meant, PARTITIONS)
