"""Time that follows a stream: for events whose past is not the present of the machine that reads them."""

from __future__ import annotations

from pathlib import Path

from kithstream.streams.engine.log import records, segments


class StreamClock:
    """A clock that stands at a time until it is moved on; never goes back."""

    def __init__(self, now: int = 0) -> None:
        self.now = now  # microseconds

    def __call__(self) -> int:
        return self.now

    def advance(self, to: int) -> None:
        """Move on to a time in microseconds, if it is later."""
        self.now = max(self.now, to)


def newest(path: Path) -> int:
    """Return when the newest record of a runtime's directory was appended, by the clock it was written with.

    0 without a record. Changes nothing in the directory.
    """
    last = (segment for folder in (path / "log").iterdir() for segment in segments(folder)[-2:])
    return max((record.appended for segment in last for record in records(segment)), default=0)
