"""What one actor moves in all: levels of its days, exact and order-free like everything else."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mortal import Row, columns
from msgspec.structs import replace
from promises import agree, held
from soup import DAY, FEW, KNOWN, START, departing, soup
from storm import weathered
from test_engine import NOW, SALT, assert_gone, fresh, logs_of, reopened, run
from test_load import RECENT, as_events, graphs, level, publish

from kithstream.streams.communities.carried import WITHHELD
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.partition import BEYOND, LEVEL
from kithstream.streams.engine.slots import Limits
from kithstream.streams.events.signals import SIGNALS
from kithstream.streams.events.wire import Event
from kithstream.streams.load import load
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.reach import is_withheld

MINUTE = 60_000_000
TARGETS = tuple(f"t{n}" for n in range(24))
_BUSY = ("follow",) * 6 + ("unfollow",) * 2 + ("like",) * 3 + ("unlike", "reply", "reply", "block", "unblock")


def limits(reach: int) -> Limits:
    return Limits(reach=reach)


@st.composite
def busy(draw: st.DrawFn) -> list[Event]:
    """Two actors that do much on two days; some of it is undone, retracted, repeated, all in any order."""
    does = draw(
        st.lists(
            st.tuples(
                st.sampled_from(FEW[:2]),
                st.sampled_from(_BUSY),
                st.sampled_from(TARGETS[: draw(st.sampled_from((6, 24)))]),
                st.integers(0, 2 * 1440 - 1),
            ),
            max_size=70,
        )
    )
    events = [
        Event(f"e{n}", signal, actor, START // DAY * DAY + minute * MINUTE, target=target, item=f"i{n % 3}")
        for n, (actor, signal, target, minute) in enumerate(does)
    ]
    events += [
        Event(f"r{e.id}", "retract", e.actor, e.time, retracts=e.id)
        for e in draw(st.lists(st.sampled_from(events), max_size=25) if events else st.just([]))
    ]
    events += draw(st.lists(st.sampled_from(events), max_size=8) if events else st.just([]))
    told = [Event("p", "profile", actor, START, language="en", country="BR") for actor in FEW[:2]]
    return draw(st.permutations(events + told[: draw(st.integers(0, 2))]))


slow = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@settings(slow, max_examples=150)
@given(st.one_of(busy(), soup()), st.integers(1, 30), st.integers(1, 5))
def test_beyond_the_reach_counts_what_the_batch_says(events: list[Event], batch: int, reach: int) -> None:
    agree(run(fresh(limits=limits(reach)), events, batch), events, KNOWN, reach=reach)


@settings(slow, max_examples=60)
@given(busy(), st.randoms(use_true_random=False), st.integers(1, 3))
def test_any_order_withholds_the_same(events: list[Event], rng: random.Random, reach: int) -> None:
    shuffled = list(events)
    rng.shuffle(shuffled)
    assert held(run(fresh(limits=limits(reach)), events)) == held(run(fresh(limits=limits(reach)), shuffled))


@settings(slow, max_examples=60)
@given(busy(), st.integers(1, 3))
def test_retracting_everything_leaves_nothing_to_withhold(events: list[Event], reach: int) -> None:
    undone = [
        Event(f"undo-{e.id}", "retract", e.actor, e.time, retracts=e.id)
        for e in {(e.actor, e.id): e for e in events}.values()
        if e.signal not in ("profile", "retract")
    ]
    state = held(run(fresh(limits=limits(reach)), [*events, *undone]))
    assert not state.rows_in
    assert not state.rows_out
    assert not state.heard
    assert not state.transposed


@settings(slow, max_examples=150)
@given(
    st.one_of(busy(), soup(), departing()),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
    st.booleans(),
)
def test_crashes_delays_and_older_copies_withhold_the_same(
    events: list[Event], rng: random.Random, reach: int, known: bool
) -> None:
    """As `test_crashes_delays_duplicates_and_zombies_change_nothing`, with or without communities."""
    bounds = limits(reach)

    def opened(stores: list[MemoryStore]) -> Engine:
        return reopened(stores, bounds)

    engine = fresh(limits=bounds) if known else opened([MemoryStore() for _ in range(3)])
    engine = weathered(engine, logs_of(engine, events), rng, opened, most=12)
    agree(engine, events, KNOWN if known else None, reach=reach)
    assert_gone(engine, events)


@settings(slow, max_examples=40)
@given(busy(), graphs(RECENT), busy(), st.integers(1, 50), st.integers(1, 3))
def test_follows_that_are_loaded_have_the_reach_of_those_that_are_published(
    before: list[Event], rows: list[Row], after: list[Event], chunk: int, reach: int
) -> None:
    later = [replace(e, id=f"l{e.id}", retracts=e.retracts and f"l{e.retracts}") for e in after]
    fast, twin = (fresh(limits=limits(reach)) for _ in range(2))
    for engine in (fast, twin):
        publish(engine, before)
    load(fast, columns(rows), now=NOW, chunk=chunk)
    publish(twin, as_events(rows))
    fast.settle()
    level(fast, twin)
    assert held(fast) == held(twin)
    publish(fast, later)
    publish(twin, later)
    level(fast, twin)
    assert held(fast) == held(twin)
    agree(fast, [*before, *as_events(rows), *later], KNOWN, reach=reach)


def test_follows_that_are_loaded_without_a_time_all_count() -> None:
    engine = fresh(limits=limits(5))
    load(engine, columns([("ann", f"t{n}", 0) for n in range(50)]), now=NOW)
    engine.settle()
    assert counted(engine) == 50


def follow(n: int, time: int = START, actor: str = "ann") -> Event:
    return Event(f"f{n}", "follow", actor, time + n, target=f"t{n:03d}")


def counted(engine: Engine, family: str = "follow") -> int:
    return sum(cells.get((family, "total", 0), 0) for cells in held(engine).rows_in.values())


def contents(engine: Engine) -> list[dict[Column, dict[bytes, bytes]]]:
    return [{c: dict(p.store.scan(c, b"")) for c in Column} for p in engine.partitions]


@settings(slow, max_examples=30)
@given(soup(), st.integers(1, 20))
def test_below_the_reach_every_byte_is_as_without_one(events: list[Event], batch: int) -> None:
    bounded, unbounded = (run(fresh(limits=limits(reach)), events, batch) for reach in (1000, 0))
    assert contents(bounded) == contents(unbounded)


def test_beyond_the_reach_about_as_many_count_and_all_stand() -> None:
    engine = run(fresh(limits=limits(20)), [follow(n) for n in range(300)], 50)
    assert 10 <= counted(engine) <= 30
    state = held(engine)
    assert len(state.transposed) == len(state.followers) == 300
    assert state.rows_out["ann"]["follow", "total", 0] == 300


def test_undoing_down_to_the_reach_lets_all_the_rest_count() -> None:
    events = [follow(n) for n in range(300)]
    events += [Event(f"u{n}", "unfollow", "ann", START + DAY + n, target=f"t{n:03d}") for n in range(280)]
    engine = run(fresh(limits=limits(20)), events, 50)
    assert counted(engine) == 20
    agree(engine, events, KNOWN, reach=20)


def test_each_day_has_its_own_reach() -> None:
    events = [follow(n, START + n // 10 * DAY) for n in range(50)]
    assert counted(run(fresh(limits=limits(10)), events)) == 50


def test_a_withheld_follower_is_in_no_audience() -> None:
    events = [Event("p", "profile", "ann", START, language="en", country="US")]
    events += [follow(n) for n in range(100)]
    state = held(run(fresh(limits=limits(4)), events))
    there = {target for target, cells in state.rows_in.items() if ("follow", "total", 0) in cells}
    assert 0 < len(there) < 10
    assert {
        t for t, cells in state.rows_in.items() if any(kind == "language" for _, kind, _ in cells)
    } == there
    assert state.sketches.keys() == there


def test_a_withheld_follow_that_is_returned_is_mutual() -> None:
    events = [follow(n) for n in range(100)] + [Event("b", "follow", "t007", START, target="ann")]
    engine = run(fresh(limits=limits(1)), events)
    row = held(engine).rows_in["t007"]
    assert ("follow", "total", 0) not in row
    assert row["follow", "mutual", 0] == 1


def test_few_states_are_sent_again() -> None:
    """About two for each edge, whatever the level: it moves once in a doubling."""
    engine = Engine([MemoryStore()], EngineConfig(), salt=SALT, limits=limits(10))
    events = [follow(n) for n in range(1280)]
    sent = 0
    (log,) = logs_of(engine, events)
    for first in range(0, len(log), 20):
        engine.apply(0, log[first : first + 20], first)
        while engine.work():
            pass
        sent += sum(raw.raw.count(b"\0Aann\0") for raw in engine.waiting())
        engine.exchange()
    assert len(log) < sent < 3.5 * len(log)


def test_the_day_is_sent_again_after_a_crash_in_the_middle() -> None:
    events = [follow(n) for n in range(60)]
    engine = reopened([MemoryStore() for _ in range(3)], limits(8))
    number = engine.route["ann"]
    log = logs_of(engine, events)[number]
    engine.apply(number, log, 0)
    for _ in range(5):
        engine.work()
    assert engine.at(number).levels
    engine = reopened([partition.store.copy() for partition in engine.partitions], limits(8))
    engine.settle()
    agree(engine, events, reach=8)
    assert not any(partition.levels for partition in engine.partitions)


@pytest.mark.parametrize("more", [1, 20])
def test_a_lost_run_with_other_batches_leaves_nothing_withheld(more: int) -> None:
    """The day went beyond its reach and back: in two batches of a run that was lost, in one of that which stays."""
    events = [follow(n) for n in range(20 + more)]
    events += [
        Event(f"u{n}", "unfollow", "ann", START + DAY, target=f"t{n:03d}") for n in range(20, 20 + more)
    ]
    engine = reopened([MemoryStore() for _ in range(3)], limits(20))
    number = engine.route["ann"]
    log = logs_of(engine, events)[number]
    engine.apply(number, log[:20], 0)
    engine.settle()
    older = engine.at(number).store.copy()
    engine.apply(number, log[20 : 20 + more], 20)
    engine.settle()
    assert counted(engine) < 20 + more // 2
    stores = [partition.store.copy() for partition in engine.partitions]
    stores[number] = older
    engine = reopened(stores, limits(20))
    engine.apply(number, log[20:], 20)
    engine.settle()
    assert counted(engine) == 20
    agree(engine, events, reach=20)


def test_a_level_and_an_interest_that_move_in_one_batch_of_a_lost_run() -> None:
    """What the lost run had told under the later revision must be what the run that stays tells under it."""
    events = [follow(n) for n in range(5)]
    late = "t005"
    assert is_withheld(1, "ann", late)
    events += [
        Event("late", "follow", "ann", START + 9, target=late),
        Event("u0", "unfollow", "ann", START + DAY, target="t000"),
        Event("u1", "unfollow", "ann", START + DAY, target="t001"),
        Event("b", "follow", "ann", START + DAY, target="bob"),
        Event("c", "follow", "ann", START + DAY + 1, target="cyd"),
    ]
    engine = fresh(limits=limits(4))
    number = engine.route["ann"]
    log = logs_of(engine, events)[number]
    engine.apply(number, log[:5], 0)
    engine.settle()
    older = engine.at(number).store.copy()
    engine.apply(number, log[5:], 5)
    engine.exchange()  # and its jobs are lost with it
    stores = [partition.store.copy() for partition in engine.partitions]
    stores[number] = older
    engine = reopened(stores, limits(4))
    for at in range(5, len(log)):
        engine.apply(number, log[at : at + 1], at)
        engine.settle()
    agree(engine, events, KNOWN, reach=4)


@pytest.mark.parametrize("signal", ["follow", "like", "reply"])
def test_a_run_that_knew_of_a_deletion_outbids_one_that_did_not(signal: str) -> None:
    """The lost run went beyond the reach with what was about an account that the run that stays knows to be gone."""
    engine = reopened([MemoryStore() for _ in range(3)], limits(3))
    number = engine.route["ann"]
    name = next(name for name in TARGETS if engine.route[name] != number)
    events = [
        Event(f"e{n}", signal, "ann", START + n, target=target, item="x")
        for n, target in enumerate((name, "bob", "cyd", "dan"))
    ]
    gone = Event("gone", "account_delete", name, START + DAY)
    other = engine.route[name]
    logs = logs_of(engine, [*events, gone])
    older = engine.at(number).store.copy()
    engine.apply(number, logs[number], 0)
    engine.settle()
    assert counted(engine, signal) < 3
    engine.apply(other, logs[other], 0)  # tells everybody, but the first partition loses it
    stores = [partition.store.copy() for partition in engine.partitions]
    stores[number] = older
    engine = reopened(stores, limits(3))
    engine.exchange()
    engine.apply(number, logs[number], 0)
    engine.settle()
    agree(engine, [*events, gone], reach=3)
    assert counted(engine, signal) == 3


def test_deleting_an_account_forgets_its_days() -> None:
    gone = Event("gone", "account_delete", "ann", START + DAY)
    engine = run(fresh(limits=limits(5)), [*(follow(n) for n in range(30)), gone])
    assert_gone(engine, [gone])
    for partition in engine.partitions:
        assert not partition.beyond
        for letter in (BEYOND, LEVEL):
            assert not list(partition.store.scan(Column.META, letter))


def test_undoing_follows_of_a_day_that_is_not_read_any_more_leaves_its_level() -> None:
    events = [follow(n) for n in range(50)]
    later = START + 140 * DAY
    engine = run(fresh(limits=limits(4)), events)
    before = counted(engine)
    events += [Event("x", "reply", "bob", later, target="cyd")]
    events += [Event(f"u{n}", "unfollow", "ann", later + n, target=f"t{n:03d}") for n in range(49)]
    stores = [partition.store for partition in engine.partitions]
    engine = reopened(stores, limits(4))
    for number, log in enumerate(logs_of(engine, events)):
        records = [record._replace(appended=later + DAY) for record in log]
        assert not engine.apply(number, records, 0).dead
    engine.settle()
    left = held(engine).transposed
    assert len([edge for edge in left if edge[1] == "follow"]) == 1
    withheld = sum(
        value[22:26] == WITHHELD for p in engine.partitions for _, value in p.store.scan(Column.IN, b"")
    )
    assert withheld + counted(engine) == 1
    assert before < 10


def test_every_signal_that_somebody_is_told_of_by_its_actor_has_a_reach() -> None:
    assert {s.name for s in SIGNALS if not s.reach} == {"address_book", "impression"}
