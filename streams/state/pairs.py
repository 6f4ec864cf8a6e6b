"""How much one actor counts for one target: of a signal and a day only the first few, by the minute.

An actor's events about a target within one UTC day are kept as a sorted list of (minute, how many), and of those
the first `cap` count. The list is exact under undo and order-free, so what counts is a function of the events that
are there, not of how they came: a hundred likes of one hand move a target no more than ten, and taking one of the
ten back lets the eleventh count.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from struct import Struct
from typing import Final

DAY_MINUTES: Final = 1440
_COUNT_BITS: Final = 20
_COUNT: Final = (1 << _COUNT_BITS) - 1
_entry = Struct("I").pack  # as array("I")


def load(stored: bytes | None) -> dict[int, int]:
    """Return how many events there are by minute of the day, minutes ascending."""
    packed = array("I", stored or b"")
    return {entry >> _COUNT_BITS: entry & _COUNT for entry in packed}


def dump(minutes: dict[int, int]) -> bytes | None:
    """Return the bytes to store, four a minute; None for an empty list."""
    return array("I", [minute << _COUNT_BITS | count for minute, count in minutes.items()]).tobytes() or None


def first(minute: int) -> bytes:
    """Return `dump` of one event at a minute, nearly always all that there is."""
    return _entry(minute << _COUNT_BITS | 1)


def moved(minutes: dict[int, int], changes: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the list after changes (minute, by how many)."""
    after = dict(minutes)
    for minute, by in changes:
        after[minute] = after.get(minute, 0) + by
    return {minute: after[minute] for minute in sorted(after) if after[minute]}


def counted(minutes: dict[int, int], cap: int) -> dict[int, int]:
    """Return how many count by minute: the first `cap` of the day.

    >>> counted({5: 2, 9: 7, 30: 1}, 4)
    {5: 2, 9: 2}
    """
    found: dict[int, int] = {}
    for minute, count in minutes.items():
        if cap <= 0:
            break
        found[minute] = min(count, cap)
        cap -= count
    return found
