"""Where ids stand among everything that is allowed: exact, by one pass over the table for all of them.

A graph cannot tell how many are better. The pass multiplies in float32 and decides by `score` alone whatever lies
within rounding of an id's own score, so a rank agrees with the order of the answers bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.index.score import Bools, Doubles, Floats, Slots, score, tolerance
from kithstream.index.table import VectorTable

_ROWS: Final = 16_384  # of the table that are multiplied at a time
_RETRIES: Final = 2  # then the writer is held for the pass


class Ranks(NamedTuple):
    """Standings of m (vector, id) pairs, all at one revision."""

    scores: Floats  # (m,), NaN for an unknown id
    ranks: NDArray[np.int64]  # (m,) from 1: allowed ids before it, and one; 0 for an unknown id


class Asked(NamedTuple):
    """Checked pairs of a vector and an id, and who counts."""

    queries: Floats  # (q, dim)
    wide: Doubles  # (q, dim) the same
    norms: Doubles  # (q,)
    which: NDArray[np.int64]  # (m,) of a pair: its query
    names: Sequence[str]  # m, of a pair: its id
    exclude: Collection[str]
    allow: Collection[str] | None
    labels: Collection[int] | None


class _Pass(NamedTuple):
    """What one pass read."""

    slots: Slots  # (m,) of the ids, -1 for an unknown one
    scores: Floats  # (m,)
    before: Bools  # (m, rows) whether a row stands before the pair's id


def ranks_of(table: VectorTable, asked: Asked) -> Ranks:
    """Rank without a lock; rows that changed meanwhile are counted again, and at last the writer is held."""
    for _ in range(_RETRIES):
        mark = table.revision
        read = _read(table, asked)
        with table.lock:
            changed = table.since(mark)
            if changed is None or np.isin(changed, read.slots).any() or _moved(table, asked, read):
                continue
            changed = np.unique(changed)
            known = changed[changed < read.before.shape[1]]
            vectors, allowed = table.view.vectors[changed], _allowed(table, asked, len(table.view.alive))
            again = _before(table, asked, read.scores, changed, vectors, allowed[changed])
            counts = _count(read.before) - _count(read.before[:, known]) + _count(again)
        return _ranks(read, counts)
    with table.lock:
        read = _read(table, asked)
    return _ranks(read, _count(read.before))


def _count(before: Bools) -> NDArray[np.int64]:  # (m,)
    return np.array([np.count_nonzero(row) for row in before], np.int64)  # much faster than along an axis


def _ranks(read: _Pass, counts: NDArray[np.int64]) -> Ranks:
    return Ranks(read.scores, np.where(read.slots >= 0, counts + 1, 0))


def _moved(table: VectorTable, asked: Asked, read: _Pass) -> bool:
    """True if an id came or went while the table was read."""
    return any(table.slot(name) != slot for name, slot in zip(asked.names, read.slots.tolist(), strict=True))


def _read(table: VectorTable, asked: Asked) -> _Pass:
    slots = np.array([table.slot(name) for name in asked.names], np.int64)
    view = table.view
    used = min(table.used, len(view.alive))
    slots[slots >= used] = -1  # given since: it is among the changed
    scores = np.full(len(slots), np.nan, np.float32)
    for pair in np.flatnonzero(slots >= 0).tolist():
        at = slots[pair : pair + 1]
        scores[pair] = score(view.vectors[at], asked.wide[asked.which[pair]])[0]
    before = np.zeros((len(slots), used), np.bool_)
    allowed = _allowed(table, asked, used)
    for first in range(0, used, _ROWS):
        part = slice(first, min(first + _ROWS, used))
        rows = np.arange(part.start, part.stop)
        before[:, part] = _before(table, asked, scores, rows, view.vectors[part], allowed[part])
    return _Pass(slots, scores, before)


def _before(
    table: VectorTable, asked: Asked, scores: Floats, rows: Slots, vectors: Floats, allowed: Bools
) -> Bools:
    """Which allowed rows stand before each pair's id; (m, len(rows))."""
    products = asked.queries @ vectors.T  # (q, rows)
    products[:, ~allowed] = -np.inf
    before = np.empty((len(scores), len(rows)), np.bool_)
    for pair, (query, own, name) in enumerate(zip(asked.which.tolist(), scores, asked.names, strict=True)):
        error = 2.0 * tolerance(table.dim, float(asked.norms[query]), table.largest)
        above = np.greater(products[query], np.float32(own + error), out=before[pair])
        close = products[query] >= np.float32(own - error)
        if np.count_nonzero(close) == np.count_nonzero(above):
            continue
        some = np.flatnonzero(close & ~above)
        exact = score(vectors[some], asked.wide[query])
        above[some] = [
            value > own or (value == own and table.names[row] < name)
            for value, row in zip(exact, rows[some].tolist(), strict=True)
        ]
    return before


def _allowed(table: VectorTable, asked: Asked, used: int) -> Bools:
    """Which of the first rows count."""
    view = table.view
    allowed = view.alive[:used].copy()
    if asked.labels is not None:
        allowed &= np.isin(view.labels[:used], list(asked.labels))
    if asked.allow is not None:
        chosen = np.zeros(used, np.bool_)
        chosen[_within(table.slots_of(asked.allow), used)] = True
        allowed &= chosen
    allowed[_within(table.slots_of(asked.exclude), used)] = False
    return allowed


def _within(slots: Slots, used: int) -> Slots:
    return slots[slots < used]
