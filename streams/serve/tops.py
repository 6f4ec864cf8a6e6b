"""The accounts of highest key, at hand without a scan, also when keys fall."""

from __future__ import annotations

import math
from collections.abc import Callable
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
        self._border: tuple[float, str] | None = None  # (-key, name) of the last at hand; None: all are
        self._order: list[str] | None = None

    def put(self, name: str, key: float) -> None:
        """Take note of an account's key."""
        if key > NEVER and (self._border is None or (-key, name) <= self._border):
            if self._near.get(name) != key:
                self._near[name] = key
                self._order = None
                if len(self._near) > 4 * self.kept:
                    self._narrow()
        elif self._near.pop(name, None) is not None:
            self._order = None

    def best(self, k: int) -> list[str]:
        """The first `k`, at most `kept`, best first."""
        if self._border is not None and len(self._near) < self.kept:
            self._near = {name: key for name, key in self.everyone() if key > NEVER}
            self._border = self._order = None
            if len(self._near) > 4 * self.kept:
                self._narrow()
        if self._order is None:
            self._order = sorted(self._near, key=lambda name: (-self._near[name], name))[: self.kept]
        return self._order[:k]

    def _narrow(self) -> None:
        order = sorted(self._near, key=lambda name: (-self._near[name], name))[: 2 * self.kept]
        self._border = -self._near[order[-1]], order[-1]
        self._near = {name: self._near[name] for name in order}
        self._order = None
