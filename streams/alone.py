"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kithstream.streams.errors import StoreRefused


@contextmanager
def alone(folder: Path, refused: str) -> Iterator[None]:
    """Hold a folder; raises StoreRefused with these words if another process does."""
    with open(folder / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreRefused(refused) from error
        yield
