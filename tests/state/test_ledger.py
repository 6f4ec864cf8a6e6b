from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.state import ledger

TIMES = st.integers(0, (1 << 61) - 1)
EVENTS = st.tuples(st.booleans(), TIMES, st.booleans(), st.text(max_size=4))


def stamp(event: tuple[bool, int, bool, str]) -> bytes:
    server, time, undo, name = event
    return ledger.stamp(time, server=server, undo=undo, event_id=name)


@given(EVENTS, EVENTS)
def test_byte_order_is_rank_then_time_then_the_undo(
    a: tuple[bool, int, bool, str], b: tuple[bool, int, bool, str]
) -> None:
    if a[:3] != b[:3]:
        assert (stamp(a) > stamp(b)) == (a[:3] > b[:3])


@given(EVENTS)
def test_a_stamp_tells_what_it_was_made_of(event: tuple[bool, int, bool, str]) -> None:
    assert ledger.time_of(stamp(event)) == event[1]
    assert ledger.is_undo(stamp(event)) == event[2]


@given(st.lists(EVENTS, min_size=1, max_size=8), st.permutations(range(8)))
def test_adding_is_order_free_and_idempotent(
    events: list[tuple[bool, int, bool, str]], order: list[int]
) -> None:
    value = shuffled = None
    for event in events:
        value = ledger.add(value, stamp(event), 0)
    for place in order:
        shuffled = ledger.add(shuffled, stamp(events[place % len(events)]), 0)
    for event in events:
        shuffled = ledger.add(shuffled, stamp(event), 0)
    assert value == shuffled
    best = max(events, key=stamp)
    assert ledger.winner(value) == (ledger.Winner(False, 0) if best[2] else ledger.Winner(True, best[1]))
    assert ledger.since(value) == (-1 if best[2] else best[1])


@given(st.lists(EVENTS, min_size=1, max_size=6, unique_by=stamp))
def test_taking_out_undoes_adding_but_for_the_epoch(events: list[tuple[bool, int, bool, str]]) -> None:
    value = None
    for event in events:
        value = ledger.add(value, stamp(event), 0)
    assert value is not None
    without = ledger.NO_EDGE
    for event in events[1:]:
        without = ledger.add(without, stamp(event), 0)
    taken = ledger.take_out(value, stamp(events[0]))
    assert taken[ledger.EPOCH :] == without[ledger.EPOCH :]
    assert taken[: ledger.EPOCH] > value[: ledger.EPOCH]
    assert ledger.take_out(taken, stamp(events[0])) == taken


def test_stamps_below_an_old_one_are_dropped() -> None:
    value = None
    for time in (10, 20, 30, 40):
        value = ledger.add(value, ledger.stamp(time, server=True, undo=False, event_id="e"), 25)
    assert value is not None
    assert [ledger.time_of(s) for s in ledger.stamps_of(value)] == [40, 30, 20]


def test_no_edge_is_absent() -> None:
    for value in (None, b"\0\1", b"\xff\xff"):
        assert ledger.since(value) == -1
        assert ledger.winner(value) == ledger.Winner(False, 0)
