"""The exact scan: the oracle of the tests, the plan of a small corpus, the mode to fall back to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.index.breadth import Breadth
from kithstream.index.exclude import Request
from kithstream.index.protocol import Hits, IndexStats
from kithstream.index.ranks import Asked, Ranks, ranks_of
from kithstream.index.score import (
    Bools,
    Doubles,
    Floats,
    Labels,
    Slots,
    checked_query,
    checked_rows,
    kth_largest,
    nominate,
    score,
    tolerance,
)
from kithstream.index.table import RING, VectorTable, View

MARGIN: Final = 64  # nominees beyond k: so many may be deleted or sink during a query before it starts again
WORTH: Final = 8  # codes that nominate more than this part of the rows leave too much to the floats
FEWER: Final = 4  # times the ids that are excluded, than the best that are asked for their names
_RETRIES: Final = 3  # then the query holds the writer for one pass
_WRITE_ROWS: Final = RING // 4  # rows of one window: announced, written, visible


class Found(NamedTuple):
    """Nominees with the scores that were read; rows that changed meanwhile are read again by `settle`."""

    slots: Slots  # without repetition
    scores: Floats
    complete: bool  # no allowed row is missing
    plan: str


class Stamps(threading.local):
    """A set of slots per thread that is emptied in no time: membership is a generation number."""

    def __init__(self) -> None:
        self._marks: NDArray[np.int64] = np.zeros(0, np.int64)
        self._generation = 0

    def clear(self, capacity: int) -> None:
        self._generation += 1
        if len(self._marks) < capacity:
            self._marks = np.zeros(capacity, np.int64)

    def add(self, slots: Slots) -> None:
        self._marks[slots] = self._generation

    def missing(self, slots: Slots) -> Bools:
        return np.asarray(self._marks[slots] != self._generation)


def scan(table: VectorTable, request: Request, plan: str = "exact") -> Found:
    """Nominees of the whole table; costs one pass over it, or over its codes.

    Of many excluded ids most are far from the best: before they are all looked up, the best are asked for their names,
    more each time that too few are left, as long as those are few beside the excluded.
    """
    rows = _Scores(table, request)
    enough = fetch = request.k + MARGIN
    while fetch * FEWER <= len(request.exclude):
        slots, scores, complete = rows.best(fetch)
        left = [table.names[slot] not in request.exclude for slot in slots.tolist()]
        if complete or sum(left) >= enough:
            return Found(slots[left], scores[left], complete, plan)
        fetch *= 4
    rows.leave_out(table.slots_of(request.exclude))
    return Found(*rows.best(enough), plan)


class _Scores:
    """What every row of a table scores, at least and at most, and which are the best of those that are allowed."""

    def __init__(self, table: VectorTable, request: Request) -> None:
        codes = table.codes  # before the view, which grows last
        self._view = table.view
        self._request = request
        self._error = tolerance(table.dim, request.norm, table.largest)
        self._used = used = min(table.used, len(self._view.alive))
        self._allowed = self._view.alive[:used].copy()
        if request.labels is not None:
            self._allowed &= wanted(self._view.labels[:used], request.labels)
        self._coded = codes is not None and table.coded_from <= used <= len(codes.slips)
        if codes is not None and self._coded:
            bounds = codes.bounds(request.wide, request.norm, self._allowed, self._error)
            self._least, self._most, self._slack = bounds
        else:
            self._multiply()

    def _multiply(self) -> None:
        self._coded = False
        self._least = self._most = self._view.vectors[: self._used] @ self._request.query
        self._least[~self._allowed] = -np.inf

    def leave_out(self, slots: Slots) -> None:
        """Allow these no more."""
        slots = slots[slots < self._used]
        self._allowed[slots] = False
        self._least[slots] = self._most[slots] = -np.inf

    def best(self, k: int) -> tuple[Slots, Floats, bool]:
        """The k best and what scores as the last of them, their scores, and whether no allowed row is missing."""
        view, request, error = self._view, self._request, self._error
        if self._coded:
            slots = nominate(self._least, k, self._slack, self._most)
            if len(slots) <= self._used // WORTH:
                near = nominate(view.vectors[slots] @ request.query, k, error)
                return _best(view, request, slots[near], k)
            self._multiply()
        return _best(view, request, nominate(self._least, k, error), k)


def _best(view: View, request: Request, slots: Slots, k: int) -> tuple[Slots, Floats, bool]:
    scores = score(view.vectors[slots], request.wide)
    if len(slots) < k:
        return slots, scores, True
    kept = nominate(scores, k, 0.0)
    return slots[kept], scores[kept], False


def among(table: VectorTable, request: Request, allow: Collection[str]) -> Found:
    """Nominees among these ids; costs a lookup and a row each."""
    view = table.view
    slots = table.slots_of(allow)
    slots = slots[slots < len(view.alive)]
    allowed = view.alive[slots]
    if request.labels is not None:
        allowed &= wanted(view.labels[slots], request.labels)
    slots = slots[allowed]
    products = np.empty(len(slots), np.float32)
    for at in range(0, len(slots), 16_384):
        products[at : at + 16_384] = view.vectors[slots[at : at + 16_384]] @ request.query
    near = nominate(products, request.k + MARGIN, tolerance(table.dim, request.norm, table.largest))
    return Found(*_best(view, request, slots[near], request.k + MARGIN), "allowed")


def wanted(labels: Labels, these: frozenset[int]) -> Bools:
    """Which labels (n,) are among a few."""
    mask = np.zeros(len(labels), np.bool_)
    for label in these:
        mask |= labels == label
    return mask


def answer(table: VectorTable, request: Request, find: Callable[[Request], Found]) -> Hits:
    """Find without a lock; start again when too much changed meanwhile, and at last hold the writer."""
    for _ in range(_RETRIES):
        mark = table.revision
        hits = settle(table, request, mark, find(request))
        if hits is not None:
            return hits
    with table.lock:
        hits = settle(table, request, table.began, find(request))
        assert hits is not None
        return hits


def settle(table: VectorTable, request: Request, mark: int, found: Found) -> Hits | None:
    """The answer at a revision of `mark` or later; None when what was found no longer decides it."""
    for attempt in range(_RETRIES + 1):
        if attempt == _RETRIES:
            with table.lock:  # writes last microseconds; nothing changes under the lock
                return _settled(table, request, mark, found)
        hits = _settled(table, request, mark, found)
        if hits is None or hits.revision == table.began:
            return hits
    return None


def _settled(table: VectorTable, request: Request, mark: int, found: Found) -> Hits | None:
    slots, scores, complete, plan = found
    now = table.revision
    changed = table.since(mark)
    if changed is None:
        return None
    if len(changed):
        changed = np.unique(changed)
        kept = ~np.isin(slots, changed)
        slots, scores = slots[kept], scores[kept]
        if len(slots) < request.k and not complete:
            return None
        again = table.permitted(changed, request.exclude, request.labels)
        if request.allow is not None:
            names = table.names
            again = again[[names[slot] in request.allow for slot in again.tolist()]]
        slots = np.concatenate([slots, again])
        scores = np.concatenate([scores, score(table.view.vectors[again], request.wide)])
    ids, best = rank(slots, scores, table.names, request.k)
    short = None
    if len(ids) < request.k:
        short = f"{len(ids)} of {request.k}: no more are allowed"
    return Hits(ids, best, plan, now, short)


def rank(slots: Slots, scores: Floats, names: Sequence[str], k: int) -> tuple[list[str], Floats]:
    """The k best: by descending score, equal scores by ascending id."""
    if len(slots) > k:
        kept = scores >= np.float32(kth_largest(scores, k))
        slots, scores = slots[kept], scores[kept]
    order = np.argsort(-scores, kind="stable")
    best = scores[order]
    ids = [names[slot] for slot in slots[order].tolist()]
    if (best[1:] == best[:-1]).any():
        pairs = sorted(zip((-best).tolist(), ids, strict=True))
        ids = [name for _, name in pairs]  # the scores' order stays as it is
    return ids[:k], best[:k]


def read(table: VectorTable, name: str) -> tuple[Floats, int]:
    """An untorn copy of a row and its sequence."""
    for _ in range(_RETRIES):
        mark = table.revision
        slot = table.slot(name)
        if slot >= 0:
            vector, sequence = table.view.vectors[slot].copy(), int(table.view.sequences[slot])
            if table.began == mark:
                return vector, sequence
    with table.lock:
        slot = table.slot(name)
        if slot < 0:
            raise KeyError(name)
        return table.view.vectors[slot].copy(), int(table.view.sequences[slot])


def scores_of(table: VectorTable, query: Doubles, ids: Sequence[str]) -> Floats:
    """The score of each id, NaN for an unknown one, all at one revision."""
    for attempt in range(_RETRIES + 1):
        if attempt == _RETRIES:
            with table.lock:
                return _scores_of(table, query, ids)
        mark = table.revision
        result = _scores_of(table, query, ids)
        if table.began == mark:
            return result
    raise AssertionError


def _scores_of(table: VectorTable, query: Doubles, ids: Sequence[str]) -> Floats:
    view = table.view
    slots = np.array([table.slots.get(name, -1) for name in ids], dtype=np.int64)
    known = (slots >= 0) & (slots < len(view.alive))
    known[known] = view.alive[slots[known]]
    result = np.full(len(ids), np.nan, np.float32)
    result[known] = score(view.vectors[slots[known]], query)
    return result


class Batch(NamedTuple):
    """Checked rows of one upsert, each id once."""

    ids: list[str]
    rows: Floats  # (n, dim)
    norms: Doubles  # (n,)
    labels: Labels | None  # (n,)

    @classmethod
    def of(cls, ids: Sequence[str], vectors: Floats, labels: Labels | None, dim: int) -> Batch:
        if isinstance(ids, str):
            raise TypeError(f"ids is a sequence of ids, not one string: {ids!r}")
        for name in ids:
            if not isinstance(name, str) or not name:
                raise TypeError(f"an id is a string of at least one character, not {name!r}")
        rows, lengths = checked_rows(vectors, dim, len(ids))
        codes: Labels | None = None
        if labels is not None:
            codes = np.asarray(labels, dtype=np.int32)
            if codes.shape != (len(ids),):
                raise ValueError(f"labels has the shape {codes.shape}, the call has {len(ids)} ids")
        if len(ids) > 1:
            last = {name: at for at, name in enumerate(ids)}
            if len(last) < len(ids):
                at = np.array(list(last.values()), dtype=np.int64)
                ids, rows, lengths = list(last), rows[at], lengths[at]
                codes = None if codes is None else codes[at]
        return cls(list(ids), rows, lengths, codes)

    def parts(self, rows: int = _WRITE_ROWS) -> list[Batch]:
        """Batches of at most so many rows."""
        if len(self.ids) <= rows:
            return [self] if self.ids else []
        return [
            Batch(
                self.ids[at : at + rows],
                self.rows[at : at + rows],
                self.norms[at : at + rows],
                None if self.labels is None else self.labels[at : at + rows],
            )
            for at in range(0, len(self.ids), rows)
        ]


class Reading:
    """What every index answers from its table alone."""

    def __init__(self, table: VectorTable, recall_wanted: float = 0.0) -> None:
        self._table = table
        self._breadth = Breadth(recall_wanted)

    def scan(
        self,
        vector: Floats,
        k: int,
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> Hits:
        """`query` by the exact plan; see `Queryable`."""
        request = Request.of(vector, k, self._table.dim, exclude, allow, labels)
        return answer(self._table, request, self._scanned)

    def query(
        self,
        vector: Floats,
        k: int,
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> Hits:
        """The k best by dot product; see `Queryable`."""
        return self.scan(vector, k, exclude=exclude, allow=allow, labels=labels)

    def compare(
        self,
        vector: Floats,
        k: int,
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> float | None:
        """The share of a scan's ids that `query` finds; see `Queryable`.

        Where a graph answered and finds too few of them, time after time, it is searched more broadly.
        """
        times = self._breadth.times
        hits = self.query(vector, k, exclude=exclude, allow=allow, labels=labels)
        true = self.scan(vector, k, exclude=exclude, allow=allow, labels=labels).ids
        if not true:
            return None
        share = len(set(hits.ids) & set(true)) / len(true)
        if hits.plan == "graph":
            self._breadth.found(share, times)
        return share

    def _scanned(self, request: Request) -> Found:
        if request.allow is not None:
            return among(self._table, request, request.allow)
        return scan(self._table, request)

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        """The score of each id, NaN for an unknown one."""
        query, _ = checked_query(vector, self._table.dim)
        return scores_of(self._table, query.astype(np.float64), ids)

    def ranks(
        self,
        vectors: Floats,
        pairs: Sequence[tuple[int, str]],
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        labels: Collection[int] | None = None,
    ) -> Ranks:
        """Where ids stand for queries; see `Queryable`."""
        checked = [checked_query(vector, self._table.dim) for vector in vectors]
        queries = np.array([query for query, _ in checked], np.float32).reshape(-1, self._table.dim)
        which = np.array([at for at, _ in pairs], np.int64)
        if len(which) and not 0 <= which.min() <= which.max() < len(queries):
            raise ValueError(f"a pair is of vector {which.max()}, there are {len(queries)}")
        lengths = np.array([length for _, length in checked])
        names = [name for _, name in pairs]
        wide = queries.astype(np.float64)
        return ranks_of(self._table, Asked(queries, wide, lengths, which, names, exclude, allow, labels))

    def vector(self, name: str) -> Floats:
        """A copy of the vector; `KeyError` for an unknown id."""
        return read(self._table, name)[0]

    def sequence(self, name: str) -> int:
        """What the last upsert gave as `sequence`; `KeyError` for an unknown id."""
        return read(self._table, name)[1]

    def ids(self) -> list[str]:
        """All ids, in no order."""
        with self._table.lock:
            alive = np.flatnonzero(self._table.view.alive[: self._table.used])
            return [self._table.names[slot] for slot in alive.tolist()]

    def __len__(self) -> int:
        return self._table.alive

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._table.slot(name) >= 0


class ExactIndex(Reading):
    """A table that is scanned for every query; 5 ms at 100k rows of 128 dimensions."""

    def __init__(self, dim: int, capacity: int = 1024) -> None:
        super().__init__(VectorTable(dim, capacity))

    def upsert(
        self, ids: Sequence[str], vectors: Floats, *, labels: Labels | None = None, sequence: int = 0
    ) -> int:
        """Store vectors (n, dim); see `Writable`."""
        table = self._table
        for part in Batch.of(ids, vectors, labels, table.dim).parts():
            with table.lock:
                table.write(table.place(part.ids), part.rows, part.norms, part.labels, sequence)
                table.settle()
        return table.revision

    def delete(self, ids: Sequence[str]) -> int:
        """Forget ids; see `Writable`."""
        table = self._table
        with table.lock:
            slots = table.alive_slots(ids)
            table.announce(slots)
            table.bury(slots)
            return table.settle()

    def stats(self) -> IndexStats:
        """Counts, for metrics and tests."""
        table = self._table
        size = sum(array.nbytes for array in table.view)
        return IndexStats(table.alive, 0, 0, 0, table.revision, size, 0.0, 0, 0, 0.0, 0, 0.0, 0, 0, 0, 0, 1.0)
