"""Versions of communities beside the stores that hold them: a store names a version, the folder has its file."""

from __future__ import annotations

from pathlib import Path

from kithstream.streams.communities.known import KnownFor

NAME = "communities"  # of the folder, beside the stores


def keep(folder: Path, known: KnownFor) -> None:
    """Write a version into the folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{known.version}.safetensors"
    if not file.exists():
        known.save(file)


def at_hand(folder: Path) -> dict[str, KnownFor]:
    """Return the versions in the folder; raises StoreRefused for a damaged one."""
    return {file.stem: KnownFor.load(file) for file in sorted(folder.glob("*.safetensors"))}


def served(folder: Path, path: str) -> tuple[dict[str, KnownFor], KnownFor | None]:
    """Return the versions in the folder, and the one to adopt, which is kept there first; `path` may be empty."""
    known = KnownFor.load(Path(path)) if path else None
    if known is not None:
        keep(folder, known)
    return at_hand(folder), known


def readable(folder: Path, path: str) -> dict[str, KnownFor]:
    """Return the versions in the folder and the one to adopt, writing nothing: another process keeps them."""
    known = [KnownFor.load(Path(path))] if path else []
    return at_hand(folder) | {version.version: version for version in known}


def forget_others(folder: Path, held: set[str]) -> None:
    """Delete the files of versions that no store holds."""
    for file in folder.glob("*.safetensors"):
        if file.stem not in held:
            file.unlink()
