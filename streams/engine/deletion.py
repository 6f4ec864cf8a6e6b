"""Deletion of accounts: out of sight with one batch, and then out of the stores, some edges at a time.

The first batch writes a salted hash of the account that keeps late events out, drops its rows and tells every
partition. A job then goes over what the account's partition holds of it, in this order: its state edges, those of
others to it, what it said and what it heard in the days of the horizon, and its retraction marks. It tells the
targets of its edges that they are gone, and the actors of edges to it that theirs are void. Nothing new can come
in behind the job. Every frame of it carries the hash, so that order among frames does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from kithstream.streams.engine import frames
from kithstream.streams.engine.changed import MARKS
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.partition import (
    BOOK,
    DELETED,
    DEPARTED,
    JOB,
    LEAVING,
    OUTBOX,
    PAIRS,
    RETRACTED,
    ROW_LETTERS,
    Batch,
    Partition,
)
from kithstream.streams.events.signals import SIGNALS, Kind
from kithstream.streams.state import contacts
from kithstream.streams.state.ledger import day_prefix, heard_of, held_days, said_of
from kithstream.streams.state.protocol import Column, Dropped

_SIZE: Final = 4  # bytes of a day
_WEIGHT: Final = 10  # edges sent again that cost what one entry does, which changes another account


class Deletions:
    """The accounts of a partition that are being deleted."""

    def __init__(self, partition: Partition, route: Mapping[str, int]) -> None:
        self._partition = partition
        self._route = route

    def begin(self, account: str, batch: Batch, out: dict[int, Frame]) -> None:
        """Hide an account, keep its events out from here on, and let a job remove the rest."""
        partition, name = self._partition, account.encode()
        meta, rows = batch.changes[Column.META], batch.changes[Column.ROWS]
        fingerprint = partition.fingerprint(account)
        for place in range(partition.partitions):
            _to(out, place, partition, fingerprint)
        for letter in ROW_LETTERS:
            rows[letter + name] = None
            for cache in (partition.rows, partition.recents, partition.profiles):
                cache.drop(letter + name)
        for jobs, letter in ((partition.jobs, JOB), (partition.books, BOOK)):
            if jobs.pop(account, None) is not None:
                meta[letter + name] = None
        partition.bury(fingerprint)
        partition.departed.add(fingerprint)
        meta[DELETED + fingerprint] = DEPARTED
        partition.leaving[account] = meta[LEAVING + name] = b""
        batch.touched.add(account)

    def work(self, most: int, batch: Batch, out: dict[int, Frame]) -> tuple[int, list[str]]:
        """Remove entries of accounts that are being deleted, for the cost of at most so many edges sent again.

        Return that cost, and who is done.
        """
        partition = self._partition
        left = entries = max(most // _WEIGHT, 1)
        finished: list[str] = []
        for account, cursor in list(partition.leaving.items()):
            job = LEAVING + account.encode()
            for stage, key in self._entries(account, cursor):
                if left <= 0:
                    partition.leaving[account] = batch.changes[Column.META][job] = bytes([stage]) + key
                    return most, finished
                left -= 1
                self._remove(account, _COLUMNS[stage], key, batch, out)
            del partition.leaving[account]
            finished.append(account)
            partition.changed.forget(account, batch.changes[Column.META])
            batch.changes[Column.META][job] = None
        return min((entries - left) * _WEIGHT, most), finished

    def _entries(self, account: str, cursor: bytes) -> Iterator[tuple[int, bytes]]:
        """What the partition holds of an account from the cursor on, which is the number of a column and a key."""
        scan = self._partition.store.scan_from
        first, begin = (cursor[0], cursor[1:]) if cursor else (0, b"")
        for stage in range(first, len(_COLUMNS)):
            for prefix in prefixes(self._partition, _COLUMNS[stage], account):
                if stage == first and prefix < begin and not begin.startswith(prefix):
                    continue
                for key, _ in scan(_COLUMNS[stage], prefix, begin if stage == first else b""):
                    yield stage, key

    def _remove(self, account: str, column: Column, key: bytes, batch: Batch, out: dict[int, Frame]) -> None:
        partition, route, name = self._partition, self._route, account.encode()
        fingerprint = partition.fingerprint(account)
        batch.changes[column][key] = None

        def to(other: bytes) -> Frame:
            return _to(out, route[other.decode()], partition, fingerprint)

        match column:
            case Column.OUT:
                _, letter_target, item = key.split(b"\0")
                if letter_target[0] not in contacts.LETTERS:  # nobody was told of those
                    target = letter_target[1:]
                    in_key = b"%b\0%c%b\0%b" % (target, letter_target[0], name, item)
                    to(target).states += (in_key, frames.GONE)
            case Column.IN:
                _, letter_actor, item = key.split(b"\0")
                actor = letter_actor[1:]
                to(actor).void.append(b"%b\0%c%b\0%b" % (actor, letter_actor[0], name, item))
            case Column.SAID:
                _, _, letter_target, _ = key[_SIZE:].split(b"\0")
                if SIGNALS[letter_target[0] - 65].kind is Kind.OCCURRENCE:
                    to(letter_target[1:]).heard += (heard_of(key), frames.GONE)
            case Column.HEARD if key[0] & 0x80:
                pass  # how much an actor added on a day
            case Column.HEARD:
                actor = key[_SIZE:].split(b"\0")[1][1:]
                to(actor).unsaid.append(said_of(key))
            case _:
                partition.retracted.pop(key[len(RETRACTED) + _SIZE :], None)


_COLUMNS: Final = (Column.OUT, Column.IN, Column.SAID, Column.HEARD, Column.META)


def prefixes(partition: Partition, column: Column, account: str) -> list[bytes]:
    """Return the prefixes of an account's entries in a column: its own, in the order of their keys."""
    name = account.encode() + b"\0"
    if column in (Column.OUT, Column.IN):
        return [name]
    letter = RETRACTED if column is Column.META else b""
    days = list(held_days(partition.watermark))
    if column is Column.HEARD:
        days += [PAIRS | day for day in days]
    return [letter + day_prefix(day) + name for day in days]


def ranges(partition: Partition, account: str) -> list[Dropped]:
    """Return where an account's keys were: what a store compacts so that they leave its files as well."""
    spans = [
        Dropped(column, p, p + b"\xff") for column in _COLUMNS for p in prefixes(partition, column, account)
    ]
    rows = (letter + account.encode() for letter in ROW_LETTERS)
    spans.append(Dropped(Column.META, OUTBOX, OUTBOX + b"\xff" * 13))  # frames that told of it
    spans.append(MARKS)
    return spans + [Dropped(Column.ROWS, key, key + b"\0") for key in rows]


def _to(out: dict[int, Frame], place: int, partition: Partition, fingerprint: bytes) -> Frame:
    frame = out.setdefault(place, Frame(partition.watermark))
    if not frame.deleted or frame.deleted[-1] != fingerprint:
        frame.deleted.append(fingerprint)
    return frame
