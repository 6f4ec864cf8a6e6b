"""Rows as the towers get them, against plain recomputation from the events."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from promises import State, expected
from soup import ACCOUNTS, DAY, START, soup

from kithstream.models.features import AGGREGATES, AUDIENCE_LANGUAGES, ENGAGED, IN, OUT, Rows
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.events import wire
from kithstream.streams.events.signals import SIGNALS
from kithstream.streams.events.wire import Event
from kithstream.streams.state.ledger import MINUTE
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.reader import Reader

NOW = START + 6 * DAY
HORIZON = 7 * DAY


def folded(events: list[Event]) -> Engine:
    engine = Engine([MemoryStore() for _ in range(3)], EngineConfig(), salt=bytes(16))
    logs: list[list[Record]] = [[] for _ in engine.partitions]
    for e in events:
        logs[engine.route[e.actor]].append(Record(START + 400 * DAY, wire.encode(e)))
    for number, log in enumerate(logs):
        assert not engine.apply(number, log, 0).dead
    engine.settle()
    return engine


def read_and_expected(events: list[Event]) -> tuple[Rows, State]:
    """The rows of all accounts, and what the events mean."""
    engine = folded(events)
    rows = Reader(engine, 100).read(ACCOUNTS, NOW, unreciprocated=True)
    return rows, expected(events, engine.watermark)


@settings(max_examples=60)
@given(soup())
def test_totals_sketches_and_audiences_are_those_of_the_present_edges(events: list[Event]) -> None:

    rows, state = read_and_expected(events)
    for place, account in enumerate(ACCOUNTS):
        for way, cells in ((IN, state.rows_in), (OUT, state.rows_out)):
            for signal in SIGNALS:
                total = cells.get(account, {}).get((signal.name, "total", 0), 0)
                assert rows.families[place, way, signal.family, -1] == total
        assert rows.audience[place].tolist() == state.sketches.get(account, [0] * 16)
        assert rows.following[place].tolist() == state.following.get(account, [0] * 16)
        spoken = Counter(
            {
                code_: count
                for (_, kind, code_), count in state.rows_in.get(account, {}).items()
                if kind == "language" and code_
            }
        )
        want = sorted(spoken, key=lambda c: (-spoken[c], c))[:AUDIENCE_LANGUAGES]
        assert [c for c in rows.audience_languages[place].tolist() if c] == want
        shares = [spoken[c] / spoken.total() for c in want]
        assert rows.audience_shares[place, : len(want)] == pytest.approx(shares, rel=1e-6)


@settings(max_examples=60)
@given(soup())
def test_the_newest_are_named_with_what_and_when(events: list[Event]) -> None:

    rows, state = read_and_expected(events)
    by_letter = {chr(65 + s.family): s for s in SIGNALS}
    for place, account in enumerate(ACCOUNTS):
        for kind, names, families, ages in (
            ("ENGAGED", rows.engaged, rows.engaged_families, rows.engaged_ages),
            ("AVOIDED", rows.avoided, rows.avoided_families, rows.avoided_ages),
        ):
            want = state.newest.get((account, kind), [])
            assert list(names[place]) == [entry[1:] for entry in want]
            assert families[place, : len(want)].tolist() == [by_letter[entry[0]].family for entry in want]
            assert (families[place, len(want) :] == -1).all()
            assert np.isinf(ages[place, len(want) :]).all()
            assert np.isfinite(ages[place, : len(want)]).all()
            assert (np.diff(ages[place, : len(want)]) >= 0).all()


@settings(max_examples=60)
@given(soup())
def test_ages_are_those_that_rows_are_read_with(events: list[Event]) -> None:
    """Of all that may be candidates: what tells when a vector is due that somebody else encoded."""
    engine = folded(events)
    rows = Reader(engine, 100).read(ACCOUNTS, NOW)
    for partition in engine.partitions:
        accounts, ages = partition.ages(NOW // MINUTE)
        assert set(accounts) == partition.listable()
        for account, age in zip(accounts, ages.tolist(), strict=True):
            assert age == rows.last[ACCOUNTS.index(account)].min()


def test_engagements_older_than_the_horizon_are_not_read() -> None:
    """Occurrences leave the ledger after it, so that a list made again would lack them."""
    events = [
        Event("a", "like", "ann", START, target="bob", item="x"),
        Event("b", "reply", "ann", START + DAY, target="cyd"),
        Event("c", "mute", "ann", START, target="dan"),
    ]
    engine = folded(events)
    late = Reader(engine, 100).read(["ann"], START + HORIZON + 1, unreciprocated=True)
    assert [list(names) for names in late.engaged] == [["cyd"]]
    assert late.avoided[0] == ["dan"]
    assert late.engaged_ages.shape == (1, ENGAGED)


def test_half_lives_decay_by_event_time_however_late_an_event_came() -> None:
    click = Event("a", "click", "ann", START, target="bob")
    reply = Event("b", "reply", "ann", START + 2 * DAY, target="cyd")
    in_order, late = folded([click, reply]), folded([reply, click])
    for engine in (in_order, late):
        rows = Reader(engine, 100).read(["bob"], START + 2 * DAY)
        clicks = rows.families[0, IN, 11]
        # Two days old, read from the cell of its day: at the middle of that day.
        age = (START + 2 * DAY - (START // DAY * DAY + DAY // 2)) / 1e6
        want = [2.0 ** (-age / h) for h in AGGREGATES[:-1]] + [1.0]
        assert clicks == pytest.approx(want, rel=1e-3, abs=1e-6)


def test_audience_vectors_are_those_of_the_ids() -> None:
    engine = folded([Event("a", "follow", "ann", START, target="bob")])
    rows = Reader(engine, 100).read(["bob", "ann"], NOW)
    ann, bob = (
        np.frombuffer(blake2b(name, digest_size=16).digest(), np.int8).tolist() for name in (b"ann", b"bob")
    )
    assert rows.audience.tolist() == [ann, [0] * 16]
    assert rows.following.tolist() == [[0] * 16, bob]
