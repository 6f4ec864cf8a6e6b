"""An existing follow graph into the state, many edges at a time, with what the two stages would have left.

Edges go into the ledgers of both sides in chunks, by the conflict rule, as follows by the server; then the
rows of the accounts that changed are derived from the ledgers at once. A follow may be older than the late
horizon. One without a time has time 0: any event about its edge is newer, and it counts in the totals alone.

A crash at any moment loses nothing: the rows taken so far are noted with each chunk, and that rows are due
before the first. Loading again, from there or from the beginning, ends in the same state. Until then the rows
of accounts that the load has touched are not to be read; `finish` makes them whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter
from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kithstream.streams.engine.derive import derive
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.merge import Edges, Touched, merge
from kithstream.streams.engine.partition import LOADED, UNDERIVED
from kithstream.streams.events.wire import FUTURE, ID_BYTES
from kithstream.streams.sources.graph import Columns
from kithstream.streams.state.protocol import Column

CHUNK: Final = 1_000_000  # edges merged at once: about 0.5 GB
FEW: Final = 20_000  # accounts of a partition up to which their rows alone are derived, and not everyone's
NAMED: Final = 10  # refused rows that are named


class Refusal(NamedTuple):
    """A row that was not loaded."""

    row: int  # from 0
    reason: str  # missing, bad_id, self_edge, out_of_range, future or deleted
    source: str
    target: str
    time: int  # microseconds


class Loaded(NamedTuple):
    """What a load did; rows of an earlier, broken run are not in it."""

    edges: int  # rows read
    accepted: int
    refused: Mapping[str, int]  # rows by reason
    named: tuple[Refusal, ...]  # the first of them
    changed: int  # edges whose state is another than before
    seconds: float


class Progress(NamedTuple):
    """Where a load stands, told after every write."""

    stage: Literal["edges", "rows"]
    partition: int
    done: int  # rows of the source merged; or ledger entries of the partition read
    refused: int


OnProgress = Callable[[Progress], None]


def unheard(progress: Progress) -> None:
    """Progress that nobody asked for."""


def next_row(engine: Engine, source: str) -> int:
    """Return the row of a source from which its load goes on: 0 if it never began."""
    key = LOADED + source.encode()
    stored = [partition.store.get(Column.META, [key])[0] for partition in engine.partitions]
    return min(int.from_bytes(value, "big") if value else 0 for value in stored)


def load(
    engine: Engine,
    batches: Iterable[Columns],
    *,
    now: int,
    source: str = "",
    chunk: int = CHUNK,
    on_progress: OnProgress = unheard,
) -> Loaded:
    """Take a graph into the state; `now` (microseconds) is when, and no follow may be later.

    `source` names the graph where its progress is noted. The engine is at rest, and nobody else uses it.
    """
    started = perf_counter()
    refused: Counter[str] = Counter()
    named: list[Refusal] = []
    touched = _begin(engine)
    rows = changed = 0
    for columns in _chunks(batches, chunk):
        edges = _checked(engine, columns, now, refused, named)
        done = columns.first_row + len(columns.time_us)
        marks = {LOADED + source.encode(): done.to_bytes(8, "big")}
        seen = refused.total()

        def written(partition: int, done: int = done, seen: int = seen) -> None:
            on_progress(Progress("edges", partition, done, seen))

        changed += merge(engine, edges, touched, marks, written)
        rows += len(columns.time_us)
    for partition, known in zip(engine.partitions, touched, strict=True):

        def derived(read: int, number: int = partition.number) -> None:
            on_progress(Progress("rows", number, read, refused.total()))

        derive(partition, known.accounts, derived)
    return Loaded(
        rows, rows - refused.total(), dict(refused), tuple(named), changed, perf_counter() - started
    )


def finish(engine: Engine) -> None:
    """Derive the rows that a broken load has left due; nothing to do after any other end."""
    for partition in engine.partitions:
        if partition.store.get(Column.META, [UNDERIVED])[0] is not None:
            derive(partition, None, lambda _: None)


def _begin(engine: Engine) -> list[Touched]:
    """Note that rows are due, before the ledgers get ahead of them."""
    touched = []
    for partition in engine.partitions:
        known = Touched(FEW)
        if partition.store.get(Column.META, [UNDERIVED])[0] is not None:
            known.add_everyone()
        partition.changed.discard()  # rows are written without marks from here on
        partition.store.write({Column.META: {UNDERIVED: b""}})
        touched.append(known)
    return touched


def _chunks(batches: Iterable[Columns], size: int) -> Iterator[Columns]:
    """The same rows in pieces of at least `size`, the last one excepted."""
    waiting: list[Columns] = []
    rows = 0
    for batch in batches:
        for first in range(0, len(batch.time_us), size):
            piece = Columns(
                batch.first_row + first,
                batch.source[first : first + size],
                batch.target[first : first + size],
                batch.time_us[first : first + size],
            )
            waiting.append(piece)
            rows += len(piece.time_us)
            if rows >= size:
                yield _joined(waiting)
                waiting, rows = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(pieces: list[Columns]) -> Columns:
    return Columns(
        pieces[0].first_row,
        pa.concat_arrays([piece.source.cast(pa.large_string()) for piece in pieces]),
        pa.concat_arrays([piece.target.cast(pa.large_string()) for piece in pieces]),
        np.concatenate([piece.time_us for piece in pieces]),
    )


def _checked(
    engine: Engine, columns: Columns, now: int, refused: Counter[str], named: list[Refusal]
) -> Edges:
    """Refuse what cannot be folded, and keep the winner of each pair."""
    reasons = _reasons(columns, now)
    bad = np.zeros(len(columns.time_us), dtype=np.bool_)
    for reason, wrong in reasons.items():
        _refuse(columns, reason, wrong & ~bad, refused, named)
        bad |= wrong
    good = np.flatnonzero(~bad)
    source, target, time = columns.source, columns.target, columns.time_us
    if len(good) < len(bad):
        source, target, time = source.take(good), target.take(good), time[good]
    both = pa.concat_arrays([source, target]).dictionary_encode()
    order = pc.sort_indices(both.dictionary).to_numpy()
    names: list[bytes] = both.dictionary.take(order).cast(pa.large_binary()).to_pylist()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    codes = rank[both.indices.to_numpy()]
    a, b = codes[: len(time)], codes[len(time) :]
    places = np.array([engine.route[name.decode()] for name in names], dtype=np.int64)
    gone = _deleted(engine, names, places)
    if gone.any():
        wrong = gone[a] | gone[b]
        _refuse(columns, "deleted", _spread(wrong, good, len(bad)), refused, named)
        a, b, time = a[~wrong], b[~wrong], time[~wrong]
    named.sort()  # by row, and later chunks have later rows
    del named[NAMED:]
    pair = a << 32 | b
    order = np.argsort(pair)
    pair, time = pair[order], time[order]
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    newest = np.maximum.reduceat(time, first) if len(pair) else time
    pair = pair[first]
    return Edges(names, places, pair >> 32, pair & 0xFFFFFFFF, newest)


def _reasons(columns: Columns, now: int) -> dict[str, NDArray[np.bool_]]:
    """Which rows are wrong, by reason; the first that holds is told."""
    missing, bad_id = (np.zeros(len(columns.time_us), dtype=np.bool_) for _ in range(2))
    for values in (columns.source, columns.target):
        length = pc.fill_null(pc.binary_length(values), 0).to_numpy()
        missing |= length == 0
        bad_id |= length > ID_BYTES
        bad_id |= pc.fill_null(pc.match_substring(values, "\0"), False).to_numpy(zero_copy_only=False)
        bad_id |= _not_utf8(values)
    same = pc.fill_null(pc.equal(columns.source, columns.target), False).to_numpy(zero_copy_only=False)
    time = columns.time_us
    return {
        "missing": missing,
        "bad_id": bad_id,
        "self_edge": same,
        "out_of_range": time < 0,
        "future": time > now + FUTURE,
    }


def _not_utf8(values: pa.Array) -> NDArray[np.bool_]:
    """Which values are no UTF-8: a Parquet file may hold anything."""
    try:
        values.validate(full=True)
        return np.zeros(len(values), dtype=np.bool_)
    except pa.ArrowInvalid:
        raw = values.cast(pa.large_binary()).to_pylist()
        return np.array([v is not None and v.decode(errors="replace").encode() != v for v in raw])


def _spread(wrong: NDArray[np.bool_], places: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
    """Flags of some rows as flags of all."""
    spread = np.zeros(rows, dtype=np.bool_)
    spread[places] = wrong
    return spread


def _refuse(
    columns: Columns, reason: str, wrong: NDArray[np.bool_], refused: Counter[str], named: list[Refusal]
) -> None:
    rows = np.flatnonzero(wrong)
    if not len(rows):
        return  # the usual case
    refused[reason] += len(rows)
    for row in rows[:NAMED].tolist():
        source, target = (
            (values[row].cast(pa.large_binary()).as_py() or b"").decode(errors="replace")
            for values in (columns.source, columns.target)
        )
        named.append(Refusal(columns.first_row + row, reason, source, target, int(columns.time_us[row])))


def _deleted(engine: Engine, names: list[bytes], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which accounts were deleted: a salted hash keeps them out."""
    if not any(partition.deleted for partition in engine.partitions):
        return np.zeros(len(names), dtype=np.bool_)
    return np.array(
        [
            engine.partitions[place].is_deleted(name.decode())
            for name, place in zip(names, places.tolist(), strict=True)
        ],
        dtype=np.bool_,
    )
