"""A real Apache Kafka for these tests, one for all of them, and topics of its own for each."""

from __future__ import annotations

import gc
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Self

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from kithstream.models.model import Model
from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.local import JARS, LocalKafka, NoKafka
from kithstream.streams.kafka.names import steps, topics, vectors
from kithstream.streams.kafka.wire import Reply, Request

HERE = Path(__file__).parent
PARTITIONS = 3  # of what accounts live in
REPLIES = 4
LINEAGE = Model.day_zero(0).lineage
_numbers = count(1)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that need a broker, or are refused one.

    kafka-python 3.0.12 leaves sockets to the collector: of connections that were refused, and of those that were being
    made when their client closed.
    """
    fixtures = getattr(item, "fixturenames", ())
    if "broker" in fixtures:
        item.add_marker(pytest.mark.kafka)
    if "broker" in fixtures or "refused" in fixtures:
        item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Nothing that these tests left is collected in the tests of other folders, which are strict."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A running broker; skips where none can be had, and says why."""
    started = LocalKafka(tmp_path_factory.mktemp("kafka"), jars=HERE.parents[1] / JARS)
    try:
        started.start()
    except NoKafka as missing:
        pytest.skip(f"no Apache Kafka: {missing}")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def guarded(broker: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A broker that wants a password."""
    users = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    users += ' username="broker" password="b" user_broker="b" user_ann="right horse";'
    properties = {
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": users,
    }
    folder = tmp_path_factory.mktemp("guarded")
    with LocalKafka(
        folder, jars=HERE.parents[1] / JARS, security="SASL_PLAINTEXT", properties=properties
    ) as local:
        yield local


@pytest.fixture(scope="session")
def admin(broker: LocalKafka) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=broker.servers)
    yield client
    client.close()


@pytest.fixture
def tenant(broker: LocalKafka, admin: KafkaAdminClient) -> KafkaConfig:
    """Settings with a prefix that no other test has, and the topics behind it."""
    config = KafkaConfig(servers=broker.servers, prefix=f"t{next(_numbers)}.")
    create(admin, config)
    return config


def create(admin: KafkaAdminClient, config: KafkaConfig) -> None:
    """Create the topics that the clients use."""
    names = topics(config.prefix)
    single = (names.models, steps(config.prefix, LINEAGE))
    admin.create_topics(
        [
            NewTopic(names.training, 1, 1),
            *(NewTopic(name, 1, 1, topic_configs={"cleanup.policy": "compact"}) for name in single),
            NewTopic(names.replies, REPLIES, 1),
            NewTopic(names.candidates, PARTITIONS, 1, topic_configs={"cleanup.policy": "compact"}),
            *(
                NewTopic(name, PARTITIONS, 1)
                for name in (*names, vectors(config.prefix, LINEAGE))
                if name not in (names.replies, names.candidates, names.training, *single)
            ),
        ]
    )


@pytest.fixture
def create_topics() -> Callable[[KafkaConfig], None]:
    """Create the clients' topics at a broker that the test started itself."""

    def make(config: KafkaConfig) -> None:
        admin = KafkaAdminClient(bootstrap_servers=config.servers)
        create(admin, config)
        admin.close()

    return make


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Ask a condition that waits on a broker again until it holds; fails after twenty seconds."""

    def wait(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, "did not come about in 20 s"

    return wait


@pytest.fixture
def refused() -> Iterator[None]:
    """For tests without a broker: kafka-python 3.0.12 leaves the sockets of refused connections to the collector."""
    logging.disable()  # what is logged holds the errors, and they hold the sockets
    yield
    gc.collect()
    logging.disable(logging.NOTSET)


class Responder:
    """Reads requests and replies to them as `reply` says, in a thread; `None` leaves one without reply."""

    def __init__(self, config: KafkaConfig, reply: Callable[[Request], bytes | Reply | None]) -> None:
        self.asked: list[Request] = []
        self.keys: list[tuple[int, bytes]] = []  # partition and key of each
        self._config = config
        self._reply = reply
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def send(self, reply: bytes | Reply) -> None:
        """Write a reply to the request that it names, or to the one asked last."""
        to = {request.id: request for request in self.asked}
        request = self.asked[-1] if isinstance(reply, bytes) else to[reply.id]
        raw = reply if isinstance(reply, bytes) else msgspec.json.encode(reply)
        self._producer.send(request.reply_topic, raw, partition=request.reply_partition).get(10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            for records in self._consumer.poll(50).values():
                for record in records:
                    request = msgspec.json.decode(record.value, type=Request)
                    self.keys.append((record.partition, record.key))
                    self.asked.append(request)
                    if (reply := self._reply(request)) is not None:
                        self.send(reply)

    def __enter__(self) -> Self:
        name = topics(self._config.prefix).requests
        self._producer = KafkaProducer(bootstrap_servers=self._config.servers)
        self._consumer = KafkaConsumer(bootstrap_servers=self._config.servers, enable_auto_commit=False)
        parts = [TopicPartition(name, number) for number in range(PARTITIONS)]
        self._consumer.assign(parts)
        for part, end in self._consumer.end_offsets(parts).items():
            self._consumer.seek(part, end)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(20)
        self._producer.close()
        self._consumer.close()


@pytest.fixture
def respond(tenant: KafkaConfig) -> Callable[[Callable[[Request], bytes | Reply | None]], Responder]:
    """Make a responder for the tenant's requests."""
    return lambda reply: Responder(tenant, reply)
