"""The hot tier: the accounts that changed lately, in contiguous rows that every query scans exactly.

A reader may see a row torn or already given to another slot. It does not matter: such a slot was announced
after the reader began, and the reader scores it again from the table. A row leaves the tier only when no
reader can hold a graph that misses it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kithstream.index.score import Bools, Doubles, Floats, Slots


class HotTier:
    """At most `capacity` slots with their vectors; only the holder of the table's lock changes it."""

    def __init__(self, dim: int, capacity: int) -> None:
        self.rows: Floats = np.zeros((capacity, dim), np.float32)
        self.slots: NDArray[np.int64] = np.full(capacity, -1, np.int64)  # of each row; -1: free
        self.stamps: NDArray[np.int64] = np.full(capacity, -1, np.int64)  # when it last changed
        self.norms: Doubles = np.zeros(capacity, np.float64)
        self.row_of: NDArray[np.int64] = np.full(1024, -1, np.int64)  # by slot; replaced when it grows
        self.used = 0  # rows beyond were never used
        self._free: list[int] = []
        self._clock = 0

    @property
    def capacity(self) -> int:
        return len(self.slots)

    def __len__(self) -> int:
        return self.used - len(self._free)

    def rows_of(self, slots: Slots) -> Slots:
        """The rows of the hot ones among these slots."""
        row_of = self.row_of
        rows = row_of[slots[slots < len(row_of)]]
        return rows[rows >= 0]

    def fits(self, slots: list[int]) -> bool:
        """Whether all of these slots, of which unknown ones are negative, can be written."""
        room = self.capacity - len(self)
        if len(slots) <= room:
            return True
        return sum(1 for slot in slots if slot < 0 or not self.has(slot)) <= room

    def has(self, slot: int) -> bool:
        return slot < len(self.row_of) and self.row_of[slot] >= 0

    def write(self, slots: list[int], rows: Floats, lengths: Doubles) -> None:
        """Put rows (n, dim) of distinct, announced slots."""
        top = max(slots)
        if top >= len(self.row_of):
            larger = np.full(max(top + 1, 2 * len(self.row_of)), -1, np.int64)
            larger[: len(self.row_of)] = self.row_of
            self.row_of = larger
        row_of, free = self.row_of, self._free
        self._clock += 1
        if len(slots) == 1:
            slot = slots[0]
            row = int(row_of[slot])
            if row < 0:
                row = free.pop() if free else self._next()
                row_of[slot] = row
                self.slots[row] = slot
            self.rows[row] = rows[0]
            self.norms[row] = lengths[0]
            self.stamps[row] = self._clock
            return
        places = row_of[slots].tolist()
        for at, row in enumerate(places):
            if row < 0:
                places[at] = free.pop() if free else self._next()
        into = np.array(places, np.int64)
        row_of[slots] = into
        self.slots[into] = slots
        self.rows[into] = rows
        self.norms[into] = lengths
        self.stamps[into] = self._clock

    def fill(self, slots: list[int], rows: Floats, lengths: Doubles) -> None:
        """Fill an empty tier; the first slot is the one that changed least recently."""
        self.write(slots, rows, lengths)
        self.stamps[: len(slots)] = np.arange(len(slots))
        self._clock = len(slots)

    def by_age(self) -> Slots:
        """All slots, the one that changed least recently first."""
        rows = np.flatnonzero(self.slots[: self.used] >= 0)
        return self.slots[rows[np.argsort(self.stamps[rows], kind="stable")]]

    def remove(self, slots: list[int]) -> None:
        """Free the rows of those slots that are hot."""
        for slot in slots:
            if self.has(slot):
                row = int(self.row_of[slot])
                self.row_of[slot] = -1
                self.slots[row] = -1
                self.stamps[row] = -1
                self._free.append(row)

    def oldest(self, count: int, bound: float) -> Slots:
        """Rows, at most `count`, that changed least recently and whose norm is within the bound."""
        used = self.used
        rows = np.flatnonzero((self.slots[:used] >= 0) & (self.norms[:used] <= bound))
        if count >= len(rows):
            return rows
        return rows[np.argpartition(self.stamps[rows], max(0, count))[: max(0, count)]]

    def unchanged(self, rows: Slots, stamps: NDArray[np.int64]) -> list[int]:
        """The slots of those rows that were not written since they had these stamps."""
        same: Bools = self.stamps[rows] == stamps
        slots: list[int] = self.slots[rows[same]].tolist()
        return slots

    def above(self, bound: float) -> int:
        """Rows whose norm is above the bound."""
        used = self.used
        return int(((self.slots[:used] >= 0) & (self.norms[:used] > bound)).sum())

    def _next(self) -> int:
        self.used += 1
        return self.used - 1
