from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kithstream.streams.events.signals import GROUP_OF_FAMILY
from kithstream.streams.state import counters
from kithstream.streams.state.counters import Kind

NOW = 29_833_333  # minutes
HALF = (600.0, 3600.0, 86400.0, float("inf"))
AGGREGATES = (1800.0, 86400.0, 604800.0, 4320000.0, float("inf"))
EVENTS = st.lists(st.tuples(st.integers(0, 18), st.integers(0, 200_000)), max_size=40)  # family, minutes ago


def row_of(events: list[tuple[int, int]], now: int = NOW) -> bytearray:
    row = bytearray()
    for family, ago in events:
        counters.count_at(row, family, now - ago, 1, now)
    return row


def counted_slowly(row: bytearray, family: int, minute: int, by: int, now: int) -> int:
    """The twin of `count_at`: one cell after the other."""
    age, group = now - minute, counters.MINUTE_FAMILY[family]
    cells = [
        (family, Kind.TEN, minute // 10, not counters.ALONE[family] and age < counters.MINUTES_HELD),
        (group, Kind.MINUTE, minute, group >= 0 and age < counters.MINUTES_HELD),
        (family, Kind.HOUR, minute // 60, age < counters.HOURS_HELD * 60),
        (family, Kind.DAY, minute // 1440, age < counters.DAYS_HELD * 1440),
        (family, Kind.TOTAL, 0, True),
    ]
    for number, kind, place, held in cells:
        if held:
            counters.bump(row, counters.cell(number, kind, place), by)
    return counters.count_of(row, counters.cell(family, Kind.TOTAL, 0))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([0, 1, 300, 5000, 200_000]),
            st.sampled_from([1, -1, 254, -256, 70_000]),
        ),
        max_size=40,
    )
)
def test_counting_at_a_minute_is_counting_in_each_of_its_cells(events: list[tuple[int, int, int]]) -> None:
    fast, slow = bytearray(), bytearray()
    for family, ago, by in events:
        total = counters.count_at(fast, family, NOW - ago, by, NOW)
        assert total == counted_slowly(slow, family, NOW - ago, by, NOW)
        assert fast == slow


def slow(events: list[tuple[int, int]]) -> np.ndarray:
    """The twin of `decayed`: from events, one by one, in plain arithmetic."""
    counts = np.zeros((3, len(HALF)))
    for family, ago in events:
        group = GROUP_OF_FAMILY[family]
        if group < 3:
            counts[group] += weights(NOW - ago, HALF, 1)
    return counts


def slow_families(events: list[tuple[int, int]]) -> np.ndarray:
    """The twin of `decayed` by family: follows by minutes, all others by ten of them."""
    counts = np.zeros((32, len(AGGREGATES)))
    for family, ago in events:
        counts[family] += weights(NOW - ago, AGGREGATES, 1 if family == 0 else 10)
    return counts


def weights(minute: int, half_lives: tuple[float, ...], finest: int) -> np.ndarray:
    """What one event is worth at the middle of the bucket that it is read from."""
    if minute >= (NOW // 60 - 2) * 60:
        age = NOW * 60 - (minute // finest + 0.5) * finest * 60
    elif minute // 60 >= (NOW // 1440 - 1) * 24:
        age = NOW * 60 - (minute // 60 + 0.5) * 3600
    elif minute // 1440 > NOW // 1440 - 128:
        age = NOW * 60 - (minute // 1440 + 0.5) * 86400
    else:
        return np.array([float(h == np.inf) for h in half_lives])
    return np.array([2.0 ** (-max(age, 0.0) / h) for h in half_lives])


@given(EVENTS)
def test_reading_decays_each_event_once_at_its_buckets_middle(events: list[tuple[int, int]]) -> None:
    read = counters.decayed([row_of(events)], np.array([NOW]), HALF, AGGREGATES)
    # Weights are rounded to 2^-26, sums to float32.
    assert read.counts[0] == pytest.approx(slow(events), rel=1e-6, abs=1e-6)
    assert read.families[0] == pytest.approx(slow_families(events), rel=1e-6, abs=1e-6)


@given(EVENTS, st.randoms(use_true_random=False))
def test_the_order_of_cells_changes_no_bit(events: list[tuple[int, int]], rng: random.Random) -> None:
    shuffled = list(events)
    rng.shuffle(shuffled)
    a, b = (counters.decayed([row_of(e)], np.array([NOW]), HALF, AGGREGATES) for e in (events, shuffled))
    assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@given(EVENTS, EVENTS)
def test_undo_in_any_order_restores_the_row(
    events: list[tuple[int, int]], more: list[tuple[int, int]]
) -> None:
    row = row_of(events + more)
    for family, ago in more[::-1]:
        counters.count_at(row, family, NOW - ago, -1, NOW)
    assert counters.canonical(row, NOW) == counters.canonical(row_of(events), NOW)


@settings(max_examples=50)
@given(
    st.lists(EVENTS, min_size=1, max_size=6), st.lists(st.integers(NOW - 3000, NOW), min_size=6, max_size=6)
)
def test_rows_are_read_alone_as_together(rows: list[list[tuple[int, int]]], minutes: list[int]) -> None:
    packed, at = [row_of(events, NOW - 3000) for events in rows], np.array(minutes[: len(rows)])
    together = counters.decayed(packed, at, HALF, AGGREGATES)
    for place in range(len(rows)):
        alone = counters.decayed([packed[place]], at[place : place + 1], HALF, AGGREGATES)
        assert all(x[place].tobytes() == y[0].tobytes() for x, y in zip(together, alone, strict=True))


@given(EVENTS, st.integers(0, 200_000))
def test_pruning_changes_no_reading(events: list[tuple[int, int]], later: int) -> None:
    row, now = row_of(events), NOW + later
    pruned = counters.prune(row, now)
    assert len(pruned) <= len(row)
    for minute in (now, now - 1):  # an answer's tick may lie just before the watermark
        a, b = (counters.decayed([r], np.array([minute]), HALF, AGGREGATES) for r in (row, pruned))
        assert all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_a_match_across_cells_is_no_match() -> None:
    row = bytearray()
    name = counters.cell(1, Kind.TOTAL, 0)
    # A count that spells the name at a place that is no cell's beginning.
    row += counters.cell(2, Kind.TOTAL, 0) + name
    counters.bump(row, name, 5)
    assert counters.count_of(row, name) == 5
    assert len(row) == 16
    counters.bump_first(row, name, -5)
    assert counters.count_of(row, name) == 0
    assert len(row) == 8
