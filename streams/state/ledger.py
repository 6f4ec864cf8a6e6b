"""The ledgers: every edge an account has, and which event decides it.

An edge's state is the greatest of its **stamps**. A stamp is twelve bytes made so that byte order is the
conflict rule: source rank (server over client), then event time, then the undo over the do, then a hash of the
event id. Merging is max(), so duplicates, late events and an undo before its do need no special case.

Out-edge value: epoch (2 bytes) then stamps, greatest first. A retraction takes a stamp out and raises the epoch,
so that the state it leaves, though made of a lesser stamp, still wins at the target.
In-edge value: epoch, the winning stamp or nothing, then the contribution with its version; greatest bytes win.

Keys: owner NUL letter other NUL item, where the letter is the family. Occurrences are keyed by the day of their
event time first, so that a day older than the horizon is dropped as one range.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from kithstream.streams.events.signals import FAMILIES

MINUTE: Final = 60_000_000  # microseconds
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
HORIZON: Final = 7 * DAY  # how late an event may come, and how long one can be retracted

EPOCH: Final = 2
STAMP: Final = 12
NO_EDGE: Final = b"\0\0"
LETTERS: Final[tuple[bytes, ...]] = tuple(bytes([65 + family]) for family in range(FAMILIES))

_stamp = Struct(">QI").pack
_read_stamp = Struct(">Q").unpack_from
_day = Struct(">I").pack
_TIME_BITS: Final = (1 << 62) - 1


def stamp(time: int, *, server: bool, undo: bool, event_id: str) -> bytes:
    """Return the twelve bytes by which an event competes for its edge.

    >>> stamp(5, server=True, undo=True, event_id="a") > stamp(5, server=True, undo=False, event_id="b")
    True
    """
    return _stamp(server << 63 | time << 1 | undo, crc32(event_id.encode()))


class Winner(NamedTuple):
    """What an edge value says: whether the edge is there, and since when (microseconds)."""

    present: bool
    time: int


def winner(value: bytes | None) -> Winner:
    """Return the state of an out- or in-edge value; an absent edge has time 0."""
    if value is None or len(value) < EPOCH + STAMP:
        return Winner(False, 0)
    (head,) = _read_stamp(value, EPOCH)
    return Winner(False, 0) if head & 1 else Winner(True, head >> 1 & _TIME_BITS)


def since(value: bytes | None) -> int:
    """Return the time of a present edge in microseconds, -1 for an absent one (the hot form of `winner`)."""
    if value is None or len(value) < 14:
        return -1
    (head,) = _read_stamp(value, 2)
    return -1 if head & 1 else head >> 1 & _TIME_BITS


def is_undone(value: bytes) -> bool:
    """True if the last word on an edge is an undo; False for a present one, and for one of which all is retracted."""
    return len(value) >= EPOCH + STAMP and bool(value[9] & 1)


def add(value: bytes | None, new: bytes, floor: int) -> bytes:
    """Return the out-edge value with a stamp added; the same bytes if it was there.

    Stamps below one that is older than `floor` (microseconds) can never win again and are dropped.
    """
    if value is None:
        return NO_EDGE + new
    stamps = stamps_of(value)
    if new in stamps:
        return value
    stamps.append(new)
    stamps.sort(reverse=True)
    for place, old in enumerate(stamps):
        if time_of(old) < floor:
            del stamps[place + 1 :]
            break
    return value[:EPOCH] + b"".join(stamps)


def take_out(value: bytes, old: bytes) -> bytes:
    """Return the out-edge value without a stamp, one epoch later; the same bytes if it was not there."""
    stamps = stamps_of(value)
    if old not in stamps:
        return value
    stamps.remove(old)
    epoch = int.from_bytes(value[:EPOCH], "big") + 1
    return min(epoch, 0xFFFE).to_bytes(EPOCH, "big") + b"".join(stamps)


def stamps_of(value: bytes) -> list[bytes]:
    """Return the stamps of an out-edge value, greatest first."""
    return [value[at : at + STAMP] for at in range(EPOCH, len(value), STAMP)]


def time_of(stamp: bytes) -> int:
    """Return the event time of a stamp in microseconds."""
    head: int
    (head,) = _read_stamp(stamp)
    return head >> 1 & _TIME_BITS


def is_undo(stamp: bytes) -> bool:
    """True if the stamp is an undo's."""
    return bool(stamp[7] & 1)


def edge_key(owner: str, family: int, other: str, item: str) -> bytes:
    """Return the key of a state edge in its owner's ledger."""
    return f"{owner}\0{chr(65 + family)}{other}\0{item}".encode()


def follows_of(owner: str) -> bytes:
    """Return what the keys of all follows of an owner begin with; the other account and a NUL are the rest."""
    return edge_key(owner, 0, "", "")[:-1]


def once_key(day: int, owner: str, event_id: str, family: int, other: str, item: str) -> bytes:
    """Return the key of an event in its actor's day-wise ledger; `day` counts from 1970."""
    return _day(day) + f"{owner}\0{event_id}\0{chr(65 + family)}{other}\0{item}".encode()


def heard_key(day: int, owner: str, family: int, other: str, item: str, event_id: str) -> bytes:
    """Return the key of an occurrence in its target's day-wise ledger."""
    return _day(day) + f"{owner}\0{chr(65 + family)}{other}\0{item}\0{event_id}".encode()


def heard_of(said_key: bytes) -> bytes:
    """Return the target's key of an occurrence, from its actor's."""
    actor, event_id, letter_target, item = said_key[4:].split(b"\0")
    return b"%b%b\0%c%b\0%b\0%b" % (said_key[:4], letter_target[1:], letter_target[0], actor, item, event_id)


def said_of(heard_key: bytes) -> bytes:
    """Return the actor's key of an occurrence, from its target's: the inverse of `heard_of`."""
    target, letter_actor, item, event_id = heard_key[4:].split(b"\0")
    return b"%b%b\0%b\0%c%b\0%b" % (heard_key[:4], letter_actor[1:], event_id, letter_actor[0], target, item)


def held_days(watermark: int) -> range:
    """Return the days that the ledgers of days hold at a watermark: those of the horizon, the one before, tomorrow."""
    return range(max((watermark - HORIZON) // DAY - 1, 0), watermark // DAY + 2)


def day_prefix(day: int) -> bytes:
    """Return the prefix shared by every key of a day."""
    return _day(day)
