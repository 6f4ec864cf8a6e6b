"""A store over another one that is only read: own writes lie over what is below, and nothing goes down."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import chain
from pathlib import Path

from kithstream.streams.engine.slots import ReadStore
from kithstream.streams.state.protocol import Changes, Column, Dropped, reaching


class Overlay:
    """The contract of a store, copy on write: for a state that is thought of and never written.

    What is below may move on between two reads; whoever wants one state of it sees to that.
    """

    def __init__(self, below: ReadStore) -> None:
        self._below = below
        self._values: dict[Column, dict[bytes, bytes | None]] = {column: {} for column in Column}
        self._dropped: dict[Column, list[Dropped]] = {column: [] for column in Column}

    def get(self, column: Column, keys: Sequence[bytes]) -> list[bytes | None]:
        own = self._values[column]
        deeper = [key for key in keys if key not in own and not self._is_dropped(column, key)]
        found = dict(zip(deeper, self._below.get(column, deeper), strict=True))
        return [own[key] if key in own else found.get(key) for key in keys]

    def scan(self, column: Column, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self.scan_from(column, prefix, b"")

    def scan_from(self, column: Column, prefix: bytes, begin: bytes) -> Iterator[tuple[bytes, bytes]]:
        own = self._values[column]
        keys = sorted(key for key in own if key.startswith(prefix) and key >= begin)
        hidden = frozenset(own)
        below = (
            (key, value)
            for key, value in self._below.scan_from(column, prefix, begin)
            if key not in hidden and not self._is_dropped(column, key)
        )
        pairs = [(key, value) for key in keys if (value := own[key]) is not None]
        return merge(pairs, below) if pairs else below

    def scan_each(
        self, column: Column, prefixes: Iterable[bytes], begin: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        later = reaching(prefixes, begin)
        return chain.from_iterable(self.scan_from(column, prefix, begin) for prefix in later)

    def write(self, changes: Changes, dropped: Sequence[Dropped] = ()) -> None:
        for drop in dropped:
            own = self._values[drop.column]
            keys = sorted(own)
            for key in keys[bisect_left(keys, drop.begin) : bisect_left(keys, drop.end)]:
                del own[key]
            self._dropped[drop.column].append(drop)
        for column, pairs in changes.items():
            self._values[column].update(pairs)

    def ingest(self, column: Column, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self.write({column: dict(pairs)})

    def compact(self, ranges: Sequence[Dropped]) -> None:
        """Nothing to do: what is below is not written."""

    def checkpoint(self, path: Path) -> None:
        raise NotImplementedError("an overlay has no checkpoint: nothing of it is kept")

    def split(self) -> Overlay:
        """Return an overlay with the own writes, which this one has no more."""
        other = Overlay(self._below)
        other._values, self._values = self._values, other._values
        other._dropped, self._dropped = self._dropped, other._dropped
        return other

    def forget(self) -> None:
        """Drop every own write: what is below is seen as it is."""
        for own in self._values.values():
            own.clear()
        for drops in self._dropped.values():
            drops.clear()

    def close(self) -> None:
        """Drop every own write; what is below stays open."""
        self.forget()

    def _is_dropped(self, column: Column, key: bytes) -> bool:
        return any(drop.begin <= key < drop.end for drop in self._dropped[column])
