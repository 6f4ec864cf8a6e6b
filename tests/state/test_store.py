"""The store's contract, on dicts, on RocksDB and on what lies over another store alike."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rocksdict import ReadOptions

from kithstream.streams.config import StoreConfig
from kithstream.streams.engine.overlay import Overlay
from kithstream.streams.errors import StoreRefused
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column, Dropped, Store
from kithstream.streams.state.store import RocksStore

KEYS = st.binary(min_size=1, max_size=3)
WRITES = st.lists(
    st.tuples(
        st.dictionaries(
            st.sampled_from(list(Column)), st.dictionaries(KEYS, st.none() | st.binary(max_size=3))
        ),
        st.lists(st.tuples(st.sampled_from(list(Column)), KEYS, KEYS), max_size=1),
    ),
    max_size=6,
)


@pytest.fixture(params=["memory", "rocks", "overlay"])
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Store]]:
    made: list[Store] = []

    def build() -> Store:
        if request.param == "memory":
            made.append(MemoryStore())
        elif request.param == "overlay":
            made.append(Overlay(MemoryStore()))
        else:
            made.append(RocksStore(tmp_path_factory.mktemp("store"), StoreConfig()))
        return made[-1]

    yield build
    for store in made:
        store.close()


def test_a_store_is_sorted_bytes_written_in_batches(make: Callable[[], Store]) -> None:
    @settings(max_examples=20)
    @given(WRITES, KEYS)
    def contract(
        writes: list[tuple[dict[Column, dict[bytes, bytes | None]], list[tuple[Column, bytes, bytes]]]],
        prefix: bytes,
    ) -> None:
        store = make()
        model: dict[Column, dict[bytes, bytes]] = {column: {} for column in Column}
        for changes, ranges in writes:
            dropped = [Dropped(column, min(a, b), max(a, b)) for column, a, b in ranges]
            store.write(changes, dropped)
            for column, begin, end in dropped:
                model[column] = {k: v for k, v in model[column].items() if not begin <= k < end}
            for column, pairs in changes.items():
                for key, value in pairs.items():
                    if value is None:
                        model[column].pop(key, None)
                    else:
                        model[column][key] = value
        for column, pairs in model.items():
            assert list(store.scan(column, b"")) == sorted(pairs.items())
            assert list(store.scan(column, prefix)) == sorted(
                (k, v) for k, v in pairs.items() if k.startswith(prefix)
            )
            begin = prefix + b"\x01"
            assert list(store.scan_from(column, prefix, begin)) == sorted(
                (k, v) for k, v in pairs.items() if k.startswith(prefix) and k >= begin
            )
            prefixes = sorted({prefix, prefix[:1] + b"\x02", b"\xfe", b"\xff"} - {prefix[:1]})
            apart = [p for p in prefixes if not any(p != q and p.startswith(q) for q in prefixes)]
            for first in (b"", begin, prefix, b"\xfe\x01"):
                assert list(store.scan_each(column, apart, first)) == sorted(
                    (k, v) for k, v in pairs.items() if k.startswith(tuple(apart)) and k >= first
                )
            keys = [*pairs, b"\xff\xff\xff\xff"]
            assert store.get(column, keys) == [*pairs.values(), None]
        assert store.get(Column.OUT, []) == []

    contract()


def test_prefixes_are_gone_over_from_a_key_on(make: Callable[[], Store]) -> None:
    store = make()
    keys = [b"a1", b"b1", b"b2", b"b3", b"c1", b"d1", b"d2", b"e1"]
    store.write({Column.OUT: {key: key * 2 for key in keys}})
    prefixes = [b"b", b"c0", b"d", b"f"]
    for begin, left in ((b"", 5), (b"b2", 4), (b"b3", 3), (b"b9", 2), (b"d2", 1), (b"d3", 0)):
        found = [key for key in keys if key[:1] in b"bd"][5 - left :]
        assert list(store.scan_each(Column.OUT, prefixes, begin)) == [(key, key * 2) for key in found]


class _Impatient:
    """A column whose iterators fail rather than pass over more than a few deleted keys."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def items(self, from_key: bytes, read_opt: ReadOptions | None = None) -> Any:
        return self._column.items(from_key=from_key, read_opt=_impatient(read_opt))

    def iter(self, read_opt: ReadOptions | None = None) -> Any:
        return self._column.iter(_impatient(read_opt))


def _impatient(given: ReadOptions | None) -> ReadOptions:
    options = given or ReadOptions()
    options.set_max_skippable_internal_keys(10)
    return options


def test_a_scan_does_not_pass_over_what_was_deleted_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would cost a celebrity's deletion the square of its followers, and a question what the outbox has seen."""
    store = RocksStore(tmp_path / "store", StoreConfig())
    store.write({Column.META: {b"a1": b"1", b"a2": b"2"} | {b"b%d" % n: b"" for n in range(100)}})
    store.write({Column.META: {b"b%d" % n: None for n in range(100)}})
    monkeypatch.setitem(store._columns, Column.META, _Impatient(store._columns[Column.META]))
    with pytest.raises(StoreRefused):
        list(store.scan(Column.META, b"b"))
    assert list(store.scan(Column.META, b"a")) == [(b"a1", b"1"), (b"a2", b"2")]
    assert list(store.scan_from(Column.META, b"a", b"a2")) == [(b"a2", b"2")]
    assert list(store.scan_each(Column.META, [b"a1", b"a2"])) == [(b"a1", b"1"), (b"a2", b"2")]
    assert list(store.scan(Column.META, b"A")) == []
    monkeypatch.undo()
    store.close()


