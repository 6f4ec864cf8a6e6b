"""Counters that decay, kept as integers in time buckets and decayed only when read.

A row is packed cells of eight bytes: a number (family, kind, place) and a count. The same +1 and -1 land in the
same cells, and a cell at zero is cut out, so an undo restores the row's content exactly and in any order.

Each event counts in its ten minutes, its hour, its day and the total of its family, and in the minute of its group:
a minute cell for every family would make busy rows long. (Follows are a group of their own, so their minutes serve
for both.) Reading takes each stretch of time from one kind: minutes, or tens of minutes, for this hour and the two
before, hours back to the start of yesterday, days before.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.streams.events.signals import GROUP_OF_FAMILY, Group

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
    """What a cell counts; the first three and the last are decayed when read."""

    MINUTE = 0
    HOUR = 1
    DAY = 2
    TOTAL = 3
    MUTUAL = 4  # out-edges whose other end has the same edge back
    LANGUAGE = 5  # of those who follow; place = code of the language
    COUNTRY = 6
    TEN = 7  # ten minutes, of every family but those that are a group of their own; decayed when read


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


_ONE: Final = _count(1)


# The family under which an event's minute is counted: the first of its group; -1 for what no feature reads.
MINUTE_FAMILY: Final = tuple(
    GROUP_OF_FAMILY.index(group) if group < Group.SILENT else -1 for group in GROUP_OF_FAMILY
)

# Families that are a group of their own: their minutes are read for the family as well.
ALONE: Final = tuple(group < Group.SILENT and GROUP_OF_FAMILY.count(group) == 1 for group in GROUP_OF_FAMILY)


class TimeCells(dict[tuple[int, int], tuple[bytes, ...]]):
    """(family, minute since 1970) to its cells, finest first; a cache that is dropped when it is full."""

    def __missing__(self, at: tuple[int, int]) -> tuple[bytes, ...]:
        family, minute = at
        if len(self) > 200_000:
            self.clear()
        group = MINUTE_FAMILY[family]
        names = self[at] = (
            *([] if ALONE[family] else [cell(family, Kind.TEN, minute // 10)]),
            *([cell(group, Kind.MINUTE, minute)] if group >= 0 else ()),
            cell(family, Kind.HOUR, minute // 60),
            cell(family, Kind.DAY, minute // 1440),
            cell(family, Kind.TOTAL, 0),
        )
        return names


_time_cells = TimeCells()


def count_at(row: bytearray, family: int, minute: int, by: int, now_minute: int) -> int:
    """Count `by` events of a family at a minute and return its total; `now_minute` is the watermark's minute.

    Cells outside their window at the watermark are left alone by do and undo alike: they are never read.
    """
    names = _time_cells[family, minute]
    age = now_minute - minute
    if age >= MINUTES_HELD:
        names = names[-3:] if age < HOURS_HELD * 60 else names[-2:] if age < DAYS_HELD * 1440 else names[-1:]
    at = -1
    find = row.rfind  # from the end: what is new was appended last
    for name in names:  # `bump`, without its call: this is the busiest loop of the fold
        at = find(name)
        while at > 0 and at & 7:
            at = find(name, 0, at + 3)
        if at < 0:
            row += name + (_ONE if by == 1 else _count(by))
        elif 0 < (low := row[at + 4] + by) < 256:  # in its lowest byte: nothing is carried, the cell stays
            row[at + 4] = low
        elif total := _read(row, at + 4)[0] + by:
            _write(row, at + 4, total)
        else:
            del row[at : at + CELL]
            at = len(row)
    # The last cell is the total's: it was new, it went, or it is where it was.
    return by if at < 0 else 0 if at == len(row) else int(_read(row, at + 4)[0])


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
    live: NDArray[np.bool_] = (kind == Kind.MINUTE) & ((age < MINUTES_HELD) | (age > _PLACE >> 1))
    live |= (kind == Kind.TEN) & (place > now_minute // 10 - MINUTES_HELD // 10)
    live |= (kind == Kind.HOUR) & (place > now_minute // 60 - hours)
    live |= (kind == Kind.DAY) & (place > now_minute // 1440 - days)
    live |= (kind >= Kind.TOTAL) & (kind != Kind.TEN)
    return live


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
    families: NDArray[np.float32]  # (n, 32, A): family, half-life of the second kind


_UNIT: Final = float(1 << 26)  # weights are multiples of 2^-26, so that sums below 2^27 events are exact
_GROUPS: Final = np.array(GROUP_OF_FAMILY + (Group.SILENT,) * (32 - len(GROUP_OF_FAMILY)), dtype=np.int64)
_MINUTES_READ: Final = 180
_TENS_READ: Final = _MINUTES_READ // 10
# Where each kind's ages begin in the table of weights; entry 0 is for cells that are not read.
_MOST: Final = np.array([_MINUTES_READ, HOURS_READ, DAYS_READ, 0, 0, 0, 0, _TENS_READ], dtype=np.int64)
_OFFSET: Final = np.where(_MOST > 0, 1 + np.cumsum(_MOST) - _MOST, 0)
_ENTRIES: Final = 1 + int(_MOST.sum())
_FAMILIES: Final = 32
# Whether a cell is read for its group, and for its family, by family and kind.
_FOR_GROUP: Final = np.zeros((_FAMILIES, 8), dtype=np.bool_)
_FOR_GROUP[_GROUPS < Group.SILENT, : Kind.TOTAL] = True
_FOR_FAMILY: Final = np.zeros((_FAMILIES, 8), dtype=np.bool_)
_FOR_FAMILY[:, [Kind.HOUR, Kind.DAY, Kind.TEN]] = True
_FOR_FAMILY[np.flatnonzero(ALONE), Kind.MINUTE] = True


@lru_cache(maxsize=4096)  # one tick is asked for thousands of rows
def _weights(minute: int, half_lives: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (entries, H) in units of 2^-26 and ages (entries,) in seconds, by kind and distance in buckets.

    Each stretch of time is read from one kind alone.
    """
    hour, day = minute // 60, minute // 1440
    ages = np.full(_ENTRIES, np.inf)
    used = np.zeros(_ENTRIES, dtype=np.bool_)
    for kind, seconds, place, first, end in (
        (Kind.MINUTE, 60.0, minute, (hour - 2) * 60, minute + 1),
        (Kind.HOUR, 3600.0, hour, (day - 1) * 24, hour - 2),
        (Kind.DAY, 86400.0, day, day - DAYS_READ + 1, day - 1),
        (Kind.TEN, 600.0, minute // 10, (hour - 2) * 6, minute // 10 + 1),
    ):
        distance = np.arange(_MOST[kind])
        places = place - distance
        at = _OFFSET[kind] + distance
        ages[at] = np.maximum(minute * 60.0 - (places + 0.5) * seconds, 0.0)
        used[at] = (places >= first) & (places < end)
    ages[~used] = np.inf
    finite = np.array([h for h in half_lives if np.isfinite(h)])
    return np.rint(np.exp2(-ages[:, None] / finite[None, :]) * _UNIT), ages


def decayed(
    rows: Sequence[bytes | bytearray],
    minutes: NDArray[np.int64],
    half_lives: Sequence[float],
    by_family: Sequence[float] = (),
) -> Decayed:
    """Return the counts of n rows, each as of its minute since 1970, decayed: by group, and by family.

    A weight is 2^(-age/h) at the middle of the cell's bucket, rounded to 2^-26: sums of such weights are exact
    in float64, so the order of a row's cells changes nothing. Each list of half-lives ends with infinity, or has
    none; `by_family` are those of the counts by family.
    """
    n = len(rows)
    half = tuple(half_lives) + tuple(by_family)
    distinct, which = minutes[:1], np.zeros(n, dtype=np.int64)
    if n > 1 and (minutes != minutes[0]).any():
        distinct, which = np.unique(minutes, return_inverse=True)
    tables = [_weights(minute, half) for minute in distinct.tolist()] or [_weights(0, half)]
    weights = tables[0][0] if len(tables) == 1 else np.concatenate([t[0] for t in tables])
    ages = tables[0][1] if len(tables) == 1 else np.concatenate([t[1] for t in tables])
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=n) // CELL
    cells = np.frombuffer(b"".join(rows), dtype=np.uint32).reshape(-1, 2)
    number, count = cells[:, 0], cells[:, 1].view(np.int32)
    owner = np.repeat(np.arange(n), sizes)
    kind = number >> _PLACE_BITS & (1 << _KIND_BITS) - 1
    family = (number >> _PLACE_BITS + _KIND_BITS).astype(np.int64)

    at_total = np.flatnonzero(kind == Kind.TOTAL)
    totals = np.zeros((n, _FAMILIES), dtype=np.int64)
    totals[owner[at_total], family[at_total]] = count[at_total]

    # The minute's number wraps at 2^24; an event that lies ahead counts in this very bucket.
    here = np.zeros((len(distinct), 8), dtype=np.int64)
    here[:, :3] = np.stack([distinct & _PLACE, distinct // 60, distinct // 1440], axis=1)
    here[:, Kind.TEN] = distinct // 10
    table = which[owner]
    distance = here[table, kind] - (number & _PLACE).astype(np.int64)
    distance += (distance < -(_PLACE >> 1)) * (_PLACE + 1)
    entry = np.where(distance < _MOST[kind], _OFFSET[kind] + np.maximum(distance, 0), 0) + table * _ENTRIES
    age = ages[entry]
    read = np.flatnonzero((age < np.inf) & _FOR_GROUP[family, kind])
    finite = sum(map(np.isfinite, half_lives))
    at = owner[read] * 3 + _GROUPS[family[read]]
    groups = _sums(at, count[read], weights[entry[read], :finite], n * 3)
    by_group = np.stack([totals[:, group == _GROUPS].sum(axis=1) for group in range(3)], axis=1)
    counts = np.concatenate([groups] + [by_group.reshape(-1, 1)] * (len(half_lives) - finite), axis=1)
    newest, oldest = np.full(n, np.inf), np.zeros(n)
    np.minimum.at(newest, owner[read], age[read])
    np.maximum.at(oldest, owner[read], age[read])

    families = np.zeros((n, _FAMILIES, len(by_family)))
    if by_family:
        read = np.flatnonzero((age < np.inf) & _FOR_FAMILY[family, kind])
        at = owner[read] * _FAMILIES + family[read]
        sums = _sums(at, count[read], weights[entry[read], finite:], n * _FAMILIES)
        families[:, :, : sums.shape[1]] = sums.reshape(n, _FAMILIES, sums.shape[1])
        families[:, :, sums.shape[1] :] = totals[:, :, None]
    return Decayed(
        counts.reshape(n, 3, len(half_lives)).astype(np.float32),
        newest,
        oldest,
        totals,
        families.astype(np.float32),
    )


def audience(
    rows: Sequence[bytes | bytearray], most: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:  # (n, most) twice
    """Return the most frequent languages of those who follow each of n accounts, and their shares.

    Codes come by descending count, of equal counts the smaller first; 0 pads. Shares are of the followers whose
    language is known.
    """
    n = len(rows)
    languages, shares = np.zeros((n, most), np.int32), np.zeros((n, most), np.float32)
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=n) // CELL
    cells = np.frombuffer(b"".join(rows), dtype=np.uint32).reshape(-1, 2)
    place = (cells[:, 0] & _PLACE).astype(np.int64)
    at = np.flatnonzero((cells[:, 0] >> _PLACE_BITS & (1 << _KIND_BITS) - 1 == Kind.LANGUAGE) & (place > 0))
    owner, code, count = np.repeat(np.arange(n), sizes)[at], place[at], cells[at, 1].astype(np.int64)
    order = np.lexsort((code, -count, owner))
    owner, code, count = owner[order], code[order], count[order]
    total = np.bincount(owner, weights=count, minlength=n)
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    first = np.flatnonzero(rank < most)
    languages[owner[first], rank[first]] = code[first]
    shares[owner[first], rank[first]] = count[first] / total[owner[first]]
    return languages, shares


def _sums(
    at: NDArray[np.int64], count: NDArray[np.int32], weights: NDArray[np.float64], size: int
) -> NDArray[np.float64]:  # (size, H)
    """Sums of weighted counts by place; exact, since weights are multiples of 2^-26."""
    times = count.astype(np.float64)
    sums = np.zeros((size, weights.shape[1]))
    for column in range(weights.shape[1]):
        sums[:, column] = np.bincount(at, weights=weights[:, column] * times, minlength=size) / _UNIT
    return sums
