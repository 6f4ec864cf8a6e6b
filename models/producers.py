"""The candidates as they were last encoded: what training reads of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kithstream.models.checkpoint import Array, Checkpoint
from kithstream.models.directions import COMMUNITY_DIM, LANGUAGE_DIM
from kithstream.models.features import (
    DENSE,
    FOLLOWERS,
    POOLED_FOLLOWEES,
    QUALITY,
    SKETCH,
    TABLES,
    ProducerFeatures,
)
from kithstream.models.ids import NOBODY

Rows32 = NDArray[np.int32]
Values = NDArray[np.float32 | np.int32]

# What `ProducerFeatures` holds of one account beside its row, in its order.
SHAPES: Final[dict[str, tuple[tuple[int, ...], type[np.float32 | np.int32]]]] = {
    "dense": ((len(DENSE),), np.float32),
    "quality": ((len(QUALITY),), np.float32),
    "buckets": ((len(TABLES),), np.int32),
    "followers": ((FOLLOWERS,), np.int32),
    "followees": ((POOLED_FOLLOWEES,), np.int32),
    "places": ((LANGUAGE_DIM,), np.float32),
    "communities": ((COMMUNITY_DIM,), np.float32),
    "sketches": ((2 * SKETCH,), np.float32),
}


class ProducerTable:
    """The last encoded features of every candidate, by row of the id vectors. About 600 bytes a row."""

    tables: dict[str, Values]  # (capacity, ...) by field of `ProducerFeatures`

    def __init__(self) -> None:
        self._count = 0
        self._known = np.zeros(0, np.int32)
        self._allocate(1024)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Rows32:
        """Rows written, in the order of their first writing."""
        return self._known[: self._count]

    def written(self, rows: Rows32) -> NDArray[np.bool_]:
        inside = rows < len(self._written)
        found: NDArray[np.bool_] = inside & self._written[np.where(inside, rows, 0)]
        return found

    def write(self, features: ProducerFeatures) -> None:
        """Keeps features as they were encoded; of a row given twice the last stays."""
        rows = features.rows
        if len(rows) == 0:
            return
        self._grow(int(rows.max()) + 1)
        fresh = rows[~self._written[rows]]
        fresh = fresh[np.sort(np.unique(fresh, return_index=True)[1])]  # by appearance, not by row number
        if len(fresh):
            if self._count + len(fresh) > len(self._known):
                self._known = np.pad(self._known, (0, len(self._known) + len(fresh) + 1024))
            self._known[self._count : self._count + len(fresh)] = fresh
            self._count += len(fresh)
            self._written[fresh] = True
        for table, values in zip(self.tables.values(), features[1:], strict=True):
            table[rows] = values

    def read(self, rows: Rows32) -> ProducerFeatures:
        """Features of rows as they were written; zeros for rows that never were."""
        self._grow(int(rows.max(initial=0)) + 1)
        return ProducerFeatures._make((rows, *(table[rows] for table in self.tables.values())))

    def drop(self, rows: Rows32) -> None:
        """Forgets rows, as candidates and as neighbours of others."""
        gone = np.zeros(max(len(self._written), int(rows.max(initial=0)) + 1), np.bool_)
        gone[rows] = True
        kept = self.rows[~gone[self.rows]]
        self._known[: len(kept)] = kept
        self._count = len(kept)
        self._written &= ~gone[: len(self._written)]
        for table in self.tables.values():
            table[rows[rows < len(table)]] = 0
        for name in ("followers", "followees"):
            table = self.tables[name]
            table[gone[np.minimum(table, len(gone) - 1)]] = NOBODY

    def arrays(self) -> dict[str, Array]:
        """Content by name, for a checkpoint."""
        return self.capture()()

    def capture(self) -> Callable[[], dict[str, Array]]:
        """Copies the content as it is; what it returns makes `arrays` of the copy, later and in any thread."""
        rows = self.rows.copy()
        used = int(rows.max(initial=-1)) + 1
        # All of them: choosing rows takes several times as long.
        copied = {name: table[:used].copy() for name, table in self.tables.items()}

        def arrays() -> dict[str, Array]:
            values = {f"producers.{name}": table[rows] for name, table in copied.items()}
            return {"producers.rows": rows, **values}

        return arrays

    def restore(self, saved: Checkpoint, below: int) -> None:
        """Replaces the content by that of a checkpoint, beside id vectors of so many rows; raises DamageError."""
        rows = saved.rows("producers.rows", below)
        values = [
            saved.array(f"producers.{name}", (len(rows), *shape), kind)
            for name, (shape, kind) in SHAPES.items()
        ]
        order = np.argsort(rows, kind="stable")
        self._clear()
        self.write(ProducerFeatures._make((rows[order], *(v[order] for v in values))))
        self._known[: len(rows)] = rows

    def _clear(self) -> None:
        self._count = 0
        self._known = np.zeros(0, np.int32)
        self._allocate(1024)

    def _allocate(self, capacity: int) -> None:
        self._written = np.zeros(capacity, np.bool_)
        self.tables = {name: np.zeros((capacity, *shape), kind) for name, (shape, kind) in SHAPES.items()}

    def _grow(self, needed: int) -> None:
        if needed <= len(self._written):
            return
        more = max(needed, 2 * len(self._written)) - len(self._written)
        self._written = np.pad(self._written, (0, more))
        self.tables = {
            name: np.pad(table, ((0, more), *((0, 0) for _ in table.shape[1:])))
            for name, table in self.tables.items()
        }
