"""Memories of bounded size for the simulator: which pairs are tied, and what was done lately."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]


class Ties:
    """An approximate set of (source, target) pairs in 4 bytes a slot.

    A pair may be forgotten when another takes its slot, and once in some four billion asks one is taken for
    another. Adding and removing an array acts as if one by one.
    """

    def __init__(self, slots: int) -> None:
        self._table = np.zeros(1 << max(4, (slots - 1).bit_length()), np.uint32)

    def has(self, source: Ints, target: Ints) -> NDArray[np.bool_]:
        """Tells for each pair whether it is tied."""
        slot, tag = self._place(source, target)
        return np.asarray(self._table[slot] == tag)

    def add(self, source: Ints, target: Ints) -> None:
        """Ties the pairs."""
        slot, tag = self._place(source, target)
        self._table[slot] = tag

    def remove(self, source: Ints, target: Ints) -> None:
        """Unties the pairs; those that are not tied are left alone."""
        slot, tag = self._place(source, target)
        self._table[slot[self._table[slot] == tag]] = 0

    def _place(self, source: Ints, target: Ints) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        # The finaliser of splitmix64 (Steele et al. 2014): every bit of the pair moves every bit of the mix.
        mixed = (source.astype(np.uint64) << np.uint64(32)) | target.astype(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        tag = (mixed >> np.uint64(32)).astype(np.uint32)
        return mixed & np.uint64(len(self._table) - 1), np.maximum(tag, np.uint32(1))


class Neighbours:
    """The newest few accounts that each account followed: (n, width), -1 where there is none."""

    def __init__(self, accounts: int, width: int = 8) -> None:
        self._ring = np.full((accounts, width), -1, np.int32)
        self._next = np.zeros(accounts, np.uint8)

    def add(self, source: Ints, target: Ints) -> None:
        """Remembers the pairs in their order."""
        width = self._ring.shape[1]
        order = np.argsort(source, kind="stable")
        sources, firsts, counts = np.unique(source[order], return_index=True, return_counts=True)
        turn = np.arange(len(order)) - np.repeat(firsts, counts)
        rows = source[order]
        self._ring[rows, (self._next[rows] + turn) % width] = target[order]
        self._next[sources] = (self._next[sources] + counts) % width

    def remove(self, source: Ints, target: Ints) -> None:
        """Forgets the pairs."""
        for row, account in zip(source.tolist(), target.tolist(), strict=True):
            ring = self._ring[row]
            ring[ring == account] = -1

    def pick(self, draw: np.random.Generator, accounts: Ints) -> Ints:
        """Draws one remembered account for each, or -1."""
        rows = self._ring[np.maximum(accounts, 0), draw.integers(0, self._ring.shape[1], accounts.shape)]
        return np.where(accounts >= 0, rows, -1)


class Recent:
    """At most `size` rows of an array type, the newer the likelier, from which rows are taken at random.

    While there is room every row is kept. Once it is full one new row of `one_in` takes the place of any, so
    that ages fall off exponentially instead of ending at the `size`-th newest.
    """

    def __init__(self, size: int, dtype: np.dtype[np.void], one_in: int = 8) -> None:
        self.size = size
        self.one_in = one_in
        self.rows: NDArray[np.void] = np.zeros(0, dtype)

    def add(self, draw: np.random.Generator, rows: NDArray[np.void]) -> None:
        """Remembers the rows, or some of them."""
        room = self.size - len(self.rows)
        self.rows = np.concatenate([self.rows, rows[:room]])
        rest = rows[room:]
        rest = rest[draw.integers(0, self.one_in, len(rest)) == 0]
        self.rows[draw.integers(0, self.size, len(rest))] = rest

    def take(self, draw: np.random.Generator, count: int) -> NDArray[np.void]:
        """Takes out at most `count` rows."""
        chosen = draw.permutation(len(self.rows))[:count]
        taken = self.rows[chosen]
        self.rows = np.delete(self.rows, chosen)
        return taken
