"""What the audit finds of an account in the compacted topics of a real broker."""

from __future__ import annotations

import msgspec
import pytest
from kafka import KafkaProducer

from kithstream.models.lineage import lineage_of
from kithstream.streams.audit import Audit
from kithstream.streams.config import Config, KafkaConfig
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka import names
from kithstream.streams.kafka.search import search_topics
from kithstream.streams.kafka.wire import Pushed, Vector
from kithstream.streams.serve.answers import Candidate

LONG = "a" * 50  # its length is a byte that is a letter


def pushed(account: str, candidate: str) -> bytes:
    return msgspec.json.encode(Pushed(account, [Candidate(candidate, 1.0, ())], 1, 2, "m", 3, "0:1"))


def vector(*followers: str) -> bytes:
    return msgspec.msgpack.encode(Vector(1, 1, 1, 0, 0, 0, list(followers), b"\0" * 8))


def test_own_records_and_mentions_are_counted_until_they_are_withdrawn(tenant: KafkaConfig) -> None:
    config = Config(kafka=tenant)
    candidates = names.topics(tenant.prefix).candidates
    vectors = names.vectors(tenant.prefix, lineage_of("", 0))
    producer = KafkaProducer(bootstrap_servers=tenant.servers)

    def write(topic: str, key: str, value: bytes | None) -> None:
        producer.send(topic, value, key.encode(), partition=0).get(10)

    def found(account: str) -> list[tuple[str, int, bool]]:
        audit = search_topics(Audit(account, True, [], {}, []), config)
        assert any("engagements: records for 7 days" in note for note in audit.notes)
        return [(f.place.removeprefix(tenant.prefix), f.found, "of others" in f.why) for f in audit.findings]

    write(candidates, "ann", pushed("ann", "bob"))
    write(candidates, "bob", pushed("bob", "ann"))
    write(candidates, "cyd", pushed("cyd", "bobby"))
    write(vectors, "bob", vector("ann"))
    write(vectors, "dan", vector(LONG))
    assert found("bob") == [
        ("candidates", 1, False),
        ("candidates", 1, True),
        (vectors_name(vectors, tenant), 1, False),
    ]
    assert found(LONG) == [(vectors_name(vectors, tenant), 1, True)]
    write(candidates, "bob", None)
    write(vectors, "bob", None)
    write(candidates, "ann", pushed("ann", "cyd"))
    assert found("bob") == []
    producer.close()


def vectors_name(topic: str, tenant: KafkaConfig) -> str:
    return topic.removeprefix(tenant.prefix)


def test_a_broker_that_is_not_there_is_told(refused: None) -> None:
    config = Config(kafka=KafkaConfig(servers="127.0.0.1:9"))
    with pytest.raises(Unreachable):
        search_topics(Audit("bob", True, [], {}, []), config)
