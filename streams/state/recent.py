"""The newest neighbours of an account, newest first, exact under undo.

A list holds at most `CAPACITY` entries. Below its floor the ledger knows more; when undos leave fewer than `READ`
entries above the floor, the list is made again from the ledger. So the first `READ` are always the true ones.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Final

import msgspec

READ: Final = 32
CAPACITY: Final = 48

Entry = tuple[int, str]  # (-time in microseconds, account): ascending order is newest first


class Recent(msgspec.Struct, array_like=True):
    """Entries in order, and whether they are all there are."""

    entries: list[Entry] = []
    complete: bool = True

    def add(self, time: int, account: str) -> None:
        """Take in a neighbour since `time` microseconds."""
        entry = (-time, account)
        entries = self.entries
        if not self.complete and (not entries or entry > entries[-1]):
            return  # below the floor: the ledger knows it
        insort(entries, entry)
        if len(entries) > CAPACITY:
            entries.pop()
            self.complete = False

    def remove(self, time: int, account: str) -> bool:
        """Take out a neighbour; True if the list must be made again from the ledger."""
        entry = (-time, account)
        at = bisect_left(self.entries, entry)
        if at < len(self.entries) and self.entries[at] == entry:
            del self.entries[at]
        return not self.complete and len(self.entries) < READ


def newest(edges: Iterable[Entry]) -> Recent:
    """Return the list made from every present edge of an account."""
    entries = sorted(edges)
    return Recent(entries[:CAPACITY], len(entries) <= CAPACITY)


_decode = msgspec.msgpack.Decoder(Recent).decode
_encode = msgspec.msgpack.Encoder().encode


def load(stored: bytes | None) -> Recent:
    """Return the list in stored bytes; an empty one for None."""
    return _decode(stored) if stored else Recent()


def dump(recent: Recent) -> bytes | None:
    """Return the bytes to store, None for an empty list."""
    return _encode(recent) if recent.entries or not recent.complete else None
