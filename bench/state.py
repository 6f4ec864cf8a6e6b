"""What a partition's store holds, in a form that can be compared with another way to the same state."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

from kithstream.streams.engine.partition import (
    CARRIER,
    FOLLOWEES,
    FOLLOWERS,
    PROFILE,
    ROW_IN,
    ROW_OUT,
    SIZES,
)
from kithstream.streams.state import counters, ledger, recent
from kithstream.streams.state.ledger import MINUTE
from kithstream.streams.state.protocol import Column, Store

COLUMNS = (Column.OUT, Column.IN, Column.SAID, Column.HEARD, Column.ROWS)
# Of each list how many entries are read.
LISTS = dict.fromkeys((FOLLOWERS, FOLLOWEES), recent.NEIGHBOURS) | {
    kind.value: size for kind, size in SIZES.items()
}


def digest(store: Store, watermark: int, deleted: Collection[str] = ()) -> dict[str, tuple[int, str]]:
    """Return keys and SHA-256 of each column of state: the ledgers byte for byte, the rows as they are read.

    In the rows these things depend on when something came and are never read: the order of a row's cells, cells
    older than what is read as of `watermark` (microseconds), what lies beyond the newest that are read of a list, and
    what is empty.
    Whether an event about a `deleted` account is still in the list of the horizon's events depends on whether it or
    the deletion came first to its actor's partition: those are left out.
    """
    found: dict[str, tuple[int, str]] = {}
    for column in COLUMNS:
        count, seen = 0, hashlib.sha256()
        for key, value in told(store, column, watermark, deleted):
            seen.update(b"%d %d " % (len(key), len(value)) + key + value)
            count += 1
        found[column.value] = count, seen.hexdigest()
    return found


def told(
    store: Store, column: Column, watermark: int, deleted: Collection[str] = ()
) -> Iterator[tuple[bytes, bytes]]:
    """Yield what `digest` is made of: keys and what is read of their values."""
    for key, value in store.scan(column, b""):
        if column is Column.SAID and key.split(b"\0")[-2][1:].decode() in deleted:
            continue
        if column is Column.IN and ledger.since(value) >= 0 and len(value) > 14:
            value = value[:14] + value[22:]  # the revision of what is carried is of the way that it came
        if column is Column.ROWS:
            value = _read(key[:1], value, watermark // MINUTE)
            if not value:
                continue
        yield key, value


def differing(
    store: Store, other: Store, column: Column, watermark: int, deleted: Collection[str] = ()
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Yield each key whose value is another in another store, with both values; None where there is none."""
    rest = dict(told(other, column, watermark, deleted))
    for key, value in told(store, column, watermark, deleted):
        if (there := rest.pop(key, None)) != value:
            yield key, value, there
    yield from ((key, None, there) for key, there in rest.items())


def _read(letter: bytes, value: bytes, minute: int) -> bytes:
    """What of a value can be read."""
    if letter in (ROW_IN, ROW_OUT):
        row = counters.prune(bytearray(value), minute)
        return b"".join(sorted(row[at : at + 8] for at in range(0, len(row), 8)))
    if (size := LISTS.get(letter)) is not None:
        entries = recent.load(value).entries[: size.read]
        return repr(entries).encode() if entries else b""
    if letter == CARRIER:
        return b""
    return value if letter == PROFILE or any(value) else b""
