"""Follows of a chunk into the ledgers of both sides: what the two stages would leave there, many at a time.

Every state is the greatest of what was there and what comes, so a chunk that is merged again changes nothing,
and a chunk of which a crash left a part is made whole by merging it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from kithstream.streams.communities.carried import Contribution
from kithstream.streams.communities.carried import load as load_carrier
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.partition import CARRIER, PROFILE, WATERMARK, Partition
from kithstream.streams.state import ledger, profiles
from kithstream.streams.state.ledger import DAY, HORIZON
from kithstream.streams.state.protocol import Column

_FOLLOW: Final = 0
_LETTER: Final = ledger.LETTERS[_FOLLOW]
_STATE: Final = ledger.EPOCH + ledger.STAMP  # bytes of an out-edge value that its target is told
_VALUE: Final = np.dtype([("epoch", ">u2"), ("head", ">u8"), ("hash", ">u4")])
_SERVER: Final = np.uint64(1 << 63)

Codes = NDArray[np.int64]
Pairs = list[tuple[bytes, bytes]]


class Edges(NamedTuple):
    """Checked follows, one for each pair, in the byte order of (source, target)."""

    accounts: list[bytes]  # (m,) distinct, in byte order
    places: Codes  # (m,) the partition of each
    source: Codes  # (n,) into accounts
    target: Codes  # (n,) into accounts
    time: NDArray[np.int64]  # (n,) microseconds


class Touched:
    """Accounts of one partition whose edges changed: their names, or None for everyone."""

    def __init__(self, most: int) -> None:
        self.accounts: set[bytes] | None = set()
        self._most = most

    def add(self, accounts: Sequence[bytes], codes: Codes) -> None:
        """Take in accounts by their places in a list."""
        if self.accounts is not None:
            self.accounts.update(accounts[code] for code in np.unique(codes).tolist())
            if len(self.accounts) > self._most:
                self.accounts = None

    def add_everyone(self) -> None:
        """Take in all accounts there are."""
        self.accounts = None


def event_id(source: str, target: str) -> str:
    """Return the id of a loaded follow: loading it again is the same event, and `retract` can name it."""
    return f"load:{source}:{target}"


def merge(
    engine: Engine,
    edges: Edges,
    touched: Sequence[Touched],
    marks: Mapping[bytes, bytes],
    on_written: Callable[[int], None],
) -> int:
    """Bring edges into the ledgers, and `marks` into META where all of them are; return how many changed.

    Rows are left as they were: `touched` says for which accounts they are to be derived again.
    """
    edges = _unretracted(engine, edges)
    states = _states(edges)
    newest = int(edges.time.max(initial=0))
    changed = 0
    for partition, known in zip(engine.partitions, touched, strict=True):
        partition.advance(newest)
        changed += _acted(partition, edges, states, known)
    carried = _carried(engine, edges)
    for partition, known in zip(engine.partitions, touched, strict=True):
        _heard(partition, edges, states, carried, known)
        meta = {**marks, WATERMARK: partition.watermark.to_bytes(8, "big")}
        partition.store.write({Column.SAID: _said(partition, edges), Column.META: meta}, partition.expired)
        partition.expired = []
        on_written(partition.number)
    return changed


def _acted(partition: Partition, edges: Edges, states: list[bytes], touched: Touched) -> int:
    """Out-ledger: add the stamps; where a lesser one meets a greater, `states` gets the one that wins."""
    at = np.flatnonzero(edges.places[edges.source] == partition.number)
    keys = _keys(edges, edges.source[at], edges.target[at])
    places = at.tolist()
    new = [states[place] for place in places]
    stored = _stored(partition, Column.OUT, keys)
    same = np.zeros(len(keys), dtype=np.bool_)
    floor = partition.watermark - HORIZON
    for place, old in stored.items():
        value = _added(old, new[place][ledger.EPOCH :], floor)
        states[places[place]] = value[:_STATE]
        same[place] = value == old
        new[place] = value
    return _write(partition, Column.OUT, keys, new, same, edges, edges.source[at], touched)


def _added(old: bytes, stamp: bytes, floor: int) -> bytes:
    """`ledger.add`, but of stamps of the same event, told apart by their times, the greatest stays alone."""
    stamps = ledger.stamps_of(old)
    others = [other for other in stamps if other[8:] != stamp[8:]]
    if len(others) < len(stamps):
        if max(other for other in stamps if other[8:] == stamp[8:]) >= stamp:
            return old
        old = old[: ledger.EPOCH] + b"".join(others)
    return ledger.add(old, stamp, floor)


def _heard(
    partition: Partition, edges: Edges, states: list[bytes], carried: list[bytes] | None, touched: Touched
) -> None:
    """In-ledger: the greater state stays, with what the follower carries."""
    at = np.flatnonzero(edges.places[edges.target] == partition.number)
    at = at[np.argsort(edges.target[at] << 32 | edges.source[at])]
    target, source = edges.target[at], edges.source[at]
    keys = _keys(edges, target, source)
    new = [states[place] for place in at.tolist()]
    if carried is not None:
        new = [state + carried[code] for state, code in zip(new, source.tolist(), strict=True)]
    same = np.zeros(len(keys), dtype=np.bool_)
    for place, old in _stored(partition, Column.IN, keys).items():
        same[place] = new[place] <= old
    _write(partition, Column.IN, keys, new, same, edges, target, touched)


def _keys(edges: Edges, owners: Codes, others: Codes) -> list[bytes]:
    """The keys of follows in their owners' ledgers; in byte order if the codes are in order."""
    begin = [name + b"\0" + _LETTER for name in edges.accounts]
    end = [name + b"\0" for name in edges.accounts]
    return [begin[a] + end[b] for a, b in zip(owners.tolist(), others.tolist(), strict=True)]