def test_the_end_of_a_scan_stays_where_it_is_while_memory_is_used_again(tmp_path: Path) -> None:
    """What is read of a bound must outlive the call that gave it: RocksDB holds an address."""
    store = RocksStore(tmp_path / "store", StoreConfig())
    rng = random.Random(0)
    keys = sorted({rng.choice((b"a", b"b", b"\xff")) + rng.randbytes(rng.randrange(4)) for _ in range(2000)})
    store.write({Column.OUT: dict.fromkeys(keys, b"v")})
    for prefix in (b"a", b"b", b"\xff", *(key[:2] for key in rng.sample(keys, 300))):
        found, used = [], []
        for key, _ in store.scan(Column.OUT, prefix):
            found.append(key)
            used.append(rng.randbytes(len(prefix)))
        assert found == [key for key in keys if key.startswith(prefix)]
    store.close()


def test_what_was_written_is_there_after_closing(tmp_path: Path) -> None:
    store = RocksStore(tmp_path, StoreConfig())
    store.write({Column.OUT: {b"a": b"1"}, Column.META: {b"b": b"2"}})
    store.close()
    store = RocksStore(tmp_path, StoreConfig())
    assert store.get(Column.OUT, [b"a"]) == [b"1"]
    assert store.get(Column.META, [b"b"]) == [b"2"]
    store.close()


def test_a_checkpoint_is_a_copy_of_its_moment(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store", StoreConfig())
    store.write({Column.IN: {b"a": b"1"}})
    store.checkpoint(tmp_path / "copy")
    store.write({Column.IN: {b"a": b"2"}})
    store.close()
    copy = RocksStore(tmp_path / "copy", StoreConfig())
    assert copy.get(Column.IN, [b"a"]) == [b"1"]
    copy.close()


def test_a_copy_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store", StoreConfig())
    with pytest.raises(OSError, match="cannot be copied"):
        store.checkpoint(tmp_path / "no" / "such" / "folder")
    store.close()


def test_a_scan_does_not_end_at_a_damaged_block(tmp_path: Path) -> None:
    """The iterator of rocksdict does, as if nothing came behind it."""
    store = RocksStore(tmp_path, StoreConfig())
    store.write({Column.IN: {b"k%05d" % number: os.urandom(100) for number in range(1000)}})
    store.compact()
    store.close()
    (file,) = (path for path in tmp_path.glob("*.sst") if path.stat().st_size > 100_000)
    raw = bytearray(file.read_bytes())
    raw[50_000] ^= 1
    file.write_bytes(raw)
    store = RocksStore(tmp_path, StoreConfig())
    assert len(list(store.scan(Column.IN, b"k000"))) == 100  # before the damage
    assert len(list(store.scan(Column.IN, b"k009"))) == 100  # behind it
    for scan in (
        lambda: list(store.scan(Column.IN, b"")),
        lambda: list(store.scan(Column.IN, b"k00")),
        lambda: list(store.scan_each(Column.IN, [b"k00"])),
        store.verify,
    ):
        with pytest.raises(StoreRefused, match="damaged"):
            scan()
    store.close()


def test_a_store_is_opened_once(tmp_path: Path) -> None:
    store = RocksStore(tmp_path, StoreConfig())
    with pytest.raises(StoreRefused, match="cannot be opened"):
        RocksStore(tmp_path, StoreConfig())
    store.close()


def test_kill_9_keeps_every_returned_write_and_no_half_of_another(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert child.stdout is not None
    written = 0
    for line in child.stdout:
        written = int(line)
        if written >= 200:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store = RocksStore(tmp_path, StoreConfig())
    out, meta = dict(store.scan(Column.OUT, b"")), dict(store.scan(Column.META, b"n"))
    store.close()
    assert len(out) >= written
    assert meta[b"n"] == len(out).to_bytes(4, "big")


_WRITER = """
import sys
from pathlib import Path
from kithstream.streams.config import StoreConfig
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore
store = RocksStore(Path(sys.argv[1]), StoreConfig())
for n in range(1, 100000):
    store.write({Column.OUT: {n.to_bytes(4, "big"): b"x" * 100}, Column.META: {b"n": n.to_bytes(4, "big")}})
    print(n, flush=True)
"""


def test_compacting_a_range_takes_deleted_keys_out_of_the_files(tmp_path: Path) -> None:
    store = RocksStore(tmp_path, StoreConfig())
    values = {b"k%03d" % n: b"secret%03d" % n for n in range(300)}
    store.write({Column.ROWS: values})
    store.compact([])  # nothing
    store.compact([Dropped(Column.ROWS, b"", b"z")])
    assert in_files(tmp_path, b"secret150")
    store.write({Column.ROWS: {b"k150": None}})
    store.compact([Dropped(Column.ROWS, b"k150", b"k151")])
    store.close()
    assert not in_files(tmp_path, b"secret150")
    assert in_files(tmp_path, b"secret151")


def in_files(folder: Path, wanted: bytes) -> bool:
    """True if tables hold these bytes; rows are not packed."""
    return any(wanted in file.read_bytes() for file in folder.glob("*.sst"))
