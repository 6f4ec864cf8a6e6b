"""Id vectors: two learned vectors and a fixed block of random signs per account.

A vector is born from the account id's hash, so it does not depend on the order in which accounts arrive,
and an account that was never trained need not be known at all: its row comes out the same when it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

NOBODY: Final = 0  # the row of no account: zero in every table, never trained

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


class IdTables(NamedTuple):
    """The id vectors of some accounts, by row."""

    target: torch.Tensor  # (rows, dim) S: the account as one who is followed
    source: torch.Tensor  # (rows, dim) T: the account as one who follows
    signs: torch.Tensor  # (rows, signs) -1, 0 or 1; never trained


class IdVectors:
    """A growing table of id vectors with its optimiser state. Not safe for threads.

    Row numbers are private to one table: they depend on the order of arrival, vectors do not.
    """

    def __init__(self, dim: int, signs: int, seed: int, scale: float) -> None:
        self.dim = dim
        self.sign_dim = signs
        self.seed = seed
        self.scale = scale
        self._row: dict[str, int] = {}
        self._names: list[str | None] = [None]
        self._free: list[int] = []
        self._allocate(1024)

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, account: object) -> bool:
        return account in self._row

    @property
    def capacity(self) -> int:
        """Rows allocated; every row number is below it."""
        return len(self.used)

    @property
    def tables(self) -> IdTables:
        """Views of the tables; valid until the next growth."""
        return self._tables

    def name(self, row: int) -> str | None:
        """The account of a row, None if the row is nobody's."""
        return self._names[row] if row < len(self._names) else None

    def rows_of(self, accounts: Sequence[str]) -> NDArray[np.int32]:
        """Rows of accounts; one who is not in the table is born."""
        found = list(map(self._row.get, accounts))
        if None in found:
            self._bear([a for a, row in zip(accounts, found, strict=True) if row is None])
            found = list(map(self._row.get, accounts))
        return np.array(found, np.int32)

    def touch(self, rows: NDArray[np.int32], as_of: int) -> None:
        """Notes that rows were in use at a time in microseconds."""
        self.used[rows] = as_of

    def expire(self, before: int) -> dict[str, int]:
        """Forgets accounts last touched before a time; returns them with their freed rows.

        An account that comes back is born again, without what was learned.
        """
        return self.forget([name for name, row in self._row.items() if self.used[row] < before])

    def forget(self, accounts: Sequence[str]) -> dict[str, int]:
        """Forgets accounts; returns those that were known with their freed rows."""
        freed = {name: self._row.pop(name) for name in accounts if name in self._row}
        rows = list(freed.values())
        for row in rows:
            self._names[row] = None
        self._free.extend(rows)
        for table in (self.target, self.source, self.signs, self.squares, self.used):
            table[rows] = 0
        return freed

    def restore(
        self,
        names: Sequence[str | None],
        free: Sequence[int],
        target: NDArray[np.float32],
        source: NDArray[np.float32],
        squares: NDArray[np.float32],
        used: NDArray[np.int64],
    ) -> None:
        """Replaces the content by what `names`, `free` and the tables held when they were saved."""
        count = len(names)
        self._names = list(names)
        self._row = {name: row for row, name in enumerate(names) if name is not None}
        self._free = list(free)
        self._allocate(max(1024, count))
        self.target[:count], self.source[:count] = target, source
        self.squares[:count], self.used[:count] = squares, used
        rows = np.array(list(self._row.values()), np.int64)
        if len(rows):
            self.signs[rows] = self._born(list(self._row))[2]

    @property
    def names(self) -> Sequence[str | None]:
        """The account of every row, None for nobody."""
        return self._names

    @property
    def free(self) -> Sequence[int]:
        """Rows to be given away next, last first."""
        return self._free

    def _allocate(self, capacity: int) -> None:
        self.target = np.zeros((capacity, self.dim), np.float32)
        self.source = np.zeros((capacity, self.dim), np.float32)
        self.signs = np.zeros((capacity, self.sign_dim), np.int8)
        self.squares = np.zeros((capacity, 2), np.float32)  # Adagrad's sums for target and source
        self.used = np.zeros(capacity, np.int64)
        self._view()

    def _view(self) -> None:
        self._tables = IdTables(
            torch.from_numpy(self.target), torch.from_numpy(self.source), torch.from_numpy(self.signs)
        )

    def _grow(self, needed: int) -> None:
        if needed <= self.capacity:
            return
        more = max(needed, 2 * self.capacity) - self.capacity
        self.target = np.pad(self.target, ((0, more), (0, 0)))
        self.source = np.pad(self.source, ((0, more), (0, 0)))
        self.signs = np.pad(self.signs, ((0, more), (0, 0)))
        self.squares = np.pad(self.squares, ((0, more), (0, 0)))
        self.used = np.pad(self.used, (0, more))
        self._view()

    def _bear(self, accounts: Sequence[str]) -> None:
        fresh = list(dict.fromkeys(accounts))
        rows = []
        for account in fresh:
            if self._free:
                row = self._free.pop()
                self._names[row] = account
            else:
                row = len(self._names)
                self._names.append(account)
            self._row[account] = row
            rows.append(row)
        self._grow(len(self._names))
        self.target[rows], self.source[rows], self.signs[rows] = self._born(fresh)

    def _born(
        self, accounts: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int8]]:
        person = self.seed.to_bytes(8, "little")
        digests = b"".join(blake2b(a.encode(), digest_size=8, person=person).digest() for a in accounts)
        keys = np.frombuffer(digests, "<u8")
        # One 64-bit word per component; its high bits are the value.
        words = _splitmix(keys, 2 * self.dim + self.sign_dim)
        uniform = (words[:, : 2 * self.dim] >> np.uint64(40)).astype(np.float32)
        vectors = (uniform * np.float32(2.0**-23) - np.float32(1.0)) * np.float32(self.scale)
        signs = (words[:, 2 * self.dim :] >> np.uint64(63)).astype(np.int8) * 2 - 1
        return vectors[:, : self.dim], vectors[:, self.dim :], signs


def _splitmix(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """(n, count) words of n SplitMix64 streams (Steele, Lea, Flood 2014), one per key."""
    with np.errstate(over="ignore"):
        z = keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        words: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return words
