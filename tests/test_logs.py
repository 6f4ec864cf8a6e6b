"""What is logged is one object a line where that is asked for, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from kithstream.streams import logs
from kithstream.streams.config import KafkaConfig, LogConfig


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("kithstream")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def test_a_record_is_one_line_of_json_with_what_raised_it() -> None:
    told = io.StringIO()
    logs.configure(LogConfig(format="json"), "worker", told)
    log = logging.getLogger("kithstream.streams.kafka.worker")
    log.debug("not told")
    log.info("partition %d\nof %s", 3, "\ud800")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    logging.getLogger("aiokafka").info("a library's")
    first, second = map(json.loads, told.getvalue().splitlines())
    assert first["message"] == "partition 3\nof ?"
    assert (first["level"], first["process"]) == ("INFO", "worker")
    assert first["time"].endswith("+00:00")
    assert second["exception"].endswith("ValueError: broken")


def test_text_is_a_line_for_people_and_a_level_holds() -> None:
    told = io.StringIO()
    logs.configure(LogConfig(level="WARNING"), "serve", told)
    log = logging.getLogger("kithstream.x")
    log.info("not told")
    log.warning("told of %s", KafkaConfig(password="secret"))
    (line,) = told.getvalue().splitlines()
    assert "WARNING kithstream.x: told of KafkaConfig(" in line
    assert "secret" not in line
