"""A partition as it would be without some of what one of its accounts did, made by the engine's own fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.actors import Actors
from kithstream.streams.engine.deeds import Deed
from kithstream.streams.engine.overlay import Overlay
from kithstream.streams.engine.partition import WATERMARK, Partition, ReadCache
from kithstream.streams.engine.replica import Replica
from kithstream.streams.engine.routing import Route
from kithstream.streams.engine.slots import ReadStore
from kithstream.streams.state.protocol import Column


class Counterfactual:
    """One partition over a store that is only read. One thread at a time.

    The caller sees to it that the store does not move between `refresh` and the last read of what `without` gave.
    """

    def __init__(
        self, store: ReadStore, number: int, route: Route, config: EngineConfig, known: KnownFor | None = None
    ) -> None:
        """Take a store, and the version of communities that is read there."""
        self.below = store
        self.known = known
        self._overlay = Overlay(store)
        versions = {} if known is None else {known.version: known}
        self.partition = Partition(
            self._overlay, number, route.partitions, config, salt=b"", versions=versions
        )
        self._actors = Actors(self.partition, route)

    def refresh(self) -> None:
        """See the store as it stands."""
        partition = self.partition
        (watermark,) = self.below.get(Column.META, [WATERMARK])
        partition.watermark = int.from_bytes(watermark or b"", "big")
        partition.profiles = ReadCache(partition.config.row_cache)
        self._forget()

    def without(self, deeds: Iterable[Deed]) -> Overlay:
        """Return the store as if these had never been done; the partition is as it was.

        Exactly what retracting them would leave in the account's own partition: its counters, newest followees,
        mutual follows. Other partitions are not told, so accounts there are as they are.
        """
        given = list(deeds)
        try:
            self._actors.without(
                [deed.key for deed in given if deed.column is Column.OUT],
                [deed.key for deed in given if deed.column is Column.SAID],
            )
            return self._overlay.split()
        finally:
            self._forget()

    def _forget(self) -> None:
        self._overlay.forget()
        self.partition.forget()


class Variants:
    """One account in several states of its partition; a `Reads` in which each state is a partition of its own."""

    def __init__(
        self, account: str, stores: Sequence[ReadStore], number: int, known: KnownFor | None = None
    ) -> None:
        self.names = [_Variant(account) for _ in stores]  # by which the states are read
        self.route = Route(max(len(stores), 1))
        self.route.update(zip(self.names, range(len(stores)), strict=True))
        versions = {} if known is None else {known.version: known}
        self._replicas = [Replica(store, number, versions) for store in stores]

    def at(self, number: int) -> Replica:
        """Return the partition in one of the states."""
        return self._replicas[number]


class _Variant(str):
    """An id that a store takes for the account's own and a dict for another one: many states in one read."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)
