"""What a partition's store holds, as one line to compare: byte for byte, but for the order of a row's cells."""

from __future__ import annotations

import hashlib

from kithstream.streams.engine.partition import ROW_IN, ROW_OUT
from kithstream.streams.state import counters
from kithstream.streams.state.ledger import MINUTE
from kithstream.streams.state.protocol import Column, Store

LEDGERS = (Column.OUT, Column.IN, Column.SAID, Column.HEARD)


def digest(store: Store, watermark: int) -> dict[str, tuple[int, str]]:
    """Return keys and SHA-256 of each column of state.

    A row's cells stand in the order in which they came, and old ones are cut out late: both are evened out as of
    `watermark` (microseconds), since neither is read.
    """
    found: dict[str, tuple[int, str]] = {}
    for column in (*LEDGERS, Column.ROWS):
        count, seen = 0, hashlib.sha256()
        for key, value in store.scan(column, b""):
            if column is Column.ROWS and key[:1] in (ROW_IN, ROW_OUT):
                row = counters.prune(bytearray(value), watermark // MINUTE)
                value = b"".join(sorted(row[at : at + 8] for at in range(0, len(row), 8)))
            seen.update(b"%d %d " % (len(key), len(value)) + key + value)
            count += 1
        found[column.value] = count, seen.hexdigest()
    return found
