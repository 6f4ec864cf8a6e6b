"""Address books in the ledger: whom an account knows, as salted hashes, readable by nobody else.

The value of an entry is an out-edge's: an epoch that is not used, then stamps, greatest first. Each stamp
stands for itself, so that taking away those up to a time leaves what the others say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from kithstream.streams.events.signals import SIGNALS
from kithstream.streams.state import ledger
from kithstream.streams.state.ledger import NO_EDGE

FAMILIES: Final = frozenset(signal.family for signal in SIGNALS if signal.private)
LETTERS: Final = frozenset(65 + family for family in FAMILIES)


def add(value: bytes | None, stamp: bytes, floor: int) -> bytes:
    """Return the value with a stamp added.

    A stamp that is neither greater nor later than one from before `floor` (microseconds) never decides again.
    """
    stamps = set(ledger.stamps_of(value or NO_EDGE))
    stamps.add(stamp)
    latest = -1
    kept = []
    for one in sorted(stamps, reverse=True):
        time = ledger.time_of(one)
        if time > latest:
            kept.append(one)
            if time < floor:
                latest = time
    return NO_EDGE + b"".join(kept)


def cut(value: bytes, begin: int | None) -> bytes | None:
    """Return the value with the stamps from a time on alone, None if there are none."""
    if begin is None:
        return None
    kept = [stamp for stamp in ledger.stamps_of(value) if ledger.time_of(stamp) >= begin]
    return NO_EDGE + b"".join(kept) if kept else None


def without(value: bytes | None, taken: bytes) -> bytes | None:
    """Return the value without the stamps of another one, None if there are none left."""
    gone = set(ledger.stamps_of(taken))
    kept = [stamp for stamp in ledger.stamps_of(value or NO_EDGE) if stamp not in gone]
    return NO_EDGE + b"".join(kept) if kept else None


def prefixes(account: str) -> list[bytes]:
    """Return the prefixes of an account's entries in the out-ledger."""
    return [f"{account}\0{chr(letter)}".encode() for letter in sorted(LETTERS)]


def present(pairs: Iterable[tuple[bytes, bytes]], begin: int | None) -> Iterator[bytes]:
    """Yield the hashes of the entries that count; `pairs` are of the out-ledger."""
    for key, value in pairs:
        if ledger.since(cut(value, begin)) >= 0:
            yield bytes.fromhex(key.split(b"\0")[1][1:].decode())
