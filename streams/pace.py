"""An open loop: events come at their own pace, whether or not the runtime keeps up; questions beside them.

Delays count from when a batch was due, so that a stall is charged to every event behind it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Final, NamedTuple

from kithstream.streams.clock import StreamClock
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.record import Record
from kithstream.streams.serve import tokens
from kithstream.streams.serve.answers import Answer
from kithstream.streams.serve.embedded import Embedded, Pumped

_BATCH_SECONDS: Final = 0.01  # one batch of events a hundredth of a second
_QUERIES: Final = 50.0  # a second


class Paced(NamedTuple):
    """What the loop measured; seconds."""

    events: int
    seconds: float  # from the first due time to the last event visible
    freshness: list[float]  # per event: due time to visible in answers
    queries: list[float]  # per question: asked to answered
    late: float  # the most that publishing fell behind its own plan
    rounds: Sequence[tuple[float, float]] = ()  # seconds that each round folded and encoded


Heard = Callable[[Answer, str], None]  # an answer, and the token of everything that may be in it


def run(
    live: Embedded,
    clock: StreamClock,
    events: Sequence[Record],
    asking: Sequence[str],
    *,
    rate: float,
    heard: Heard,
    published: str,
) -> Paced:
    """Publish events at `rate` a second into a started runtime, with questions for `asking` in turn beside.

    The events' times are pressed together so that they happen as they are published; the clock stands at the
    due time of the newest batch. `published` is the token of everything that came before.
    """
    base = clock.now
    size = max(1, round(rate * _BATCH_SECONDS))
    batches = [events[first : first + size] for first in range(0, len(events), size)]
    times = [event["time"] for event in events]
    span = max(max(times) - base, 1)
    squeeze = len(events) / rate * 1e6 / span
    freshness: list[float] = []
    rounds: list[tuple[float, float]] = []
    visible = threading.Event()
    started = time.perf_counter() + _BATCH_SECONDS

    def pumped(done: Pumped) -> None:
        since = (time.perf_counter() - started) * 1e6 + base
        freshness.extend((since - appended) / 1e6 for appended in done.appended)
        if done.records:
            rounds.append((done.folding, done.encoding))
        if len(freshness) >= len(events):
            visible.set()

    questions = _Questions(live, asking, heard, published)
    live.on_pumped = pumped
    late = 0.0
    try:
        questions.start()
        for number, batch in enumerate(batches):
            due = number * size / rate
            ahead = started + due - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)
            late = max(late, -ahead)
            now = base + int(due * 1e6)
            clock.advance(now)
            questions.publish(
                [{**event, "time": min(now, _pressed(event["time"], base, squeeze))} for event in batch]
            )
        while not visible.wait(1.0):
            if live.failed:
                break
    finally:
        questions.stop()
        live.on_pumped = None
    return Paced(len(events), max(freshness, default=0.0) + due, freshness, questions.took, late, rounds)


def _pressed(at: int, base: int, squeeze: float) -> int:
    return at if at <= base else base + int((at - base) * squeeze)


class _Questions:
    """Asks in a thread, at an even pace, and knows what was published before each answer was complete."""

    def __init__(self, live: Embedded, asking: Sequence[str], heard: Heard, published: str) -> None:
        self.took: list[float] = []
        self._live, self._asking, self._heard = live, asking, heard
        self._published = published
        self._lock = threading.Lock()  # published events are known as soon as they can be in an answer
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kithstream-questions", daemon=True)

    def publish(self, batch: Sequence[Record]) -> None:
        with self._lock:
            token = self._live.publish(batch)
            self._published = tokens.join(self._published, token, self._live.partitions)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        for account in cycle(self._asking):  # at least one question, however short the loop is
            began = time.perf_counter()
            try:
                answer = self._live.candidates(account)
            except Unanswerable:
                pass
            except BaseException as failure:
                self._failure = failure
                return
            else:
                self.took.append(time.perf_counter() - began)
                with self._lock:
                    published = self._published
                self._heard(answer, published)
            if self._stopped.wait(1 / _QUERIES):
                return
