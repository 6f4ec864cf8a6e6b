"""What an HTTP server stands on: the runtime in this process, or a worker on Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import anyio
import anyio.to_thread

from kithstream.streams.config import ServeConfig
from kithstream.streams.errors import NotYet
from kithstream.streams.metrics import ServeMetrics
from kithstream.streams.serve.answers import Answer, Question
from kithstream.streams.serve.embedded import Embedded

T = TypeVar("T")


class Readiness(NamedTuple):
    """Whether questions are answered as they should be."""

    ready: bool
    behind: int  # records published and not visible yet
    missing: str  # what is waited for, a sentence


class Relayed(NamedTuple):
    """The reply of the worker that a question belongs to."""

    status: int
    media: str
    body: bytes
    retry_after: str


class Stopped(Exception):
    """Folding has died: nothing can be published or answered."""


class Behind(Exception):
    """So much is published and not visible yet that no more is taken."""


class Service(Protocol):
    """Publishes, answers, and says how it goes."""

    @property
    def partitions(self) -> int: ...

    @property
    def failed(self) -> bool:
        """True if nothing will be published or answered any more."""
        ...

    def clock(self) -> int:
        """The time that events are stamped with, in microseconds."""
        ...

    def readiness(self) -> Readiness: ...

    async def publish(self, checked: Sequence[tuple[str, bytes]], now: int) -> str:
        """Append records with their actors, checked at `now`; return the token that stands for them.

        Raises Behind if they are to be published later.
        """
        ...

    async def answer(self, question: Question, seconds: float) -> Answer:
        """Answer from state that includes the question's token; raises NotYet when the seconds pass first."""
        ...

    async def relay(
        self, account: str, target: str, authorization: str | None, *, forwarded: bool
    ) -> Relayed | None:
        """Return the owner's reply to a request target, None if this process answers for the account."""
        ...

    def exposed(self) -> bytes:
        """Return what else is told under /metrics, as Prometheus reads it."""
        ...


class InProcess:
    """A runtime in this process. Publishing and answering run in a bounded number of threads.

    Waiting for a token's state has threads of its own, so that questions which need not wait are not kept by
    those which must.
    """

    def __init__(self, live: Embedded, config: ServeConfig, metrics: ServeMetrics) -> None:
        self._live = live
        self._metrics = metrics
        self._start = live.end
        self._behind = config.behind
        self._working = anyio.CapacityLimiter(config.threads)
        self._waiting = anyio.CapacityLimiter(config.waiting)

    @property
    def partitions(self) -> int:
        return self._live.partitions

    @property
    def failed(self) -> bool:
        return self._live.failed

    def clock(self) -> int:
        return self._live.clock()

    def readiness(self) -> Readiness:
        missing = "Not everything published before the start is visible yet."
        return Readiness(self._live.includes(self._start), self._live.behind, missing)

    async def publish(self, checked: Sequence[tuple[str, bytes]], now: int) -> str:
        if 0 < self._behind <= (behind := self._live.behind):
            raise Behind(f"{behind} events are accepted and not visible yet")
        return await self._guarded(partial(self._live.append, checked, now), self._working)

    async def answer(self, question: Question, seconds: float) -> Answer:
        if not self._live.includes(question.after):
            await self._wait(question.after, seconds)
        return await self._guarded(partial(self._live.answer, question), self._working)

    async def relay(
        self, account: str, target: str, authorization: str | None, *, forwarded: bool
    ) -> Relayed | None:
        return None

    def exposed(self) -> bytes:
        return b""

    async def _wait(self, after: str, seconds: float) -> None:
        """Return when the state includes a token; the deadline holds for getting a thread as well."""
        began = time.perf_counter()

        def wait() -> None:
            self._live.wait(after, deadline=max(0.0, seconds - (time.perf_counter() - began)))

        with anyio.move_on_after(seconds) as scope:
            await self._guarded(wait, self._waiting)
        self._metrics.waited(time.perf_counter() - began)
        if scope.cancelled_caught and not self._live.includes(after):
            raise NotYet(f"the state did not include the token within {seconds:g} s")

    async def _guarded(self, work: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
        try:
            return await anyio.to_thread.run_sync(work, limiter=limiter)
        except RuntimeError:
            if self.failed:
                raise Stopped from None
            raise
