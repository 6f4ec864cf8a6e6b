"""Negatives: whom the accounts of a batch could have followed instead.

Half are targets of recent events, a quarter their sources, a quarter uniform over the candidates. A
candidate's expected count in the sample is known, so that a loss can correct for it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class SamplingConfig(msgspec.Struct, frozen=True):
    """How negatives are drawn: `count` per batch, from the last `recent` events."""

    count: int = 64
    recent: int = 2000
    targets: float = 0.5
    sources: float = 0.25  # the rest is uniform


class Sample(NamedTuple):
    """Drawn rows, with the expected count of each in such a sample."""

    rows: NDArray[np.int32]
    expected: NDArray[np.float64]


class Recent:
    """The last rows of a kind, with the number of times each is there."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ring = np.zeros(size, np.int32)
        self.seen = 0
        self._counts = np.zeros(1024, np.int32)

    def __len__(self) -> int:
        return min(self.seen, self.size)

    def push(self, rows: NDArray[np.int32]) -> None:
        for row in rows.tolist():
            if row >= len(self._counts):
                self._counts = np.pad(self._counts, (0, row + 1))
            place = self.seen % self.size
            if self.seen >= self.size:
                self._counts[self.ring[place]] -= 1
            self.ring[place] = row
            self._counts[row] += 1
            self.seen += 1

    def shares(self, rows: NDArray[np.int32]) -> NDArray[np.float64]:
        """The share of the ring that each row has; zeros if the ring is empty."""
        inside = rows < len(self._counts)
        counts = np.where(inside, self._counts[np.where(inside, rows, 0)], 0)
        return counts / max(1, len(self))

    def drop(self, rows: NDArray[np.int32]) -> None:
        """Takes rows out of the ring, as if they had never been pushed."""
        start = self.seen - len(self)
        ordered = self.ring[np.arange(start, self.seen) % self.size]
        self.restore(ordered[~np.isin(ordered, rows)])

    def ordered(self) -> NDArray[np.int32]:
        """The content, oldest first."""
        return self.ring[np.arange(self.seen - len(self), self.seen) % self.size]

    def restore(self, rows: NDArray[np.int32]) -> None:
        """Replaces the content, oldest first."""
        self.ring = np.zeros(self.size, np.int32)
        self.seen = 0
        self._counts = np.zeros(1024, np.int32)
        self.push(rows)


class Negatives:
    """Draws negatives. `known` rows are those of all candidates."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        self.targets = Recent(config.recent)
        self.sources = Recent(config.recent)

    def push(self, sources: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        """Adds events, oldest first."""
        self.sources.push(sources)
        self.targets.push(targets)

    def sample(self, known: NDArray[np.int32], rng: np.random.Generator) -> Sample:
        """`count` rows with replacement; fewer while a kind has nothing to draw from."""
        counts = self._counts(len(known))
        parts = [
            pool[rng.integers(0, len(pool), count)]
            for pool, count in zip(
                (self.targets.ordered(), self.sources.ordered(), known), counts, strict=True
            )
            if count
        ]
        rows = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        return Sample(rows, self.expected(rows, len(known)))

    def expected(self, rows: NDArray[np.int32], known: int) -> NDArray[np.float64]:
        """The expected count of candidates in a sample, if `known` candidates there are."""
        targets, sources, uniform = self._counts(known)
        return (
            targets * self.targets.shares(rows)
            + sources * self.sources.shares(rows)
            + uniform / max(1, known)
        )

    def drop(self, rows: NDArray[np.int32]) -> None:
        """Forgets rows that were given up."""
        self.targets.drop(rows)
        self.sources.drop(rows)

    def _counts(self, known: int) -> tuple[int, int, int]:
        config = self.config
        targets = round(config.count * config.targets) if len(self.targets) else 0
        sources = round(config.count * config.sources) if len(self.sources) else 0
        uniform = config.count - round(config.count * config.targets) - round(config.count * config.sources)
        return targets, sources, uniform if known else 0
