"""Which files a copy consists of, with size and SHA-256 of each: a copy that is not whole is refused by name.

    FOLDER/manifest.json      the files below, sorted, and what the copy is of
    FOLDER/manifest.sha256    the checksum of manifest.json

Files that the manifest does not name are no part of the copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec

from kithstream.streams.errors import StoreRefused

NAME: Final = "manifest.json"
SUM: Final = "manifest.sha256"
FORMAT: Final = 1
_CHUNK: Final = 1 << 20  # bytes


class File(msgspec.Struct, frozen=True):
    """One file as it must be."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a folder holds, by path relative to it, with / between parts."""

    files: Mapping[str, File]
    about: Mapping[str, str]
    format: int = FORMAT


def digest(path: Path) -> File:
    """Return size and checksum of a file."""
    with path.open("rb") as file:
        return File(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def write(folder: Path, about: Mapping[str, str], known: Mapping[str, File] | None = None) -> dict[str, File]:
    """Write the manifest of everything in a folder, and flush all of it; return what it names.

    `known` are files whose checksums need not be computed: by path, and only of the same size.
    """
    files: dict[str, File] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            flush(path)
        elif name not in (NAME, SUM):
            file = (known or {}).get(name)
            files[name] = file if file and file.bytes == path.stat().st_size else digest(path)
            flush(path)
    raw = msgspec.json.format(msgspec.json.encode(Manifest(files, about)), indent=1)
    for name, content in ((NAME, raw), (SUM, hashlib.sha256(raw).hexdigest().encode())):
        (folder / name).write_bytes(content)
        flush(folder / name)
    flush(folder)
    return files


def read(folder: Path) -> Manifest:
    """Return a folder's manifest; raises StoreRefused if there is none, or not as it was written."""
    try:
        raw = (folder / NAME).read_bytes()
    except OSError as error:
        raise StoreRefused(f"{folder} is no copy that can be checked: {NAME} is missing") from error
    try:
        expected = (folder / SUM).read_text(errors="replace")
    except OSError as error:
        raise StoreRefused(f"{folder}: {SUM} is missing") from error
    if hashlib.sha256(raw).hexdigest() != expected:
        raise StoreRefused(f"{folder}: {NAME} or {SUM} is damaged")
    found = msgspec.json.decode(raw, type=dict[str, object])
    if found.get("format") != FORMAT:
        raise StoreRefused(f"{folder}: {NAME} has format {found.get('format')}, this build reads {FORMAT}")
    return msgspec.json.decode(raw, type=Manifest)


def copy(folder: Path, to: Path) -> Manifest:
    """Copy what a folder's manifest names into a new folder, and check every byte; raises StoreRefused, OSError.

    What was copied before a damaged file was met stays: the caller removes it.
    """
    manifest = read(folder)
    for name, expected in manifest.files.items():
        source, target = folder / name, to / name
        if not source.is_file() or folder.resolve() not in source.resolve().parents:
            raise StoreRefused(f"{folder}: {name} is missing")
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as file:
            if copied(file, target) != expected:
                raise StoreRefused(f"{folder}: {name} is damaged")
        flush(target)
    for path in (to, *(path for path in to.rglob("*") if path.is_dir())):
        flush(path)
    return manifest


def bring(folder: Path, to: Path) -> bool:
    """Copy a folder; False if it has no manifest, as an older build wrote it, so that nothing could be checked.

    Otherwise as `copy`.
    """
    if not (folder / NAME).exists():
        shutil.copytree(folder, to)
        return False
    copy(folder, to)
    return True


@contextmanager
def aside(to: Path) -> Iterator[Path]:
    """Give a path beside `to` for a new directory: it takes that name when the block ends, and is removed if it fails.

    Nothing may be at `to`, or an empty directory. Raises OSError.
    """
    writing = to.with_name(f"{to.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield writing
        if to.exists():
            to.rmdir()
        os.rename(writing, to)
        flush(to.parent)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise


def copied(source: IO[bytes], target: Path, most: int | None = None) -> File:
    """Copy an open file, or so many bytes of it, from its beginning; return size and checksum of what was."""
    summed, total = hashlib.sha256(), 0
    source.seek(0)
    with target.open("wb") as out:
        while chunk := source.read(_CHUNK if most is None else min(_CHUNK, most - total)):
            out.write(chunk)
            summed.update(chunk)
            total += len(chunk)
    return File(total, summed.hexdigest())


def flush(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
