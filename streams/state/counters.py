"""Counters that decay, kept as integers in time buckets and decayed only when read.

A row is packed cells of eight bytes: a number (family, kind, place) and a count. The same +1 and -1 land in the
same cells, and a cell at zero is cut out, so an undo restores the row's content exactly and in any order.
Each event counts in four cells: its minute, its hour, its day and the total. Reading takes each stretch of time
from one kind alone: minutes for this hour and the two before, hours back to the start of yesterday, days before.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.streams.events.signals import GROUP_OF_FAMILY, Group
from kithstream.streams.state.ledger import DAY, HOUR, MINUTE

CELL: Final = 8
HOURS_READ: Final = 48
DAYS_READ: Final = 128
# Held a little longer than read: an answer's time may lie a tick before the watermark.
MINUTES_HELD: Final = 240
HOURS_HELD: Final = 50
DAYS_HELD: Final = 130
_PLACE_BITS: Final = 24
_KIND_BITS: Final = 3
_PLACE: Final = (1 << _PLACE_BITS) - 1


class Kind(IntEnum):
    """What a cell counts; the first three are decayed when read."""

    MINUTE = 0
    HOUR = 1
    DAY = 2
    TOTAL = 3
    MUTUAL = 4  # out-edges whose other end has the same edge back
    LANGUAGE = 5  # of those who follow; place = code of the language
    COUNTRY = 6


_number = Struct("<I").pack
_count = Struct("<i").pack
_read = Struct("<i").unpack_from
_write = Struct("<i").pack_into


def cell(family: int, kind: Kind, place: int) -> bytes:
    """Return the four bytes that name a cell."""
    return _number(family << _PLACE_BITS + _KIND_BITS | kind << _PLACE_BITS | place & _PLACE)


def count_of(row: bytes | bytearray, name: bytes) -> int:
    """Return the count of a cell, 0 if it is not there."""
    at = _find(row, name)
    count: int = _read(row, at + 4)[0] if at >= 0 else 0
    return count


def bump(row: bytearray, name: bytes, by: int) -> None:
    """Add to a cell in place; a cell at zero is removed."""
    at = row.rfind(name)  # from the end: the newest cells were appended last
    while at > 0 and at & 7:  # a match across a cell's border
        at = row.rfind(name, 0, at + 3)
    if at < 0:
        row += name + _count(by)
    elif total := _read(row, at + 4)[0] + by:
        _write(row, at + 4, total)
    else:
        del row[at : at + CELL]


class TimeCells(dict[tuple[int, int], tuple[bytes, bytes, bytes, bytes]]):
    """(family, minute since 1970) to its four cells; a cache that is dropped when it is full."""

    def __missing__(self, at: tuple[int, int]) -> tuple[bytes, bytes, bytes, bytes]:
        family, minute = at
        if len(self) > 200_000:
            self.clear()
        names = self[at] = (
            cell(family, Kind.MINUTE, minute),
            cell(family, Kind.HOUR, minute // 60),
            cell(family, Kind.DAY, minute // 1440),
            cell(family, Kind.TOTAL, 0),
        )
        return names


_time_cells = TimeCells()


def count_at(row: bytearray, family: int, minute: int, by: int, now_minute: int) -> None:
    """Count `by` events of a family at a minute; `now_minute` is the watermark's minute.

    Cells outside their window at the watermark are left alone by do and undo alike: they are never read.
    """
    minutes, hours, days, total = _time_cells[family, minute]
    age = now_minute - minute
    if age < HOURS_HELD * 60:
        if age < MINUTES_HELD:
            bump(row, minutes, by)
        bump(row, hours, by)
    if age < DAYS_HELD * 1440:
        bump(row, days, by)
    bump_first(row, total, by)


def bump_first(row: bytearray, name: bytes, by: int) -> None:
    """`bump` for cells that stand near the row's beginning."""
    at = _find(row, name)
    if at < 0:
        row += name + _count(by)
    elif total := _read(row, at + 4)[0] + by:
        _write(row, at + 4, total)
    else:
        del row[at : at + CELL]


def prune(row: bytearray, now_minute: int) -> bytearray:
    """Return the row without the cells that no read at or after the watermark's minute uses."""
    cells = np.frombuffer(row, dtype=np.uint32).reshape(-1, 2)
    return bytearray(cells[_live(cells[:, 0], now_minute, HOURS_HELD, DAYS_HELD)].tobytes())


def canonical(row: bytes | bytearray, now_minute: int) -> bytes:
    """Return the row as a value to compare: readable cells only, in the order of their numbers."""
    cells = np.frombuffer(row, dtype=np.uint32).reshape(-1, 2)
    cells = cells[_live(cells[:, 0], now_minute, HOURS_READ, DAYS_READ)]
    return cells[np.argsort(cells[:, 0], kind="stable")].tobytes()


