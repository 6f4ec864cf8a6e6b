"""Which vectors must be encoded again only because time has passed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Final

from kithstream.models.ages import next_tick

_UNKNOWN: Final = -1


class Ageing:
    """Each account is due again 1, 2, 4, 8 ... ticks after its row last changed.

    Of an account that was taken over nobody knows when that was; its newest event stands for it. What time does to a
    row goes by the ages of its events, whenever they were folded.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._changed: dict[str, int] = {}  # tick of the last change
        self._due: dict[str, int] = {}
        self._at: dict[int, list[str]] = {}
        self._ticks: list[int] = []  # heap of the keys of _at

    def __len__(self) -> int:
        return len(self._changed)

    def __contains__(self, account: object) -> bool:
        return account in self._changed

    def __iter__(self) -> Iterator[str]:
        return iter(self._changed)

    def scheduled(self) -> list[tuple[str, int, int]]:
        """Return (account, tick of the last change, tick at which it is due), so that `restore` goes on alike."""
        found: list[tuple[str, int, int]] = []
        for at in sorted(self._at):
            taken = dict.fromkeys(a for a in reversed(self._at[at]) if self._due.get(a) == at)
            found += [(account, self._changed[account], at) for account in reversed(taken)]
        return found

    def restore(self, scheduled: Iterable[tuple[str, int, int]]) -> None:
        """Take over what `scheduled` told; for one that is empty."""
        for account, changed, due in scheduled:
            self._changed[account] = changed
            self._schedule(account, due)

    def capture(self) -> Callable[[], tuple[dict[str, int], dict[str, int]]]:
        """Copy what `restore` takes; return what tells by account the tick of the last change, and when it is due."""
        # Lists: a dictionary that much was deleted from is copied entry by entry.
        changed, due = list(self._changed), list(self._due)
        ticks, due_ticks = list(self._changed.values()), list(self._due.values())
        return lambda: (
            dict(zip(changed, ticks, strict=True)),
            dict(zip(due, due_ticks, strict=True)),
        )

    def adopt(self, accounts: Iterable[str], tick: int) -> None:
        """Let accounts be due at once; those that are new were encoded by somebody else, at a time unknown."""
        for account in accounts:
            self._changed.setdefault(account, _UNKNOWN)
            self._schedule(account, tick)

    def resume(self, newest: Mapping[str, int], tick: int) -> None:
        """Take over accounts that somebody else encoded until a tick, with the ticks of their newest events."""
        for account, at in newest.items():
            self._changed[account] = changed = min(at, tick)
            self._schedule(account, next_tick(changed, tick, self._ratio))

    def changed(self, accounts: Iterable[str], tick: int) -> None:
        """Note that rows changed and were encoded at this tick."""
        due = next_tick(tick, tick, self._ratio)
        for account in accounts:
            self._changed[account] = tick
            self._schedule(account, due)

    def encoded(self, accounts: Iterable[str], newest: Iterable[int], tick: int) -> None:
        """Note that rows were encoded that have not changed; with the ticks of their newest events."""
        for account, at in zip(accounts, newest, strict=True):
            changed = self._changed.get(account, _UNKNOWN)
            if changed == _UNKNOWN:
                changed = self._changed[account] = min(at, tick)
            self._schedule(account, next_tick(changed, tick, self._ratio))

    def forget(self, accounts: Iterable[str]) -> None:
        """Drop accounts that are nobody's candidate any more."""
        for account in accounts:
            self._changed.pop(account, None)
            self._due.pop(account, None)

    def due(self, tick: int, limit: int) -> list[str]:
        """Take up to `limit` accounts that are due at a tick; the caller encodes them."""
        taken: list[str] = []
        while self._ticks and self._ticks[0] <= tick and len(taken) < limit:
            at = self._ticks[0]
            waiting = self._at[at]
            while waiting and len(taken) < limit:
                account = waiting.pop()
                if self._due.get(account) == at:
                    del self._due[account]
                    taken.append(account)
            if not waiting:
                del self._at[heappop(self._ticks)]
        return taken

    def _schedule(self, account: str, due: int) -> None:
        self._due[account] = due
        if (waiting := self._at.get(due)) is None:
            self._at[due] = [account]
            heappush(self._ticks, due)
        else:
            waiting.append(account)
