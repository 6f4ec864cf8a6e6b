"""A broker of its own for each test here: it is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from town import BROKER

from kithstream.streams.kafka.local import JARS, LocalKafka, NoKafka


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that need a broker."""
    if "mortal" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.kafka)


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[LocalKafka]:
    """A running broker that may be killed and started again; skips where none can be had, and says why."""
    broker = LocalKafka(
        tmp_path / "kafka", jars=Path(__file__).parents[2] / JARS, properties=BROKER, heap_mib=256
    )
    try:
        broker.start()
    except NoKafka as missing:
        pytest.skip(f"no Apache Kafka: {missing}")
    yield broker
    broker.stop()
