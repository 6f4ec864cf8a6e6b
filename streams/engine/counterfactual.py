"""A partition as it would be without some of what one of its accounts did, made by the engine's own fold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.actors import Actors
from kithstream.streams.engine.deeds import Deed
from kithstream.streams.engine.overlay import Overlay
from kithstream.streams.engine.partition import WATERMARK, Partition, ReadCache
from kithstream.streams.engine.replica import ReadStore
from kithstream.streams.engine.routing import Route
from kithstream.streams.state.protocol import Column


class Counterfactual:
    """One partition over a store that is only read; as a `Reads` it answers for its own accounts alone.

    One thread at a time. The caller sees to it that the store does not move between `refresh` and the last read.
    """

    def __init__(self, store: ReadStore, number: int, route: Route, config: EngineConfig) -> None:
        self.route = route
        self.below = store
        self._overlay = Overlay(store)
        self.partition = Partition(self._overlay, number, route.partitions, config, salt=b"")
        self._actors = Actors(self.partition, route)

    def at(self, number: int) -> Partition:
        """Return the partition; raises KeyError for another one."""
        if number != self.partition.number:
            raise KeyError(number)
        return self.partition

    def refresh(self) -> None:
        """See the store as it stands."""
        partition = self.partition
        (watermark,) = self.below.get(Column.META, [WATERMARK])
        partition.watermark = int.from_bytes(watermark or b"", "big")
        partition.profiles = ReadCache(partition.config.row_cache)
        self._forget()

    @contextmanager
    def without(self, deeds: Iterable[Deed]) -> Iterator[None]:
        """Read the state as if these had never been done; afterwards it is as it was.

        Exactly what retracting them would leave in the account's own partition: its counters, newest followees,
        mutual follows. Other partitions are not told, so accounts there are as they are.
        """
        given = list(deeds)
        try:
            self._actors.without(
                [deed.key for deed in given if deed.column is Column.OUT],
                [deed.key for deed in given if deed.column is Column.SAID],
            )
            yield
        finally:
            self._forget()

    def _forget(self) -> None:
        self._overlay.forget()
        self.partition.forget()
