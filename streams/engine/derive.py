"""Rows from ledgers: what an account's follows mean for its counters, neighbour lists and sketch.

Everything of the family follow is a function of the present edges, so it is replaced as a whole, whatever
stood there; what other families count is left alone. Deriving twice changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kithstream.streams.communities import cells
from kithstream.streams.communities.carried import REVISION, WITHHELD, share_of, weights
from kithstream.streams.engine.audiences import SHARED
from kithstream.streams.engine.interests import Interests
from kithstream.streams.engine.partition import (
    FOLLOWEES,
    FOLLOWERS,
    FOLLOWING,
    ROW_IN,
    ROW_OUT,
    SKETCH,
    UNDERIVED,
    Batch,
    Partition,
)
from kithstream.streams.engine.reach import At, Reach, oldest
from kithstream.streams.state import counters, ledger, recent, sketches
from kithstream.streams.state.counters import Kind
from kithstream.streams.state.ledger import MINUTE
from kithstream.streams.state.protocol import Column, Store
from kithstream.streams.state.recent import CAPACITY, Recent

SEGMENT: Final = 250_000  # edges of one direction read at a time; more only for an account that has more
_FOLLOW: Final = 0
_LETTER: Final = ledger.LETTERS[_FOLLOW]
_TIME_BITS: Final = np.uint64((1 << 62) - 1)
_PLACE: Final = (1 << 24) - 1
_STATE: Final = ledger.EPOCH + ledger.STAMP
_VALUE: Final = np.dtype(
    [
        ("epoch", "V2"),
        ("head", ">u8"),
        ("hash", "V4"),
        ("revision", f"V{REVISION}"),
        ("language", ">u2"),
        ("country", ">u2"),
    ]
)
_FULL: Final = _VALUE.itemsize
_WITHHELD: Final = int.from_bytes(WITHHELD[:2], "big")  # in the place of both codes

Changed = dict[bytes, bytes | None]
Item = tuple[bytes, bytes]
Segment = tuple[list[Item], list[Item]]  # whole accounts' items of the out-ledger, and of the in-ledger


class Follows(NamedTuple):
    """Present follows of one direction, in the byte order of (owner, other)."""

    owners: list[bytes]  # (m,) every account with an edge, present or not
    owner: NDArray[np.int64]  # (n,) into owners
    other: pa.Array  # (n,) binary, behind the family's letter
    key: pa.Array  # (n,) binary
    time: NDArray[np.int64]  # (n,) microseconds
    carried: NDArray[np.int64]  # (n, 2) codes of language and country, -1 where nothing is carried
    counts: NDArray[np.bool_]  # (n,) whether it counts for its target


def derive(partition: Partition, accounts: Iterable[bytes] | None, on_written: Callable[[int], None]) -> None:
    """Derive the rows of accounts, or of everyone, and clear the mark that they are due.

    `on_written` is told the edges read so far. Everyone begins behind the mark, so that a broken run goes on.
    """
    store = partition.store
    (mark,) = store.get(Column.META, [UNDERIVED])
    accounts = None if accounts is None else sorted(accounts)
    segments = _everyone(store, mark or b"") if accounts is None else _some(store, accounts)
    done = 0
    over: list[At] = []
    for out, heard in segments:
        changes: Changed = {}
        over += _fold(partition, out, heard, changes)
        last = max(items[-1][0] for items in (out, heard) if items).split(b"\0", 1)[0]
        meta = {UNDERIVED: last + b"\1"} if accounts is None else {}  # no key lies between NUL and 1
        store.write({Column.ROWS: changes, Column.META: meta})
        done += len(out) + len(heard)
        on_written(done)
    partition.recount(accounts)
    partition.forget()
    batch = Batch(partition)
    named = None if accounts is None else [account.decode() for account in accounts]
    Reach(partition, Interests(partition)).loaded(over, named, batch)
    batch.changes[Column.META][UNDERIVED] = None
    batch.write()


def _everyone(store: Store, begin: bytes) -> Iterator[Segment]:
    """Both ledgers from a key on, cut between accounts."""
    sources = [store.scan_from(column, b"", begin) for column in (Column.OUT, Column.IN)]
    waiting: list[list[Item]] = [[], []]
    size = SEGMENT
    while True:
        ended = []
        for source, items in zip(sources, waiting, strict=True):
            items.extend(islice(source, max(size - len(items), 0)))
            ended.append(len(items) < size)
        if not any(waiting):
            return
        # Behind the last account of a side that goes on, its edges are not all there.
        bounds = [
            items[-1][0].split(b"\0", 1)[0] for items, end in zip(waiting, ended, strict=True) if not end
        ]
        cut = [len(items) for items in waiting]
        if bounds:
            bound = min(bounds) + b"\0"
            cut = [bisect_left(items, bound, key=_key_of) for items in waiting]
        if not any(cut):
            size *= 2
            continue
        yield waiting[0][: cut[0]], waiting[1][: cut[1]]
        waiting = [items[end:] for items, end in zip(waiting, cut, strict=True)]
        size = SEGMENT


def _some(store: Store, accounts: Sequence[bytes]) -> Iterator[Segment]:
    """The follows of accounts, one after the other."""
    out: list[Item] = []
    heard: list[Item] = []
    for account in accounts:
        prefix = account + b"\0" + _LETTER
        out.extend(store.scan(Column.OUT, prefix))
        heard.extend(store.scan(Column.IN, prefix))
        if len(out) + len(heard) >= SEGMENT:
            yield out, heard
            out, heard = [], []
    if out or heard:
        yield out, heard


def _key_of(item: Item) -> bytes:
    return item[0]


def _fold(partition: Partition, out_items: list[Item], in_items: list[Item], changes: Changed) -> list[At]:
    """Derive whole accounts; return the days on which they follow more than counts."""
    out, heard = _follows(out_items), _follows(in_items)
    now_minute = partition.watermark // MINUTE
    mutual = pc.is_in(heard.key, value_set=out.key).to_numpy(zero_copy_only=False)
    audience = [_cells(heard.owner[mutual], Kind.MUTUAL, np.zeros(mutual.sum(), dtype=np.int64))]
    for column, kind in ((0, Kind.LANGUAGE), (1, Kind.COUNTRY)):
        told = np.flatnonzero(heard.carried[:, column] >= 0)
        audience.append(_cells(heard.owner[told], kind, heard.carried[told, column]))
    _rows(partition, ROW_OUT, out.owners, _time_cells(out, now_minute), changes)
    counted = _counted(heard)
    _rows(partition, ROW_IN, heard.owners, [*_time_cells(counted, now_minute), *audience], changes)
    _recents(FOLLOWEES, out, changes)
    _recents(FOLLOWERS, heard, changes)
    _sketches(SKETCH, counted, changes)
    _sketches(FOLLOWING, out, changes)
    _audiences(partition, heard.owners, in_items, changes)
    return _over(partition, out)


def _counted(follows: Follows) -> Follows:
    """Those that count for their target."""
    at = np.flatnonzero(follows.counts)
    if len(at) == len(follows.time):
        return follows
    return Follows(
        follows.owners,
        follows.owner[at],
        follows.other.take(at),
        follows.key.take(at),
        follows.time[at],
        follows.carried[at],
        follows.counts[at],
    )


def _over(partition: Partition, follows: Follows) -> list[At]:
    """The days on which owners have more follows than their reach."""
    reach = partition.reach[_FOLLOW]
    if not reach:
        return []
    days, count = np.unique(follows.owner << 32 | follows.time // ledger.DAY, return_counts=True)
    return [
        (follows.owners[day >> 32].decode(), _FOLLOW, day & 0xFFFFFFFF)
        for day in days[count > reach].tolist()
        if day & 0xFFFFFFFF > oldest(partition.watermark)
    ]


def _follows(items: list[Item]) -> Follows:
    """Decode ledger items; other families are left out."""
    keys = pa.array([key for key, _ in items], pa.binary())
    parts = pc.split_pattern(keys, pattern=b"\0").flatten()
    places = np.arange(len(items)) * 3  # owner, letter with other, item
    named = pc.starts_with(parts.take(places + 1), pattern=_LETTER)
    rows = np.flatnonzero(named.to_numpy(zero_copy_only=False))  # (n,)
    names = parts.take(places[rows]).dictionary_encode()
    values, sizes = _values(pa.array([value for _, value in items], pa.binary()).take(rows))
    present = np.flatnonzero((sizes >= _STATE) & (values["head"] & 1 == 0))
    values = values[present]
    carried = np.stack([values["language"], values["country"]], axis=1).astype(np.int64)
    withheld = (sizes[present] >= _FULL) & (carried == _WITHHELD).all(axis=1)
    carried[(sizes[present] < _FULL) | ~carried.any(axis=1) | withheld] = -1
    kept = rows[present]
    return Follows(
        names.dictionary.to_pylist(),
        names.indices.to_numpy().astype(np.int64)[present],
        parts.take(places[kept] + 1),
        keys.take(kept),
        (values["head"] >> 1 & _TIME_BITS).astype(np.int64),
        carried,
        ~withheld,
    )


def _values(stored: pa.Array) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """The beginnings of edge values, padded, and the values' sizes."""
    _, ends, raw = stored.buffers()
    ends = np.frombuffer(ends, dtype=np.int32)[stored.offset : stored.offset + len(stored) + 1].astype(
        np.int64
    )
    data = np.append(np.frombuffer(raw or b"", dtype=np.uint8), np.zeros(_FULL, dtype=np.uint8))
    values = data[ends[:-1, None] + np.arange(_FULL)]
    return values.view(_VALUE).reshape(-1), np.diff(ends)


