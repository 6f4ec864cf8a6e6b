"""The two versions of communities that a partition holds at a time: one that is read, one that is being filled.

A slot has rows of interests and of audiences, and its share of what follows carry. Filling goes over the actors
(their interests are counted, their follows sent again) and over the in-ledger (shares of the version that were there
before the slot). A version whose file is not at hand is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from kithstream.streams.communities.carried import TAG
from kithstream.streams.communities.interest import MOST, NEWEST
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.state.protocol import Column, Dropped

# Keys of the column ROWS, with the slot's digit and the account behind: (community, number) cells.
INTEREST, AUDIENCE = b"u", b"x"
# Keys of the column META: a slot's record, with its digit behind; the digit of the slot that is read.
SLOT, READ = b"V", b"slot"
DIGITS: Final = (b"0", b"1")
NOBODY: Final = -1


class ReadStore(Protocol):
    """The half of a store that reads."""

    def get(self, column: Column, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(self, column: Column, prefix: bytes) -> Iterator[tuple[bytes, bytes]]: ...

    def scan_from(self, column: Column, prefix: bytes, begin: bytes) -> Iterator[tuple[bytes, bytes]]: ...


class Limits(NamedTuple):
    """Bounds of an interest, and of what an actor moves in a day; smaller ones are for tests."""

    most: int = MOST  # communities of one account
    newest: int = NEWEST  # follows of one account that count
    reach: int | None = None  # of every signal that has one, 0 for no bound; None for each signal's own


class Record(msgspec.Struct, array_like=True):
    """How far a slot is filled. None stands for all of it."""

    version: str
    turn: int  # counts the versions that were adopted: the greatest is to be read
    out: bytes | None = b""  # actors below are counted and due to be sent
    into: bytes | None = b""  # keys of the in-ledger below are in the audiences


class Slot:
    """A version in use."""

    def __init__(self, number: int, known: KnownFor, record: Record) -> None:
        self.number = number
        self.known = known
        self.record = record
        self.tag = tag_of(known.version)
        self.interest = INTEREST + DIGITS[number]
        self.audience = AUDIENCE + DIGITS[number]

    @property
    def key(self) -> bytes:
        """Where the record is in META."""
        return SLOT + DIGITS[self.number]

    @property
    def counted(self) -> bool:
        """True if all actors and all of the in-ledger were gone over."""
        return self.record.out is None and self.record.into is None

    def dump(self) -> bytes:
        """Return the record's bytes."""
        return msgspec.msgpack.encode(self.record)


def load(number: int, stored: bytes | None, versions: Mapping[str, KnownFor]) -> Slot | None:
    """Return a slot as it was written; None if it is empty or its version is not at hand."""
    if stored is None:
        return None
    record = msgspec.msgpack.decode(stored, type=Record)
    known = versions.get(record.version)
    return None if known is None else Slot(number, known, record)


def read(store: ReadStore, versions: Mapping[str, KnownFor]) -> Slot | None:
    """Return the slot that a store reads; None if there is none or its version is not at hand."""
    (digit,) = store.get(Column.META, [READ])
    if digit is None:
        return None
    return load(int(digit), store.get(Column.META, [SLOT + digit])[0], versions)


def tag_of(version: str) -> bytes:
    """Return the four bytes that name a version where follows carry it."""
    return bytes.fromhex(version)[:TAG]


def rows_of(number: int) -> list[Dropped]:
    """Return the ranges of a slot's rows."""
    digit = DIGITS[number]
    after = bytes([digit[0] + 1])
    return [Dropped(Column.ROWS, letter + digit, letter + after) for letter in (INTEREST, AUDIENCE)]
