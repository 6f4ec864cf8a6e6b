from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError

from kithstream.streams.clients import EventPublisher
from kithstream.streams.clients.publisher import Pending
from kithstream.streams.config import KafkaConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import InvalidEvent, Undelivered, Unreachable
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka.local import JARS, LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.serve import tokens

ROOT = Path(__file__).parents[2]
NOW = 1_700_000_000_000_000  # microseconds
PARTITIONS = 3


def follow(actor: str, target: str = "ada") -> dict[str, object]:
    return {"signal": "follow", "actor": actor, "target": target}


def clock() -> int:
    return NOW


class Log:
    """The records of the tenant's engagements."""

    def __init__(self, config: KafkaConfig) -> None:
        self.topic = topics(config.prefix).engagements
        self._consumer = KafkaConsumer(bootstrap_servers=config.servers, auto_offset_reset="earliest")
        self.parts = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
        self._consumer.assign(self.parts)

    def ends(self) -> dict[int, int]:
        return {part.partition: end for part, end in self._consumer.end_offsets(self.parts).items()}

    def read(self) -> list[tuple[int, int, bytes, bytes, int]]:
        """Partition, offset, key, value and timestamp of every record there is."""
        self._consumer.seek_to_beginning(*self.parts)
        found: list[tuple[int, int, bytes, bytes, int]] = []
        missing = sum(self.ends().values())
        while len(found) < missing:
            for records in self._consumer.poll(1000).values():
                found += [(r.partition, r.offset, r.key, r.value, r.timestamp) for r in records]
        return sorted(found)

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
def log(tenant: KafkaConfig):
    opened = Log(tenant)
    yield opened
    opened.close()


def test_a_token_names_the_offsets_after_its_events(tenant: KafkaConfig, log: Log) -> None:
    with EventPublisher(tenant) as publisher:
        first = publisher.publish([follow(f"a{n}") for n in range(50)])
        assert tokens.read(first, PARTITIONS) == log.ends()
        second = publisher.publish([follow("a7")])
        place = Route(PARTITIONS)["a7"]
        assert tokens.read(second, PARTITIONS) == {place: log.ends()[place]}
        assert log.ends()[place] == tokens.read(first, PARTITIONS)[place] + 1
        assert publisher.publish([]) == ""


def test_an_event_goes_where_kafkas_own_partitioner_puts_its_actor(tenant: KafkaConfig, log: Log) -> None:
    actors = [f"actor-{n}" for n in range(60)] + ["ünïcode", "x" * 128]
    with EventPublisher(tenant) as publisher:
        publisher.publish([follow(actor) for actor in actors])
    records = log.read()
    assert len(records) == len(actors)

    plain = KafkaProducer(bootstrap_servers=tenant.servers)
    for partition, _, key, value, _ in records:
        assert key.decode() == msgspec.json.decode(value)["actor"]
        assert partition == plain.send(log.topic, value, key).get(10).partition
    plain.close()


def test_a_bad_event_keeps_every_event_of_its_call_out(tenant: KafkaConfig, log: Log) -> None:
    with EventPublisher(tenant) as publisher:
        with pytest.raises(InvalidEvent, match="target"):
            publisher.publish([follow("a1"), follow("a2"), follow("ada", "ada")])
        with pytest.raises(InvalidEvent):
            publisher.send([follow("a3"), b"{"])
        publisher.flush()
    assert log.read() == []


