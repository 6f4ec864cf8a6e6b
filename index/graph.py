"""The graph of the cold rows: hnswlib, kept within what it does safely.

The largest dot product is the smallest distance once every vector has the coordinate sqrt(bound² - norm²)
appended and the query has 0 there: all vectors lie on one sphere. A graph over raw inner products collapses
silently; this one does not, but where norms differ widely the appended coordinate hides the rest and recall
falls (.72 on a lognormal spread of .7). So rows are split by norm into bands, each with the bound that fits
it (.999 at the same cost).

Not used, on purpose: `replace_deleted` (loses labels when a batch of them is added again), `resize_index`
(frees memory under readers), `mark_deleted` (slows every search; the table's alive bit decides), filters in
Python (hold the interpreter's lock). Nobody may search a graph while `add` runs on it; `LiveIndex` sees to
that.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import hnswlib
import numpy as np

from kithstream.index.errors import SnapshotRefused
from kithstream.index.score import Bools, Doubles, Floats, Slots, norms

_CHUNK: Final = 256  # rows per call: the interpreter's lock is free within one, and Ctrl-C is heard between
_HEADER: Final = struct.Struct("<6QiI3QdQ")  # as hnswlib 0.8 writes it


class Shape(NamedTuple):
    """What a graph is built with."""

    dim: int  # of the vectors, without the appended coordinate
    limits: tuple[float, ...]  # largest norm of each band, ascending
    capacities: tuple[int, ...]  # vectors of each band, allocated at once
    links: int
    ef_construction: int
    seed: int

    @property
    def bound(self) -> float:
        """No vector is longer."""
        return self.limits[-1]

    def bands(self, lengths: Doubles) -> Slots:
        """The band of each norm (n,): the first that holds it."""
        return np.minimum(np.searchsorted(self.limits, lengths), len(self.limits) - 1)


def shape_of(fields: dict[str, Any]) -> Shape:
    """A shape from JSON, which has lists for tuples."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Shape(**fields)


class Neighbours(NamedTuple):
    """What a band nominates: slots by rising distance, and the best score of anything it did not name."""

    slots: Slots
    floor: float


