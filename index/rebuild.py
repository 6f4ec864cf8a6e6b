"""Building a graph from rows, here or in a process of its own: `python -m kithstream.index.rebuild
DIRECTORY`.

Building is minutes of one core; in another process it takes none of this one's interpreter lock. The
directory holds `vectors.npy` (n, dim) float32, `slots.npy` (n,) int64 and `shape.json`; the graph is written
beside them as `graph.bin`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from kithstream.index.errors import RebuildFailed
from kithstream.index.graph import Graph, Shape, shape_of
from kithstream.index.score import Floats, Slots


def build(directory: Path, shape: Shape, vectors: Floats, slots: Slots, *, process: bool) -> None:
    """Write the files of a graph of these rows; from another process if asked for."""
    if not process:
        _build(directory, shape, vectors, slots)
        return
    np.save(directory / "vectors.npy", vectors, allow_pickle=False)
    np.save(directory / "slots.npy", slots, allow_pickle=False)
    (directory / "shape.json").write_text(json.dumps(shape._asdict()))
    command = [sys.executable, "-m", "kithstream.index.rebuild", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not all((directory / file).exists() for file in Graph.files(shape)):
        said = done.stderr.strip().splitlines()
        raise RebuildFailed(f"status {done.returncode}: {said[-1] if said else 'nothing on stderr'}")


def cheaper(known: int, fresh: int, moved: int) -> bool:
    """Whether a rebuild costs less than merging: an insert is 1 a side, a move about 4, a copy nothing.

    >>> cheaper(known=100_000, fresh=16_000, moved=0), cheaper(known=100_000, fresh=0, moved=16_000)
    (False, True)
    """
    return known + fresh < 2 * (fresh + 4 * moved)


def _build(directory: Path, shape: Shape, vectors: Floats, slots: Slots) -> None:
    graph = Graph(shape)
    graph.add(vectors, slots)
    graph.save(directory)


def main(directory: Path) -> None:
    """Build what the directory describes, at a low priority."""
    os.nice(10)
    shape = shape_of(json.loads((directory / "shape.json").read_text()))
    vectors = np.load(directory / "vectors.npy", mmap_mode="r", allow_pickle=False)
    slots = np.load(directory / "slots.npy", allow_pickle=False)
    _build(directory, shape, vectors, slots)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
