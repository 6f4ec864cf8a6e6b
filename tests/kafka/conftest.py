"""A real Apache Kafka for these tests, one for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kithstream.streams.kafka.local import JARS, LocalKafka, NoKafka

HERE = Path(__file__).parent


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
