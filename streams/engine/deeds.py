"""What an account did that others can see, newest first: the follows, likes, reposts, quotes and replies in its ledger.

Private signals are not read: they are no part of what can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from kithstream.streams.engine.partition import FOLLOWEES, Partition
from kithstream.streams.events.signals import SIGNALS, Kind
from kithstream.streams.state import ledger
from kithstream.streams.state.protocol import Column

SCANNED: Final = 4096  # old edges of a signal that are looked at, where the last week has too few
_FOLLOW: Final = 0
_PUBLIC: Final = {signal.family: signal for signal in SIGNALS if signal.public}


class Deed(NamedTuple):
    """One public edge or occurrence of an account."""

    time: int  # microseconds
    signal: str
    other: str  # whom it was about
    column: Column  # OUT for an edge, SAID for an occurrence
    key: bytes


def deeds(partition: Partition, account: str, most: int, may_be_named: Callable[[str], bool]) -> list[Deed]:
    """Return the newest public deeds of an account, at most `most`, newest first.

    None is about an account that may not be named.

    Exact for follows and for the last week. Older likes and reposts are known to their edges alone, which no time
    orders: where the week has too few, `SCANNED` of each signal are looked at. Occurrences older than a week have
    left the ledger and cannot be taken out.
    """
    found = {deed.key: deed for deed in _of_the_week(partition, account)}
    if len(found) < most:
        found.update((deed.key, deed) for deed in _of_before(partition, account))
    newest = FOLLOWEES + account.encode()
    follows = [
        ledger.edge_key(account, _FOLLOW, name, "")
        for _, name in partition.load_recents([newest])[newest].entries
    ]
    found.update((deed.key, deed) for deed in _edges(partition, follows))
    named = (deed for deed in sorted(found.values(), key=_newest_first) if may_be_named(deed.other))
    return list(islice(named, most))


def _newest_first(deed: Deed) -> tuple[int, bytes]:
    return -deed.time, deed.key


def _of_the_week(partition: Partition, account: str) -> Iterator[Deed]:
    """Occurrences, and the edges that events of the horizon are about, as far as they are there."""
    edges: dict[bytes, None] = {}
    prefix = account.encode() + b"\0"
    for day in ledger.held_days(partition.watermark):
        for key, entry in partition.store.scan(Column.SAID, ledger.day_prefix(day) + prefix):
            _, _, letter_other, item = key[4:].split(b"\0")
            signal = _PUBLIC.get(letter_other[0] - 65)
            if signal is None:
                continue
            if signal.kind is Kind.STATE:
                edges[b"%b%b\0%b" % (prefix, letter_other, item)] = None
            elif (time := ledger.since(entry)) >= 0:
                yield Deed(time, signal.name, letter_other[1:].decode(), Column.SAID, key)
    yield from _edges(partition, list(edges))


def _of_before(partition: Partition, account: str) -> Iterator[Deed]:
    for signal in _PUBLIC.values():
        if signal.kind is Kind.STATE:
            prefix = f"{account}\0{chr(65 + signal.family)}".encode()
            for key, value in islice(partition.store.scan(Column.OUT, prefix), SCANNED):
                yield from _present(key, value)


def _edges(partition: Partition, keys: list[bytes]) -> Iterator[Deed]:
    for key, value in zip(keys, partition.store.get(Column.OUT, keys), strict=True):
        yield from _present(key, value)


def _present(key: bytes, value: bytes | None) -> Iterator[Deed]:
    if (time := ledger.since(value)) >= 0:
        _, letter_other, _ = key.decode().split("\0")
        yield Deed(time, _PUBLIC[ord(letter_other[0]) - 65].name, letter_other[1:], Column.OUT, key)
