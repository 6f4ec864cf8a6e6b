"""The end of the log beside its appender."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.log import Log


def test_the_end_moves_when_the_records_can_be_read(tmp_path: Path) -> None:
    seen: list[tuple[int, list[Record]]] = []
    given = [Record(number, b"raw") for number in range(3)]

    def records() -> Iterator[Record]:
        for record in given:
            yield record
            seen.append((log.end, log.read(0, 10)))

    with Log(tmp_path) as log:
        assert log.append(records()) == 0
        assert seen == [(0, [])] * 3
        assert (log.end, log.read(0, 10)) == (3, given)
