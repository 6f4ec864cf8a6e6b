from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from promises import expected

from kithstream.streams.communities.follows import Arcs, Follows, in_file, numbered, stored
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.errors import StoreRefused
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import SimulationConfig, simulate
from kithstream.streams.sources.lines import BadRow

SMALL = Config(
    engine=EngineConfig(partitions=3), model=ModelConfig(learn=False), index=IndexSection(background=False)
)
NAMES = ("b", "aa", "a", "é", "c", "~")
ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 4)).filter(lambda row: row[0] != row[1]),
    max_size=40,
)


def rows_of(follows: Follows) -> list[tuple[str, str]]:
    return [
        (follows.accounts[a], follows.accounts[b])
        for a, b in zip(follows.source.tolist(), follows.target.tolist(), strict=True)
    ]


@given(ROWS, st.integers(1, 4))
def test_each_account_keeps_its_newest_follows(rows: list[tuple[int, int, int]], newest: int) -> None:
    arcs = Arcs(*np.array(rows, np.int64).reshape(-1, 3).T)
    follows = numbered(NAMES, arcs, newest)
    held: dict[str, dict[str, int]] = {}
    for a, b, time in rows:
        mine = held.setdefault(NAMES[a], {})
        mine[NAMES[b]] = max(time, mine.get(NAMES[b], 0))
    expected = [
        (a, b) for a in sorted(held) for b in sorted(held[a], key=lambda b: (-held[a][b], b))[:newest]
    ]
    assert rows_of(follows) == expected
    assert follows.read == sum(map(len, held.values()))
    assert list(follows.accounts) == sorted(NAMES)


class Told(NamedTuple):
    """A runtime in use, and what its log means."""

    live: Embedded
    edges: dict[tuple[str, str], int]  # follows that stand, and since when


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """A runtime that has folded a little of everything and is open."""
    events = list(chain.from_iterable(simulate(SimulationConfig(accounts=60, seed=4), 3000)))
    newest = max(event["time"] for event in events)
    meant = expected([msgspec.convert(event, Event) for event in events], newest).edges
    edges = {(actor, other): time for (actor, family, other, _), time in meant.items() if family == "follow"}
    assert any(event["signal"] == "unfollow" for event in events)
    assert len(edges) > 200
    with Embedded(tmp_path_factory.mktemp("live"), SMALL, clock=lambda: newest) as live:
        live.publish(events)
        live.catch_up()
        yield Told(live, edges)


def fingerprint(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_runtime_in_use_and_a_checkpoint_of_it_say_what_stands(told: Told, tmp_path: Path) -> None:
    told.live.checkpoint(tmp_path / "copy")
    before = fingerprint(tmp_path / "copy")
    for folder in (told.live.path, tmp_path / "copy"):
        follows = stored(folder)
        assert set(rows_of(follows)) == set(told.edges)
        assert follows.read == len(follows.source) == len(told.edges)
    by_age = [(source, -told.edges[source, target], target) for source, target in rows_of(follows)]
    assert by_age == sorted(by_age)
    assert fingerprint(tmp_path / "copy") == before  # in use, the owner itself may write
    few = stored(tmp_path / "copy", newest=2)
    assert np.bincount(few.source).max() == 2
    assert few.read == len(told.edges)


def test_what_is_folded_while_it_is_open_is_seen_and_what_is_not_folded_is_not(tmp_path: Path) -> None:
    now = SimulationConfig().start
    with Embedded(tmp_path, SMALL, clock=lambda: now) as live:
        live.publish([{"signal": "follow", "actor": "ann", "target": other} for other in ("bob", "cyd")])
        assert rows_of(stored(tmp_path)) == []
        live.catch_up()
        assert rows_of(stored(tmp_path)) == [("ann", "bob"), ("ann", "cyd")]
        live.publish([{"signal": "unfollow", "actor": "ann", "target": "bob", "time": now + 1}])
        live.publish([{"signal": "follow", "actor": "ann", "target": "ann2", "time": now + 2}])
        live.catch_up()
        assert rows_of(stored(tmp_path)) == [("ann", "ann2"), ("ann", "cyd")]


def test_a_folder_without_state_is_refused(told: Told, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match=r"holds no runtime: layout\.json is missing"):
        stored(tmp_path)
    (tmp_path / "layout.json").write_text("{}")
    with pytest.raises(StoreRefused, match="partitions"):
        stored(tmp_path)
    (tmp_path / "layout.json").write_text('{"partitions": 2}')
    with pytest.raises(StoreRefused, match="no state of partition 0"):
        stored(tmp_path)
    (tmp_path / "state" / "0").mkdir(parents=True)
    with pytest.raises(StoreRefused, match="no state of partition 0"):
        stored(tmp_path)
    assert list((tmp_path / "state" / "0").iterdir()) == []


@pytest.mark.parametrize("name", ["graph.csv", "graph.parquet", "graph.jsonl"])
def test_a_file_of_follows_says_the_same(name: str, tmp_path: Path) -> None:
    table = pa.table(
        {
            "source": ["ann", "ann", "bob", "ann", "bob", None, "cyd", "x" * 129, ""],
            "target": ["bob", "cyd", "ann", "bob", "bob", "ann", "dan", "ann", "ann"],
            "time": [5, 7, 1, 9, 3, 2, -4, 1, 1],
        }
    )
    file = tmp_path / name
    if name.endswith("csv"):
        pyarrow.csv.write_csv(table, file)
    elif name.endswith("parquet"):
        pyarrow.parquet.write_table(table, file)
    else:
        rows = [row | {"source": row["source"] or ""} for row in table.to_pylist()]  # null is refused there
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told: list[int] = []
    follows = in_file(file, microseconds=1_000_000, on_read=told.append)
    assert rows_of(follows) == [("ann", "bob"), ("ann", "cyd"), ("bob", "ann")]
    assert told == [9]


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "graph.csv"
    file.write_text("source,target\nann,bob,cyd\n")
    with pytest.raises(BadRow):
        in_file(file)
    with pytest.raises(ValueError, match="a name ending in"):
        in_file(tmp_path / "graph")
