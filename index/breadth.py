"""How broadly a graph is searched: as broadly as the recall that is wanted takes.

A graph finds less of the best the more vectors it has, and how much less depends on the vectors. So answers of it are
compared with scans, and while it finds too little it is asked for more neighbours; from some size on that costs more
than a scan, and the planner scans (`exclude.choose`).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

COMPARED: Final = 16  # answers whose mean decides
DEPTH: Final = 200  # hits of an answer that are compared


class Breadth:
    """Times the neighbours that the settings ask of a graph. Any thread may call.

    >>> breadth = Breadth(wanted=0.99)
    >>> for _ in range(COMPARED):
    ...     breadth.found(0.95, breadth.times)
    >>> breadth.times
    2.0
    """

    def __init__(self, wanted: float) -> None:
        self.times = 1.0
        self._wanted = wanted
        self._shares: deque[float] = deque(maxlen=COMPARED)
        self._lock = threading.Lock()

    def found(self, share: float, times: float) -> None:
        """Take note of what share of an exact answer a search found that was so broad."""
        with self._lock:
            if times != self.times:
                return
            self._shares.append(share)
            if len(self._shares) == COMPARED and sum(self._shares) < COMPARED * self._wanted:
                self.times *= 2.0
                self._shares.clear()

    def reset(self) -> None:
        """Begin again, with another graph."""
        with self._lock:
            self.times = 1.0
            self._shares.clear()
