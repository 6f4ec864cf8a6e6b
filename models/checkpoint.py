"""Checkpoints: one safetensors file with a JSON header. Loading executes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kithstream.models.tower import FIXED, TowerConfig

FORMAT: Final = 1
MOST_DIM: Final = 8192  # of a vector: a header that asks for more is none of ours, and is not allocated for
Array = NDArray[np.generic]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used.

    CheckpointError
    +-- SchemaError: it was written for other features; train another lineage
    +-- DamageError: it is incomplete or no checkpoint; take an older one
    """


class SchemaError(CheckpointError):
    """The checkpoint reads other features than this build makes."""


class DamageError(CheckpointError):
    """The file is no checkpoint, or something is missing in it."""


class Header(msgspec.Struct, frozen=True):
    """What a checkpoint says about itself."""

    lineage: str
    step: int
    schema_hash: str
    tower: TowerConfig
    seed: int
    created_by: str
    format: int = FORMAT
    ranker_hash: str = ""  # schema of the ranker's weights; empty in a checkpoint without a ranker


class Checkpoint(msgspec.Struct, frozen=True):
    """A header and the named arrays behind it."""

    header: Header
    arrays: dict[str, Array]

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
        """The array of a name; refused unless shape and type are as expected. -1 fits any length."""
        if name not in self.arrays:
            raise DamageError(f"the checkpoint has no array {name}")
        found = self.arrays[name]
        fits = len(found.shape) == len(shape) and all(
            e in (-1, s) for s, e in zip(found.shape, shape, strict=True)
        )
        if not fits or found.dtype != np.dtype(dtype):
            raise DamageError(
                f"array {name} is {found.dtype}{list(found.shape)}, expected {np.dtype(dtype)}{list(shape)}"
            )
        return found

    def rows(self, name: str, below: int) -> Array:
        """An array of row numbers, int32; refused unless all are below a bound, so that no table grows by them."""
        found = self.array(name, (-1,), np.int32)
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < below:
            raise DamageError(f"array {name} names row {found.max()}, of {below}")
        return found


def write(path: Path, header: Header, arrays: Mapping[str, Array]) -> None:
    """Writes aside, syncs, renames: a reader sees the old file or the new one, whole."""
    metadata = {"kithstream": msgspec.json.encode(header).decode()}
    replace(path, save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata=metadata))


def replace(path: Path, data: bytes) -> None:
    """Puts bytes in the place of a file, as `write` does."""
    aside = path.with_name(f"{path.name}.tmp")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path, schema_hash: str) -> Checkpoint:
    """Reads a checkpoint; refused if it was written for another schema."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            header = _header(path, metadata, schema_hash)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, TypeError, AttributeError) as error:  # the latter of types that numpy has not
        raise DamageError(f"{path} is no checkpoint: {error}") from error
    return Checkpoint(header, arrays)


def names(path: Path, schema_hash: str) -> frozenset[str]:
    """Return the names of a checkpoint's arrays; refused if it was written for another schema."""
    read_header(path, schema_hash)
    with safe_open(path, framework="np") as file:
        return frozenset(file.keys())


def one(path: Path, name: str, schema_hash: str) -> Array | None:
    """Reads one array of a checkpoint, None if it has none of that name; refused as `read` refuses."""
    read_header(path, schema_hash)
    with safe_open(path, framework="np") as file:
        return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118 - no mapping


def read_header(path: Path, schema_hash: str) -> Header:
    """Reads what a checkpoint says about itself, and none of its arrays."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise DamageError(f"{path} is no checkpoint: {error}") from error
    return _header(path, metadata, schema_hash)


def _header(path: Path, metadata: Mapping[str, str], schema_hash: str) -> Header:
    if "kithstream" not in metadata:
        raise DamageError(f"{path} has no header of kithstream")
    try:
        header = msgspec.json.decode(metadata["kithstream"], type=Header)
    except msgspec.MsgspecError as error:
        raise DamageError(f"{path} has a header that cannot be read: {error}") from error
    if header.format != FORMAT:
        raise SchemaError(f"{path} has format {header.format}, this build reads {FORMAT}")
    if header.schema_hash != schema_hash:
        raise SchemaError(f"{path} was written for schema {header.schema_hash}, this build has {schema_hash}")
    dim, seed = header.tower.dim, header.seed
    if not (FIXED + 2 <= dim <= MOST_DIM and 0 <= seed < 1 << 64 and header.step >= 0):
        raise DamageError(f"{path} has dim {dim}, seed {seed}, step {header.step}, which cannot be")
    return header


def packed(names: Iterable[str | None]) -> tuple[Array, Array]:
    """The bytes of names one after the other, and where each ends; None, as an empty one, has none."""
    encoded = [(name or "").encode() for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends
