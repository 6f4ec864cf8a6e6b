"""One graph of hnswlib, kept within what hnswlib does safely.

The largest dot product is the smallest distance once every vector has the coordinate sqrt(bound² - norm²)
appended and the query has 0 there: all vectors lie on one sphere. A graph over raw inner products collapses
silently; this one does not.

Not used, on purpose: `replace_deleted` (loses labels when a batch of them is added again), `resize_index`
(frees memory under readers), `mark_deleted` (slows every search; the table's alive bit decides), filters in
Python (hold the interpreter's lock). Nobody may search a graph while `add` runs on it; `LiveIndex` sees to
that.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final, NamedTuple

import hnswlib
import numpy as np

from kithstream.index.errors import SnapshotRefused
from kithstream.index.score import Doubles, Floats, Slots

_CHUNK: Final = 256  # rows per call: the interpreter's lock is free within one, and Ctrl-C is heard between
_HEADER: Final = struct.Struct("<6QiI3QdQ")  # as hnswlib 0.8 writes it


class Shape(NamedTuple):
    """What a graph is built with."""

    dim: int  # of the vectors, without the appended coordinate
    bound: float  # no vector is longer
    capacity: int  # vectors, allocated at once
    links: int
    ef_construction: int
    seed: int


class Neighbours(NamedTuple):
    """What a graph nominates: slots by rising distance, and the best score of anything it did not name."""

    slots: Slots
    floor: float


class Graph:
    """Vectors by slot."""

    def __init__(self, shape: Shape, path: Path | None = None) -> None:
        self.shape = shape
        self._index = hnswlib.Index(space="l2", dim=shape.dim + 1)
        if path is None:
            self._index.init_index(
                max_elements=shape.capacity,
                M=shape.links,
                ef_construction=shape.ef_construction,
                random_seed=shape.seed,
            )
        else:
            self._index.load_index(str(path), max_elements=shape.capacity)
        self._index.set_num_threads(1)
        self._index.set_ef(1)  # a search is as broad as it fetches; this global cannot change beside readers

    def __len__(self) -> int:
        return int(self._index.element_count)

    @property
    def nbytes(self) -> int:
        """Estimated: vectors, links of the lowest level, and a share for upper levels and the label map."""
        return self.shape.capacity * ((self.shape.dim + 1) * 4 + self.shape.links * 8 + 64)

    def add(self, vectors: Floats, slots: Slots) -> None:
        """Place vectors (n, dim) at distinct slots, moving the known ones; nobody may search meanwhile."""
        rows = appended(vectors, self.shape.bound)
        for at in range(0, len(slots), _CHUNK):
            part = slice(at, at + _CHUNK)
            self._index.add_items(rows[part], slots[part].astype(np.uint64), num_threads=1)

    def search(self, query: Floats, fetch: int) -> Neighbours | None:
        """The nearest `fetch` vectors, of all if there are fewer; None when so many cannot be reached."""
        count = len(self)
        fetch = min(fetch, count)
        if fetch == 0:
            return Neighbours(np.empty(0, np.int64), -np.inf)
        try:
            labels, distances = self._index.knn_query(
                np.append(query, np.float32(0.0)), k=fetch, num_threads=1
            )
        except RuntimeError:  # hnswlib's way to say that fewer are reachable
            return None
        if fetch == count:
            return Neighbours(labels[0].astype(np.int64), -np.inf)
        length = float(np.vecdot(query, query, dtype=np.float64))
        floor = (length + self.shape.bound**2 - float(distances[0, -1])) / 2
        return Neighbours(labels[0].astype(np.int64), floor)

    def labels(self) -> Slots:
        """All slots that it can look up, ascending."""
        return np.sort(np.array(self._index.get_ids_list(), dtype=np.int64))

    def save(self, path: Path) -> None:
        """Write hnswlib's file; not atomic, not flushed, and it holds the interpreter's lock."""
        self._index.save_index(str(path))


def appended(vectors: Floats, bound: float) -> Floats:
    """Vectors (n, dim + 1) on the sphere of radius `bound`; a longer one keeps its direction and gets 0."""
    squares: Doubles = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    rest = np.sqrt(np.maximum(bound * bound - squares, 0.0))
    return np.ascontiguousarray(np.column_stack([vectors, rest.astype(np.float32)]))


class GraphFile(NamedTuple):
    """What hnswlib stored, read without hnswlib."""

    slots: Slots  # (n,)
    vectors: Floats  # (n, dim)
    degree: float  # mean number of links on the lowest level


def read_file(path: Path, dim: int) -> GraphFile:
    """The vectors, labels and mean degree in a saved graph."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise SnapshotRefused(f"{path.name} is truncated")
    fields = _HEADER.unpack(head)
    count, stride, label_at, data_at = fields[2], fields[3], fields[4], fields[5]
    if label_at != data_at + 4 * (dim + 1) or stride != label_at + 8 or size < _HEADER.size + count * stride:
        raise SnapshotRefused(f"{path.name} is no graph of {dim} dimensions")
    if count == 0:
        return GraphFile(np.empty(0, np.int64), np.empty((0, dim), np.float32), 0.0)
    level = np.memmap(path, np.uint8, "r", offset=_HEADER.size, shape=(count, stride))
    links = level[:, :2].copy().view(np.uint16)
    vectors = level[:, data_at : data_at + 4 * dim].copy().view(np.float32)
    slots = level[:, label_at : label_at + 8].copy().view(np.int64)
    return GraphFile(slots[:, 0], vectors, float(links.mean()))
