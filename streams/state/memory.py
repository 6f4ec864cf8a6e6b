"""The store's contract in dicts: for tests, and for work that need not survive the process."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from kithstream.streams.state.protocol import Changes, Column, Dropped, reaching


class MemoryStore:
    """A partition's state in memory; scans are in byte order."""

    def __init__(self) -> None:
        self._values: dict[Column, dict[bytes, bytes]] = {column: {} for column in Column}
        self._keys: dict[Column, list[bytes]] = {column: [] for column in Column}

    def get(self, column: Column, keys: Sequence[bytes]) -> list[bytes | None]:
        values = self._values[column]
        return [values.get(key) for key in keys]

    def scan(self, column: Column, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self.scan_from(column, prefix, b"")

    def scan_from(self, column: Column, prefix: bytes, begin: bytes) -> Iterator[tuple[bytes, bytes]]:
        keys, values = self._keys[column], self._values[column]
        found = []
        for at in range(bisect_left(keys, max(prefix, begin)), len(keys)):
            if not keys[at].startswith(prefix):
                break
            found.append((keys[at], values[keys[at]]))
        return iter(found)

    def scan_each(
        self, column: Column, prefixes: Iterable[bytes], begin: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        later = reaching(prefixes, begin)
        return chain.from_iterable(self.scan_from(column, prefix, begin) for prefix in later)

    def write(self, changes: Changes, dropped: Sequence[Dropped] = ()) -> None:
        for drop in dropped:
            keys = self._keys[drop.column]
            first, last = bisect_left(keys, drop.begin), bisect_left(keys, drop.end)
            for key in keys[first:last]:
                del self._values[drop.column][key]
            del keys[first:last]
        for column, pairs in changes.items():
            values, keys = self._values[column], self._keys[column]
            for key, value in pairs.items():
                if value is not None:
                    if key not in values:
                        insort(keys, key)
                    values[key] = value
                elif key in values:
                    del values[key]
                    del keys[bisect_left(keys, key)]

    def ingest(self, column: Column, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self.write({column: dict(pairs)})

    def compact(self, ranges: Sequence[Dropped]) -> None:
        """Nothing to do: what was deleted is gone."""

    def checkpoint(self, path: Path) -> None:
        raise NotImplementedError("a store in memory has no checkpoint: copy it")

    def copy(self) -> MemoryStore:
        """Return an independent copy: what a crash at this moment would leave."""
        other = MemoryStore()
        other._values = {column: dict(values) for column, values in self._values.items()}
        other._keys = {column: list(keys) for column, keys in self._keys.items()}
        return other

    def close(self) -> None:
        """Nothing to release."""
