"""Questions whose token is not included yet. One task looks for all of them, and only while there are some."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Final

import anyio.to_thread

from kithstream.streams.errors import NotYet
from kithstream.streams.serve.answers import Question

LONGEST: Final = 0.05  # seconds between two looks, whatever was said
Reached = tuple[int, ...]  # offsets that a partition's state has come to


class Waiting:
    """Waits in the event loop; `look` runs in a thread, catches partitions up and says how far they are."""

    def __init__(
        self,
        look: Callable[[Collection[int]], Mapping[int, Reached]],
        included: Callable[[Question], bool],
    ) -> None:
        """`included` tells, from what is known, whether a question need not wait (any more)."""
        self._look = look
        self._included = included
        self._waiting: dict[int, dict[asyncio.Future[None], Question]] = {}  # by partition
        self._reached: dict[int, Reached] = {}
        self._looking: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def until_included(self, question: Question, number: int, seconds: float) -> None:
        """Return when a question need not wait any more; raises NotYet when the seconds pass first.

        `number` is the partition of the account that asks.
        """
        if self._included(question):
            return
        arrived = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(number, {})[arrived] = question
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._run())
        try:
            await asyncio.wait_for(arrived, max(seconds, 0.0))
        except TimeoutError:
            raise NotYet(f"the state did not include the token within {max(seconds, 0.0):g} s") from None
        finally:
            left = self._waiting[number]
            del left[arrived]
            if not left:
                del self._waiting[number]

    def moved(self) -> None:
        """Take note that a store was written to."""
        self._moved.set()

    def check(self, number: int | None = None) -> None:
        """Let go of those that need not wait any more: of one partition, or of all after vectors came."""
        numbers = list(self._waiting) if number is None else [number]
        for one in numbers:
            for arrived, question in self._waiting.get(one, {}).items():
                if not arrived.done() and self._included(question):
                    arrived.set_result(None)

    async def _run(self) -> None:
        try:
            while self._waiting:
                self._moved.clear()
                found = await anyio.to_thread.run_sync(self._look, list(self._waiting))
                for number in list(self._waiting):
                    reached = found.get(number)
                    if reached is None or reached != self._reached.get(number):
                        self.check(number)
                self._reached.update(found)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._moved.wait(), LONGEST)
        except Exception as error:
            for waiting in self._waiting.values():
                for arrived in waiting:
                    if not arrived.done():
                        arrived.set_exception(error)
