"""A store says its format: the one before is brought up to this one, any other refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from promises import agree

from kithstream.streams.config import EngineConfig, StoreConfig
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.partition import FORMAT, LAYOUT, UPGRADED
from kithstream.streams.errors import WrongLayout
from kithstream.streams.events import wire
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore

# Every key and value of a store that the last build of format 2 wrote, and the events that it had folded.
WRITTEN = json.loads((Path(__file__).parent / "format-2.json").read_text())
PAIRS = {
    Column(name): {bytes.fromhex(key): bytes.fromhex(value) for key, value in pairs}
    for name, pairs in WRITTEN["columns"].items()
}


def opened(path: Path, layout: bytes | None = None) -> RocksStore:
    """A store on the disk that holds what was written."""
    store = RocksStore(path, StoreConfig())
    store.write(PAIRS)
    if layout is not None:
        store.write({Column.META: {LAYOUT: layout}})
    return store


def engine(store: RocksStore) -> Engine:
    return Engine([store], EngineConfig(partitions=1), salt=b"salt" * 4)


def test_a_store_of_the_format_before_is_upgraded_and_holds_the_same(tmp_path: Path) -> None:
    assert PAIRS[Column.META][LAYOUT] == b"2 0/1"
    assert UPGRADED == 2
    upgraded = engine(opened(tmp_path / "0"))
    published = [wire.decode(event.encode(), now=1 << 60) for event in WRITTEN["events"]]
    agree(upgraded, published)
    upgraded.close()
    again = RocksStore(tmp_path / "0", StoreConfig())
    left = {column: dict(again.scan(column, b"")) for column in Column}
    assert left == {**PAIRS, Column.META: {**PAIRS[Column.META], LAYOUT: f"{FORMAT} 0/1".encode()}}
    again.close()


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (b"4 0/1", r"format 4, this build reads 3 and upgrades 2; open it with the build that wrote it"),
        (b"10 0/1", r"format 10, .*the build that wrote it"),
        (b"1 0/1", r"format 1, this build reads 3 and upgrades 2; load or replay it anew"),
        (b"nonsense", "format nonsense, this build reads 3"),
        (b"2 1/3", "partition 1/3, not 0/1"),
        (b"3 0/3", "partition 0/3, not 0/1"),
    ],
)
def test_any_other_is_refused_and_left_as_it_is(tmp_path: Path, layout: bytes, words: str) -> None:
    store = opened(tmp_path / "0", layout)
    with pytest.raises(WrongLayout, match=words):
        engine(store)
    assert store.get(Column.META, [LAYOUT]) == [layout]
    store.close()
