"""Whose vector is due, and its encoding: changed rows first, then those that only grew old."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex
from kithstream.models.ages import TICK
from kithstream.models.features import IN, Rows
from kithstream.models.model import Model, Producers
from kithstream.streams.config import IndexSection, ModelConfig
from kithstream.streams.engine.shard import Held
from kithstream.streams.serve.ageing import Ageing
from kithstream.streams.state.counters import DAYS_READ
from kithstream.streams.state.reader import Reader

_LISTING: Final = slice(0, 2)  # the groups follow and engage: a live in-signal of these makes a candidate
PART: Final = 4096  # accounts encoded at a time where all of many are
BESIDE: Final = 16  # aged vectors that are encoded at most beside fewer changed ones
_FOREVER: Final = -1  # the half-life without decay


class Encoded(NamedTuple):
    """What one flush did."""

    upserted: int
    deleted: int


class Encoder(Protocol):
    """What makes vectors of rows: a model."""

    def encode_producers(self, rows: Rows) -> Producers: ...


class Sink(Protocol):
    """Where vectors go: an index, or a topic."""

    def write(self, rows: Rows, encoded: Producers, tick: int) -> None:
        """Take the vectors of these rows as of a tick."""
        ...

    def delete(self, accounts: Sequence[str]) -> None:
        """Forget accounts that are nobody's candidate any more."""
        ...

    def __contains__(self, account: object) -> bool: ...


class Vectors:
    """The dirty set and its encoding. One thread at a time."""

    def __init__(self, held: Held, model: Encoder, config: ModelConfig, sink: Sink) -> None:
        self.tick = 0
        self.reader = Reader(held, held.config.row_cache)
        self.dirty: set[str] = set()
        self.ageing = Ageing(config.ageing_ratio)
        self._held = held
        self._model = model
        self._sink = sink

    def touch(self, accounts: Iterable[str]) -> None:
        """Take note that rows changed."""
        self.reader.forget(accounts)
        self.dirty.update(accounts)

    def forget_others(self) -> None:
        """Forget the accounts of partitions that are not here any more."""
        here = {partition.number for partition in self._held.here()}
        route = self._held.route
        self.dirty = {account for account in self.dirty if route[account] in here}
        self.ageing.forget([account for account in self.ageing if route[account] not in here])
        self.reader = Reader(self._held, self._held.config.row_cache)

    def advance(self, as_of: int) -> None:
        """Move to the tick of a time in microseconds, never back."""
        self.tick = max(self.tick, as_of // TICK)

    def flush(self, as_of: int, most_aged: int) -> Encoded:
        """Encode what changed, and at most so many of what has aged."""
        self.advance(as_of)
        dirty, self.dirty = self.dirty, set()
        aged = [account for account in self.ageing.due(self.tick, most_aged) if account not in dirty]
        return self.encode(sorted(dirty), aged)

    def rebuild(self, as_of: int) -> Encoded:
        """Encode every account of the stores: what a restart or another model needs."""
        self.advance(as_of)
        upserted = deleted = 0
        dirty, others = sorted(self.dirty), sorted(every_account(self._held) - self.dirty)
        self.dirty.clear()
        parts: list[tuple[list[str], list[str]]] = [
            *((dirty[first : first + PART], []) for first in range(0, len(dirty), PART)),
            *(([], others[first : first + PART]) for first in range(0, len(others), PART)),
        ]
        for changed, aged in parts:
            encoded = self.encode(changed, aged)
            upserted, deleted = upserted + encoded.upserted, deleted + encoded.deleted
        return Encoded(upserted, deleted)

    def overdue(self, as_of: int) -> Encoded:
        """Encode everything that has aged by a time, however much that is."""
        self.advance(as_of)
        upserted = deleted = 0
        while due := self.ageing.due(self.tick, PART):
            encoded = self.encode((), due)
            upserted, deleted = upserted + encoded.upserted, deleted + encoded.deleted
        return Encoded(upserted, deleted)

    def encode(self, changed: Sequence[str], aged: Sequence[str] = ()) -> Encoded:
        """Encode accounts that changed, and some that only aged, into the sink; what is no candidate leaves it."""
        news, accounts = len(changed), [*changed, *aged]
        if not accounts:
            return Encoded(0, 0)
        rows = self.reader.read(accounts, self.tick * TICK)
        listed = self._listed(rows)
        gone = [
            account
            for account, keep in zip(accounts, listed, strict=True)
            if not keep and account in self._sink
        ]
        if gone:
            self._sink.delete(gone)
            self.ageing.forget(gone)
        if not listed.all():
            news = int(listed[:news].sum())
            rows = self.reader.read(
                [a for a, keep in zip(accounts, listed, strict=True) if keep], self.tick * TICK
            )
        if not len(rows.accounts):
            return Encoded(0, len(gone))
        self._sink.write(rows, self._model.encode_producers(rows), self.tick)
        self.ageing.changed(rows.accounts[:news], self.tick)
        self.ageing.encoded(rows.accounts[news:], newest(self.tick, rows.last[news:].min(axis=1)), self.tick)
        return Encoded(len(rows.accounts), len(gone))

    def _listed(self, rows: Rows) -> NDArray[np.bool_]:
        """Which accounts may be candidates: a live in-signal or opted in, and not hidden."""
        live: NDArray[np.bool_] = rows.counts[:, IN, _LISTING, _FOREVER].sum(axis=1) > 0
        for at, standing in enumerate(self.reader.standings(rows.accounts)):
            if standing is not None:
                live[at] = standing
        return live


def beside(changed: int, most_aged: int) -> int:
    """Return how many vectors that only aged are encoded beside some that changed: while events come, no more of them.

    >>> [beside(changed, 128) for changed in (1, 40, 500)]
    [16, 40, 128]
    """
    return min(most_aged, max(changed, BESIDE))


def newest(tick: int, ages: NDArray[np.float64]) -> list[int]:  # (n,) seconds
    """Return the ticks of events of some ages; one that no counter tells of any more is as old as they reach."""
    ticks: list[int] = (tick - np.minimum(ages, DAYS_READ * 86_400.0) * 1e6 // TICK).astype(np.int64).tolist()
    return ticks


def live_index(model: Model, section: IndexSection) -> LiveIndex:
    """Return an empty index for a model's vectors."""
    return LiveIndex(index_config(model, section))


def index_config(model: Model, section: IndexSection) -> IndexConfig:
    """Return the settings of an index for a model's vectors."""
    return IndexConfig(
        dim=model.dim,
        bound=model.norm_bound,
        hot_capacity=section.hot_capacity,
        exact_rows=section.exact_rows,
        ef=section.ef,
    )


def every_account(held: Held) -> set[str]:
    """Return every account that has a row or a profile."""
    found: set[str] = set()
    for partition in held.here():
        found.update(partition.accounts())
    return found
