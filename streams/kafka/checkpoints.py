"""Copies of partitions' stores in a directory that all workers share, so that a new owner need not replay the topic.

A checkpoint is a directory named after the offsets it reaches to, written aside and renamed; the newest wins. Its
manifest holds the checksum of every file, so that what is damaged is refused and the one before is taken.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from kithstream.streams import manifest
from kithstream.streams.engine.partition import Partition
from kithstream.streams.state.protocol import Store

_WRITING: Final = ".writing"


class Checkpoint(NamedTuple):
    """One copy of a partition's store."""

    path: Path
    applied: int  # offset of engagements it reaches to
    edges: int  # offset of frames


class Checkpoints:
    """The checkpoints of one tenant's partitions. An empty root keeps none."""

    def __init__(self, root: Path | None, kept: int) -> None:
        self._root = root
        self._kept = kept
        # Of stores that were copied before: RocksDB gives the name of a table to no other content of the same store.
        self._tables: WeakKeyDictionary[Store, dict[str, manifest.File]] = WeakKeyDictionary()

    def of(self, number: int) -> list[Checkpoint]:
        """Return a partition's checkpoints, the newest first."""
        return sorted(self._list(number), key=lambda found: (found.applied, found.edges), reverse=True)

    def save(self, partition: Partition, worker: str) -> Checkpoint | None:
        """Copy a partition's store as it stands; None if there is a copy of this state, or no root.

        Two workers that both believe to own the partition write beside each other. Old copies beyond those
        kept go. Raises OSError.
        """
        if self._root is None:
            return None
        folder = self._root / str(partition.number)
        name = f"{partition.applied:020d}-{partition.edges:020d}"
        if (folder / name).exists():
            return None
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{name}.{worker}{_WRITING}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            partition.store.checkpoint(temporary)
            about = {"partition": str(partition.number), "engagements": str(partition.applied)}
            files = manifest.write(temporary, about, self._tables.get(partition.store))
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._tables[partition.store] = {name: file for name, file in files.items() if name.endswith(".sst")}
        try:
            os.rename(temporary, folder / name)
        except OSError:  # another worker was first
            shutil.rmtree(temporary, ignore_errors=True)
            return None
        for old in self.of(partition.number)[self._kept :]:
            shutil.rmtree(old.path, ignore_errors=True)
        return Checkpoint(folder / name, partition.applied, partition.edges)

    def restore(self, checkpoint: Checkpoint, path: Path) -> bool:
        """Copy a checkpoint to where a store is to be opened, which must not exist; False if it has no manifest.

        Raises StoreRefused, naming the file, where it is not as it was written, and OSError.
        """
        with manifest.aside(path) as aside:
            return manifest.bring(checkpoint.path, aside)

    def _list(self, number: int) -> Iterator[Checkpoint]:
        folder = self._root / str(number) if self._root is not None else None
        if folder is None or not folder.is_dir():
            return
        for path in folder.iterdir():
            applied, dash, edges = path.name.partition("-")
            if dash and applied.isdecimal() and edges.isdecimal():
                yield Checkpoint(path, int(applied), int(edges))
