from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kithstream.streams.engine import log as log_module
from kithstream.streams.engine.engine import Record
from kithstream.streams.engine.log import ROLLED, Log
from kithstream.streams.errors import GapInLog


def records(count: int, first: int = 0) -> list[Record]:
    return [Record(1000 + n, b"r%d" % n) for n in range(first, first + count)]


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 9), max_size=12),
    reads=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))),
)
def test_records_are_read_as_appended_across_files_and_reopening(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], reads: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("log")
    before, log_module.SEGMENT = log_module.SEGMENT, 100
    try:
        count = 0
        for size in sizes:
            with Log(path) as log:
                assert log.append(records(size, count)) == count
                count += size
                assert log.end == count
                for offset, limit in reads:
                    assert log.read(offset, limit) == records(count)[offset : offset + limit]
    finally:
        log_module.SEGMENT = before


@pytest.mark.parametrize("cut", [1, 5, 16, 17])
def test_a_torn_tail_is_cut_and_the_rest_stays(tmp_path: Path, cut: int) -> None:
    with Log(tmp_path) as log:
        log.append(records(3))
    file = tmp_path / f"{0:020d}.log"
    file.write_bytes(file.read_bytes()[:-cut])
    with Log(tmp_path) as log:
        assert log.read(0, 9) == records(2)
        log.append(records(1, 2))
        assert log.read(0, 9) == records(3)


def test_a_flipped_bit_in_the_tail_is_cut(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.append(records(3))
    file = tmp_path / f"{0:020d}.log"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with Log(tmp_path) as log:
        assert log.end == 2


def test_dropping_keeps_what_is_not_applied_or_not_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "SEGMENT", 40)
    with Log(tmp_path) as log:
        for n in range(10):
            log.append(records(1, n))
        assert log.drop_before(5, 10**9) > 0
        assert 0 < log.first <= 5
        with pytest.raises(GapInLog, match="begins at offset"):
            log.read(0, 1)
        assert log.read(5, 9) == records(5, 5)
        kept = log.first
        assert log.drop_before(10, 0) == 0
        assert log.first == kept


def test_a_file_goes_by_age_even_where_little_is_written(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.append([Record(1, b"old")])
        assert not log.roll(ROLLED)
        assert log.roll(ROLLED + 1)
        assert not log.roll(9 * ROLLED)  # the new one is empty
        assert log.drop_before(1, 1) == 0
        assert log.drop_before(1, 2) == 1
        assert log.append([Record(9, b"new")]) == 1
        assert log.read(1, 5) == [Record(9, b"new")]
    with Log(tmp_path) as log:
        assert (log.first, log.end) == (1, 2)


def test_a_log_that_ends_with_an_empty_file_is_opened_again(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.append([Record(1, b"old")])
        log.roll(2 * ROLLED)
    with Log(tmp_path) as log:
        assert (log.first, log.end) == (0, 1)
        assert log.append([Record(9, b"new")]) == 1
        assert [record.raw for record in log.read(0, 5)] == [b"old", b"new"]
