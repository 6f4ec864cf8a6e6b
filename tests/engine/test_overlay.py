"""A store over another: its contract where there is something below, and that what is below stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kithstream.streams.config import StoreConfig
from kithstream.streams.engine.overlay import Overlay
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column, Dropped
from kithstream.streams.state.store import RocksReplica, RocksStore

SMALL = StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20)
KEYS = st.binary(min_size=1, max_size=2)
Write = tuple[dict[Column, dict[bytes, bytes | None]], list[tuple[Column, bytes, bytes]]]
WRITES: st.SearchStrategy[list[Write]] = st.lists(
    st.tuples(
        st.dictionaries(
            st.sampled_from(list(Column)), st.dictionaries(KEYS, st.none() | st.binary(max_size=3))
        ),
        st.lists(st.tuples(st.sampled_from(list(Column)), KEYS, KEYS), max_size=1),
    ),
    max_size=6,
)


def drops(ranges: Sequence[tuple[Column, bytes, bytes]]) -> list[Dropped]:
    return [Dropped(column, min(a, b), max(a, b)) for column, a, b in ranges]


def content(store: MemoryStore | Overlay) -> dict[Column, list[tuple[bytes, bytes]]]:
    return {column: list(store.scan(column, b"")) for column in Column}


@settings(max_examples=300)
@given(WRITES, WRITES, KEYS)
def test_an_overlay_reads_as_a_copy_that_was_written_and_leaves_what_is_below(
    first: list[Write], then: list[Write], prefix: bytes
) -> None:
    below = MemoryStore()
    for changes, ranges in first:
        below.write(changes, drops(ranges))
    before, copy, overlay = content(below), below.copy(), Overlay(below)
    for changes, ranges in then:
        copy.write(changes, drops(ranges))
        overlay.write(changes, drops(ranges))
    assert content(overlay) == content(copy)
    keys = [bytes([a]) for a in range(256)] + [key for pairs in before.values() for key, _ in pairs]
    for column in Column:
        assert overlay.get(column, keys) == copy.get(column, keys)
        assert list(overlay.scan(column, prefix)) == list(copy.scan(column, prefix))
        begin = prefix + b"\x01"
        assert list(overlay.scan_from(column, prefix, begin)) == list(copy.scan_from(column, prefix, begin))
        assert list(overlay.scan_each(column, [prefix], begin)) == list(copy.scan_from(column, prefix, begin))
    assert content(below) == before
    overlay.forget()
    assert content(overlay) == before


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[RocksStore]:
    store = RocksStore(tmp_path / "store", SMALL)
    store.write({column: {b"a": b"1", b"b": b"2", b"c": b"3"} for column in Column})
    yield store
    store.close()


def test_an_overlay_lies_over_a_store_on_disk_and_over_its_replica(
    stored: RocksStore, tmp_path: Path
) -> None:
    replica = RocksReplica(tmp_path / "store", tmp_path / "own", SMALL)
    for below in (stored, replica):
        overlay = Overlay(below)
        overlay.write(
            {Column.OUT: {b"a": b"9", b"d": b"4"}},
            [Dropped(Column.OUT, b"b", b"c"), Dropped(Column.IN, b"", b"z")],
        )
        assert list(overlay.scan(Column.OUT, b"")) == [(b"a", b"9"), (b"c", b"3"), (b"d", b"4")]
        assert overlay.get(Column.OUT, [b"b", b"c", b"a"]) == [None, b"3", b"9"]
        assert list(overlay.scan(Column.IN, b"")) == []
        assert list(overlay.scan(Column.ROWS, b"")) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
        overlay.close()
        assert below.get(Column.OUT, [b"a", b"b"]) == [b"1", b"2"]
    replica.close()


def test_an_overlay_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="no checkpoint"):
        Overlay(MemoryStore()).checkpoint(tmp_path / "copy")
