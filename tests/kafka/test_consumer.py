from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from threading import Thread

import msgspec
import pytest
from kafka import KafkaProducer

from kithstream.streams.clients import CandidateConsumer, Dropped, Withdrawn
from kithstream.streams.config import KafkaConfig
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.wire import Pushed
from kithstream.streams.serve.answers import Candidate

NOW = 1_700_000_000_000_000  # microseconds
HOUR = 3_600_000_000
Given = list[Pushed | Withdrawn]
Until = Callable[[Callable[[], bool]], None]


def listed(account: str, as_of: int = NOW, valid_until: int = NOW + HOUR) -> Pushed:
    return Pushed(account, [Candidate("ada", 1.5, ["followed by bob"])], as_of, valid_until, "m", 3, "0:1")


def clock() -> int:
    return NOW


class Worker:
    """Writes to the tenant's candidates, each record before the next."""

    def __init__(self, config: KafkaConfig) -> None:
        self._topic = topics(config.prefix).candidates
        self.producer = KafkaProducer(bootstrap_servers=config.servers)

    def push(self, *values: Pushed, partition: int = 0) -> None:
        for value in values:
            self.write(value.account.encode(), msgspec.json.encode(value), partition)

    def write(self, key: bytes, value: bytes | None, partition: int = 0) -> None:
        self.producer.send(self._topic, value, key, partition=partition).get(10)


@pytest.fixture
def worker(tenant: KafkaConfig) -> Iterator[Worker]:
    opened = Worker(tenant)
    yield opened
    opened.producer.close()


def take(consumer: CandidateConsumer, count: int) -> Given:
    """The next values of an iteration that has no end; fails after twenty seconds."""
    found: Given = []
    taking = Thread(target=lambda: found.extend(islice(consumer, count)), daemon=True)
    taking.start()
    taking.join(20)
    assert not taking.is_alive(), f"{count} values did not come, {consumer.dropped}"
    return found


def test_lists_come_from_every_partition_and_in_their_order(tenant: KafkaConfig, worker: Worker) -> None:
    for partition in range(3):
        worker.push(*(listed(f"u{partition}", NOW + n) for n in range(5)), partition=partition)
    with CandidateConsumer(tenant, clock=clock) as consumer:
        found = take(consumer, 15)
    for partition in range(3):
        assert [each for each in found if each.account == f"u{partition}"] == [
            listed(f"u{partition}", NOW + n) for n in range(5)
        ]


def test_without_a_group_from_now_means_what_is_pushed_later(tenant: KafkaConfig, worker: Worker) -> None:
    worker.push(listed("before"))
    with CandidateConsumer(tenant, start="now", clock=clock) as consumer:
        worker.push(listed("after"))
        assert take(consumer, 1) == [listed("after")]
    with CandidateConsumer(tenant, clock=clock) as consumer:
        assert take(consumer, 2) == [listed("before"), listed("after")]


def test_a_poll_gives_what_is_there_and_nothing_where_nothing_is(
    tenant: KafkaConfig, worker: Worker, until: Until
) -> None:
    with CandidateConsumer(tenant, clock=clock) as consumer:
        assert consumer.poll(0) == []
        worker.push(listed("a"), listed("b"))
        found: Given = []
        until(lambda: len(found.extend(consumer.poll(1.0)) or found) == 2)
        assert found == [listed("a"), listed("b")]


def test_a_group_goes_on_behind_what_was_left_behind(tenant: KafkaConfig, worker: Worker) -> None:
    worker.push(*(listed(f"u{n}") for n in range(6)))
    with CandidateConsumer(tenant, group="product", clock=clock) as consumer:
        assert [each.account for each in take(consumer, 4)] == ["u0", "u1", "u2", "u3"]
    # u3 was handed out and u4 never asked for: it may not have been used.
    with CandidateConsumer(tenant, group="product", clock=clock) as consumer:
        assert [each.account for each in take(consumer, 2)] == ["u3", "u4"]
    with CandidateConsumer(tenant, group="other", clock=clock) as consumer:
        assert [each.account for each in take(consumer, 1)] == ["u0"]


def test_polled_lists_are_done_with_the_next_poll(tenant: KafkaConfig, worker: Worker, until: Until) -> None:
    worker.push(listed("a"), listed("b"))
    with CandidateConsumer(tenant, group="product", clock=clock) as consumer:
        found: Given = []
        until(lambda: len(found.extend(consumer.poll(1.0)) or found) == 2)
        worker.push(listed("c"))
        until(lambda: consumer.poll(1.0) == [listed("c")])
    with CandidateConsumer(tenant, group="product", clock=clock) as consumer:
        assert take(consumer, 1) == [listed("c")]


