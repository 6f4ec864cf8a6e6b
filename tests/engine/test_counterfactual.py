"""What is thought of equals what would have been: the fold over a copy against engines in which it was retracted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from hypothesis import HealthCheck, given, settings
from soup import DAY, FEW, START, soup

from kithstream.models.features import Rows
from kithstream.models.model import Model
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.counterfactual import Counterfactual, Variants
from kithstream.streams.engine.deeds import Deed, deeds
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.events import wire
from kithstream.streams.events.signals import BY_NAME
from kithstream.streams.events.wire import Event
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.reader import Reader

NOW = START + 30 * DAY
AS_OF = START + 6 * DAY
PUBLIC = {name for name, signal in BY_NAME.items() if signal.public}
MODEL = Model.day_zero(0)


def run(events: Sequence[Event], partitions: int = 3) -> Engine:
    engine = Engine([MemoryStore() for _ in range(partitions)], EngineConfig(job_edges=2), salt=b"salt" * 4)
    logs: list[list[Record]] = [[] for _ in engine.partitions]
    for event in events:
        logs[engine.route[event.actor]].append(Record(NOW, wire.encode(event)))
    for number, log in enumerate(logs):
        if log:
            assert not engine.apply(number, log, 0).dead
    engine.settle()
    return engine


def thought(engine: Engine, account: str) -> Counterfactual:
    number = engine.route[account]
    config = EngineConfig(partitions=len(engine.partitions), row_cache=8)
    made = Counterfactual(engine.at(number).store, number, engine.route, config)
    made.refresh()
    return made


def read(engine: Engine, account: str) -> Rows:
    return Reader(engine, 8).read([account], AS_OF, unreciprocated=True)


def imagined(made: Counterfactual, account: str, *gone: Sequence[Deed]) -> list[Rows]:
    """The account without each of these, all in one read."""
    variants = Variants(account, [made.without(deeds) for deeds in gone], made.partition.number)
    rows = Reader(variants, 8).read(variants.names, AS_OF, unreciprocated=True)
    rows = rows._replace(accounts=[account] * len(gone))
    return [
        Rows(*(value if isinstance(value, int) else value[at : at + 1] for value in rows))
        for at in range(len(gone))
    ]


def anybody(_: str) -> bool:
    return True


def same(one: Rows, other: Rows) -> None:
    for name, mine, theirs in zip(Rows._fields, one, other, strict=True):
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype, name
            assert mine.tobytes() == theirs.tobytes(), name
        else:
            assert mine == theirs, name
    vectors = [MODEL.encode_consumers(rows).vectors.tobytes() for rows in (one, other)]
    assert vectors[0] == vectors[1]


@contextmanager
def untouched(engine: Engine) -> Iterator[None]:
    """Nothing of any store has changed at the end."""
    before = [{c: dict(p.store._values[c]) for c in Column} for p in engine.partitions]
    yield
    assert [p.store._values for p in engine.partitions] == before


def retractions(gone: Sequence[Event]) -> list[Event]:
    return [
        Event(f"out-{event_id}", "retract", actor, START, retracts=event_id)
        for actor, event_id in sorted({(event.actor, event.id) for event in gone})
    ]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(soup())
def test_what_an_account_did_to_another_is_taken_out_as_if_retracted(events: list[Event]) -> None:
    engine = run(events)
    for account in FEW:
        with untouched(engine):
            made = thought(engine, account)
            own = read(engine, account)
            every = deeds(made.partition, account, 64, anybody)
            about = [[deed for deed in every if deed.other == other] for other in FEW]
            first, *without, last = imagined(made, account, [], *about, [])
            same(first, own)
            same(last, own)
            for other, rows in zip(FEW, without, strict=True):
                gone = [e for e in events if e.actor == account and e.target == other and e.signal in PUBLIC]
                same(rows, read(run([*events, *retractions(gone)]), account))
            assert not made.partition.outbox


@settings(max_examples=100)
@given(soup())
def test_deeds_are_the_public_edges_and_occurrences_newest_first(events: list[Event]) -> None:
    engine = run(events)
    for account in FEW:
        found = deeds(thought(engine, account).partition, account, 1000, anybody)
        assert {deed.signal for deed in found} <= PUBLIC
        assert [deed.time for deed in found] == sorted((deed.time for deed in found), reverse=True)
        assert len({deed.key for deed in found}) == len(found)
        bare = read(engine, account)
        (rest,) = imagined(thought(engine, account), account, found)
        # Follows and engagements that others see: none is left of the follows, and no other count has moved.
        assert rest.degrees[0, 1] == 0
        assert rest.followees[0] == []
        assert rest.degrees[0, 0] == bare.degrees[0, 0]
        assert rest.counts[0, 1, 2].tobytes() == bare.counts[0, 1, 2].tobytes()
        assert rest.counts[0, 0].tobytes() == bare.counts[0, 0].tobytes()
        few = deeds(thought(engine, account).partition, account, 3, lambda name: name != FEW[0])
        assert few == [deed for deed in found if deed.other != FEW[0]][:3]


def follow(actor: str, target: str, time: int) -> Event:
    return Event(f"{actor}-{target}-{time}", "follow", actor, time, target=target)


def test_a_follow_beyond_the_newest_is_made_again_from_the_copy() -> None:
    """Taking many out leaves fewer neighbours than are kept: the list is read from the ledger as it would be."""
    events = [follow("ann", f"f{i:03d}", START + i) for i in range(120)]
    engine = run(events)
    made = thought(engine, "ann")
    gone = [d for d in deeds(made.partition, "ann", 64, anybody) if d.other >= "f080"]
    assert len(gone) == 40
    with untouched(engine):
        (rows,) = imagined(made, "ann", gone)
        assert rows.followees[0] == [f"f{i:03d}" for i in range(79, 64, -1)]


def test_what_is_older_than_a_week_is_found_where_a_ledger_still_has_it() -> None:
    old = [
        follow("ann", "bob", START),
        Event("l", "like", "ann", START + 1, target="cyd", item="x"),
        Event("q", "quote", "ann", START + 2, target="dan", item="x"),
    ]
    engine = run([*old, follow("eve", "bob", START + 12 * DAY)], partitions=1)
    engine.apply(0, [Record(NOW, wire.encode(follow("eve", "cyd", START + 13 * DAY)))], 4)
    found = deeds(thought(engine, "ann").partition, "ann", 64, anybody)
    assert [(d.signal, d.other, d.time, d.column) for d in found] == [
        ("like", "cyd", START + 1, Column.OUT),
        ("follow", "bob", START, Column.OUT),
    ]
    newest = Event("n", "reply", "ann", START + 13 * DAY, target="dan", item="y")
    engine.apply(0, [Record(NOW, wire.encode(newest))], 5)
    assert [d.signal for d in deeds(thought(engine, "ann").partition, "ann", 2, anybody)] == ["reply", "like"]
    assert [d.signal for d in deeds(thought(engine, "ann").partition, "ann", 1, anybody)] == ["reply"]


def test_a_thought_sees_what_was_written_since() -> None:
    engine = run([follow("ann", "bob", START)], partitions=1)
    made = thought(engine, "ann")
    engine.apply(0, [Record(NOW, wire.encode(follow("ann", "cyd", START + DAY)))], 1)
    engine.settle()
    made.refresh()
    assert made.partition.watermark == START + DAY
    bob = [deed for deed in deeds(made.partition, "ann", 64, anybody) if deed.other == "bob"]
    never = [
        Deed(0, "follow", "eve", Column.OUT, b"ann\0Aeve\0"),
        Deed(0, "reply", "eve", Column.SAID, NOTHING),
    ]
    without, as_it_is = imagined(made, "ann", bob, never)
    assert without.followees[0] == ["cyd"]
    same(as_it_is, read(engine, "ann"))


NOTHING = b"\0\0\0\0ann\0id\0Ieve\0x"


def test_one_name_is_many_in_a_read() -> None:
    engine = run([follow("ann", "bob", START)], partitions=1)
    variants = Variants("ann", [engine.at(0).store, MemoryStore()], 0)
    assert [name.encode() for name in variants.names] == [b"ann", b"ann"]
    assert [variants.at(variants.route[name]).number for name in variants.names] == [0, 0]
    rows = Reader(variants, 8).read(variants.names, AS_OF)
    assert rows.followees == [["bob"], []]
