"""Promises 1 to 4 of the two stages, over three partitions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import agree, expected, held
from soup import ACCOUNTS, DAY, KNOWN, OTHERWISE, START, departing, soup
from storm import weathered

from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.engine.slots import Limits
from kithstream.streams.events import wire
from kithstream.streams.events.wire import Event
from kithstream.streams.state.memory import MemoryStore

NOW = START + 30 * DAY
SALT = b"salt" * 4
NORMS = np.ones(3, np.float32)
FIRST, SECOND = KnownFor.of_accounts(KNOWN, NORMS), KnownFor.of_accounts(OTHERWISE, NORMS)
VERSIONS = {known.version: known for known in (FIRST, SECOND)}


def fresh(partitions: int = 3, limits: Limits | None = None) -> Engine:
    engine = reopened([MemoryStore() for _ in range(partitions)], limits)
    engine.adopt(FIRST)
    engine.settle()  # otherwise all is counted in the end, and nothing is moved
    return engine


def reopened(stores: list[MemoryStore], limits: Limits | None = None) -> Engine:
    return Engine(stores, EngineConfig(job_edges=2), salt=SALT, versions=VERSIONS, limits=limits)


def logs_of(engine: Engine, events: Sequence[Event]) -> list[list[Record]]:
    logs: list[list[Record]] = [[] for _ in engine.partitions]
    for e in events:
        logs[engine.route[e.actor]].append(Record(NOW, wire.encode(e)))
    return logs


def decoded(log: Sequence[Record]) -> list[Event]:
    return [wire.decode(record.raw, now=NOW) for record in log]


def run(engine: Engine, events: Sequence[Event], batch: int = 7) -> Engine:
    logs = logs_of(engine, events)
    for number, log in enumerate(logs):
        for first in range(0, len(log), batch):
            dead = engine.apply(number, log[first : first + batch], first).dead
            assert all(letter.reason == "deleted" for letter in dead)
    engine.settle()
    return engine


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(soup(), st.integers(1, 20))
def test_a_soup_of_events_leaves_what_the_batch_computes(events: list[Event], batch: int) -> None:
    agree(run(fresh(), events, batch), events, KNOWN)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(soup(), st.integers(1, 20), st.integers(1, 3), st.integers(1, 4))
def test_the_bounds_of_an_interest_hold(events: list[Event], batch: int, most: int, newest: int) -> None:
    engine = run(fresh(limits=Limits(most, newest)), events, batch)
    agree(engine, events, KNOWN, most=most, newest=newest)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(soup(), st.sampled_from(("bob", "cyd", "eve")), st.integers(0, 60), st.integers(1, 4))
def test_a_deleted_account_is_in_no_interest_and_no_audience(
    events: list[Event], account: str, place: int, newest: int
) -> None:
    gone = Event("gone", "account_delete", account, START + 6 * DAY)
    events = [*events[:place], gone, *events[place:]]
    engine = fresh(limits=Limits(50, newest))
    logs = logs_of(engine, events)
    for first in range(max(map(len, logs))):
        for number, log in enumerate(logs):
            engine.apply(number, log[first : first + 1], first)
        engine.exchange()
    engine.settle()
    agree(engine, events, KNOWN, newest=newest)


@settings(max_examples=100)
@given(soup(), st.randoms(use_true_random=False))
def test_any_order_ends_in_the_same_state(events: list[Event], rng: random.Random) -> None:
    shuffled = list(events)
    rng.shuffle(shuffled)
    assert held(run(fresh(), events)) == held(run(fresh(), shuffled))


@settings(max_examples=100)
@given(soup())
def test_retracting_everything_leaves_nothing(events: list[Event]) -> None:
    undone = [
        Event(f"undo-{e.id}", "retract", e.actor, e.time, retracts=e.id)
        for e in {(e.actor, e.id): e for e in events}.values()
        if e.signal not in ("profile", "retract")
    ]
    state = held(run(fresh(), [*events, *undone]))
    assert not state.edges
    assert not state.transposed
    assert not state.occurrences
    assert not state.rows_in
    assert not state.rows_out
    assert not state.sketches
    assert not state.followers
    assert not state.followees
    assert not state.interests
    assert not state.carried
    assert not state.audiences


def assert_gone(engine: Engine, events: Sequence[Event]) -> None:
    """Nothing in any store names an account that was deleted; the salted hash alone is left."""
    for account in {e.actor for e in events if e.signal == "account_delete"}:
        for partition in engine.partitions:
            for column, pairs in partition.store._values.items():
                for key, value in pairs.items():
                    assert account.encode() not in key, (column, key)
                    assert account.encode() not in value, (column, key)
            assert partition.is_deleted(account)
            assert not partition.leaving


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(departing(), st.integers(1, 20), st.booleans())
def test_deletions_in_the_middle_leave_what_the_batch_computes(
    events: list[Event], batch: int, eager: bool
) -> None:
    engine = fresh()
    if eager:  # frames and jobs go on between the batches
        logs = logs_of(engine, events)
        for first in range(0, len(events), batch):
            for number, log in enumerate(logs):
                engine.apply(number, log[first : first + batch], first)
            engine.exchange()
            engine.work()
        engine.settle()
    else:
        run(engine, events, batch)
    agree(engine, events, KNOWN)
    assert_gone(engine, events)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(soup(), departing()),
    st.randoms(use_true_random=False),
    st.booleans(),
    st.sampled_from((1, 2, 50)),
)
def test_crashes_delays_duplicates_and_zombies_change_nothing(
    events: list[Event], rng: random.Random, switched: bool, newest: int
) -> None:
    """The process dies, a partition comes back from an older copy, frames are delayed, repeated, re-sent.

    Meanwhile another version of communities may take the first one's place.
    """
    limits = Limits(1 if newest == 50 and rng.random() < 0.5 else 50, newest)
    engine = fresh(limits=limits)

    def switch(step: int, engine: Engine) -> None:
        if switched and step == 20:
            engine.adopt(SECOND)

    def opened(stores: list[MemoryStore]) -> Engine:
        return reopened(stores, limits)

    engine = weathered(engine, logs_of(engine, events), rng, opened, most=9, meanwhile=switch)
    known = OTHERWISE if switched else KNOWN
    agree(engine, events, known, most=limits.most, newest=limits.newest)
    assert_gone(engine, events)


def follow(actor: str, target: str, time: int, name: str = "") -> Event:
    return Event(name or f"{actor}-{target}-{time}", "follow", actor, time, target=target)


def test_a_lost_run_with_other_batches_leaves_no_interest_at_a_target() -> None:
    """An interest came and went in two batches of a run that was lost; the run that stays saw both in one batch."""
    events = [follow("ann", "gus", START), follow("ann", "bob", START + 1), follow("ann", "cyd", START + 2)]
    events += [Event("u", "unfollow", "ann", START + 3, target="cyd")]
    engine = fresh()
    number = engine.route["ann"]
    log = logs_of(engine, events)[number]
    engine.apply(number, log[:2], 0)
    engine.settle()
    older = engine.partitions[number].store.copy()
    engine.apply(number, log[2:3], 2)
    engine.settle()
    assert held(engine).audiences["gus"] == {0: 2}
    stores = [partition.store.copy() for partition in engine.partitions]
    stores[number] = older
    engine = reopened(stores)
    engine.apply(number, log[2:], 2)
    engine.settle()
    agree(engine, events, KNOWN)


def test_an_interest_that_ends_with_a_deleted_followee_is_sent_again() -> None:
    events = [follow("ann", other, START + at) for at, other in enumerate(("gus", "bob", "cyd"))]
    engine = run(fresh(), events)
    assert held(engine).audiences["gus"] == {0: 2}
    gone = Event("gone", "account_delete", "cyd", START + DAY)
    number = engine.route["cyd"]
    engine.apply(number, logs_of(engine, [gone])[number], engine.partitions[number].applied)
    engine.settle()
    agree(engine, [*events, gone], KNOWN)


def test_unfollow_leaves_its_own_trace_and_no_other() -> None:
    unfollow = Event("u", "unfollow", "ann", START + 5, target="bob")
    both = held(run(fresh(), [follow("ann", "bob", START), unfollow]))
    alone = held(run(fresh(), [unfollow]))
    assert both == alone
    assert both.rows_in["bob"].keys() == {("unfollow", kind, _place(kind)) for kind in KINDS}


KINDS = ("minute", "ten", "hour", "day", "total")


def _place(kind: str) -> int:
    width = {"minute": 60_000_000, "ten": 600_000_000, "hour": 3_600_000_000, "day": DAY}.get(kind)
    return (START + 5) // width % (1 << 24) if width else 0


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(soup(), st.integers(0, 60), st.integers(0, 30), st.booleans())
def test_the_version_that_is_read_stays_exact_until_the_next_is_whole(
    events: list[Event], adopted: int, steps: int, idle: bool
) -> None:
    """Some is folded under the first version, more while the second is being filled, the rest after the switch."""
    engine = fresh()
    run(engine, events[:adopted])
    logs = logs_of(engine, events)
    engine.adopt(SECOND)
    for step in range(steps):
        for number, log in enumerate(logs):
            at = engine.partitions[number].applied
            if step % 3 == 0 and not idle:
                engine.apply(number, log[at : at + 1], at)
        engine.work()
        engine.exchange()
        read = {slot.known.version if (slot := p.communities) else "" for p in engine.partitions}
        assert len(read) == 1, "all partitions read the same version"
        if idle or (read == {FIRST.version} and not any(p.jobs for p in engine.partitions)):
            folded = [
                e
                for number, log in enumerate(logs)
                for e in decoded(log[: engine.partitions[number].applied])
            ]
            known = KNOWN if read == {FIRST.version} else OTHERWISE
            want, have = expected(folded, engine.watermark, known), held(engine)
            assert (have.interests, have.audiences) == (want.interests, want.audiences)
    for number, log in enumerate(logs):
        at = engine.partitions[number].applied
        engine.apply(number, log[at:], at)
    engine.settle()
    agree(engine, events, OTHERWISE)
    for partition in engine.partitions:
        assert [slot.known.version for slot in partition.slots] == [SECOND.version]


def test_deleting_an_account_leaves_no_trace_of_it_anywhere() -> None:
    events = [
        follow(a, b, START + i)
        for i, (a, b) in enumerate((a, b) for a in ACCOUNTS for b in ACCOUNTS if a != b)
    ]
    events += [Event(f"c{a}", "click", a, START, target=b) for a in ACCOUNTS for b in ACCOUNTS if a != b]
    gone = Event("x", "account_delete", "cyd", START + DAY)
    engine = run(fresh(), [*events, gone])
    agree(engine, [*events, gone], KNOWN)
    assert_gone(engine, [gone])


def test_events_of_a_deleted_account_are_kept_out() -> None:
    engine = run(fresh(), [Event("x", "account_delete", "cyd", START)])
    for number, log in enumerate(
        logs_of(engine, [follow("ann", "cyd", START + 1), follow("cyd", "ann", START + 1)])
    ):
        for dead in engine.apply(number, log, engine.partitions[number].applied).dead:
            assert dead.reason == "deleted"
    engine.settle()
    assert not held(engine).edges


def test_an_event_beyond_the_horizon_is_a_dead_letter_and_changes_nothing() -> None:
    engine = run(fresh(1), [follow("ann", "bob", START + 8 * DAY)])
    before = held(engine)
    late = Record(NOW, wire.encode(follow("ann", "cyd", START)))
    acted = engine.apply(0, [late], engine.partitions[0].applied)
    assert [d.reason for d in acted.dead] == ["too_late"]
    assert held(engine) == before


def test_a_language_change_moves_the_account_in_every_audience() -> None:
    events = [Event("p1", "profile", "ann", START, language="en")]
    events += [follow("ann", other, START + i) for i, other in enumerate(ACCOUNTS[1:])]
    events += [Event("p2", "profile", "ann", START + 9, language="de")]
    agree(run(fresh(), events), events, KNOWN)


def test_records_below_the_offset_are_skipped() -> None:
    engine = fresh(1)
    log = [Record(NOW, wire.encode(follow("ann", "bob", START)))]
    assert engine.apply(0, log, 0).accepted == 1
    assert engine.apply(0, log, 0).accepted == 0


@pytest.mark.parametrize("count", [40, 120])
def test_the_newest_neighbours_are_right_after_many_undos(count: int) -> None:
    events = [follow(f"f{i:03d}", "bob", START + i) for i in range(count)]
    events += [
        Event(f"u{i}", "unfollow", f"f{i:03d}", START + DAY + i, target="bob") for i in range(20, count, 2)
    ]
    agree(run(fresh(), events), events, KNOWN)
