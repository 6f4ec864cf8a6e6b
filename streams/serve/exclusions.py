"""Whom an account must never be shown: itself, those it follows, and pairs blocked, muted or reported either way.

Beside these, whom it should not be shown for a while: those it followed once, by a setting, and those it was not
interested in, which come back slowly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kithstream.streams.engine.actors import Change
from kithstream.streams.engine.partition import ReadCache
from kithstream.streams.engine.shard import Reads
from kithstream.streams.events.signals import SIGNALS
from kithstream.streams.serve.fading import returning
from kithstream.streams.state.ledger import is_undone, since
from kithstream.streams.state.protocol import Column

FOLLOW: Final = 0
_OUT: Final = tuple(s.family for s in SIGNALS if s.excludes or s.follows)
_IN: Final = tuple(s.family for s in SIGNALS if s.excludes)
_FADING: Final = {s.family: s for s in SIGNALS if s.hidden}


class _Known(NamedTuple):
    """What the ledgers say of one account."""

    sets: dict[tuple[Column, int], set[str]]  # present edges, by direction and family
    former: set[str]  # those it followed and follows no more
    fading: dict[tuple[int, str], int]  # by family and account, the newest time


class Exclusions:
    """Sets read from the ledgers, kept for the accounts asked lately and moved by every change."""

    def __init__(self, held: Reads, remembered: int, *, used_to_follow: bool = True) -> None:
        """With `used_to_follow`, whom an account followed once is not recommended to it again."""
        self._held = held
        self._used_to_follow = used_to_follow
        self._known: ReadCache[_Known] = ReadCache(remembered)

    def of(self, account: str) -> set[str]:
        """Return the accounts that no answer for this one may hold; a new set."""
        known = self._load(account)
        found = {account}.union(*known.sets.values())
        if self._used_to_follow:
            found |= known.former
        return found

    def unnamed(self, account: str) -> set[str]:
        """Return the accounts that are muted, blocked or reported in either direction; a new set."""
        sets = self._load(account).sets
        return set().union(*(sets[column, family] for column in (Column.OUT, Column.IN) for family in _IN))

    def refused(self, account: str) -> set[str]:
        """Return the accounts that this one muted, blocked or reported itself; a new set."""
        sets = self._load(account).sets
        return set().union(*(sets[Column.OUT, family] for family in _IN))

    def followed(self, account: str) -> set[str]:
        """Return the accounts that this one follows; not to be changed."""
        return self._load(account).sets[Column.OUT, FOLLOW]

    def former(self, account: str) -> set[str]:
        """Return the accounts that this one followed once, if that keeps them out of its answers."""
        return self._load(account).former if self._used_to_follow else set()

    def fading(self, account: str, as_of: int) -> dict[str, float | None]:
        """Return what the scores of some accounts lose at a time; None for those that are hidden still."""
        losses: dict[str, float | None] = {}
        for (family, other), time in self._load(account).fading.items():
            loss, held = returning(_FADING[family], as_of - time), losses.get(other, 0.0)
            losses[other] = None if loss is None or held is None else held + loss
        return losses

    def note(self, changes: Iterable[Change]) -> None:
        """Move the sets of actors whose edges changed."""
        for actor, target, family, before, after in changes:
            if family in _FADING or (family == FOLLOW and after < 0):
                self.drop(actor)  # read again when asked for: a set of who is present cannot tell these
            elif (before >= 0) != (after >= 0):
                self._move(actor, Column.OUT, family, target, after >= 0)

    def note_heard(self, changes: Iterable[tuple[str, str, int, bool]]) -> None:
        """Move the sets of targets whose edges changed."""
        for target, actor, family, present in changes:
            self._move(target, Column.IN, family, actor, present)

    def drop(self, account: str) -> None:
        """Forget an account's sets; they are read again when asked for."""
        self._known.drop(account.encode())

    def _move(self, account: str, column: Column, family: int, other: str, present: bool) -> None:
        known = self._known.get(account.encode())
        if known is None or (members := known.sets.get((column, family))) is None:
            return
        if present:
            members.add(other)
            if family == FOLLOW and column is Column.OUT:
                known.former.discard(other)
        else:
            members.discard(other)

    def _load(self, account: str) -> _Known:
        name = account.encode()
        known = self._known.get(name)
        if known is None:
            scan = self._held.at(self._held.route[account]).store.scan
            known = _Known({}, set(), {})
            for column, families in ((Column.OUT, _OUT), (Column.IN, _IN)):
                for family in families:
                    prefix = b"%b\0%c" % (name, 65 + family)
                    skip = len(prefix)
                    members = known.sets[column, family] = set()
                    for key, value in scan(column, prefix):
                        if since(value) >= 0:
                            members.add(key[skip:-1].decode())
                        elif family == FOLLOW and is_undone(value):
                            known.former.add(key[skip:-1].decode())
            for family in _FADING:
                prefix = b"%b\0%c" % (name, 65 + family)
                for key, value in scan(Column.OUT, prefix):
                    if (time := since(value)) >= 0:
                        at = family, key[len(prefix) :].split(b"\0")[0].decode()
                        known.fading[at] = max(time, known.fading.get(at, 0))
            self._known.put(name, known)
        return known
