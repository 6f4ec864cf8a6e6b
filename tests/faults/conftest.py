"""A broker of its own for each test here: it is killed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from town import BROKER

from kithstream.streams.kafka.local import JARS, LocalKafka, NoKafka


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that need a broker."""
    if "mortal" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.kafka)
        item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning"))


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[LocalKafka]:
    """A running broker that may be killed and started again; skips where none can be had, and says why.

    kafka-python 3.0.12 leaves the sockets of refused connections to the collector.
    """
    logging.disable()  # what is logged holds the errors, and they hold the sockets
    broker = LocalKafka(
        tmp_path / "kafka", jars=Path(__file__).parents[2] / JARS, properties=BROKER, heap_mib=256
    )
    try:
        broker.start()
    except NoKafka as missing:
        logging.disable(logging.NOTSET)
        pytest.skip(f"no Apache Kafka: {missing}")
    yield broker
    broker.stop()
    gc.collect()
    logging.disable(logging.NOTSET)
