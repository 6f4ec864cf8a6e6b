"""Address books: hashed, one-sided, counted with consent alone, purged when it is withdrawn."""

from __future__ import annotations

import random
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promises import _consent, agree, held
from soup import DAY, START
from test_engine import SALT, fresh, logs_of, reopened, run

from kithstream.streams.engine.engine import Engine
from kithstream.streams.events.wire import Event
from kithstream.streams.state import ledger
from kithstream.streams.state.consent import Consent
from kithstream.streams.state.protocol import Column


def book(target: str, time: int = START, actor: str = "ann", signal: str = "address_book") -> Event:
    name = f"{crc32(f'{signal} {target} {time}'.encode())}"  # ids stay in the clear
    return Event(name, signal, actor, time, target=target)


def says(contacts: bool, time: int = START, actor: str = "ann") -> Event:
    return Event(f"p-{contacts}-{time}", "profile", actor, time, contacts=contacts)


def known(engine: Engine, account: str = "ann") -> set[str]:
    partition = engine.at(engine.route[account])
    names = {partition.fingerprint(name): name for name in ("bob", "cyd", "dan", "eve")}
    return {names[fingerprint] for fingerprint in partition.contacts(account)}


def everything(engine: Engine) -> bytes:
    pairs = (p for x in engine.partitions for column in Column for p in x.store.scan(column, b""))
    return b"|".join(part for pair in pairs for part in pair)


def test_a_contact_never_stands_in_the_clear_and_its_side_is_told_nothing() -> None:
    engine = run(fresh(), [says(True), book("bob"), book("cyd")])
    assert known(engine) == {"bob", "cyd"}
    assert b"bob" not in everything(engine)
    assert b"cyd" not in everything(engine)
    state = held(engine)
    assert not state.rows_in
    assert not state.transposed
    assert state.rows_out["ann"]["address_book", "total", 0] == 2


def test_without_consent_nothing_counts_and_the_hash_goes_after_the_horizon() -> None:
    engine = run(fresh(), [book("bob")])
    assert not known(engine)
    assert not held(engine).rows_out
    place = engine.route["ann"]
    assert list(engine.at(place).store.scan(Column.SAID, b""))
    later = Event("later", "profile", "ann", START + 10 * DAY, language="en")
    run_on(engine, [later])
    assert not list(engine.at(place).store.scan(Column.SAID, b""))
    assert not list(engine.at(place).store.scan(Column.OUT, b""))


def run_on(engine: Engine, events: list[Event]) -> None:
    for number, log in enumerate(logs_of(engine, events)):
        engine.apply(number, log, engine.at(number).applied)
    engine.settle()


def test_a_consent_that_comes_later_lets_what_was_sent_count() -> None:
    engine = run(fresh(), [book("bob"), book("cyd", START - 2 * DAY)])
    run_on(engine, [says(True, START + DAY // 2)])
    assert known(engine) == {"bob"}  # sent on the day before or later


def test_a_withdrawal_purges_what_was_sent_up_to_it_and_keeps_late_ones_out() -> None:
    first = [says(True), book("bob", START + 1), book("cyd", START + 9)]
    engine = run(fresh(), first)
    run_on(engine, [says(False, START + 5)])
    assert known(engine) == set()
    assert b"R" + engine.at(0).fingerprint("bob").hex().encode() not in everything(engine)
    run_on(engine, [says(True, START + 7), book("dan", START + 5), book("eve", START + 6)])
    assert known(engine) == {"cyd", "eve"}
    agree(
        engine,
        [
            *first,
            says(False, START + 5),
            says(True, START + 7),
            book("dan", START + 5),
            book("eve", START + 6),
        ],
    )


def test_many_contacts_are_purged_in_steps_and_unreadable_at_once() -> None:
    many = [book(f"c{i}", START + i) for i in range(50)]
    engine = run(fresh(), [says(True), *many])
    place = engine.at(engine.route["ann"])
    assert len(place.contacts("ann")) == 50
    log = logs_of(engine, [says(False, START + 100)])[place.number]
    engine.apply(place.number, log, place.applied)
    assert place.books
    assert not place.contacts("ann")
    assert list(place.store.scan(Column.OUT, b"ann\0R"))
    engine = reopened([partition.store.copy() for partition in engine.partitions])
    engine.settle()
    assert not list(engine.at(place.number).store.scan(Column.OUT, b"ann\0R"))
    assert not held(engine).rows_out


@pytest.mark.parametrize("undo", [book("bob", START + 5, signal="address_book_remove"), None])
def test_removal_and_retraction_take_a_contact_out(undo: Event | None) -> None:
    do = book("bob", START + 1)
    events = [says(True), do, undo or Event("r", "retract", "ann", START + 2, retracts=do.id)]
    for order in (events, events[::-1]):
        engine = run(fresh(), order)
        assert not known(engine)
        assert not held(engine).rows_out


def test_the_deletion_of_its_owner_removes_a_book_and_that_of_a_contact_leaves_a_hash() -> None:
    events = [says(True), book("bob"), book("cyd")]
    gone = Event("gone", "account_delete", "bob", START + DAY)
    engine = run(fresh(), [*events, gone])
    assert known(engine) == {"bob", "cyd"}
    assert b"bob" not in everything(engine)
    run_on(engine, [Event("gone", "account_delete", "ann", START + DAY)])
    assert b"ann" not in everything(engine)
    assert engine.at(0).fingerprint("cyd").hex().encode() not in everything(engine)


_TOLD = st.tuples(
    st.booleans(), st.integers(0, 6 * DAY), st.sampled_from(("server", "client")), st.sampled_from(("a", "b"))
)


@settings(max_examples=300)
@given(st.lists(_TOLD, max_size=12), st.randoms(use_true_random=False))
def test_consent_is_what_was_told_in_whatever_order(
    told: list[tuple[bool, int, str, str]], rng: random.Random
) -> None:
    events = [
        Event(f"{name}{at}", "profile", "ann", START + time, source=source, contacts=given_)  # type: ignore[arg-type]
        for at, (given_, time, source, name) in enumerate(told)
    ]
    want = _consent(events)
    for _ in range(3):
        rng.shuffle(events)
        consent = Consent()
        for e in events + events[:2]:
            stamp = ledger.stamp(e.time, server=e.source == "server", undo=False, event_id=e.id)
            assert e.contacts is not None
            consent.tell(stamp, e.contacts)
        assert (float("inf") if consent.begin is None else consent.begin) == want


def test_the_salt_makes_the_hash() -> None:
    assert fresh().at(0).fingerprint("bob") != Engine(
        [type(fresh().at(0).store)()], fresh().config, salt=SALT[::-1] + b"x"
    ).at(0).fingerprint("bob")


def test_what_a_withdrawal_keeps_out_leaves_no_hash_either() -> None:
    engine = run(fresh(), [says(True), says(False, START + 5)])
    run_on(engine, [book("bob", START + 5)])
    assert not list(engine.at(engine.route["ann"]).store.scan(Column.SAID, b""))
    run_on(engine, [book("bob", START + 6)])
    assert list(engine.at(engine.route["ann"]).store.scan(Column.SAID, b""))


def test_a_later_word_of_a_lesser_source_outlasts_the_purge_of_a_greater() -> None:
    greater = book("bob", START + 5)
    lesser = Event(greater.id, "address_book", "ann", START + 15, target="bob", source="client")
    events = [says(True), greater, lesser, says(False, START + 10), says(True, START + 12)]
    for order in (events, events[::-1]):
        engine = run(fresh(), order)
        assert known(engine) == {"bob"}
        agree(engine, events)
