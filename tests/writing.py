"""A process that writes a store, a batch for each byte of its input: `python writing.py FOLDER`.

Every batch writes its number into every column.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from kithstream.streams.config import StoreConfig
from kithstream.streams.state.protocol import Column, Dropped
from kithstream.streams.state.store import RocksStore

SMALL = StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20)
DECADE = 10  # batches after which a range is dropped
INGEST = 97
FLUSH = 23
COMPACT = 211
KEYS = [b"k%d" % number for number in range(8)]


def number(value: bytes | None) -> int:
    """The number of the batch that wrote a value."""
    return int.from_bytes(value or b"", "big")


def write(folder: Path) -> None:
    """Write batches, and between them all that a store does."""
    store = RocksStore(folder, SMALL)
    for batch, _ in enumerate(iter(partial(os.read, 0, 1), b""), 1):
        value = batch.to_bytes(8, "big")
        changes: dict[Column, dict[bytes, bytes | None]] = {c: dict.fromkeys(KEYS, value) for c in Column}
        dropped = []
        if batch % DECADE:
            changes[Column.SAID][b"r%d" % (batch % DECADE)] = value
        else:
            dropped.append(Dropped(Column.SAID, b"r", b"s"))
        store.write(changes, dropped)
        if batch % INGEST == 0:
            store.ingest(Column.OUT, [(b"z%d" % at, value) for at in range(5)])
        if batch % FLUSH == 0:
            for column in Column:
                store._columns[column].flush()  # one after the other, as full buffers are
        if batch % COMPACT == 0:
            store.compact()
    store.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
