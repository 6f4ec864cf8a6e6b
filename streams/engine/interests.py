"""Interests of actors in communities: moved by every follow that comes or goes, and told to those that are followed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kithstream.streams.communities import cells
from kithstream.streams.communities.carried import Carrier, dump
from kithstream.streams.communities.known import NONE
from kithstream.streams.engine.partition import CARRIER, RECOUNT, ROW_OUT, Batch, Partition
from kithstream.streams.engine.slots import Slot
from kithstream.streams.state import counters
from kithstream.streams.state.counters import Kind
from kithstream.streams.state.ledger import since
from kithstream.streams.state.protocol import Column

FILLING: Final = 1000  # accounts due to be sent from which filling waits
_FOLLOW: Final = 0
_FOLLOWS: Final = counters.cell(_FOLLOW, Kind.TOTAL, 0)


class Move(NamedTuple):
    """A follow that came (+1), went (-1) or has another time (0), by the event at an offset."""

    actor: str
    target: str
    by: int
    offset: int


class Interests:
    """Interests and revisions of a partition's actors; they are moved before a batch's rows are folded."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition

    def move(self, moves: Sequence[Move], batch: Batch) -> None:
        """Bring follows into the interests of their actors, in the order of the log."""
        if moves and self._partition.slots:
            for actor, offset in self._moved(moves, batch).items():
                self.carry(actor, offset, batch)
                self._partition.resend(actor, batch)

    def changed(self, account: str, offset: int, batch: Batch) -> None:
        """Take note that what the account tells of itself was changed by the event at an offset."""
        self.carry(account, offset, batch)
        if self._partition.follows(account):
            self._partition.resend(account, batch)

    def void(self, followees: Iterable[tuple[str, str, int]], batch: Batch) -> None:
        """Take deleted followees out: (actor, followee, -1 if the follow stood, else 0), at no offset."""
        partition = self._partition
        followees = list(followees)
        applied = partition.applied
        if partition.slots:
            self._moved([Move(actor, followee, by, applied) for actor, followee, by in followees], batch)
        carriers = partition.load_carriers({actor for actor, _, _ in followees})
        for actor, followee, _ in followees:
            carrier = carriers[actor]
            carrier.void(partition.fingerprint(followee))
            if partition.slots or carrier.place:
                carrier.counted_at(applied)
                partition.resend(actor, batch)
            self.keep(actor, carrier, batch)

    def refused(self, follows: Iterable[tuple[str, str, int]], batch: Batch) -> None:
        """Take note of follows of deleted accounts: (actor, followee, offset); see `communities.carried`."""
        partition = self._partition
        for actor, followee, offset in follows:
            if partition.is_deleted(actor):  # by an event behind the follow
                continue
            carrier = partition.load_carriers([actor])[actor]
            if carrier.void(partition.fingerprint(followee)):
                if partition.slots or carrier.place:
                    carrier.changed_at(offset)
                    partition.resend(actor, batch)
                self.keep(actor, carrier, batch)

    def delete(self, account: str, batch: Batch) -> None:
        """Forget what an account was interested in, and its own audience's communities."""
        partition, name = self._partition, account.encode()
        for slot in partition.slots:
            for letter in (slot.interest, slot.audience):
                partition.put_row(letter + name, b"", batch)
        batch.changes[Column.ROWS][CARRIER + name] = None
        partition.carriers.drop(CARRIER + name)
        partition.resent(account, batch)
        if account in partition.recounts:
            del partition.recounts[account]
            batch.changes[Column.META][RECOUNT + name] = None

    def recount(self, batch: Batch, left: int) -> int:
        """Count some accounts anew that are due; return how many of `left` edges were not needed.

        All the follows of an account are read at once.
        """
        partition = self._partition
        for account in list(partition.recounts):
            if left <= 0:
                return left
            if not partition.is_deleted(account):
                left -= self._count(account, batch, filling=False)
            del partition.recounts[account]
            batch.changes[Column.META][RECOUNT + account.encode()] = None
        for slot in partition.slots:
            while slot.record.out is not None and left > 0 and len(partition.jobs) < FILLING:
                first = next(partition.store.scan_from(Column.OUT, b"", slot.record.out), None)
                if first is None:
                    slot.record.out = None
                else:
                    name = first[0].split(b"\0", 1)[0]
                    if not partition.is_deleted(account := name.decode()):
                        left -= self._count(account, batch, filling=True)
                    slot.record.out = name + b"\1"  # no key lies between NUL and 1
                batch.changes[Column.META][slot.key] = slot.dump()
        return left

    def _moved(self, moves: Sequence[Move], batch: Batch) -> dict[str, int]:
        """Move the counts; return the actors whose interest is another one, each with the offset of the last change."""
        partition = self._partition
        newest = partition.limits.newest
        actors = {move.actor: ROW_OUT + move.actor.encode() for move in moves}
        rows = partition.load_rows(actors.values())
        follows = {actor: counters.count_of(rows[key], _FOLLOWS) for actor, key in actors.items()}
        over: set[str] = set()
        kept: list[Move] = []
        for move in moves:
            before = follows[move.actor]
            after = follows[move.actor] = before + move.by
            if max(before, after) > newest or move.actor in partition.recounts or move.actor in over:
                over.add(move.actor)
            elif move.by:
                kept.append(move)
        for actor in over:
            partition.recounts[actor] = None
            batch.changes[Column.META][RECOUNT + actor.encode()] = b""
        changed: dict[str, int] = {}
        for slot in partition.slots:
            self._moved_in(slot, kept, changed, batch)
        return changed

    def _moved_in(self, slot: Slot, moves: Sequence[Move], changed: dict[str, int], batch: Batch) -> None:
        partition = self._partition
        if (reached := slot.record.out) is not None:  # those above are counted when filling comes to them
            moves = [move for move in moves if move.actor.encode() + b"\0" < reached]
        targets = list(dict.fromkeys(move.target for move in moves))
        communities = dict(zip(targets, slot.known.of(targets).tolist(), strict=True))
        moves = [move for move in moves if communities[move.target] != NONE]
        keys = {move.actor: slot.interest + move.actor.encode() for move in moves}
        rows = partition.load_rows(keys.values())
        counts = {actor: cells.read(rows[key]) for actor, key in keys.items()}
        for actor, target, by, offset in moves:
            own, community = counts[actor], communities[target]
            before = own.get(community, 0)
            after = own[community] = before + by
            if level(before) != level(after):
                changed[actor] = max(offset, changed.get(actor, 0))
        for actor, key in keys.items():
            partition.put_row(key, cells.dump(counts[actor]), batch)

    def _count(self, account: str, batch: Batch, *, filling: bool) -> int:
        """Count the newest follows of an account in every slot, and put all down to be sent; return how many."""
        partition = self._partition
        prefix = account.encode() + b"\0" + b"A"
        follows = sorted(
            (-time, key[len(prefix) : -1].decode())
            for key, value in partition.store.scan(Column.OUT, prefix)
            if (time := since(value)) >= 0
        )
        newest = partition.limits.newest
        targets = [target for _, target in follows[:newest]]
        known = False
        for slot in partition.slots:
            counts: dict[int, int] = {}
            for community in slot.known.of(targets).tolist():
                if community != NONE:
                    counts[community] = counts.get(community, 0) + 1
            partition.put_row(slot.interest + account.encode(), cells.dump(counts), batch)
            known = known or any(level(count) for count in counts.values())
        carrier = partition.load_carriers([account])[account]
        if known or carrier.place or carrier.voided:
            carrier.counted_at(partition.applied)
            carrier.floor = follows[newest - 1] if len(follows) > newest else None
            self.keep(account, carrier, batch)
            partition.resend(account, batch, filling=filling)
        batch.touched.add(account)
        return len(follows) + 1

    def carry(self, account: str, offset: int, batch: Batch) -> None:
        """Move an account's revision behind the event at an offset."""
        carrier = self._partition.load_carriers([account])[account]
        carrier.changed_at(offset)
        self.keep(account, carrier, batch)

    def count(self, account: str, batch: Batch) -> None:
        """Move an account's revision to what is applied."""
        carrier = self._partition.load_carriers([account])[account]
        carrier.counted_at(self._partition.applied)
        self.keep(account, carrier, batch)

    def keep(self, account: str, carrier: Carrier, batch: Batch) -> None:
        """Write what an account's revision is made of."""
        batch.changes[Column.ROWS][CARRIER + account.encode()] = dump(carrier)


def level(count: int) -> int:
    """Return a number that moves when T of a count does.

    >>> [level(count) for count in (0, 1, 2, 3, 4, 8)]
    [0, 0, 2, 2, 3, 4]
    """
    return count.bit_length() if count > 1 else 0
