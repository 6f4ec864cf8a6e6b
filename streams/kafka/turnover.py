"""The stream process' part in a change of lineage: publish the new one beside the old, and the old one no longer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from kithstream.streams.config import Config
from kithstream.streams.errors import StoreRefused
from kithstream.streams.kafka import learned, registry
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.outlet import Outlet
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.registry import Registry, open_lineage
from kithstream.streams.kafka.stream import Stream

_log = logging.getLogger(__name__)

LOOKING: Final = 0.1  # seconds between two looks at what is published and what is served


class Turnover:
    """Keeps a stream's outlets those that are needed. One event loop."""

    def __init__(
        self,
        config: Config,
        known: Registry,
        stream: Stream,
        producer: Producer,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """The stream has the outlets of `known.needed`, in their order."""
        self._config = config
        self._known = known
        self._stream = stream
        self._producer = producer
        self._monotonic = monotonic
        self._served = ""  # the lineage that this worker's answers are of, as it last said
        self._idle: dict[str, float] = {}  # lineages that nobody here needs, and since when
        self._refused = ""

    def switched(self, lineage: str) -> None:
        """Take note of what answers are made of."""
        self._served = lineage

    async def run(self) -> None:
        """Look for ever."""

        models = topics(self._config.kafka.prefix).models
        async with asyncio.TaskGroup() as group:
            following: dict[str, asyncio.Task[None]] = {}
            group.create_task(learned.follow(self._config.kafka, models, self._known))
            while True:
                await self._add()
                for outlet in self._stream.outlets:
                    if outlet.lineage not in following:
                        following[outlet.lineage] = group.create_task(self._follow(outlet))
                await self._drop(following)
                await asyncio.sleep(LOOKING)

    async def _follow(self, outlet: Outlet) -> None:
        async def ready() -> None:
            await self._stream.step(outlet.follower)

        await learned.follow(self._config.kafka, outlet.steps, outlet.follower, ready)

    async def _add(self) -> None:
        lineage = self._known.serving
        if lineage in {outlet.lineage for outlet in self._stream.outlets}:
            return
        try:
            model, follower = await open_lineage(self._config, self._known, lineage)
        except StoreRefused as error:
            if self._refused != str(error):
                _log.error("%s", error)
            self._refused = str(error)
            return
        async with self._stream.lock:
            self._stream.add(model, follower)
        await self._stream.identify()
        _log.info("lineage %s is being filled", lineage)

    async def _drop(self, following: dict[str, asyncio.Task[None]]) -> None:
        """Let go of lineages that were not needed for a while: other workers switch a moment earlier or later."""
        if not self._served:
            return
        if self._stream.outlets[0].lineage != self._served:
            await self._stream.serve(self._served)
        needed = {self._known.serving, self._served}
        idle = [o.lineage for o in self._stream.outlets if o.lineage not in needed]
        self._idle = {name: self._idle.get(name, self._monotonic()) for name in idle}
        for lineage, since in list(self._idle.items()):
            if self._monotonic() - since < self._config.worker.former_seconds:
                continue
            await self._stream.drop(lineage)
            if (task := following.pop(lineage, None)) is not None:
                task.cancel()
            current = self._known.current
            if current is not None and not current.settled and current.lineage == self._served:
                await registry.settle(self._producer, self._config, current)
            _log.info("lineage %s is let go", lineage)
