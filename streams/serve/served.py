"""What answers are like: counted in every one of them, and some compared with an exact scan (shadow recall)."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.index.breadth import DEPTH
from kithstream.index.protocol import Hits, Queryable
from kithstream.models.exposure import prpc
from kithstream.streams.serve.facts import Facts
from kithstream.streams.serve.why import Allowed

LISTS: Final = 2000  # newest answers that exposure is counted in
TOP: Final = 10  # first candidates of each that count
RECALLS: Final = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # bounds of the histogram below 1

RankedBy = Literal["towers", "whole", "popularity"]
First = Literal["same", "other", "unknown"]

_log = logging.getLogger(__name__)


class Exposure(NamedTuple):
    """How the first candidates of the newest answers are spread over all candidates."""

    answers: int
    shown: int  # candidates that were in one at least
    correlation: float  # Pearson's, of followers and times shown (PRPC)


class Served:
    """Takes note of answers; any thread may call. `shadow_seconds` between two comparisons, 0 for none."""

    def __init__(
        self, shadow_seconds: float = 0.0, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.answers: Counter[tuple[str, RankedBy]] = Counter()  # by plan of the index, and what ranked
        self.first: Counter[First] = (
            Counter()
        )  # language of the first candidate and of the account that asked
        self.short = 0  # answers with fewer candidates than were asked for
        self.compared: Callable[[float], None] = _unheard  # hears the recall of every comparison
        self._lists: deque[tuple[str, ...]] = deque(maxlen=LISTS)
        self._every = shadow_seconds
        self._monotonic = monotonic
        self._next = monotonic()
        self._lock = threading.Lock()
        self._comparing = threading.Lock()

    def took(
        self,
        names: Sequence[str],
        hits: Hits,
        by: RankedBy,
        *,
        short: bool,
        facts: Facts | None,
        language: int,
    ) -> None:
        """Take note of an answer for an account with this language (a code, 0 if unknown)."""
        first: First = "unknown"
        if names and facts is not None and language:
            with facts.lock:
                other = int(facts.languages(names[:1])[0])
            first = "unknown" if not other else "same" if other == language else "other"
        with self._lock:
            self.answers[hits.plan, by] += 1
            self.short += short
            if names:
                self.first[first] += 1
                self._lists.append(tuple(names[:TOP]))

    def exposure(self, facts: Facts) -> Exposure:
        """Return how the newest answers spread over all candidates."""
        with self._lock:
            lists = list(self._lists)
        with facts.lock:
            followers, times = facts.exposed(name for names in lists for name in names)
        return Exposure(len(lists), int((times > 0).sum()), prpc(followers, times.astype(np.float64)))

    # -- shadow recall ---------------------------------------------------------------------------------------

    def compare(
        self, index: Queryable, vector: NDArray[np.float32], limits: Allowed, plan: str
    ) -> threading.Thread | None:
        """Compare the index's best for a question with a scan's, in a thread, if it is time to.

        Both are asked there one after the other, so the answer waits for nothing. A plan that scans is not compared.
        """
        if not self._every or plan in ("exact", "allowed"):
            return None
        with self._lock:
            now = self._monotonic()
            if now < self._next:
                return None
            self._next = now + self._every
        thread = threading.Thread(
            target=self._compare, args=(index, vector.copy(), _copied(limits)), name="shadow", daemon=True
        )
        thread.start()
        return thread

    def _compare(self, index: Queryable, vector: NDArray[np.float32], limits: Allowed) -> None:
        if not self._comparing.acquire(blocking=False):
            return  # the one before it is not done: the machine has no time for two
        try:
            exclude, allow, labels = limits
            recall = index.compare(vector, DEPTH, exclude=exclude, allow=allow, labels=labels)
        except Exception:  # an index that was closed meanwhile; nobody waits for this
            _log.debug("no comparison with a scan", exc_info=True)
            return
        finally:
            self._comparing.release()
        if recall is not None:
            self.compared(recall)


def _unheard(_: float) -> None:
    pass


def _copied(limits: Allowed) -> Allowed:
    def copied(some: Collection[str] | None) -> Collection[str] | None:
        return None if some is None else set(some)

    return Allowed(set(limits.exclude), copied(limits.allow), limits.labels)
