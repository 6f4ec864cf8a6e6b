"""Address books: hashes of whom an account knows, in its own ledger alone, counted while it consents.

Every event waits in the ledger by days. Those that the consent covers also stand in the out-ledger and in the
counters; when the consent changes, the account's entries are gone over, in the background if they are many.
"""

from __future__ import annotations

from collections.abc import Sequence

from kithstream.streams.engine.partition import BOOK, Batch, Partition
from kithstream.streams.events.wire import Event
from kithstream.streams.state import contacts, ledger
from kithstream.streams.state.consent import NEVER
from kithstream.streams.state.ledger import DAY, HORIZON, NO_EDGE, since
from kithstream.streams.state.protocol import Column


class Entry:
    """An event of an address book: its keys in both ledgers, and its stamp."""

    __slots__ = ("actor", "edge_key", "family", "said_key", "stamp", "time")

    def __init__(self, partition: Partition, event: Event, family: int, stamp: bytes) -> None:
        target = partition.fingerprint(event.target).hex()
        self.actor, self.family, self.stamp, self.time = event.actor, family, stamp, event.time
        self.edge_key = ledger.edge_key(event.actor, family, target, "")
        self.said_key = ledger.once_key(event.time // DAY, event.actor, event.id, family, target, "")


class Book:
    """The address books of a partition's accounts."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition

    def fold(self, entries: Sequence[Entry], batch: Batch) -> None:
        """Bring events in; those from before a withdrawal are kept out."""
        partition = self._partition
        profiles = partition.load_profiles({entry.actor for entry in entries})
        kept = []
        for entry in entries:
            consent = profiles[entry.actor].consent
            if entry.time > (consent.withdrawn if consent is not None else NEVER):
                kept.append(entry)
        said = self._get(batch, Column.SAID, [entry.said_key for entry in kept])
        edges = self._get(batch, Column.OUT, [entry.edge_key for entry in kept])
        floor = partition.watermark - HORIZON
        for entry in kept:
            held = said[entry.said_key]
            if held is not None and entry.stamp in ledger.stamps_of(held):
                continue
            said[entry.said_key] = contacts.add(held, entry.stamp, 0)
            begin = profiles[entry.actor].contacts_begin
            if begin is not None and entry.time >= begin:
                new = contacts.add(edges[entry.edge_key], entry.stamp, floor)
                self._count(batch, entry.actor, entry.family, edges[entry.edge_key], new)
                edges[entry.edge_key] = new
        batch.changes[Column.SAID].update((key, value) for key, value in said.items() if value is not None)
        batch.changes[Column.OUT].update((key, value) for key, value in edges.items() if value is not None)

    def take_back(self, said_key: bytes, entry: bytes, batch: Batch) -> None:
        """Take out what one event said, all its stamps."""
        actor, _, letter_target, _ = said_key[4:].split(b"\0")
        edge_key = b"%b\0%b\0" % (actor, letter_target)
        old = self._get(batch, Column.OUT, [edge_key])[edge_key]
        new = contacts.without(old, entry)
        self._count(batch, actor.decode(), letter_target[0] - 65, old, new)
        batch.changes[Column.OUT][edge_key] = new
        batch.changes[Column.SAID][said_key] = None

    def reconsider(self, account: str, batch: Batch) -> None:
        """Go over an account's entries, since its consent changed; what is too much for one batch waits."""
        self._partition.books[account] = b""
        self._go_over(account, self._partition.config.job_edges, batch)

    def work(self, most: int, batch: Batch) -> int:
        """Go over at most so many entries that wait; return how many there were."""
        left = most
        for account in list(self._partition.books):
            left = self._go_over(account, left, batch)
            if left <= 0:
                break
        return most - left

    def _go_over(self, account: str, left: int, batch: Batch) -> int:
        """Go on behind the cursor, which is a column and a key; return what is left of the bound."""
        partition = self._partition
        job, cursor = BOOK + account.encode(), partition.books[account]
        profile = partition.profile(account)
        begin, withdrawn = profile.contacts_begin, profile.consent.withdrawn if profile.consent else NEVER
        if not cursor.startswith(b"s"):
            for key, value in partition.store.scan_each(Column.OUT, contacts.prefixes(account), cursor[1:]):
                if left <= 0:
                    partition.books[account] = batch.changes[Column.META][job] = b"o" + key
                    return left
                left -= 1
                value = batch.changes[Column.OUT].get(key, value) or NO_EDGE
                new = contacts.cut(value, begin)
                self._count(batch, account, key.split(b"\0")[1][0] - 65, value, new)
                batch.changes[Column.OUT][key] = new
            cursor = b"s"
        days = ledger.held_days(partition.watermark)
        prefixes = [ledger.day_prefix(day) + account.encode() + b"\0" for day in days]
        pairs = partition.store.scan_each(Column.SAID, prefixes, cursor[1:])
        floor = partition.watermark - HORIZON
        for key, value in pairs:
            if left <= 0:
                partition.books[account] = batch.changes[Column.META][job] = b"s" + key
                return left
            left -= 1
            actor, _, letter_target, _ = key[4:].split(b"\0")
            if letter_target[0] not in contacts.LETTERS:
                continue
            value = batch.changes[Column.SAID].get(key, value) or NO_EDGE
            entry = contacts.cut(value, withdrawn + 1)
            batch.changes[Column.SAID][key] = entry
            edge_key = b"%b\0%b\0" % (actor, letter_target)
            old = self._get(batch, Column.OUT, [edge_key])[edge_key]
            new = old
            for stamp in ledger.stamps_of(entry or NO_EDGE):
                if begin is not None and ledger.time_of(stamp) >= begin:
                    new = contacts.add(new, stamp, floor)
            self._count(batch, account, letter_target[0] - 65, old, new)
            batch.changes[Column.OUT][edge_key] = new
        del partition.books[account]
        batch.changes[Column.META][job] = None
        return left

    def _count(self, batch: Batch, actor: str, family: int, old: bytes | None, new: bytes | None) -> None:
        before, after = since(old), since(new)
        if before != after:
            batch.edge(actor, family, before, after)

    def _get(self, batch: Batch, column: Column, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """What the ledger holds as this batch leaves it."""
        staged = batch.changes[column]
        found = dict(zip(keys, self._partition.store.get(column, keys), strict=True))
        found.update((key, staged[key]) for key in keys if key in staged)
        return found
