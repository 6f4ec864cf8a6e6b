"""The authoritative table: the freshest vector of every id, in slots that never leave the package.

One writer at a time holds `lock`; readers take none. A write first *announces* its slots in a ring, then
changes rows, then raises `revision`. A reader notes `revision`, reads what it likes, possibly torn or
outdated, and asks `since` afterwards which slots to read again. That one mechanism covers torn rows,
deletes, growth and slots that were given to another id.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.index.codes import QUICKER, Codes, quicker
from kithstream.index.score import Bools, Doubles, Floats, Labels, Slots, norms

RING: Final = 1 << 16  # slots announced lately; a reader that falls further behind starts again
PAIR: Final = 1  # bit of `held`: the pair of graphs that serves knows the slot
BUILDING: Final = 2  # bit of `held`: the pair that is being built knows it
_NONE: Final = np.empty(0, np.int64)


class View(NamedTuple):
    """Arrays of one capacity; replaced as a whole when the table grows: a reader's own stay."""

    vectors: Floats  # (capacity, dim)
    sequences: NDArray[np.int64]  # (capacity,)
    labels: Labels  # (capacity,)
    alive: Bools  # (capacity,)
    held: NDArray[np.uint8]  # (capacity,) PAIR | BUILDING: a slot that a graph knows is given to no other id

    @classmethod
    def empty(cls, capacity: int, dim: int) -> View:
        return cls(
            np.zeros((capacity, dim), np.float32),
            np.zeros(capacity, np.int64),
            np.zeros(capacity, np.int32),
            np.zeros(capacity, np.bool_),
            np.zeros(capacity, np.uint8),
        )

    def cut(self, rows: int) -> View:
        """Copies of the first rows."""
        vectors, sequences, labels, alive, held = self
        return View(
            vectors[:rows].copy(),
            sequences[:rows].copy(),
            labels[:rows].copy(),
            alive[:rows].copy(),
            held[:rows].copy(),
        )

    def put(self, other: View, at: Slots | slice) -> None:
        """Take these rows from another view."""
        self.vectors[at] = other.vectors[at]
        self.sequences[at] = other.sequences[at]
        self.labels[at] = other.labels[at]
        self.alive[at] = other.alive[at]
        self.held[at] = other.held[at]