class Graph:
    """Vectors by slot. One that moved to another band is in both: its old place nominates it as well."""

    def __init__(self, shape: Shape, directory: Path | None = None) -> None:
        self.shape = shape
        self._bands = [
            _band(shape, capacity, None if directory is None else directory / file)
            for capacity, file in zip(shape.capacities, self.files(shape), strict=True)
        ]

    @staticmethod
    def files(shape: Shape) -> list[str]:
        """The names of the files of a saved graph, by band."""
        return [f"graph-{band}.bin" for band in range(len(shape.limits))]

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Vectors in each band."""
        return [int(band.element_count) for band in self._bands]

    @property
    def nbytes(self) -> int:
        """Estimated: vectors, links of the lowest level, and a share for upper levels and the label map."""
        return len(self) * ((self.shape.dim + 1) * 4 + self.shape.links * 8 + 64)

    def fits(self, vectors: Floats) -> bool:
        """Whether there is room for these vectors, were they all unknown."""
        counts = np.bincount(self.shape.bands(norms(vectors)), minlength=len(self._bands))
        rooms = zip(self.sizes, counts.tolist(), self.shape.capacities, strict=True)
        return all(size + count <= capacity for size, count, capacity in rooms)

    def add(self, vectors: Floats, slots: Slots) -> None:
        """Place vectors (n, dim) at distinct slots, moving the known ones; nobody may search meanwhile."""
        into = self.shape.bands(norms(vectors))
        for number, band in enumerate(self._bands):
            chosen = np.flatnonzero(into == number)
            for at in range(0, len(chosen), _CHUNK):
                part = chosen[at : at + _CHUNK]
                rows = appended(vectors[part], self.shape.limits[number])
                band.add_items(rows, slots[part].astype(np.uint64), num_threads=1)

    def search(self, number: int, query: Floats, fetch: int) -> Neighbours | None:
        """The nearest `fetch` vectors of a band, all if it has fewer; None when so many cannot be reached."""
        band = self._bands[number]
        count = int(band.element_count)
        if count == 0:
            return Neighbours(np.empty(0, np.int64), -np.inf)
        try:
            labels, distances = band.knn_query(
                np.append(query, np.float32(0.0)), k=min(fetch, count), num_threads=1
            )
        except RuntimeError:  # hnswlib's way to say that fewer are reachable
            return None
        slots = labels[0].astype(np.int64)
        if fetch >= count:
            return Neighbours(slots, -np.inf)
        length = float(np.vecdot(query, query, dtype=np.float64))
        return Neighbours(slots, (length + self.shape.limits[number] ** 2 - float(distances[0, -1])) / 2)

    def moved(self, vectors: Floats, positions: Floats, epsilon: float) -> Bools:
        """Which vectors (n, dim) are further than epsilon from their positions, where the graph searches."""
        lengths = norms(vectors)
        bands = self.shape.bands(lengths)
        limits = np.array(self.shape.limits)[bands]
        apart = appended(vectors, limits).astype(np.float64) - appended(positions, limits)
        far = np.einsum("ij,ij->i", apart, apart) > 2.0 * epsilon * lengths**2
        return np.asarray(far | (bands != self.shape.bands(norms(positions))))

    def labels(self) -> Slots:
        """All slots that it can look up, ascending."""
        known = [np.array(band.get_ids_list(), dtype=np.int64) for band in self._bands]
        return np.unique(np.concatenate(known))

    def sound(self) -> bool:
        """Whether every vector can be looked up by its slot: hnswlib has been seen to lose some."""
        return all(len(band.get_ids_list()) == band.element_count for band in self._bands)

    def save(self, directory: Path) -> None:
        """Write hnswlib's files; not atomic, not flushed, and it holds the interpreter's lock."""
        for band, file in zip(self._bands, self.files(self.shape), strict=True):
            band.save_index(str(directory / file))


def _band(shape: Shape, capacity: int, path: Path | None) -> hnswlib.Index:
    band = hnswlib.Index(space="l2", dim=shape.dim + 1)
    if path is None:
        band.init_index(
            max_elements=capacity,
            M=shape.links,
            ef_construction=shape.ef_construction,
            random_seed=shape.seed,
        )
    else:
        band.load_index(str(path), max_elements=capacity)
    band.set_num_threads(1)
    band.set_ef(1)  # a search is as broad as it fetches; this global cannot change beside readers
    return band


def limits_of(lengths: Doubles, bound: float, bands: int, ratio: float) -> tuple[float, ...]:
    """Norms that split rows into bands, each of half the rest, with limits at least `ratio` apart.

    The longest rows are in the smallest bands: they are most of the answers, and their norms differ most.


    >>> limits_of(np.array([1.0, 1.0, 1.0, 1.0]), 1.1, bands=4, ratio=1.15)
    (1.1,)
    >>> limits_of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 5.5, bands=3, ratio=1.15)
    (3.0, 4.0, 5.5)
    """
    limits = [bound]
    if len(lengths):
        for halving in range(bands - 1, 0, -1):
            limit = float(np.quantile(lengths, 1 - 0.5**halving))
            if limit * ratio <= limits[0]:
                limits.insert(0, limit)
    return tuple(limits)


def appended(vectors: Floats, bound: float | Doubles) -> Floats:
    """Vectors (n, dim + 1) on the sphere of radius `bound`; a longer one keeps its direction and gets 0."""
    rest = np.sqrt(np.maximum(np.square(bound) - norms(vectors) ** 2, 0.0))
    return np.ascontiguousarray(np.column_stack([vectors, rest.astype(np.float32)]))


class GraphFile(NamedTuple):
    """What hnswlib stored, read without hnswlib."""

    slots: Slots  # (n,)
    vectors: Floats  # (n, dim)
    degree: float  # mean number of links on the lowest level


def read_files(directory: Path, shape: Shape) -> GraphFile:
    """The vectors, slots and mean degree of a saved graph; a slot comes once for each band that it is in."""
    parts = [read_file(directory / file, shape.dim) for file in Graph.files(shape)]
    slots = np.concatenate([part.slots for part in parts])
    links = sum(part.degree * len(part.slots) for part in parts)
    return GraphFile(slots, np.concatenate([part.vectors for part in parts]), links / max(1, len(slots)))


def read_file(path: Path, dim: int) -> GraphFile:
    """The vectors, slots and mean degree in the file of one band."""
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
