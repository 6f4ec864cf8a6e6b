"""Snapshots on disk: written aside, flushed, named by their checksum, then pointed at.

    DIRECTORY/CURRENT                        the name of the newest complete snapshot
    DIRECTORY/00000007-4be1...a2/            its number and the sha256 of its meta.json, shortened to 32
                                             digits
        meta.json                            size and sha256 of each file beside it, shapes, and the caller's
                                             metadata
        vectors.npy sequences.npy labels.npy alive.npy hot.npy ids.json graph-0.bin ...

A process killed at any point leaves CURRENT on a complete snapshot; what it left half written is removed by
the next `save`. Nothing here executes what it loads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.index.errors import SnapshotRefused
from kithstream.index.graph import Shape, shape_of
from kithstream.index.score import Bools, Floats, Labels, Slots

FORMAT: Final = 1
Metadata = Mapping[str, str | int]
_ARRAYS: Final[dict[str, tuple[type[np.generic], int]]] = {  # type and dimensions
    "vectors": (np.float32, 2),
    "sequences": (np.int64, 1),
    "labels": (np.int32, 1),
    "alive": (np.bool_, 1),
    "hot": (np.int64, 1),
}


class Image(NamedTuple):
    """What a snapshot holds of an index."""

    names: list[str]  # by slot; "" for a dead or free one
    vectors: Floats  # (n, dim)
    sequences: NDArray[np.int64]  # (n,)
    labels: Labels  # (n,)
    alive: Bools  # (n,)
    hot: Slots  # by age, the oldest first
    shape: Shape | None  # of the graph, if there is one
    degree: float  # mean degree of the graph when it was built


class Saved(NamedTuple):
    """A snapshot that is complete on disk."""

    path: Path
    bytes: int


class Loaded(NamedTuple):
    """A snapshot whose every byte was checked."""

    image: Image
    graph: Path | None  # where the files of the graph are, if there is one
    metadata: dict[str, str | int]


def save(
    directory: Path,
    image: Image,
    graph: Callable[[Path], None] | None,
    metadata: Metadata,
    keep: int = 2,
    beside: Callable[[Path], None] | None = None,
) -> Saved:
    """Write a snapshot and point CURRENT at it; older ones beyond `keep` are removed.

    `graph` and `beside` put their files into the directory that they are given; all are checksummed.
    """
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str | int):
            raise TypeError(f"metadata is str to str or int, not {key!r}: {value!r}")
    if keep < 1:
        raise ValueError(f"keep is at least 1, not {keep}")
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob("tmp-*"):
        shutil.rmtree(left)
    done = snapshots(directory)
    number = int(done[-1].name.partition("-")[0]) + 1 if done else 1
    aside = directory / f"tmp-{number:08d}"
    aside.mkdir()
    for name in ("vectors", "sequences", "labels", "alive", "hot"):
        np.save(aside / f"{name}.npy", getattr(image, name), allow_pickle=False)
    (aside / "ids.json").write_text(json.dumps(image.names))
    if graph is not None:
        graph(aside)
    if beside is not None:
        beside(aside)
    files = {path.name: _digest(path) for path in sorted(aside.iterdir())}
    meta = {
        "format": FORMAT,
        "shape": None if image.shape is None else image.shape._asdict(),
        "degree": image.degree,
        "metadata": dict(metadata),
        "files": files,
    }
    text = json.dumps(meta, indent=1).encode()
    (aside / "meta.json").write_bytes(text)
    for path in aside.iterdir():
        _flush(path)
    _flush(aside)
    final = directory / f"{number:08d}-{hashlib.sha256(text).hexdigest()[:32]}"
    aside.rename(final)
    pointer = directory / "tmp-CURRENT"
    pointer.write_text(final.name)
    _flush(pointer)
    pointer.replace(directory / "CURRENT")
    _flush(directory)
    for old in [path for path in snapshots(directory) if path != final][: -(keep - 1) or None]:
        shutil.rmtree(old)
    return Saved(final, sum(path.stat().st_size for path in final.iterdir()))


def snapshots(directory: Path) -> list[Path]:
    """Complete snapshots, oldest first."""
    return sorted(path for path in directory.glob("[0-9]*-*") if path.is_dir())


def load(directory: Path, name: str | None = None) -> Loaded:
    """The snapshot that CURRENT names, or the named one; refused unless every byte is as written."""
    if name is None:
        try:
            name = (directory / "CURRENT").read_text()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise SnapshotRefused(f"CURRENT in {directory} names no snapshot") from error
    path = directory / name
    if path.parent != directory or not path.is_dir():
        raise SnapshotRefused(f"CURRENT in {directory} names no snapshot")
    text = _read(path / "meta.json")
    if hashlib.sha256(text).hexdigest()[:32] != path.name.partition("-")[2]:
        raise SnapshotRefused(f"meta.json of {path.name} is damaged")
    try:
        return _checked(path, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SnapshotRefused(f"{path.name} is no snapshot of this index: {error!r}") from error


def _checked(path: Path, meta: Any) -> Loaded:
    """What the files of a snapshot hold; an error of any kind where they do not hold what they should."""
    if meta["format"] != FORMAT:
        raise SnapshotRefused(f"meta.json of {path.name} has format {meta['format']}, this is {FORMAT}")
    for file, expected in meta["files"].items():
        if not (path / file).is_file():
            raise SnapshotRefused(f"{file} of {path.name} is missing")
        if _digest(path / file) != expected:
            raise SnapshotRefused(f"{file} of {path.name} is damaged")
    arrays = {name: _array(path / f"{name}.npy", kind, dims) for name, (kind, dims) in _ARRAYS.items()}
    shape = None if meta["shape"] is None else shape_of(meta["shape"])
    image = Image(
        names=json.loads(_read(path / "ids.json")),
        vectors=arrays["vectors"],
        sequences=arrays["sequences"],
        labels=arrays["labels"],
        alive=arrays["alive"],
        hot=arrays["hot"],
        shape=shape,
        degree=meta["degree"],
    )
    return Loaded(image, None if shape is None else path, meta["metadata"])


def _array(path: Path, kind: type[np.generic], dims: int) -> NDArray[Any]:
    """An array that is as large as its file: a header may ask for any size, and numpy would allocate it."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{path.name} is of version {version}")
        shape, column_major, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype != np.dtype(kind) or len(shape) != dims or column_major:
            raise ValueError(
                f"{path.name} is {dtype}{list(shape)}, expected {dims} dimensions of {np.dtype(kind)}"
            )
        if math.prod(shape) * dtype.itemsize != path.stat().st_size - file.tell():
            raise ValueError(f"{path.name} is {list(shape)}, which is not the size of its file")
    found: NDArray[Any] = np.load(path, allow_pickle=False)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SnapshotRefused(f"{path.name} of {path.parent.name} is missing") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path.stat().st_size}:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
