"""Deletion in steps: out of sight with the first batch, bounded, restartable, and nothing left at rest."""

from __future__ import annotations

import pytest
from promises import agree, held
from soup import DAY, START
from test_engine import NOW, SALT, assert_gone, follow, fresh, logs_of, reopened, run

from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.partition import ROW_LETTERS
from kithstream.streams.events import wire
from kithstream.streams.events.wire import Event
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Changes, Column, Dropped

GONE = Event("gone", "account_delete", "star", START + DAY)


def crowd(size: int = 40) -> list[Event]:
    """Everybody follows, likes and clicks the star, who does the same to them."""
    events = []
    for i in range(size):
        name = f"f{i:03d}"
        for a, b in ((name, "star"), ("star", name)):
            events.append(follow(a, b, START + i))
            events.append(Event(f"l{a}{b}", "like", a, START + i, target=b, item="x"))
            events.append(Event(f"c{a}{b}", "click", a, START + i, target=b))
    return [*events, Event("r", "retract", "star", START + DAY, retracts="clstarf001")]


class Counting(MemoryStore):
    """Remembers how many ledger entries each write removed."""

    def __init__(self) -> None:
        super().__init__()
        self.removed: list[int] = []

    def write(self, changes: Changes, dropped: list[Dropped] | tuple[Dropped, ...] = ()) -> None:
        ledgers = (Column.OUT, Column.IN, Column.SAID, Column.HEARD)
        self.removed.append(sum(value is None for c in ledgers for value in changes.get(c, {}).values()))
        super().write(changes, dropped)


def test_no_step_of_a_deletion_removes_more_than_the_bound() -> None:
    stores = [Counting() for _ in range(3)]
    engine = Engine(stores, EngineConfig(job_edges=70), salt=SALT)
    run(engine, crowd())
    for store in stores:
        store.removed.clear()
    number = engine.route["star"]
    engine.apply(number, [Record(NOW, wire.encode(GONE))], engine.partitions[number].applied)
    assert sum(sum(store.removed) for store in stores) == 0
    steps = 0
    while engine.at(number).leaving:
        stores[number].removed.clear()
        assert engine.work()
        steps += 1
        assert max(stores[number].removed) <= 7
    assert steps > 20
    engine.settle()
    agree(engine, [*crowd(), GONE])


def test_from_its_first_batch_on_the_account_is_gone_and_its_events_are_kept_out() -> None:
    engine = run(fresh(), crowd())
    number = engine.route["star"]
    partition = engine.at(number)
    engine.apply(number, [Record(NOW, wire.encode(GONE))], partition.applied)
    assert partition.is_deleted("star")
    assert partition.store.get(Column.ROWS, [letter + b"star" for letter in ROW_LETTERS]) == [None] * len(
        ROW_LETTERS
    )
    assert partition.profile("star").language is None
    late = Record(NOW, wire.encode(follow("star", "f001", START + DAY)))
    assert [d.reason for d in engine.apply(number, [late], partition.applied).dead] == ["deleted"]
    assert partition.leaving  # and the job has not begun


def test_what_comes_behind_the_deletion_in_one_batch_is_kept_out() -> None:
    behind = [follow("star", "f001", START + 2 * DAY), follow("star", "new", START + 2 * DAY)]
    engine = fresh(1)
    log = logs_of(engine, [*crowd(), GONE, *behind, follow("f001", "star", START + 2 * DAY, "again")])[0]
    assert [d.reason for d in engine.apply(0, log, 0).dead] == ["deleted"] * 3
    engine.settle()
    assert_gone(engine, [GONE])


@pytest.mark.parametrize("steps", [1, 5, 20, 60])
def test_a_deletion_goes_on_where_a_killed_process_was(steps: int) -> None:
    engine = run(fresh(), crowd(8))
    number = engine.route["star"]
    engine.apply(number, [Record(NOW, wire.encode(GONE))], engine.at(number).applied)
    for _ in range(steps):
        engine.work()
    engine = reopened([partition.store.copy() for partition in engine.partitions])
    engine.settle()
    agree(engine, [*crowd(8), GONE])
    assert_gone(engine, [GONE])


def test_retraction_marks_of_a_deleted_account_go() -> None:
    engine = run(fresh(), [*crowd(2), GONE])
    assert not any(b"star" in name for partition in engine.partitions for name in partition.retracted)
    assert_gone(engine, [GONE])


def test_frames_before_the_word_of_the_deletion_change_nothing() -> None:
    """A target's answer that an edge is void comes before anything else of the deletion."""
    engine = run(fresh(), [*crowd(3), GONE])
    number = engine.route["f001"]
    late = [follow("f001", "star", START + 2 * DAY, "late")]
    older = Engine([MemoryStore() for _ in range(3)], EngineConfig(), salt=SALT)
    older.apply(number, logs_of(older, late)[number], 0)  # a partition that has heard of nothing
    (frame,) = [f for f in older.waiting() if f.destination == engine.route["star"]]
    engine.deliver(frame.destination, [frame.raw])
    (reply,) = [f for f in engine.waiting() if f.destination == number]
    older.deliver(number, [reply.raw])
    assert older.at(number).is_deleted("star")
    assert not held(older).edges
    assert not list(older.at(number).store.scan(Column.SAID, b""))


# Rows that these events do not make: lists of the avoided and the shown, and those of communities.
SELDOM = {b"a", b"v", b"u0", b"u1", b"x0", b"x1"}


def test_every_row_has_a_letter_that_deletion_knows() -> None:
    engine = run(fresh(), [*crowd(3), Event("p", "profile", "star", START, language="en", contacts=True)])
    keys = [key for p in engine.partitions for key, _ in p.store.scan(Column.ROWS, b"")]
    assert all(key.startswith(ROW_LETTERS) for key in keys)
    assert {key[:1] for key in keys} >= {letter for letter in ROW_LETTERS if letter not in SELDOM}


def test_a_partition_that_comes_back_older_and_is_told_of_its_own_deletion_still_tells_its_targets() -> None:
    """What its log holds before the deletion must be folded, or nobody would say that those edges are gone."""
    engine = fresh()
    events = [follow("star", f"f{i:03d}", START + i) for i in range(9)]
    number = engine.route["star"]
    log = logs_of(engine, [*events, GONE])[number]
    older = engine.at(number).store.copy()
    engine.apply(number, log, 0)
    told = [f.raw for f in engine.waiting() if f.destination == number]
    for frame in [f for f in engine.waiting() if f.destination != number]:
        engine.deliver(frame.destination, [frame.raw])
    stores = [partition.store.copy() for partition in engine.partitions]
    stores[number] = older
    engine = reopened(stores)
    engine.deliver(number, told)
    engine.apply(number, log, 0)
    engine.settle()
    assert_gone(engine, [GONE])
