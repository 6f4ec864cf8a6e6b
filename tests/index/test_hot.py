from __future__ import annotations

import numpy as np

from kithstream.index.hot import HotTier
from kithstream.index.score import norms


def write(hot, slots, value=1.0):
    rows = np.full((len(slots), 2), value, np.float32)
    hot.write(slots, rows, norms(rows))


def slots_of(hot, rows):
    return sorted(hot.slots[rows].tolist())


def test_the_least_recently_changed_leave_first():
    hot = HotTier(2, 8)
    write(hot, [10, 11, 12])
    write(hot, [13])
    write(hot, [10])
    assert slots_of(hot, hot.oldest(2, np.inf)) == [11, 12]
    assert hot.by_age().tolist() == [11, 12, 13, 10]


def test_rows_above_the_bound_stay():
    hot = HotTier(2, 8)
    write(hot, [1], value=100.0)
    write(hot, [2, 3])
    assert slots_of(hot, hot.oldest(3, 2.0)) == [2, 3]
    assert hot.above(2.0) == 1


def test_a_freed_row_is_used_again():
    hot = HotTier(2, 2)
    write(hot, [5, 6])
    hot.remove([5, 99])
    assert len(hot) == 1
    assert hot.fits([7])
    assert not hot.fits([7, 8])
    assert hot.fits([6, 7])
    write(hot, [7], value=3.0)
    assert hot.slots.tolist() == [7, 6]
    assert hot.rows[0].tolist() == [3, 3]
    assert not hot.has(5)


def test_a_row_that_changed_meanwhile_does_not_leave():
    hot = HotTier(2, 4)
    write(hot, [1, 2, 3])
    rows = hot.oldest(3, np.inf)
    stamps = hot.stamps[rows]
    write(hot, [2])
    hot.remove([3])
    assert hot.unchanged(rows, stamps) == [1]


def test_slots_of_any_size_are_found():
    hot = HotTier(2, 4)
    write(hot, [5_000_000])
    write(hot, [3, 70_000])
    assert hot.rows_of(np.array([70_000, 4, 5_000_000, 9_999_999])).tolist() == [2, 0]
