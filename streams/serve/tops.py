"""The accounts of highest key, at hand without a scan, also when keys fall."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Final

NEVER: Final = -math.inf  # the key of an account that does not count

Everyone = Callable[[], list[tuple[str, float]]]


class Top:
    """The `kept` accounts of highest key; of equal keys the lesser name comes first.

    At hand are the accounts that stand no lower than a border, which are at most four times as many. When too many of
    those have fallen, `everyone` is gone over once.

    >>> top = Top(2, lambda: [("ann", 1.0), ("bob", 3.0), ("cyd", 2.0)])
    >>> for name, key in top.everyone():
    ...     top.put(name, key)
    >>> top.best(2)
    ['bob', 'cyd']
    """

    def __init__(self, kept: int, everyone: Everyone) -> None:
        self.kept = kept
        self.everyone = everyone
        self._near: dict[str, float] = {}
        self._order: list[tuple[float, str]] = []  # (-key, name) of those at hand, sorted
        self._border: tuple[float, str] | None = None  # of the last at hand; None: all are

    def put(self, name: str, key: float) -> None:
        """Take note of an account's key."""
        near, order = self._near, self._order
        before = near.get(name, NEVER)
        if before != NEVER:
            if before == key:
                return
            del order[bisect_left(order, (-before, name))]
            del near[name]
        if key > NEVER and (self._border is None or (-key, name) <= self._border):
            near[name] = key
            insort(order, (-key, name))
            if len(near) > 4 * self.kept:
                self._narrow()

    def best(self, k: int, hidden: Collection[str] = ()) -> list[str]:
        """The first `k` that are not hidden, best first, of the first `kept`."""
        return list(islice(self.shown(hidden), k))

    def shown(self, hidden: Collection[str] = ()) -> Iterator[str]:
        """The first `kept` without those that are hidden, best first, one by one; to be used before the next `put`."""
        if self._border is not None and len(self._near) < self.kept:
            self._near = {name: key for name, key in self.everyone() if key > NEVER}
            self._order = sorted((-key, name) for name, key in self._near.items())
            self._border = None
            if len(self._near) > 4 * self.kept:
                self._narrow()
        return (name for _, name in islice(self._order, self.kept) if name not in hidden)

    def _narrow(self) -> None:
        del self._order[2 * self.kept :]
        self._border = self._order[-1]
        self._near = {name: -low for low, name in self._order}
