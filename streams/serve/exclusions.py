"""Whom an account must never be shown: itself, those it follows, and pairs blocked, muted or reported either way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kithstream.streams.engine.actors import Change
from kithstream.streams.engine.partition import ReadCache
from kithstream.streams.engine.shard import Reads
from kithstream.streams.events.signals import SIGNALS
from kithstream.streams.state.ledger import since
from kithstream.streams.state.protocol import Column

FOLLOW: Final = 0
_OUT: Final = tuple(s.family for s in SIGNALS if s.excludes or s.follows)
_IN: Final = tuple(s.family for s in SIGNALS if s.excludes)
_Sets = dict[tuple[Column, int], set[str]]


class Exclusions:
    """Sets read from the ledgers, kept for the accounts asked lately and moved by every change."""

    def __init__(self, held: Reads, remembered: int) -> None:
        self._held = held
        self._sets: ReadCache[_Sets] = ReadCache(remembered)

    def of(self, account: str) -> set[str]:
        """Return the accounts that no answer for this one may hold; a new set."""
        return {account}.union(*self._load(account).values())

    def unnamed(self, account: str) -> set[str]:
        """Return the accounts that are muted, blocked or reported in either direction; a new set."""
        sets = self._load(account)
        return set().union(*(sets[column, family] for column in (Column.OUT, Column.IN) for family in _IN))

    def refused(self, account: str) -> set[str]:
        """Return the accounts that this one muted, blocked or reported itself; a new set."""
        sets = self._load(account)
        return set().union(*(sets[Column.OUT, family] for family in _IN))

    def followed(self, account: str) -> set[str]:
        """Return the accounts that this one follows; not to be changed."""
        return self._load(account)[Column.OUT, FOLLOW]

    def note(self, changes: Iterable[Change]) -> None:
        """Move the sets of actors whose edges changed."""
        for actor, target, family, before, after in changes:
            if (before >= 0) != (after >= 0):
                self._move(actor, Column.OUT, family, target, after >= 0)

    def note_heard(self, changes: Iterable[tuple[str, str, int, bool]]) -> None:
        """Move the sets of targets whose edges changed."""
        for target, actor, family, present in changes:
            self._move(target, Column.IN, family, actor, present)

    def drop(self, account: str) -> None:
        """Forget an account's sets; they are read again when asked for."""
        self._sets.drop(account.encode())

    def _move(self, account: str, column: Column, family: int, other: str, present: bool) -> None:
        sets = self._sets.get(account.encode())
        if sets is not None and (members := sets.get((column, family))) is not None:
            if present:
                members.add(other)
            else:
                members.discard(other)

    def _load(self, account: str) -> _Sets:
        name = account.encode()
        sets = self._sets.get(name)
        if sets is None:
            scan = self._held.at(self._held.route[account]).store.scan
            sets = {}
            for column, families in ((Column.OUT, _OUT), (Column.IN, _IN)):
                for family in families:
                    prefix = b"%b\0%c" % (name, 65 + family)
                    skip = len(prefix)
                    sets[column, family] = {
                        key[skip:-1].decode() for key, value in scan(column, prefix) if since(value) >= 0
                    }
            self._sets.put(name, sets)
        return sets
