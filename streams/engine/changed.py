"""Which accounts' rows changed since a snapshot of the index, in the store whose rows they are.

A snapshot that was named stands for every account but those that are marked. A mark is in the batch that changed the
rows, and goes with the write that names a later snapshot: so a process that dies at any point, and a store that is
restored from an older copy, name a snapshot together with everything that it lacks. One key an account and
snapshot; a store that names none has none.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Final

from kithstream.streams.state.protocol import Column, Dropped, Store

NAMED: Final = b"snapshot"  # META: the name of the snapshot
CHANGED: Final = b"C"  # META: four bytes of a round, then the account
_ROUND: Final = 4  # bytes
_HEAD: Final = len(CHANGED) + _ROUND
MARKS: Final = Dropped(Column.META, CHANGED, CHANGED + b"\xff" * (_ROUND + 1))  # where they all are


class Changed:
    """The marks of one partition. A round is what is marked between the beginnings of two snapshots."""

    def __init__(self, store: Store) -> None:
        (named,) = store.get(Column.META, [NAMED])
        self.snapshot = (named or b"").decode()  # empty if there is none
        self._store = store
        self._rounds: dict[int, set[str]] = {}
        for key, _ in store.scan(Column.META, CHANGED):
            self._rounds.setdefault(int.from_bytes(key[len(CHANGED) : _HEAD], "big"), set()).add(
                key[_HEAD:].decode()
            )
        self._round = max(self._rounds, default=0)
        self._marking = bool(self.snapshot or self._rounds)

    @property
    def accounts(self) -> set[str]:
        """Every account that is marked."""
        return set().union(*self._rounds.values())

    def mark(self, accounts: Iterable[str], meta: MutableMapping[bytes, bytes | None]) -> None:
        """Put the marks of accounts into a batch."""
        if not self._marking:
            return
        marked = self._rounds.setdefault(self._round, set())
        head = CHANGED + self._round.to_bytes(_ROUND, "big")
        for account in accounts:
            if account not in marked:
                marked.add(account)
                meta[head + account.encode()] = b""

    def begin(self) -> int:
        """Begin a snapshot: what changes from here on is not in it. Return the round, for `name`."""
        self._marking = True
        self._round += 1
        return self._round

    def name(self, begun: int, snapshot: str) -> None:
        """Name a snapshot that is on the disk, and drop the marks from before it was begun."""
        self._drop(begun, snapshot.encode())
        self._rounds = {number: marked for number, marked in self._rounds.items() if number >= begun}
        self.snapshot = snapshot

    def discard(self) -> None:
        """Name no snapshot: rows are about to change without marks, or none is to be made."""
        if self._marking:
            self._drop(self._round + 1, None)
        self._rounds, self.snapshot, self._marking = {}, "", False

    def forget(self, account: str, meta: MutableMapping[bytes, bytes | None]) -> None:
        """Take the marks of a deleted account out; nothing of a snapshot is read for it."""
        for number, marked in self._rounds.items():
            if account in marked:
                marked.discard(account)
                meta[CHANGED + number.to_bytes(_ROUND, "big") + account.encode()] = None

    def _drop(self, until: int, named: bytes | None) -> None:
        ends = CHANGED + until.to_bytes(_ROUND, "big")
        gone = Dropped(Column.META, CHANGED, ends)
        self._store.write({Column.META: {NAMED: named}}, [gone])
