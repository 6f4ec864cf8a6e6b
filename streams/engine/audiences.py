"""Communities of audiences: for each account the sums of its followers' interests, moved by what follows carry."""

from __future__ import annotations

from itertools import islice
from typing import Final

from kithstream.streams.communities import cells
from kithstream.streams.communities.carried import SHARES, share_of, weights
from kithstream.streams.engine.partition import Batch, Partition
from kithstream.streams.engine.slots import Slot
from kithstream.streams.state.ledger import EPOCH, STAMP, since
from kithstream.streams.state.protocol import Column

SHARED: Final = EPOCH + STAMP + SHARES  # where shares begin in the value of an in-edge
_LETTER: Final = b"A"  # of the family follow


class Audiences:
    """What one batch changes in the audiences of a partition's accounts."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._changes: dict[tuple[int, bytes], dict[int, int]] = {}  # (slot, target) -> community -> change

    def move(self, key: bytes, target: bytes, old: bytes, new: bytes) -> None:
        """Move a follower from what its follow carried to what it carries; empty for a follow that is not there."""
        was, now = old[SHARED:], new[SHARED:]
        if was == now:
            return
        for slot in self._partition.slots:
            if slot.record.into is not None and key >= slot.record.into:
                continue  # counted when filling comes to it
            self._add(slot, target, share_of(was, slot.tag), -1)
            self._add(slot, target, share_of(now, slot.tag), 1)

    def fill(self, batch: Batch, left: int) -> int:
        """Take in what was in the in-ledger before a slot; return how many of `left` edges were not needed."""
        for slot in self._partition.slots:
            if slot.record.into is None or left <= 0:
                continue
            items = list(islice(self._partition.store.scan_from(Column.IN, b"", slot.record.into), left + 1))
            for key, value in items[:left]:
                target, letter_actor, _ = key.split(b"\0")
                if letter_actor[:1] == _LETTER and since(value) >= 0:
                    self._add(slot, target, share_of(value[SHARED:], slot.tag), 1)
            slot.record.into = items[left][0] if len(items) > left else None
            left -= min(len(items), left)
            batch.changes[Column.META][slot.key] = slot.dump()
        self.fold(batch)
        return left

    def fold(self, batch: Batch) -> None:
        """Bring the changes into the rows of the audiences."""
        partition = self._partition
        keys: dict[bytes, tuple[int, bytes]] = {}
        for slot in partition.slots:
            keys.update(
                (slot.audience + at[1], at)
                for at, by in self._changes.items()
                if at[0] == slot.number and any(by.values())
            )
        for key, row in partition.load_rows(keys).items():
            at = keys[key]
            partition.put_row(key, cells.moved(row, self._changes[at]), batch)
            batch.touched.add(at[1].decode())
        self._changes.clear()

    def _add(self, slot: Slot, target: bytes, entries: bytes, sign: int) -> None:
        if not entries:
            return
        changes = self._changes.setdefault((slot.number, target), {})
        for community, weight in weights(entries):
            changes[community] = changes.get(community, 0) + sign * weight