class VectorTable:
    """Slots and ids, vectors, sequences, labels and alive bits. Methods that change it want `lock` held."""

    def __init__(self, dim: int, capacity: int = 1024, *, coded_from: int = 0) -> None:
        """`coded_from` rows on there are codes to scan, if this machine is quicker so; 0: never."""
        self.dim = dim
        self.lock = threading.RLock()
        self.view = View.empty(capacity, dim)
        self.coded_from = coded_from
        self.codes = Codes(capacity, dim) if coded_from and quicker(dim) else None
        self.names: list[str] = []  # by slot; "" for a free one
        self.slots: dict[str, int] = {}  # dead ids stay while a graph holds their slot
        self.alive = 0
        self.largest = 0.0  # no alive row has a larger norm; it never falls
        self.label_counts: dict[int, int] = {}  # of alive rows
        self.began = 0
        self.revision = 0
        self._ring: NDArray[np.int64] = np.zeros(RING, np.int64)
        self._free: list[int] = []

    @property
    def used(self) -> int:
        """Slots that were ever given; rows beyond are untouched."""
        return len(self.names)

    @property
    def cost(self) -> int:
        """How many rows of floats are scanned in the time that a scan of the alive ones takes."""
        if self.codes is None or self.alive < self.coded_from:
            return self.alive
        return max(self.coded_from, self.alive // QUICKER)

    def slot(self, name: str) -> int:
        """The slot of an alive id, or -1."""
        slot = self.slots.get(name, -1)
        return slot if slot >= 0 and self.view.alive[slot] else -1

    def slots_of(self, ids: Iterable[str]) -> Slots:
        """The slots of the known ids among these, dead or alive, in their order."""
        get = self.slots.get
        return np.array([slot for name in ids if (slot := get(name, -1)) >= 0], dtype=np.int64)

    def alive_slots(self, ids: Iterable[str]) -> list[int]:
        """The slots of the alive ids among these, each once."""
        if isinstance(ids, str):
            raise TypeError(f"ids is a sequence of ids, not one string: {ids!r}")
        return [slot for name in dict.fromkeys(ids) if (slot := self.slot(name)) >= 0]

    def since(self, mark: int) -> Slots | None:
        """Slots announced after revision `mark`, maybe repeated; None when the ring has lost some."""
        began = self.began
        if began == mark:
            return _NONE
        changed = self._ring[np.arange(mark, began) & (RING - 1)] if began - mark <= RING else None
        return changed if self.began - mark <= RING else None

    def permitted(self, slots: Slots, exclude: Collection[str], labels: Collection[int] | None) -> Slots:
        """Those of a few slots that are alive, whose id is not excluded and whose label is wanted."""
        view, names = self.view, self.names
        return np.array(
            [
                slot
                for slot in slots.tolist()
                if view.alive[slot]
                and names[slot] not in exclude
                and (labels is None or int(view.labels[slot]) in labels)
            ],
            dtype=np.int64,
        )

    def place(self, ids: Sequence[str]) -> list[int]:
        """A slot for each id (which do not repeat); announces them. The rows are to be written next."""
        known = self.slots
        placed = [known.get(name, -1) for name in ids]
        fresh = placed.count(-1)
        if fresh:
            self._grow(self.used + fresh - len(self._free))
            names, free = self.names, self._free
            given: list[int] = []
            for at, slot in enumerate(placed):
                if slot < 0:
                    if free:
                        placed[at] = free.pop()
                    else:
                        placed[at] = len(names) + len(given)
                        given.append(at)
            self.announce(placed)
            names.extend(ids[at] for at in given)
            for name, slot in zip(ids, placed, strict=True):
                names[slot] = name
                known[name] = slot
        else:
            self.announce(placed)
        return placed

    def announce(self, slots: Sequence[int]) -> None:
        """Tell readers that these rows are about to change."""
        began, count = self.began, len(slots)
        if count == 1:
            self._ring[began & (RING - 1)] = slots[0]
        else:
            last = slots[-RING:]
            self._ring[np.arange(began + count - len(last), began + count) & (RING - 1)] = last
        self.began = began + count

    def settle(self) -> int:
        """All announced rows are written: the revision from which on they are visible."""
        self.revision = self.began
        return self.revision

    def write(
        self, slots: list[int], rows: Floats, lengths: Doubles, labels: Labels | None, sequence: int
    ) -> None:
        """Write rows (n, dim) into announced slots."""
        view = self.view
        if len(slots) == 1:
            slot = slots[0]
            label = 0 if labels is None else int(labels[0])
            self._count_label(slot, label)
            view.vectors[slot] = rows[0]
            view.sequences[slot] = sequence
            view.labels[slot] = label
            view.alive[slot] = True
            norm = float(lengths[0])
        else:
            at = np.array(slots, dtype=np.int64)
            wanted = [0] * len(slots) if labels is None else labels.tolist()
            for slot, label in zip(slots, wanted, strict=True):
                self._count_label(slot, label)
            view.vectors[at] = rows
            view.sequences[at] = sequence
            view.labels[at] = 0 if labels is None else labels
            view.alive[at] = True
            norm = float(lengths.max())
        self.largest = max(self.largest, norm)
        if self.codes is not None:
            self.codes = self.codes.written(slots, view.vectors)

    def bury(self, slots: list[int]) -> None:
        """Clear the alive bit of announced, alive slots; those that no graph holds are free again."""
        view, counts = self.view, self.label_counts
        for slot in slots:
            view.alive[slot] = False
            counts[int(view.labels[slot])] -= 1
            self.alive -= 1
            if not view.held[slot]:
                self._release(slot)

    def hold(self, slots: Slots, bit: int) -> None:
        """A graph is about to know these slots."""
        self.view.held[slots] |= bit

    def reclaim(self, bits: int) -> None:
        """Keep only these bits of `held`, as PAIR, and free the dead slots that no graph holds any more."""
        view, used = self.view, self.used
        before = view.held[:used] != 0
        view.held[:used] = np.where(view.held[:used] & bits, PAIR, 0)
        freed = np.flatnonzero(before & ~view.alive[:used] & (view.held[:used] == 0)).tolist()
        for start in range(0, len(freed), RING // 4):
            part = freed[start : start + RING // 4]
            self.announce(part)
            for slot in part:
                self._release(slot)
            self.settle()

    def _release(self, slot: int) -> None:
        if self.names[slot]:  # a dead row that came from a snapshot has none
            del self.slots[self.names[slot]]
        self.names[slot] = ""
        self._free.append(slot)

    def _count_label(self, slot: int, label: int) -> None:
        counts, view = self.label_counts, self.view
        if view.alive[slot]:
            old = int(view.labels[slot])
            if old == label:
                return
            counts[old] -= 1
        else:
            self.alive += 1
        counts[label] = counts.get(label, 0) + 1

    def _grow(self, wanted: int) -> None:
        view = self.view
        capacity = len(view.alive)
        if wanted <= capacity:
            return
        while capacity < wanted:
            capacity *= 2
        larger = View.empty(capacity, self.dim)
        larger.put(view, slice(len(view.alive)))
        if self.codes is not None:
            self.codes = self.codes.grown(capacity)
        self.view = larger

    def copy(self) -> View:
        """Copies of the rows in use, at one revision: the lock is held when it returns."""
        mark = self.revision
        view = self.view
        used = min(self.used, len(view.alive))
        early = view.cut(used)
        self.lock.acquire()
        changed = self.since(mark)
        view = self.view
        if changed is None or self.used > used:
            return view.cut(self.used)
        early.put(view, changed)
        return early

    @classmethod
    def load(cls, names: list[str], view: View, *, coded_from: int = 0) -> VectorTable:
        """A table from stored arrays; "" names a dead row, and a free slot where no graph holds it."""
        table = cls(view.vectors.shape[1], max(1, len(view.alive)), coded_from=coded_from)
        table.view.put(view, slice(len(view.alive)))
        table.names = names
        table.slots = {name: slot for slot, name in enumerate(names) if name}
        table._free = [slot for slot, name in enumerate(names) if not name and not view.held[slot]]
        alive = view.alive[: len(names)]
        table.alive = int(alive.sum())
        values, counts = np.unique(view.labels[: len(names)][alive], return_counts=True)
        table.label_counts = dict(zip(values.tolist(), counts.tolist(), strict=True))
        living = np.flatnonzero(table.view.alive)
        table.largest = largest_norm(table.view.vectors, living)
        if table.codes is not None:
            table.codes.fit(living, table.view.vectors)
        return table


def largest_norm(vectors: Floats, slots: Slots) -> float:
    """The largest norm among these rows, in bounded memory; 0 for none."""
    parts = (slots[at : at + 16_384] for at in range(0, len(slots), 16_384))
    return max((float(norms(vectors[part]).max()) for part in parts), default=0.0)
