"""A load that kills its own process: `python mortal.py FOLDER N` dies at the Nth write it is told of."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from kithstream.streams.config import EngineConfig, StoreConfig
from kithstream.streams.engine.engine import Engine
from kithstream.streams.load import Progress, load, next_row
from kithstream.streams.sources.graph import Columns
from kithstream.streams.state.store import RocksStore

START = 1_790_000_000_000_000
NOW = 1 << 60
SALT = b"salt" * 4
ROWS, CHUNK = 3_000, 1_000
Row = tuple[str, str, int]


def columns(rows: Sequence[Row], first_row: int = 0, size: int = 5) -> Iterator[Columns]:
    """Rows from one on as batches of a source."""
    for first in range(0, len(rows), size):
        source, target, time = zip(*rows[first : first + size], strict=True)
        yield Columns(first_row + first, pa.array(source), pa.array(target), np.array(time, dtype=np.int64))


def graph(first: int = 0) -> Iterator[Columns]:
    """The same graph at every call, from a row on."""
    rng = np.random.Generator(np.random.PCG64(1))
    a, b = rng.integers(0, 200, (2, ROWS)).tolist()
    rows = [(f"a{x}", f"a{y}", START + at) for at, (x, y) in enumerate(zip(a, b, strict=True))]
    return columns(rows[first:], first, CHUNK)


def engine(folder: Path) -> Engine:
    """Three partitions on disk."""
    config = StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20)
    return Engine([RocksStore(folder / str(p), config) for p in range(3)], EngineConfig(), salt=SALT)


def die(folder: Path, last: int) -> None:
    """Go on with the load until the last write."""
    told: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        if len(told) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    made = engine(folder)
    load(made, graph(next_row(made, "g")), now=NOW, source="g", chunk=CHUNK, on_progress=on_progress)


if __name__ == "__main__":
    die(Path(sys.argv[1]), int(sys.argv[2]))
