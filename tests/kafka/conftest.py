"""A real Apache Kafka for these tests, one for all of them, and topics of its own for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.local import JARS, LocalKafka, NoKafka
from kithstream.streams.kafka.names import topics

HERE = Path(__file__).parent
PARTITIONS = 3  # of what accounts live in
REPLIES = 4
_numbers = count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and keep them in one process of xdist: only that one starts a broker."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("kafka"))
            if "broker" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.kafka)


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
    admin.create_topics(
        [
            NewTopic(names.engagements, PARTITIONS, 1),
            NewTopic(names.requests, PARTITIONS, 1),
            NewTopic(names.replies, REPLIES, 1),
            NewTopic(names.candidates, PARTITIONS, 1, topic_configs={"cleanup.policy": "compact"}),
        ]
    )


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Ask a condition that polls a broker again until it holds; fails after twenty seconds."""
    import time

    def wait(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, "did not come about in 20 s"

    return wait