def _stored(partition: Partition, column: Column, keys: list[bytes]) -> dict[int, bytes]:
    """What the ledger holds already, by place in the keys."""
    if next(partition.store.scan(column, b""), None) is None:
        return {}
    found = partition.store.get(column, keys)
    if found.count(None) == len(found):
        return {}
    return {place: value for place, value in enumerate(found) if value is not None}


def _write(
    partition: Partition,
    column: Column,
    keys: list[bytes],
    values: list[bytes],
    same: NDArray[np.bool_],
    edges: Edges,
    owners: Codes,
    touched: Touched,
) -> int:
    pairs: Pairs = list(zip(keys, values, strict=True))
    if same.any():
        kept = np.flatnonzero(~same)
        pairs, owners = [pairs[place] for place in kept.tolist()], owners[kept]
    partition.store.ingest(column, pairs)
    touched.add(edges.accounts, owners)
    return len(pairs)


def _states(edges: Edges) -> list[bytes]:
    """What each edge's own event makes of it: no epoch, and the stamp of a follow by the server."""
    begun = [crc32(b":", crc32(name, crc32(b"load:"))) for name in edges.accounts]
    names = edges.accounts
    values = np.zeros(len(edges.time), dtype=_VALUE)
    values["head"] = _SERVER | edges.time.astype(np.uint64) << np.uint64(1)
    values["hash"] = [
        crc32(names[b], begun[a]) for a, b in zip(edges.source.tolist(), edges.target.tolist(), strict=True)
    ]
    states: list[bytes] = values.view(f"V{_STATE}").tolist()
    return states


def _carried(engine: Engine, edges: Edges) -> list[bytes] | None:
    """What follows of each account carry to their targets; None if no account ever told anything.

    Interests in communities are left out: they are counted and sent when the rows are derived.
    """
    carried = [b""] * len(edges.accounts)
    for partition in engine.partitions:
        store = partition.store
        if all(next(store.scan(Column.ROWS, letter), None) is None for letter in (PROFILE, CARRIER)):
            continue
        mine = np.unique(edges.source[edges.places[edges.source] == partition.number]).tolist()
        keys = [edges.accounts[code] for code in mine]
        profiled = store.get(Column.ROWS, [PROFILE + name for name in keys])
        carriers = store.get(Column.ROWS, [CARRIER + name for name in keys])
        for code, profile, carrier in zip(mine, profiled, carriers, strict=True):
            if profile is not None or carrier is not None:
                codes = profiles.load(profile).codes()
                carried[code] = Contribution.of(load_carrier(carrier), codes, b"").head
    return carried if any(carried) else None


def _said(partition: Partition, edges: Edges) -> dict[bytes, bytes | None]:
    """Entries by which events within the horizon can be retracted."""
    late = edges.time >= partition.watermark - HORIZON
    said: dict[bytes, bytes | None] = {}
    for at in np.flatnonzero(late & (edges.places[edges.source] == partition.number)).tolist():
        source, target = (edges.accounts[codes[at]].decode() for codes in (edges.source, edges.target))
        name, time = event_id(source, target), int(edges.time[at])
        stamp = ledger.stamp(time, server=True, undo=False, event_id=name)
        said[ledger.once_key(time // DAY, source, name, _FOLLOW, target, "")] = ledger.NO_EDGE + stamp
    held = partition.store.get(Column.SAID, list(said))
    return {
        key: new
        for (key, new), old in zip(said.items(), held, strict=True)
        if new is not None and (old is None or new > old)
    }


def _unretracted(engine: Engine, edges: Edges) -> Edges:
    """Leave out follows whose events were retracted before they came."""
    names = {name for partition in engine.partitions for name in partition.retracted if b"\0load:" in name}
    if not names:
        return edges
    accounts = edges.accounts
    pairs = zip(edges.source.tolist(), edges.target.tolist(), strict=True)
    kept = np.array(
        [b"%b\0load:%b:%b" % (accounts[a], accounts[a], accounts[b]) not in names for a, b in pairs],
        dtype=np.bool_,
    )
    return edges._replace(source=edges.source[kept], target=edges.target[kept], time=edges.time[kept])
