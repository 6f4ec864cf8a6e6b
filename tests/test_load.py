"""The bulk loader against its slow twin: the same follows as events through the two stages."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import mortal
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mortal import SALT, Row, columns
from promises import agree, held
from soup import ACCOUNTS, DAY, FEW, START, soup

from kithstream.streams import load as load_module
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import Config, EngineConfig, ModelConfig
from kithstream.streams.engine import derive, merge
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.events import wire
from kithstream.streams.events.wire import Event
from kithstream.streams.load import Loaded, Progress, finish, load, next_row
from kithstream.streams.serve.answers import Candidate
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.sources import graph
from kithstream.streams.sources.graph import Columns
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column

NOW = START + 30 * DAY


def fresh(partitions: int = 3) -> Engine:
    return opened([MemoryStore() for _ in range(partitions)])


def opened(stores: Sequence[MemoryStore]) -> Engine:
    return Engine(stores, EngineConfig(job_edges=2), salt=SALT)


def publish(engine: Engine, events: Sequence[Event], batch: int = 7) -> Engine:
    logs: list[list[Record]] = [[] for _ in engine.partitions]
    for e in events:
        logs[engine.route[e.actor]].append(Record(NOW, wire.encode(e)))
    for number, log in enumerate(logs):
        applied = engine.partitions[number].applied
        for first in range(0, len(log), batch):
            assert not engine.apply(number, log[first : first + batch], applied + first).dead
    engine.settle()
    return engine


def as_events(rows: Sequence[Row]) -> list[Event]:
    return [Event(merge.event_id(a, b), "follow", a, time, target=b) for a, b, time in rows]


def loaded(engine: Engine, rows: Sequence[Row], chunk: int = 4) -> Loaded:
    return load(engine, columns(rows), now=NOW, chunk=chunk)


def bytes_of(engine: Engine) -> list[dict[Column, dict[bytes, bytes]]]:
    """Everything the stores hold but where the events ended."""
    return [
        {
            column: {k: v for k, v in partition.store.scan(column, b"") if k not in (b"applied", b"L")}
            for column in Column
        }
        for partition in engine.partitions
    ]


def pairs(names: Sequence[str]) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.sampled_from(names), st.sampled_from(names)).filter(lambda pair: pair[0] != pair[1])


RECENT = st.one_of(
    st.integers(0, 6 * DAY - 1).map(lambda offset: START + offset),
    st.integers(0, 300).map(lambda minute: START + 6 * DAY - 1 - minute * 60_000_000),
)
ANY = st.one_of(RECENT, st.just(0), st.integers(0, 200).map(lambda day: START - day * DAY))


def graphs(times: st.SearchStrategy[int]) -> st.SearchStrategy[list[Row]]:
    names = FEW + tuple(f"n{i}" for i in range(6))
    row = st.tuples(pairs(names), times).map(lambda pair: (*pair[0], pair[1]))
    few = st.tuples(pairs(FEW), times).map(lambda pair: (*pair[0], pair[1]))
    return st.lists(row | few, max_size=40)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive, "SEGMENT", 7)


slow = settings(
    max_examples=60,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@slow
@given(soup(), graphs(RECENT), soup(), st.integers(1, 50), st.sampled_from((1, 3)))
def test_loading_is_the_same_as_publishing_the_follows(
    before: list[Event], rows: list[Row], after: list[Event], chunk: int, partitions: int
) -> None:
    seen = {(e.actor, e.id) for e in before}
    after = [e for e in after if (e.actor, e.id) not in seen]
    fast, twin = publish(fresh(partitions), before), publish(fresh(partitions), before)
    loaded(fast, rows, chunk)
    publish(twin, as_events(rows))
    level(fast, twin)
    assert held(fast) == held(twin)
    publish(fast, after)
    publish(twin, after)
    level(fast, twin)
    assert held(fast) == held(twin)
    agree(fast, [*before, *as_events(rows), *after])


def level(*engines: Engine) -> None:
    """A load moves the watermark of every partition, an event that of two."""
    newest = max(engine.watermark for engine in engines)
    for engine in engines:
        engine.partitions[0].advance(newest)


@slow
@given(soup(), graphs(ANY), soup(), st.integers(1, 50))
def test_a_graph_older_than_the_horizon_leaves_what_the_batch_computes(
    before: list[Event], rows: list[Row], after: list[Event], chunk: int
) -> None:
    seen = {(e.actor, e.id) for e in before}
    after = [e for e in after if (e.actor, e.id) not in seen]
    engine = publish(fresh(), before)
    done = loaded(engine, rows, chunk)
    assert (done.edges, done.accepted, done.refused) == (len(rows), len(rows), {})
    agree(publish(engine, after), [*before, *as_events(rows), *after])


@slow
@given(soup(), graphs(ANY), st.integers(1, 50), st.integers(1, 50))
def test_loading_twice_and_in_any_chunks_is_loading_once(
    before: list[Event], rows: list[Row], chunk: int, other: int
) -> None:
    once, twice = publish(fresh(), before), publish(fresh(), before)
    loaded(once, rows, chunk)
    loaded(twice, rows, other)
    assert loaded(twice, rows, chunk).changed == 0
    assert held(once) == held(twice)
    for one, two in zip(bytes_of(once), bytes_of(twice), strict=True):
        assert one[Column.IN] == two[Column.IN]  # lesser stamps of an out-edge may have been dropped or not


class Killed(Exception):
    """The process is gone."""


class Mortal(MemoryStore):
    """Dies before one of its writes; what was written stays."""

    left: ClassVar = [1 << 30]  # writes until death, shared by the partitions

    def write(self, *args: object, **named: object) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise Killed
        super().write(*args, **named)  # type: ignore[arg-type] # handed on as they came


@slow
@given(soup(), graphs(ANY), st.integers(1, 20), st.integers(0, 60), st.booleans())
def test_a_crash_before_any_write_is_made_good_by_loading_again(
    before: list[Event], rows: list[Row], chunk: int, writes: int, finished: bool
) -> None:
    whole = publish(fresh(), before)
    loaded(whole, rows, chunk)
    stores = [Mortal() for _ in range(3)]
    Mortal.left[0] = 1 << 30
    publish(opened(stores), before)
    Mortal.left[0] = writes
    with suppress(Killed):
        load(opened(stores), columns(rows), now=NOW, source="g", chunk=chunk)
    Mortal.left[0] = 1 << 30
    engine = opened(stores)
    if finished:
        finish(engine)
        state = held(engine)
        rows_then = state.rows_in, state.rows_out
        finish(engine)
        assert (held(engine).rows_in, held(engine).rows_out) == rows_then
    first = next_row(engine, "g")
    load(engine, columns(rows[first:], first), now=NOW, source="g", chunk=chunk)
    assert next_row(engine, "g") == len(rows)
    level(whole, engine)
    assert held(engine) == held(whole)


def test_retracting_a_loaded_follow_takes_it_back_even_before_it_comes() -> None:
    rows = [("ann", "bob", START), ("ann", "cyd", START + DAY), ("ann", "bob", START + 5)]
    retract = Event("r", "retract", "ann", START + DAY, retracts="load:ann:bob")
    engine = fresh()
    loaded(engine, rows, chunk=1)
    publish(engine, [retract])
    assert held(engine).edges == {("ann", "follow", "cyd", ""): START + DAY}
    agree(engine, [*as_events(rows), retract])
    early = publish(fresh(), [retract])
    loaded(early, rows)
    assert held(early).edges == held(engine).edges


def test_a_follow_that_was_retracted_comes_back_by_loading() -> None:
    events = [
        Event("e", "follow", "ann", START + 1, target="bob"),
        Event("r", "retract", "ann", START + 2, retracts="e"),
    ]
    engine = publish(fresh(), events)
    loaded(engine, [("ann", "bob", START)])  # its state is of a later epoch than its stamp alone says
    agree(engine, [*events, *as_events([("ann", "bob", START)])])


def test_a_newer_unfollow_wins_and_an_older_one_loses() -> None:
    undo = [Event(f"u{b}", "unfollow", "ann", START + 9, target=b) for b in ("bob", "cyd")]
    rows = [("ann", "bob", START + 8), ("ann", "cyd", START + 10)]
    engine = publish(fresh(), undo)
    loaded(engine, rows)
    assert held(engine).edges == {("ann", "follow", "cyd", ""): START + 10}
    agree(engine, [*undo, *as_events(rows)])


def test_hubs_and_recent_lists_are_exact_beyond_their_capacity() -> None:
    rows = [(f"f{i:03d}", "hub", START + i * 61_000_000 % DAY) for i in range(150)]
    rows += [("hub", f"f{i:03d}", START + i) for i in range(0, 150, 2)]
    engine = fresh()
    loaded(engine, rows[:70], chunk=31)
    loaded(engine, rows[70:], chunk=500)
    agree(engine, as_events(rows))
    undo = [Event(f"u{i}", "unfollow", f"f{i:03d}", START + DAY + i, target="hub") for i in range(10, 150, 2)]
    publish(engine, undo)
    agree(engine, [*as_events(rows), *undo])


def test_time_zero_counts_in_the_totals_alone() -> None:
    engine = publish(fresh(), [Event("c", "click", "ann", START, target="bob")])
    loaded(engine, [("ann", "bob", 0)])
    cells = held(engine).rows_in["bob"]
    assert [kind for family, kind, _ in cells if family == "follow"] == ["total"]


def test_languages_of_followers_are_carried() -> None:
    told = [
        Event("p1", "profile", "ann", START, language="de", country="AT"),
        Event("p2", "profile", "bob", START + 1, country="BR"),
    ]
    rows = [(a, "eve", START + i) for i, a in enumerate(ACCOUNTS[:4])]
    engine = publish(fresh(), told)
    loaded(engine, rows)
    agree(engine, [*told, *as_events(rows)])
    changed = Event("p3", "profile", "ann", START + 2, language="en")
    agree(publish(engine, [changed]), [*told, *as_events(rows), changed])


def test_unfit_rows_are_refused_counted_and_named() -> None:
    engine = publish(fresh(), [Event("x", "account_delete", "gone", START)])
    good = ("ann", "bob", START)
    bad = [
        ("ann", "ann", START, "self_edge"),
        ("", "bob", START, "missing"),
        ("ann", "b" * 129, START, "bad_id"),
        ("ann", "ä" * 64 + "b", START, "bad_id"),
        ("a\0b", "bob", START, "bad_id"),
        ("ann", "bob", -1, "out_of_range"),
        ("ann", "bob", NOW + 5_000_001, "future"),
        ("gone", "bob", START, "deleted"),
        ("ann", "gone", START, "deleted"),
    ]
    rows = [good]
    for a, b, time, _ in bad:
        rows += [(a, b, time), good]
    done = loaded(engine, rows, chunk=100)
    assert (done.edges, done.accepted, done.changed) == (19, 10, 1)
    assert done.refused == {
        "self_edge": 1,
        "missing": 1,
        "bad_id": 3,
        "out_of_range": 1,
        "future": 1,
        "deleted": 2,
    }
    told = {(refusal.row, refusal.source, refusal.target, refusal.reason) for refusal in done.named}
    assert told == {(1 + 2 * at, a, b, reason) for at, (a, b, _, reason) in enumerate(bad)}
    many = loaded(engine, [("ann", "ann", START)] * 50, chunk=7)
    assert (many.refused, len(many.named)) == ({"self_edge": 50}, 10)


def test_nulls_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    binary = pa.array([b"ann", b"\xff", None], pa.binary())
    source = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    batch = Columns(0, source, pa.array(["bob", "bob", "bob"]), np.full(3, START))
    done = load(fresh(), [batch], now=NOW)
    assert (done.accepted, done.refused) == (1, {"bad_id": 1, "missing": 1})


def written(folder: Path, rows: Sequence[Row]) -> list[Path]:
    table = pa.table(list(zip(*rows, strict=True)), names=["source", "target", "time"])
    pa.parquet.write_table(table, folder / "g.parquet", row_group_size=13)
    csv = "source,target,time\n" + "".join(f"{a},{b},{time}\n" for a, b, time in rows)
    (folder / "g.csv").write_text(csv)
    (folder / "z.csv.gz").write_bytes(gzip.compress(csv.encode()))
    lines = [json.dumps({"source": a, "target": b, "time": time}) for a, b, time in rows]
    (folder / "g.jsonl").write_text("\n".join(lines))
    return [folder / name for name in ("g.parquet", "g.csv", "z.csv.gz", "g.jsonl")]


def test_every_format_gives_the_same_state(tmp_path: Path) -> None:
    rows = [(f"a{i % 17}", f"b{i % 13}", START + i) for i in range(100)] + [("a1", "a1", 3)]
    states = []
    for path in written(tmp_path, rows):
        engine = fresh()
        done = load(engine, graph.read_columns(path), now=NOW)
        assert (done.edges, done.refused) == (101, {"self_edge": 1})
        states.append(bytes_of(engine))
    assert all(state == states[0] for state in states)
    agree(engine, as_events(rows[:-1]))


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    prints = {graph.fingerprint(path) for path in written(tmp_path, [("a", "b", 1)])}
    prints |= {graph.fingerprint(path) for path in written(tmp_path, [("a", "b", 2)])}
    assert len(prints) >= 7  # the gzipped one holds the second of its writing
    assert graph.fingerprint(tmp_path / "g.csv") == graph.fingerprint(tmp_path / "g.csv")


@pytest.mark.parametrize("deaths", [(2,), (4, 1, 8)])
def test_a_load_that_is_killed_goes_on_where_it_was(tmp_path: Path, deaths: tuple[int, ...]) -> None:
    for last in deaths:
        command = [sys.executable, mortal.__file__, str(tmp_path / "rocks"), str(last)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    engine, whole = mortal.engine(tmp_path / "rocks"), fresh()
    first = next_row(engine, "g")
    assert first in range(0, mortal.ROWS + 1, mortal.CHUNK)
    load(engine, mortal.graph(first), now=mortal.NOW, source="g", chunk=mortal.CHUNK)
    load(whole, mortal.graph(), now=mortal.NOW, chunk=mortal.CHUNK)
    assert held(engine) == held(whole)
    for one, two in zip(bytes_of(engine), bytes_of(whole), strict=True):
        for column in (Column.OUT, Column.IN, Column.ROWS):
            assert one[column] == two[column]
    engine.close()


def live(folder: Path) -> Embedded:
    config = Config(engine=EngineConfig(partitions=3), model=ModelConfig(learn=False))
    return Embedded(folder, config, clock=lambda: NOW)


def answers(runtime: Embedded) -> list[list[Candidate]]:
    return [runtime.candidates(account, 5).candidates for account in ("a1", "b2", "zoe")]


def test_the_runtime_answers_from_what_it_has_loaded(tmp_path: Path) -> None:
    rows = [(f"a{i % 7}", f"b{i % 5}", START + i) for i in range(35)] + [("zoe", "b1", 0)]
    published = Event("z", "follow", "zoe", START, target="b2")
    path = written(tmp_path, rows)[1]
    with live(tmp_path / "kin") as runtime:
        runtime.publish([published])
        runtime.catch_up()
        assert answers(runtime)[0] != []
        assert runtime.load(path).accepted == len(rows)
        agree(runtime.engine, [published, *as_events(rows)])
        after = answers(runtime)
        assert [c.account for c in after[2]].count("b1") == 0
        assert {c.account for c in after[2]} >= {"b0", "b3", "b4"}
        assert runtime.load(path).edges == 0
        assert answers(runtime) == after
    with live(tmp_path / "kin") as runtime:
        assert answers(runtime) == after


def test_a_file_that_breaks_off_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "g.data"
    rows = [(f"a{i % 20}", f"b{i % 13}", START + i) for i in range(70_000)]
    path.write_text("".join(f'{{"source":"{a}","target":"{b}","time":{t}}}\n' for a, b, t in rows) + "{")
    with live(tmp_path / "kin") as runtime:
        with pytest.raises(graph.BadRow, match="70001"):
            runtime.load(path, form="jsonl", chunk=60_000)
        agree(runtime.engine, as_events(rows[:60_000]))
        assert len(runtime.candidates("zoe", 20).candidates) == 13


def test_rows_that_a_crash_left_due_are_made_when_the_runtime_opens(tmp_path: Path) -> None:
    rows = [(f"a{i % 7}", f"b{i % 5}", START + i) for i in range(35)]

    def crash(progress: Progress) -> None:
        if progress.stage == "rows":
            raise Killed

    with live(tmp_path / "kin") as runtime, pytest.raises(Killed):
        load(runtime.engine, columns(rows), now=NOW, on_progress=crash)
    with live(tmp_path / "kin") as runtime:
        agree(runtime.engine, as_events(rows))
        assert {c.account for c in answers(runtime)[2]} == {f"b{i}" for i in range(5)}


NORMS = np.ones(3, np.float32)
KNOWN = {f"a{n}": n % 3 for n in range(0, 40, 2)}


@pytest.mark.parametrize("few", [0, 1000])
def test_interests_are_right_after_a_load(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Whether some accounts are derived anew or all; over follows that were there before, and again."""
    monkeypatch.setattr(load_module, "FEW", few)
    rng = np.random.Generator(np.random.PCG64(5))
    pairs = {(int(a), int(b)) for a, b in rng.integers(0, 40, (500, 2)) if a != b}
    rows = [(f"a{a}", f"a{b}", START + at) for at, (a, b) in enumerate(sorted(pairs))]
    engine = fresh()
    engine.adopt(KnownFor.of_accounts(KNOWN, NORMS))
    before = as_events(rows[:100])
    publish(engine, before)
    for part in (rows[50:300], rows[200:]):
        loaded(engine, part, chunk=100)
        engine.settle()
    agree(engine, as_events(rows), KNOWN)
    loaded(engine, rows, chunk=100)
    engine.settle()
    agree(engine, as_events(rows), KNOWN)
