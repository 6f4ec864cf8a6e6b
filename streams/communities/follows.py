"""A follow graph as numbers, read from a runtime's ledgers or from a file."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kithstream.streams.communities.interest import NEWEST
from kithstream.streams.config import StoreConfig
from kithstream.streams.errors import StoreRefused
from kithstream.streams.events.signals import BY_NAME
from kithstream.streams.events.wire import ID_BYTES
from kithstream.streams.sources import graph
from kithstream.streams.state import ledger
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksReplica

OnRead = Callable[[int], None]  # edges read so far
LAYOUT: Final = "layout.json"
TOLD: Final = 65_536  # edges between two words of progress
_LETTER: Final = ledger.LETTERS[BY_NAME["follow"].family]

Numbers = NDArray[np.int64]


class Arcs(NamedTuple):
    """Follows as they are read; accounts are numbered as they come, and a pair may come twice."""

    source: Numbers  # (m,)
    target: Numbers  # (m,)
    time: Numbers  # (m,) microseconds since the epoch


class Follows(NamedTuple):
    """Who follows whom: each pair once, by source, the newest first; accounts are numbered by their ids."""

    accounts: Sequence[str]  # (n,) ascending
    source: Numbers  # (m,) ascending
    target: Numbers  # (m,)
    read: int  # different pairs there were, before each source was cut to its newest


class _Layout(msgspec.Struct, frozen=True):
    partitions: int


def unheard(read: int) -> None:
    """Progress that nobody asked for."""


def numbered(accounts: Sequence[str], arcs: Arcs, newest: int = NEWEST) -> Follows:
    """Return a graph whose accounts came in any order, a pair at its newest time.

    Of each source the `newest` follows are kept; at equal times the smaller id comes first.
    """
    order = sorted(range(len(accounts)), key=accounts.__getitem__)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    source, target, time = number[arcs.source], number[arcs.target], arcs.time
    by_pair = np.lexsort((-time, target, source))
    pair = source[by_pair] << 32 | target[by_pair]
    by_pair = by_pair[np.flatnonzero(np.diff(pair, prepend=-1))]
    by_age = by_pair[np.lexsort((target[by_pair], -time[by_pair], source[by_pair]))]
    source, target = source[by_age], target[by_age]
    rank = np.arange(len(source)) - np.searchsorted(source, source)
    kept = rank < newest
    return Follows([accounts[at] for at in order], source[kept], target[kept], len(source))


def stored(folder: Path, newest: int = NEWEST, on_read: OnRead = unheard) -> Follows:
    """Return the follows of a runtime's directory or of a checkpoint, which is not changed.

    A process that writes there is not disturbed: its state is read as of one moment a partition, and what it
    has published and not folded is not in it. Raises StoreRefused where there is no state. 24 bytes a follow.
    """
    numbers: dict[str, int] = {}
    columns = array("q"), array("q"), array("q")
    source, target, time = columns
    with tempfile.TemporaryDirectory(prefix="kithstream-communities-") as own:
        for partition in range(_partitions(folder)):
            path = folder / "state" / str(partition)
            if not (path / "CURRENT").is_file():  # which every database of RocksDB has
                raise StoreRefused(f"{folder} holds no state of partition {partition}")
            replica = RocksReplica(path, Path(own) / str(partition), StoreConfig())
            try:
                for key, value in replica.scan(Column.OUT, b""):
                    actor, other, _ = key.split(b"\0")
                    since = ledger.since(value)
                    if since < 0 or not other.startswith(_LETTER):
                        continue
                    source.append(numbers.setdefault(actor.decode(), len(numbers)))
                    target.append(numbers.setdefault(other[1:].decode(), len(numbers)))
                    time.append(since)
                    if not len(time) % TOLD:
                        on_read(len(time))
            finally:
                replica.close()
    on_read(len(time))
    arcs = Arcs(*(np.frombuffer(column, np.int64) for column in columns))
    return numbered(list(numbers), arcs, newest)


def _partitions(folder: Path) -> int:
    file = folder / LAYOUT
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Layout).partitions
    except FileNotFoundError:
        raise StoreRefused(f"{folder} holds no runtime: {LAYOUT} is missing") from None
    except msgspec.DecodeError as error:
        raise StoreRefused(f"{file}: {error}") from error


def in_file(
    file: Path,
    *,
    form: str | None = None,
    microseconds: int = 1,
    newest: int = NEWEST,
    on_read: OnRead = unheard,
) -> Follows:
    """Return the follows of a graph file (`sources/graph.py`); rows that cannot be an edge are left out.

    Those are rows without an account, with an id that no event could have, and accounts that follow
    themselves. Without times the rows are as old as one another. Raises ValueError (BadRow) for a broken file.
    """
    numbers: dict[str, int] = {}
    columns: list[list[Numbers]] = [[], [], []]
    rows = 0
    for batch in graph.read_columns(file, microseconds=microseconds, form=form):
        fit = pc.fill_null(pc.not_equal(batch.source, batch.target), False)
        for ids in (batch.source, batch.target):
            length = pc.fill_null(pc.binary_length(ids), 0)
            fit = pc.and_(fit, pc.and_(pc.greater(length, 0), pc.less_equal(length, ID_BYTES)))
            fit = pc.and_(fit, pc.invert(pc.fill_null(pc.match_substring(ids, "\0"), False)))
        kept = fit.to_numpy(zero_copy_only=False) & (batch.time_us >= 0)
        at = np.flatnonzero(kept)
        both = pa.concat_arrays([batch.source.take(at), batch.target.take(at)]).dictionary_encode()
        place = np.array(
            [numbers.setdefault(name, len(numbers)) for name in both.dictionary.to_pylist()], np.int64
        )
        codes = place[both.indices.to_numpy()]
        for column, values in zip(
            columns, (codes[: len(at)], codes[len(at) :], batch.time_us[at]), strict=True
        ):
            column.append(values)
        rows += len(kept)
        on_read(rows)
    whole = (np.concatenate([np.zeros(0, np.int64), *column]) for column in columns)
    return numbered(list(numbers), Arcs(*whole), newest)
