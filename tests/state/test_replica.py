"""A store read beside the process that writes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import msgspec
import pytest
import writing
from writing import DECADE, INGEST, KEYS, SMALL, number

from kithstream.streams.config import StoreConfig
from kithstream.streams.errors import StoreRefused
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksReplica, RocksStore

BATCHES = 600
AT_ONCE = 4


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RocksStore, RocksReplica]]:
    """A store, and its replica that has seen a first value in every column."""
    store = RocksStore(tmp_path / "store", SMALL)
    store.write({column: {b"k": b"1", b"gone": b"1"} for column in Column})
    replica = RocksReplica(tmp_path / "store", tmp_path / "own", SMALL)
    yield store, replica
    replica.close()
    store.close()


def flush(store: RocksStore) -> None:
    store._columns[Column.OUT].flush()


def checkpoint(store: RocksStore) -> None:
    store.checkpoint(store._path.parent / "copy")


@pytest.mark.parametrize("emptied", [flush, checkpoint, RocksStore.compact])
def test_what_a_replica_has_read_hides_nothing_that_was_flushed_since(
    pair: tuple[RocksStore, RocksReplica], emptied: Callable[[RocksStore], None]
) -> None:
    store, replica = pair
    store.write({column: {b"k": b"2", b"gone": None} for column in Column})
    emptied(store)
    replica.catch_up()
    for column in Column:
        assert replica.get(column, [b"k", b"gone"]) == [b"2", None]
        assert list(replica.scan(column, b"k")) == [(b"k", b"2")]


def test_a_column_that_is_seldom_written_holds_back_few_logs(tmp_path: Path) -> None:
    bound = 1 << 18
    store = RocksStore(tmp_path / "store", msgspec.structs.replace(SMALL, wal_bytes=bound))
    replica = RocksReplica(tmp_path / "store", tmp_path / "own", SMALL)
    most = 0
    for round_ in range(100):
        store.write({Column.META: {b"offset": b"%d" % round_}, Column.ROWS: {b"k": b"%d" % round_ * 8192}})
        store._columns[Column.ROWS].flush()
        replica.catch_up()
        most = max(most, sum(log.stat().st_size for log in (tmp_path / "store").glob("*.log")))
    assert bound / 2 < most < 2 * bound
    assert replica.get(Column.META, [b"offset"]) == [b"99"]
    replica.close()
    store.close()


def test_a_replica_holds_little_of_many_logs(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store", StoreConfig())
    for round_ in range(40):
        store.write({column: {b"k": b"%d" % round_} for column in Column})
        store._columns[Column.ROWS].flush()  # the others' logs stay
    replica = RocksReplica(tmp_path / "store", tmp_path / "own", StoreConfig())
    assert len(list((tmp_path / "store").glob("*.log"))) > 40
    assert replica.get(Column.META, [b"k"]) == [b"39"]
    memtables = [
        column.property_int_value("rocksdb.size-all-mem-tables") for column in replica._columns.values()
    ]
    assert sum(memtables) < 40 << 20
    replica.close()
    store.close()


def test_a_replica_moves_when_it_catches_up_and_not_before(pair: tuple[RocksStore, RocksReplica]) -> None:
    store, replica = pair
    store.write({column: {b"k": b"2"} for column in Column})
    store.compact()
    assert {replica.get(column, [b"k"])[0] for column in Column} == {b"1"}
    replica.catch_up()
    assert {replica.get(column, [b"k"])[0] for column in Column} == {b"2"}


def test_writes_alone_do_not_open_the_store_again(pair: tuple[RocksStore, RocksReplica]) -> None:
    store, replica = pair
    for value in (b"2", b"3", b"4"):
        store.write({Column.OUT: {b"k": value}})
        replica.catch_up()
        assert replica.get(Column.OUT, [b"k"]) == [value]
    assert replica.opened == 1


def test_a_compaction_opens_it_again(pair: tuple[RocksStore, RocksReplica]) -> None:
    """Nothing tells it from a flush of a log that the writer left long ago."""
    store, replica = pair
    flush(store)
    replica.catch_up()
    opened, before = replica.opened, replica._files()
    store._columns[Column.OUT].compact_range(None, None)
    replica.catch_up()
    after = replica._files()
    assert (after.log, after.manifests == before.manifests) == (before.log, False)
    assert (replica.get(Column.OUT, [b"k"]), replica.opened) == ([b"1"], opened + 1)


def test_a_replica_leaves_nothing_behind(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store", SMALL)
    replica = RocksReplica(tmp_path / "store", tmp_path / "own", SMALL)
    for _ in range(3):
        store.write({Column.OUT: {b"k": b"2"}})
        flush(store)
        replica.catch_up()
        assert len(list((tmp_path / "own").iterdir())) == 1
    replica.close()
    store.close()
    assert not (tmp_path / "own").exists()


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="cannot be read"):
        RocksReplica(tmp_path / "store", tmp_path / "own", SMALL)


def test_a_store_that_took_the_place_of_another_is_refused(tmp_path: Path) -> None:
    """An older copy goes on in its own way: its writes over what was read of the newer one would be no state at all."""
    path = tmp_path / "store"
    store = RocksStore(path, SMALL)
    store.write({Column.OUT: {b"k": b"1"}})
    store.checkpoint(tmp_path / "older")
    store.write({Column.OUT: {b"k": b"2"}})
    replica = RocksReplica(path, tmp_path / "own", SMALL)
    store.close()
    path.rename(tmp_path / "aside")
    (tmp_path / "older").rename(path)
    with pytest.raises(StoreRefused, match="was replaced"):
        replica.catch_up()
    assert replica.get(Column.OUT, [b"k"]) == [b"2"]
    replica.close()


def test_every_look_beside_a_writing_process_is_of_one_batch(tmp_path: Path) -> None:
    """Writes, dropped ranges, ingested files, flushes of one column after the other, compactions."""
    folder = tmp_path / "store"
    RocksStore(folder, SMALL).close()
    replica = RocksReplica(folder, tmp_path / "own", SMALL)
    writer = subprocess.Popen([sys.executable, writing.__file__, str(folder)], stdin=PIPE, bufsize=0)
    assert writer.stdin is not None
    last = allowed = 0
    try:
        while last < BATCHES:
            if allowed < BATCHES and allowed - last < 2 * AT_ONCE:
                writer.stdin.write(b"." * AT_ONCE)  # it writes while this process looks
                allowed += AT_ONCE
            assert writer.poll() is None
            replica.catch_up()
            seen = {number(value) for column in Column for value in replica.get(column, KEYS)}
            assert len(seen) == 1, f"one look has batches {sorted(seen)}"
            batch = seen.pop()
            ranged = [number(value) for _, value in replica.scan(Column.SAID, b"r")]
            assert ranged == list(range(batch - batch % DECADE + 1, batch + 1))
            ingested = {number(value) for _, value in replica.scan(Column.OUT, b"z")}
            whole = batch - batch % INGEST  # ingested between the batch of its number and the next
            assert ingested - {0, whole} <= ({whole - INGEST} if batch == whole else set())
            assert ingested or batch <= INGEST
            assert batch >= last
            last = batch
    finally:
        writer.kill()
        writer.wait()
        writer.stdin.close()
        replica.close()