def test_the_consumers_of_a_group_share_the_partitions(
    tenant: KafkaConfig, worker: Worker, until: Until
) -> None:
    with (
        CandidateConsumer(tenant, group="product", clock=clock) as one,
        CandidateConsumer(tenant, group="product", clock=clock) as other,
    ):
        accounts = ["a", "b", "c"]

        def push() -> None:
            for partition, account in enumerate(accounts):
                worker.push(listed(account), partition=partition)

        def poll() -> tuple[set[str], set[str]]:
            first, second = ({each.account for each in consumer.poll(0.2)} for consumer in (one, other))
            return first, second

        until(lambda: push() or all(poll()))
        until(lambda: poll() == (set(), set()))
        accounts = ["x", "y", "z"]
        push()
        seen: tuple[set[str], set[str]] = (set(), set())
        until(
            lambda: (
                [mine.update(more) for mine, more in zip(seen, poll(), strict=True)]
                and len(seen[0] | seen[1]) == 3
            )
        )
        assert sorted(map(len, seen)) == [1, 2]


def test_a_list_past_its_time_is_dropped(tenant: KafkaConfig, worker: Worker) -> None:
    worker.push(listed("late", valid_until=NOW), listed("a", valid_until=NOW + 1))
    with CandidateConsumer(tenant, clock=clock) as consumer:
        assert take(consumer, 1) == [listed("a", valid_until=NOW + 1)]
        assert consumer.dropped == Dropped(stale=1, superseded=0, unreadable=0)


def test_a_list_is_judged_when_it_is_handed_out(tenant: KafkaConfig, worker: Worker) -> None:
    worker.push(listed("a"), listed("b"), listed("c", valid_until=NOW + 3 * HOUR))
    moments = iter([NOW, NOW + 2 * HOUR, NOW + 2 * HOUR])
    with CandidateConsumer(tenant, clock=lambda: next(moments)) as consumer:
        assert [each.account for each in take(consumer, 2)] == ["a", "c"]


def test_a_list_older_than_one_given_is_dropped(tenant: KafkaConfig, worker: Worker) -> None:
    worker.push(listed("a", NOW + 2), *[listed("a", NOW + 1)] * 2, listed("b", NOW), listed("a", NOW + 2))
    worker.push(listed("a", NOW + 3))
    with CandidateConsumer(tenant, clock=clock) as consumer:
        found = take(consumer, 4)
        assert [(each.account, each.as_of) for each in found if isinstance(each, Pushed)] == [
            ("a", NOW + 2),
            ("b", NOW),
            ("a", NOW + 2),
            ("a", NOW + 3),
        ]
        assert consumer.dropped.superseded == 2


def test_what_was_given_is_remembered_within_a_bound(tenant: KafkaConfig, worker: Worker) -> None:
    worker.push(listed("a", NOW + 2), listed("b"), listed("c"), listed("a", NOW + 1), listed("c", NOW - 1))
    worker.push(listed("end"))
    with CandidateConsumer(tenant, clock=clock, remembered=2) as consumer:
        assert [each.account for each in take(consumer, 5)] == ["a", "b", "c", "a", "end"]
        assert consumer.dropped.superseded == 1


def test_a_withdrawal_is_given_as_a_value_of_its_own(tenant: KafkaConfig, worker: Worker) -> None:
    worker.push(listed("ünï"))
    worker.write("ünï".encode(), None)
    with CandidateConsumer(tenant, clock=clock) as consumer:
        assert take(consumer, 2) == [listed("ünï"), Withdrawn("ünï")]


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"",
        b"\xff",
        b"[]",
        b'{"account": "a"}',
        b'{"account": 7}',
        b'{"account": "a", "more": ' + b"[" * 100_000,
    ],
)
def test_a_record_that_cannot_be_read_stops_nothing(
    tenant: KafkaConfig, worker: Worker, value: bytes
) -> None:
    worker.write(b"a", value)
    worker.write(b"\xff", None)
    worker.push(listed("b"))
    with CandidateConsumer(tenant, group="product", clock=clock) as consumer:
        assert take(consumer, 1) == [listed("b")]
        assert consumer.dropped == Dropped(stale=0, superseded=0, unreadable=2)


def test_the_workers_own_group_is_refused(tenant: KafkaConfig) -> None:
    with pytest.raises(ValueError, match="group is 'kithstream'"):
        CandidateConsumer(tenant, group="kithstream")


def test_a_topic_that_is_not_there_is_named(broker: LocalKafka) -> None:
    nobody = KafkaConfig(servers=broker.servers, prefix="nobody.")
    with pytest.raises(Unreachable, match=r"nobody\.candidates"), CandidateConsumer(nobody):
        pass


def test_a_closed_consumer_says_so(tenant: KafkaConfig) -> None:
    consumer = CandidateConsumer(tenant)
    consumer.close()
    assert list(consumer) == []
    with pytest.raises(RuntimeError, match="closed"):
        consumer.poll(0)


def test_the_example_prints_lists_as_they_come(tenant: KafkaConfig, worker: Worker) -> None:
    until_when = 4_000_000_000_000_000
    worker.push(listed("eve", valid_until=until_when))
    worker.write(b"dan", None)
    example = Path(__file__).parents[2] / "examples" / "kafka_consume.py"
    environment = {
        **os.environ,
        "KITHSTREAM_KAFKA__SERVERS": tenant.servers,
        "KITHSTREAM_KAFKA__PREFIX": tenant.prefix,
    }
    with subprocess.Popen(
        [sys.executable, str(example)], stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert running.stdout is not None
        assert [running.stdout.readline(), running.stdout.readline()] == ["eve ['ada']\n", "dan []\n"]
        running.terminate()