def _cells(owner: NDArray[np.int64], kind: Kind, place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Owners and cells in one number each; the cells of times come last in a row."""
    last = int(kind < Kind.TOTAL) << 31
    return owner << 32 | (last | _FOLLOW << 27 | kind << 24) | place & _PLACE


def _time_cells(follows: Follows, now_minute: int) -> list[NDArray[np.int64]]:
    """The cells in which each follow counts, as `counters.count_at` says."""
    minute = follows.time // MINUTE
    age = now_minute - minute
    cells = [_cells(follows.owner, Kind.TOTAL, np.zeros_like(minute))]
    for kind, width, held in (
        (Kind.DAY, 1440, counters.DAYS_HELD * 1440),
        (Kind.HOUR, 60, counters.HOURS_HELD * 60),
        (Kind.MINUTE, 1, counters.MINUTES_HELD),
    ):
        live = np.flatnonzero(age < held)
        cells.append(_cells(follows.owner[live], kind, minute[live] // width))
    return cells


def _rows(
    partition: Partition,
    prefix: bytes,
    owners: list[bytes],
    cells: list[NDArray[np.int64]],
    changes: Changed,
) -> None:
    """Put cells in the place of those that the owners' rows have of the family."""
    keys = [prefix + owner for owner in owners]
    stored = partition.store.get(Column.ROWS, keys)
    cell, count = np.unique(np.concatenate(cells), return_counts=True)
    owner = cell >> 32
    packed = np.stack([(cell & 0x7FFFFFFF).astype(np.uint32), count.astype(np.uint32)], axis=1)
    if stored.count(None) < len(stored):
        sizes = np.array([len(row or b"") for row in stored]) // counters.CELL
        old = np.frombuffer(b"".join([row or b"" for row in stored]), dtype=np.uint32).reshape(-1, 2)
        others = np.flatnonzero(old[:, 0] >> 27 != _FOLLOW)
        owner = np.concatenate([owner, np.repeat(np.arange(len(keys)), sizes)[others]])
        order = np.argsort(owner, kind="stable")
        owner, packed = owner[order], np.concatenate([packed, old[others]])[order]
    ends = (np.searchsorted(owner, np.arange(len(keys) + 1)) * counters.CELL).tolist()
    raw = packed.tobytes()
    changes.update((key, raw[a:b] or None) for key, a, b in zip(keys, ends, ends[1:], strict=False))


def _recents(prefix: bytes, follows: Follows, changes: Changed) -> None:
    """The newest neighbours of each owner."""
    order = np.lexsort((-follows.time, follows.owner))
    begin = np.searchsorted(follows.owner, np.arange(len(follows.owners) + 1))
    rank = np.arange(len(order)) - begin[follows.owner]
    order = order[rank < CAPACITY]
    others = follows.other.take(order).cast(pa.string()).to_pylist()
    entries = [(-time, other[1:]) for time, other in zip(follows.time[order].tolist(), others, strict=True)]
    held = np.diff(begin)
    ends = np.concatenate([[0], np.cumsum(np.minimum(held, CAPACITY))]).tolist()
    for at, (owner, complete) in enumerate(zip(follows.owners, (held <= CAPACITY).tolist(), strict=True)):
        changes[prefix + owner] = recent.dump(Recent(entries[ends[at] : ends[at + 1]], complete))


def _sketches(letter: bytes, follows: Follows, changes: Changed) -> None:
    """The sum of the neighbours' vectors for each owner."""
    names = follows.other.dictionary_encode()
    vectors = sketches.vectors([name[1:] for name in names.dictionary.to_pylist()])
    owners, begin = np.unique(follows.owner, return_index=True)
    sums = np.zeros((len(follows.owners), sketches.DIM), dtype=np.int64)
    if len(owners):
        sums[owners] = np.add.reduceat(vectors[names.indices.to_numpy()], begin, axis=0, dtype=np.int64)
    for owner, total in zip(follows.owners, sums, strict=True):
        changes[letter + owner] = total.tobytes() if total.any() else None


def _audiences(partition: Partition, owners: list[bytes], items: list[Item], changes: Changed) -> None:
    """The sums of what followers carry to each owner, in every version in use."""
    for slot in partition.slots:
        sums: dict[bytes, dict[int, int]] = {owner: {} for owner in owners}
        for key, value in items:
            if len(value) <= SHARED or (slot.record.into is not None and key >= slot.record.into):
                continue
            owner, letter_actor, _ = key.split(b"\0")
            if letter_actor[:1] != _LETTER or ledger.since(value) < 0:
                continue
            own = sums[owner]
            for community, weight in weights(share_of(value[SHARED:], slot.tag)):
                own[community] = own.get(community, 0) + weight
        changes.update((slot.audience + owner, cells.dump(own) or None) for owner, own in sums.items())
