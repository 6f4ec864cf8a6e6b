"""When a vector must be encoded again although its row did not change: time is an input of it."""

from __future__ import annotations

from typing import Final

TICK: Final = 60_000_000  # microseconds


def next_tick(changed: int, now: int, ratio: float = 2.0) -> int:
    """The first tick after `now` at which a row last changed at tick `changed` is encoded again.

    The ticks after the change grow geometrically, so a row costs log(age) encodes.

    >>> now, due = 100, []
    >>> for _ in range(5):
    ...     now = next_tick(100, now)
    ...     due.append(now - 100)
    >>> due
    [1, 2, 4, 8, 16]
    """
    if ratio <= 1.0:
        raise ValueError(f"ratio is {ratio}, it must be above 1")
    if now < changed:
        raise ValueError(f"now is tick {now}, before the change at tick {changed}")
    delay = 1
    while delay <= now - changed:
        delay = max(delay + 1, int(delay * ratio))
    return changed + delay
