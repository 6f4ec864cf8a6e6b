"""What one process of the comparison found, as it is written to a file and read again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

ENDING: Final = ".part.json"
TOGETHER: Final = "parts.jsonl"  # parts of many files in one


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A trial of a setting, or the answers of one or several methods to some of the tests."""

    stream: str
    job: str  # "als", "als/trial-3", "als_refit/segment-4"
    seed: int
    pairs: int  # of the stream
    tests: int  # at most, as they were asked for
    machine: str
    versions: Mapping[str, str]
    rows: Sequence[int] = ()  # of the pairs that were asked for
    positions: Mapping[str, Sequence[int]] = {}  # by method, the place of each row's target; -1: not among 20
    query_ms: Mapping[str, Sequence[float]] = {}  # by method, what each question took
    recalls: Mapping[str, float] = {}  # by method, on the validation slice
    setting: str = ""  # JSON
    fit_seconds: float = 0.0  # of all fits; for what learns from events: of the pass without its questions
    refused: int = 0  # events that the chain put among the dead letters
    cpu_seconds: float = 0.0  # of the whole process
    wall_seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def key(self) -> str:
        """Stream and job."""
        return f"{self.stream}/{self.job}"


def file_of(folder: Path, key: str) -> Path:
    """Returns where a part is kept."""
    return folder / f"{key.replace('/', '.')}{ENDING}"


def write(folder: Path, part: Part) -> None:
    """Writes a part beside and renames it: what is there is whole."""
    file = file_of(folder, part.key)
    temporary = file.with_name(file.name + ".writing")
    temporary.write_bytes(msgspec.json.encode(part) + b"\n")
    os.replace(temporary, file)


def read(folder: Path) -> dict[str, Part]:
    """Returns all parts of a folder by key; raises ValueError if two of them are not of one comparison."""
    files = [*sorted(folder.glob(f"*{ENDING}")), *sorted(folder.glob(TOGETHER))]
    lines = (line for file in files for line in file.read_bytes().splitlines() if line)
    parts = {part.key: part for part in (msgspec.json.decode(line, type=Part) for line in lines)}
    for part in parts.values():
        first = next(one for one in parts.values() if one.stream == part.stream)
        for name in ("seed", "pairs", "tests"):
            if getattr(part, name) != getattr(first, name):
                raise ValueError(
                    f"{part.key} has {name} {getattr(part, name)}, {first.key} {getattr(first, name)}: "
                    f"{folder} holds parts of two comparisons"
                )
    return parts


def trials(folder: Path, stream: str, method: str) -> list[Part]:
    """Returns the finished trials of a method's settings, by their number."""
    found = sorted(folder.glob(f"{stream}.{method}.trial-*{ENDING}"))
    return [msgspec.json.decode(file.read_bytes(), type=Part) for file in found]


def best_setting(tried: Sequence[Part], method: str) -> str:
    """Returns the setting of highest recall on the validation slice; among equals the first that was tried."""
    if not tried:
        raise ValueError(f"no setting of {method} was tried to its end")
    return max(tried, key=lambda part: part.recalls[method]).setting
