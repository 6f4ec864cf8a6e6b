"""One partition as another process reads it: what is in the store, nothing remembered between two questions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kithstream.streams.communities.known import KnownFor
from kithstream.streams.engine import slots
from kithstream.streams.engine.partition import APPLIED, DELETED, HEARD, PROFILE, SALT, fingerprint
from kithstream.streams.engine.slots import ReadStore, Slot
from kithstream.streams.state import contacts, profiles, recent
from kithstream.streams.state.profiles import Profile
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.recent import Recent


class Replica:
    """Reads a partition's store as it stands; the caller says when it moves on, and calls `refresh` then."""

    def __init__(self, store: ReadStore, number: int, versions: Mapping[str, KnownFor] | None = None) -> None:
        """Read a store; `versions` of communities that are not given are not read."""
        self.store = store
        self.communities: Slot | None = None
        self._versions = versions or {}
        self.number = number
        self.applied = 0  # the partition's log below this offset is in its rows
        self.heard: dict[int, int] = {}  # by source: its log below this offset is told here
        (salt,) = store.get(Column.META, [SALT])
        self._salt = salt or b""
        self.refresh()

    def refresh(self) -> None:
        """Read anew how far the store has come."""
        (applied,) = self.store.get(Column.META, [APPLIED])
        self.applied = int.from_bytes(applied or b"", "big")
        self.heard = {
            int.from_bytes(key[1:], "big"): int.from_bytes(value, "big")
            for key, value in self.store.scan(Column.META, HEARD)
        }
        if self._versions:
            self.communities = slots.read(self.store, self._versions)

    def includes(self, ends: Mapping[int, int]) -> bool:
        """True if rows and exclusions of this partition's accounts include a token."""
        return self.applied >= ends.get(self.number, 0) and all(
            self.heard.get(source, 0) >= end for source, end in ends.items()
        )

    def load_rows(self, keys: Iterable[bytes]) -> dict[bytes, bytearray]:
        """Return rows by their keys in ROWS, empty ones where there is none."""
        wanted = list(keys)
        found = self.store.get(Column.ROWS, wanted)
        return {key: bytearray(value or b"") for key, value in zip(wanted, found, strict=True)}

    def load_recents(self, keys: Iterable[bytes]) -> dict[bytes, Recent]:
        """Return lists of recent neighbours by their keys in ROWS."""
        wanted = list(keys)
        found = self.store.get(Column.ROWS, wanted)
        return {key: recent.load(value) for key, value in zip(wanted, found, strict=True)}

    def load_profiles(self, accounts: Iterable[str]) -> dict[str, Profile]:
        """Return profiles by account."""
        wanted = list(accounts)
        found = self.store.get(Column.ROWS, [PROFILE + account.encode() for account in wanted])
        return {account: profiles.load(value) for account, value in zip(wanted, found, strict=True)}

    def profile(self, account: str) -> Profile:
        """Return the account's profile; an empty one if it never told."""
        return self.load_profiles([account])[account]

    def fingerprint(self, account: str) -> bytes:
        """Return the salted hash under which a deleted account, or a contact, is remembered."""
        return fingerprint(account.encode(), self._salt)

    def is_deleted(self, account: str) -> bool:
        """True if the account was deleted."""
        return self.store.get(Column.META, [DELETED + self.fingerprint(account)]) != [None]

    def deleted_of(self, accounts: Collection[str]) -> set[str]:
        """Return those of the accounts that were deleted."""
        if next(self.store.scan(Column.META, DELETED), None) is None:
            return set()
        keys = [DELETED + self.fingerprint(account) for account in accounts]
        found = self.store.get(Column.META, keys)
        return {account for account, mark in zip(accounts, found, strict=True) if mark is not None}

    def contacts(self, account: str) -> set[bytes]:
        """Return the fingerprints of whom the account's address book names; none without its consent."""
        begin = self.profile(account).contacts_begin
        pairs = (p for prefix in contacts.prefixes(account) for p in self.store.scan(Column.OUT, prefix))
        return set(contacts.present(pairs, begin)) if begin is not None else set()
