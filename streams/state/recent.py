"""The newest neighbours of an account, newest first, exact under undo.

A list holds at most `capacity` entries. Below its floor the ledger knows more; when undos leave fewer than `read`
entries above the floor, the list is made again from the ledger. So the first `read` are always the true ones.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from kithstream.streams.state import ledger


class Size(NamedTuple):
    """How many entries of a list are exact, and how many it holds at most."""

    read: int
    capacity: int


READ: Final = 32
CAPACITY: Final = 48
NEIGHBOURS: Final = Size(READ, CAPACITY)

Entry = tuple[int, str]  # (-time in microseconds, account): ascending order is newest first


class Recent(msgspec.Struct, array_like=True, gc=False):
    """Entries in order, and whether they are all there are."""

    entries: list[Entry] = []
    complete: bool = True

    def add(self, time: int, account: str, capacity: int = CAPACITY) -> None:
        """Take in a neighbour since `time` microseconds."""
        entry = (-time, account)
        entries = self.entries
        if not self.complete and (not entries or entry > entries[-1]):
            return  # below the floor: the ledger knows it
        insort(entries, entry)
        if len(entries) > capacity:
            entries.pop()
            self.complete = False

    def remove(self, time: int, account: str, read: int = READ) -> bool:
        """Take out a neighbour; True if the list must be made again from the ledger."""
        entry = (-time, account)
        at = bisect_left(self.entries, entry)
        if at < len(self.entries) and self.entries[at] == entry:
            del self.entries[at]
        return not self.complete and len(self.entries) < read


def newest(edges: Iterable[Entry], capacity: int = CAPACITY) -> Recent:
    """Return the list made from every present edge of an account."""
    entries = sorted(edges)
    return Recent(entries[:capacity], len(entries) <= capacity)


def present(prefix: bytes, pairs: Iterable[tuple[bytes, bytes | None]]) -> Iterator[Entry]:
    """Return those present among the pairs of a ledger whose keys are a prefix (`ledger.follows_of`), a name, a NUL."""
    for key, value in pairs:
        if (time := ledger.since(value)) >= 0:
            yield -time, key[len(prefix) : -1].decode()


_decode = msgspec.msgpack.Decoder(Recent).decode
_encode = msgspec.msgpack.Encoder().encode


def load(stored: bytes | None) -> Recent:
    """Return the list in stored bytes; an empty one for None."""
    return _decode(stored) if stored else Recent()


def dump(recent: Recent) -> bytes | None:
    """Return the bytes to store, None for an empty list."""
    return _encode(recent) if recent.entries or not recent.complete else None