def test_an_event_is_stamped_where_it_has_no_time_or_id(tenant: KafkaConfig, log: Log) -> None:
    own = Event(id="e1", signal="follow", actor="b", target="ada", time=NOW - 5)
    raw = b'{"id": "e2", "signal": "follow", "actor": "c", "target": "ada", "time": 7, "more": 1}'
    with EventPublisher(tenant, clock=clock) as publisher:
        publisher.publish([follow("a"), own, raw, {**follow("d"), "id": "e3", "time": 9}])
    events = {key.decode(): (value, timestamp) for _, _, key, value, timestamp in log.read()}
    stamped = msgspec.json.decode(events["a"][0])
    assert stamped["time"] == NOW
    assert len(stamped["id"]) == 32
    assert msgspec.json.decode(events["b"][0], type=Event) == own
    assert events["c"][0] == raw
    assert msgspec.json.decode(events["d"][0]) == {**follow("d"), "id": "e3", "time": 9}
    assert {timestamp for _, timestamp in events.values()} == {NOW // 1000}


def test_the_brokers_drop_what_the_producer_sends_again(tenant: KafkaConfig) -> None:
    with EventPublisher(tenant) as publisher:
        publisher.publish([follow("a")])
        settings = publisher._link.producer.config
        assert settings["enable_idempotence"]
        assert settings["acks"] == -1
        assert settings["retries"] == float("inf")
        assert settings["delivery_timeout_ms"] == 30_000


def test_sending_without_waiting_gives_the_same_tokens(tenant: KafkaConfig, log: Log) -> None:
    with EventPublisher(tenant) as publisher:
        pending = [publisher.send([follow(f"a{n}"), follow(f"b{n}")]) for n in range(200)]
        joined = ""
        for each in pending:
            joined = tokens.join(joined, each.token(), PARTITIONS)
            assert each.done
            assert each.token() == each.token()
    assert tokens.read(joined, PARTITIONS) == log.ends()
    assert sum(log.ends().values()) == 400


def test_flush_waits_for_everything_that_was_sent(tenant: KafkaConfig, log: Log) -> None:
    with EventPublisher(tenant, linger=0.2, in_flight=1000) as publisher:
        for n in range(100):
            publisher.send([follow(f"a{n}-{m}") for m in range(50)])
        publisher.flush()
        assert sum(log.ends().values()) == 5000


def test_a_lingering_event_is_not_confirmed_yet(tenant: KafkaConfig) -> None:
    with EventPublisher(tenant, linger=5.0) as publisher:
        pending = publisher.send([follow("a")])
        with pytest.raises(TimeoutError, match="1 events are not confirmed after 0 s"):
            pending.token(0)
        assert not pending.done


def test_connecting_happens_at_the_first_use_and_ends_with_close(tenant: KafkaConfig, log: Log) -> None:
    publisher = EventPublisher(tenant)
    assert tokens.read(publisher.publish([follow("a")]), PARTITIONS)
    publisher.close()
    publisher.close()
    with pytest.raises(RuntimeError, match="closed"):
        publisher.publish([follow("a")])


def test_a_topic_that_is_not_there_is_named(broker: LocalKafka) -> None:
    nobody = KafkaConfig(servers=broker.servers, prefix="nobody.")
    with (
        pytest.raises(Unreachable, match=r"nobody\.engagements"),
        EventPublisher(nobody, connecting=0.5),
    ):
        pass


@pytest.mark.usefixtures("refused")
def test_a_broker_that_is_not_there_is_named_without_the_password() -> None:
    config = KafkaConfig(servers="127.0.0.1:1", security="SASL_PLAINTEXT", username="u", password="s3cret")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1") as told:
        EventPublisher(config, connecting=0.3).publish([follow("a")])
    assert "s3cret" not in f"{told.value} {told.value!r} {config!r} {EventPublisher(config)!r}"


def test_a_linger_that_outlasts_the_delivery_is_refused() -> None:
    with pytest.raises(ValueError, match="linger is 3"):
        EventPublisher(KafkaConfig(), linger=3.0, delivery=5.0)


def reached(publisher: EventPublisher) -> None:
    """A broker that has just started may take longer than `delivery` for what it is sent first."""
    for patience in reversed(range(60)):
        try:
            publisher.publish([follow("a")])
            break
        except Undelivered:
            if not patience:
                raise


@pytest.mark.usefixtures("refused")
def test_what_the_brokers_did_not_confirm_can_be_published_again(
    tenant: KafkaConfig, tmp_path: Path, create_topics: Callable[[KafkaConfig], None]
) -> None:
    mortal = LocalKafka(tmp_path, jars=ROOT / JARS, heap_mib=256).start()
    config = KafkaConfig(servers=mortal.servers)
    create_topics(config)
    publisher = EventPublisher(config, delivery=1.0, in_flight=4)
    try:
        reached(publisher)
        mortal.kill()
        with pytest.raises(Undelivered, match="2 of 2 events are not confirmed") as told:
            publisher.publish([follow("b"), follow("c")])
        publisher.send([follow("d"), follow("e"), follow("f")])
        with pytest.raises(Undelivered) as more:  # the bound of what is in flight is filled with lost ones
            publisher.send([follow("g"), follow("h")])
        publisher.send([follow("i")])
        with pytest.raises(Undelivered) as last:
            publisher.flush()
    finally:
        mortal.stop()
    actors = [[msgspec.json.decode(raw)["actor"] for raw in each.value.events] for each in (told, more, last)]
    assert actors == [["b", "c"], ["d", "e", "f", "g", "h"], ["i"]]
    publisher.close()
    log = Log(tenant)
    with EventPublisher(tenant) as other:
        other.publish(told.value.events)
    assert {value for _, _, _, value, _ in log.read()} == set(told.value.events)
    log.close()


def test_a_wait_that_ends_a_moment_early_has_given_up() -> None:
    """kafka-python waits by a clock of its own: it may be done before ours says that the time is over."""

    class Early:
        is_done = False
        exception = None

        def get(self, timeout: float) -> None:
            raise KafkaTimeoutError(f"waited {timeout:g} s")

        def succeeded(self) -> bool:
            return False

    pending = Pending([b"{}"], [Early()], float("inf"))  # type: ignore[list-item]
    with pytest.raises(TimeoutError, match=r"1 events are not confirmed after 0\.5 s"):
        pending.token(0.5)
    with pytest.raises(Undelivered, match="1 of 1 events are not confirmed"):
        pending.token()
