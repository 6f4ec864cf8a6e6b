"""How far a process has come, in a file that its parent reads. Standard library alone."""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

EVERY = 0.1  # seconds


class Told(NamedTuple):
    """What a process says of itself."""

    folded: dict[str, int]  # records folded since it started, by side
    next: dict[str, int]  # "topic:partition" -> the offset after the last one folded


class Progress:
    """Counts in the process that folds; a thread of its own writes them down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folded: dict[str, int] = {}
        self._next: dict[str, int] = {}

    def note(self, side: str, topic: str, partition: int, offset: int) -> None:
        """One record is folded."""
        self._folded[side] = self._folded.get(side, 0) + 1
        self._next[f"{topic}:{partition}"] = offset + 1

    def start(self) -> None:
        """Write from now on, until the process ends."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        part = self._path.with_suffix(".part")
        while True:
            part.write_text(json.dumps([dict(self._folded), dict(self._next)]))
            os.replace(part, self._path)
            time.sleep(EVERY)


def begun(description: str | None) -> tuple[argparse.Namespace, Progress]:
    """Return what an application's process was asked for, and its progress, which is written from now on."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("servers", "topic", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--session", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--exactly-once", action="store_true")
    given = parser.parse_args()
    progress = Progress(given.folder / "progress")
    progress.start()
    return given, progress


def read(path: Path) -> Told:
    """What was written last; nothing yet where there is no file."""
    try:
        return Told(*json.loads(path.read_text()))
    except FileNotFoundError:
        return Told({}, {})