def _live(numbers: NDArray[np.uint32], now_minute: int, hours: int, days: int) -> NDArray[np.bool_]:
    kind = numbers >> _PLACE_BITS & (1 << _KIND_BITS) - 1
    place = (numbers & _PLACE).astype(np.int64)
    # The minute's number wraps at 2^24: ages are taken modulo.
    age = ((now_minute & _PLACE) - place) & _PLACE
    live = (kind == Kind.MINUTE) & ((age < MINUTES_HELD) | (age > _PLACE >> 1))
    live |= (kind == Kind.HOUR) & (place > now_minute // 60 - hours)
    live |= (kind == Kind.DAY) & (place > now_minute // 1440 - days)
    return live | (kind >= Kind.TOTAL)


def _find(row: bytes | bytearray, name: bytes) -> int:
    at = row.find(name)
    while at > 0 and at & 7:
        at = row.find(name, at + 1)
    return at


class Decayed(NamedTuple):
    """What n rows say as of one time."""

    counts: NDArray[np.float32]  # (n, 3, H): group, half-life
    newest: NDArray[np.float64]  # (n,) seconds since the newest event, +inf if none
    oldest: NDArray[np.float64]  # (n,) seconds since the oldest event still held, 0 if none
    totals: NDArray[np.int64]  # (n, 32): present edges and events, by family


_UNIT: Final = float(1 << 26)  # weights are multiples of 2^-26, so that sums below 2^27 events are exact
_GROUPS: Final = np.array(GROUP_OF_FAMILY + (Group.SILENT,) * (32 - len(GROUP_OF_FAMILY)), dtype=np.int64)


def decayed(rows: Sequence[bytes | bytearray], as_of: int, half_lives: Sequence[float]) -> Decayed:
    """Return the counts of n rows as of a time in microseconds, summed by group and decayed by each half-life.

    A weight is 2^(-age/h) at the middle of the cell's bucket, rounded to 2^-26: sums of such weights are exact
    in float64, so the order of a row's cells changes nothing.
    """
    n = len(rows)
    half = np.asarray(half_lives, dtype=np.float64)
    sizes = np.fromiter((len(row) for row in rows), dtype=np.int64, count=n) // CELL
    cells = np.frombuffer(b"".join(rows), dtype=np.uint32).reshape(-1, 2)
    owner = np.repeat(np.arange(n), sizes)
    number, count = cells[:, 0], cells[:, 1].view(np.int32).astype(np.float64)
    family = (number >> _PLACE_BITS + _KIND_BITS).astype(np.int64)
    kind = number >> _PLACE_BITS & (1 << _KIND_BITS) - 1
    place = (number & _PLACE).astype(np.int64)

    minute, hour, day = as_of // MINUTE, as_of // HOUR, as_of // DAY
    # Each stretch of time is read from one kind alone.
    first_minute, first_hour = (hour - 2) * 60, (day - 1) * 24
    is_minute, is_hour, is_day = kind == Kind.MINUTE, kind == Kind.HOUR, kind == Kind.DAY
    half_turn = _PLACE >> 1
    whole_minute = minute + half_turn - (((minute & _PLACE) - place + half_turn) & _PLACE)
    place = np.where(is_minute, whole_minute, place)
    used = is_minute & (place >= first_minute)
    used |= is_hour & (place < hour - 2) & (place >= first_hour)
    used |= is_day & (place < day - 1) & (place > day - DAYS_READ)
    width = np.where(is_minute, MINUTE, np.where(is_hour, HOUR, DAY)) / 1e6
    age = np.maximum(as_of / 1e6 - (place + 0.5) * width, 0.0)

    group = _GROUPS[family]
    read = used & (group < 3)
    at = (owner[read] * 3 + group[read]).astype(np.int64)
    seconds, times = age[read], count[read]
    counts = np.zeros((n * 3, len(half)), dtype=np.float64)
    for place_of, h in enumerate(half):
        if np.isinf(h):
            continue
        weight = np.rint(np.exp2(-seconds / h) * _UNIT)
        counts[:, place_of] = np.bincount(at, weights=weight * times, minlength=n * 3) / _UNIT
    is_total = kind == Kind.TOTAL
    totals = np.zeros((n, 32), dtype=np.int64)
    totals[owner[is_total], family[is_total]] = count[is_total].astype(np.int64)
    whole = is_total & (group < 3)
    everything = np.bincount(owner[whole] * 3 + group[whole], weights=count[whole], minlength=n * 3)
    counts[:, np.isinf(half)] = everything[:, None]

    newest = np.full(n, np.inf)
    np.minimum.at(newest, owner[read], seconds)
    oldest = np.zeros(n)
    np.maximum.at(oldest, owner[read], seconds)
    return Decayed(counts.reshape(n, 3, len(half)).astype(np.float32), newest, oldest, totals)
