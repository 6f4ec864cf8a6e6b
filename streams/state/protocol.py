"""The seam to a partition's store: five columns of sorted bytes, written in one atomic batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol


class Column(Enum):
    """A keyspace of a store."""

    OUT = "out"  # state edges by actor
    IN = "in"  # state edges by target
    SAID = "said"  # every event of the horizon, by day and actor
    HEARD = "heard"  # occurrences of the horizon, by day and target
    ROWS = "rows"  # counters, recent neighbours, sketches, profiles
    META = "default"  # offset, outbox, tombstones, jobs

    __hash__ = object.__hash__  # members are one of a kind; an Enum's own hashes the name, in Python


Changes = Mapping[Column, Mapping[bytes, bytes | None]]  # None deletes


class Dropped(NamedTuple):
    """A range of keys that goes: begin included, end not."""

    column: Column
    begin: bytes
    end: bytes


def reaching(prefixes: Iterable[bytes], begin: bytes) -> Iterator[bytes]:
    """Yield the prefixes that have keys from a key on."""
    return (prefix for prefix in prefixes if prefix >= begin or begin.startswith(prefix))


class Store(Protocol):
    """One partition's state. A write is atomic over all columns and survives kill -9 once it returned."""

    def get(self, column: Column, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""

    def scan(self, column: Column, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs whose key begins with the prefix, in byte order."""

    def scan_from(self, column: Column, prefix: bytes, begin: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of a prefix from a key on, that key included; from the first if `begin` is empty."""

    def scan_each(
        self, column: Column, prefixes: Iterable[bytes], begin: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of several prefixes, given in byte order, from a key on."""

    def write(self, changes: Changes, dropped: Sequence[Dropped] = ()) -> None:
        """Apply everything or nothing."""

    def ingest(self, column: Column, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Put many pairs, in the byte order of their keys: all or none, after every write before it."""

    def compact(self, ranges: Sequence[Dropped]) -> None:
        """Rewrite files, so that what was deleted or written over in these ranges is in none of them."""

    def checkpoint(self, path: Path) -> None:
        """Write a consistent copy into a directory that does not exist yet."""

    def close(self) -> None:
        """Release the files; the store is not usable afterwards."""
