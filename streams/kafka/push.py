"""Whom a fresh list is pushed to next: at most one in so many seconds each, under a rate for all, urgent ones first.

Those that are not urgent give way to questions, which somebody waits for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Final

WAITING: Final = 100_000  # accounts that wait at most; beyond it those that are not urgent are passed over
GIVING_WAY: Final = 1.0  # seconds, in which one that is not urgent is taken however many questions there are
REMEMBERED: Final = 1_000_000  # accounts whose last push is remembered


class Pushes:
    """The accounts that are due. Times are seconds of a clock that is handed in and never goes back."""

    def __init__(self, seconds: float, rate: float) -> None:
        if seconds < 0 or rate < 0:
            raise ValueError(f"seconds is {seconds}, rate is {rate}; expected 0 or more")
        self.passed_over = 0
        self._seconds = seconds
        self._rate = rate
        self._urgent: dict[str, bool] = {}  # of everybody who waits, in a queue or for its turn
        self._queues: tuple[OrderedDict[str, None], OrderedDict[str, None]] = OrderedDict(), OrderedDict()
        self._held: list[tuple[float, str]] = []  # heap: when its turn comes
        self._pushed: OrderedDict[str, float] = OrderedDict()
        self._room = 1.0  # pushes that may be made now
        self._filled: float | None = None
        self._given = float("-inf")  # when one that is not urgent was taken last

    def __len__(self) -> int:
        return len(self._urgent)

    def changed(self, accounts: Iterable[str], urgent: Iterable[str], now: float) -> None:
        """Take note of accounts that acted, and of those whose exclusions changed."""
        if self._rate <= 0:
            return
        for account in urgent:
            self._add(account, True, now)
        for account in accounts:
            if account in self._urgent:
                continue
            if len(self._urgent) >= WAITING:
                self.passed_over += 1
            else:
                self._add(account, False, now)

    def take(self, now: float, most: int, *, busy: bool = False) -> list[str]:
        """Return up to `most` accounts to push to now; they count as pushed.

        While questions are answered, who is `busy` so takes the urgent ones alone, and one of the others in
        `GIVING_WAY` seconds.
        """
        since = 0.0 if self._filled is None else now - self._filled
        self._filled = now
        self._room = min(self._room + since * self._rate, max(self._rate, 1.0))
        while self._held and self._held[0][0] <= now:
            account = heappop(self._held)[1]
            self._queues[not self._urgent[account]][account] = None
        urgent = self._taken(now, 0, most)
        if busy:
            most = min(most, len(urgent) + (now - self._given >= GIVING_WAY))
        others = self._taken(now, 1, most - len(urgent))
        if others:
            self._given = now
        return urgent + others

    def _taken(self, now: float, which: int, most: int) -> list[str]:
        """Take from a queue what there is room for."""
        queue = self._queues[which]
        taken: list[str] = []
        while queue and len(taken) < most and self._room >= 1.0:
            account, _ = queue.popitem(last=False)
            del self._urgent[account]
            self._room -= 1.0
            self._pushed[account] = now
            self._pushed.move_to_end(account)
            if len(self._pushed) > REMEMBERED:
                self._pushed.popitem(last=False)
            taken.append(account)
        return taken

    def _add(self, account: str, urgent: bool, now: float) -> None:
        known = self._urgent.get(account)
        if known is not None:
            if urgent and not known:
                self._urgent[account] = True
                if account in self._queues[1]:
                    del self._queues[1][account]
                    self._queues[0][account] = None
            return
        self._urgent[account] = urgent
        turn = self._pushed.get(account, -self._seconds) + self._seconds
        if account in self._pushed and turn > now:
            heappush(self._held, (turn, account))
        else:
            self._queues[not urgent][account] = None
