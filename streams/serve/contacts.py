"""Who is in an account's address book: asked by hash, since nobody's name stands there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kithstream.streams.engine.partition import ReadCache
from kithstream.streams.engine.shard import Reads


class Contacts:
    """Address books read from the ledgers, kept for the accounts asked lately until they are told to change."""

    def __init__(self, reads: Reads, remembered: int) -> None:
        self._reads = reads
        self._books: ReadCache[frozenset[bytes]] = ReadCache(remembered)

    def of(self, account: str) -> frozenset[bytes]:
        """Return the salted hashes of an account's contacts; none without its consent."""
        name = account.encode()
        book = self._books.get(name)
        if book is None:
            book = frozenset(self._reads.at(self._reads.route[account]).contacts(account))
            self._books.put(name, book)
        return book

    def among(self, account: str, candidates: Sequence[str]) -> list[bool]:
        """Return of each candidate whether it is in the account's address book. One hash a candidate."""
        book = self.of(account)
        if not book:
            return [False] * len(candidates)
        fingerprint = self._reads.at(self._reads.route[account]).fingerprint
        return [fingerprint(candidate) in book for candidate in candidates]

    def forget(self, accounts: Iterable[str]) -> None:
        """Take note that rows of these accounts changed, consent among them."""
        for account in accounts:
            self._books.drop(account.encode())
