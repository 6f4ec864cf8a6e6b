"""How far a command has come, on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PERIOD: Final = 3.0  # seconds between plain lines


class Progress:
    """Counts towards a total (0: unknown) and says so."""

    def __init__(self, what: str, total: int = 0, unit: str = "events") -> None:
        self.done = 0
        self._what, self._total, self._unit = what, total, unit
        self._bar: Bar | None = None
        self._started = self._said = 0.0

    def __enter__(self) -> Self:
        self._started = self._said = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[told]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task(self._what, total=self._total or None, told="")
            self._bar.start()
        return self

    def advance(self, count: int) -> None:
        """Take note that `count` more are done."""
        self.reach(self.done + count)

    def reach(self, done: int, total: int = 0) -> None:
        """Take note that `done` are done, of a total if one is known."""
        self.done = done
        self._total = total or self._total
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=self.done, total=self._total or None, told=self._told()
            )
        elif time.monotonic() - self._said >= PERIOD:
            self._said = time.monotonic()
            print(f"{self._what}: {self._told()}", file=sys.stderr, flush=True)

    def _told(self) -> str:
        rate = self.done / max(time.monotonic() - self._started, 1e-9)
        of = f" of {self._total:,}" if self._total else ""
        return f"{self.done:,}{of} {self._unit}, {rate:,.0f}/s"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
