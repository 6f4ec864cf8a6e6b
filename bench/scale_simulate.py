"""What happens between events and vectors, simulated with the real engine or summed up exactly, for `bench.scale`.

- `exchange`: frames and bytes an event between P partitions, from the engine's own routing and frames, told as
  `streams/kafka/stream.py` tells them: after each batch every destination hears of it.
- `touches`: the accounts whose row an event changes, one event at a time.
- `Crowd`: how often each of so many accounts is touched, as a power law over ranks; from it how many are encoded when
  changes are gathered for a while, and how many only because they have aged (`models/ages.py`).
- `kept`: how many of the k best a shard must name, so that hardly any of them is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from kithstream.models.ages import next_tick
from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.events.record import Record as Event
from kithstream.streams.simulate import simulate
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.world import SimulationConfig

TICK: Final = 60.0  # seconds
YEAR: Final = 525_600  # ticks
Doubles = NDArray[np.float64]
_encode = msgspec.json.Encoder().encode


class Folded:
    """An engine over stores in memory that is told events."""

    def __init__(self, partitions: int) -> None:
        config = EngineConfig(partitions=partitions, row_cache=50_000)
        self.engine = Engine([MemoryStore() for _ in range(partitions)], config, salt=bytes(16))
        self._ends = [0] * partitions
        self._newest = 0

    def parts(self, events: Sequence[Event]) -> dict[int, list[Record]]:
        """Return events as records, by partition."""
        found: dict[int, list[Record]] = {}
        for event in events:
            self._newest = max(self._newest, event["time"])
            found.setdefault(self.engine.route[event["actor"]], []).append(
                Record(self._newest, _encode(event))
            )
        return found

    def apply(self, number: int, records: Sequence[Record]) -> set[str]:
        """Fold records of a partition; return the accounts that are touched there."""
        acted = self.engine.apply(number, records, self._ends[number])
        self._ends[number] += len(records)
        return acted.touched

    def fold(self, events: Sequence[Event]) -> set[str]:
        """Fold events and exchange what follows; return every account that is touched."""
        touched: set[str] = set()
        for number, records in self.parts(events).items():
            touched |= self.apply(number, records)
        return touched | self.engine.exchange().touched


class Exchanged(NamedTuple):
    """What goes over the exchange."""

    partitions: int
    batch: int  # events of a partition folded together
    frames: float  # an event, those that only tell how far their sender has come included
    telling: float  # of them, those that hold nothing else
    bytes: float  # an event


def exchange(partitions: int, batch: int, seed: int, *, accounts: int = 5000, batches: int = 40) -> Exchanged:
    """Fold batches of a simulated world over so many partitions; return what each partition sends, an event."""
    stream = chain.from_iterable(simulate(SimulationConfig(seed=seed, accounts=accounts)))
    folded = Folded(partitions)
    folded.fold(list(islice(stream, 2 * accounts)))
    engine = folded.engine
    events = frames = telling = size = 0
    waiting: dict[int, list[Record]] = {number: [] for number in range(partitions)}
    done = 0
    while done < batches:
        for number, records in folded.parts(list(islice(stream, 1000))).items():
            waiting[number] += records
        for number, records in waiting.items():
            while len(records) >= batch and done < batches:
                folded.apply(number, records[:batch])
                del records[:batch]
                done += 1
                events += batch
                sent = [frame for frame in engine.waiting() if frame.source == number]
                frames += len(sent)
                size += sum(len(frame.raw) for frame in sent)
                partition = engine.at(number)
                raw = engine._shards[number].told()
                for destination, said in enumerate(partition.said):  # as the stream process does
                    if said < partition.applied:
                        partition.said[destination] = partition.applied
                        frames, telling, size = frames + 1, telling + 1, size + len(raw)
                engine.exchange()
    engine.close()
    return Exchanged(partitions, batch, frames / events, telling / events, size / events)


def touches(accounts: int, events: int, seed: int) -> Iterator[list[int]]:
    """Yield of each event the accounts that it touches, by number, after some that fill the state."""
    stream = chain.from_iterable(simulate(SimulationConfig(seed=seed, accounts=accounts)))
    folded = Folded(3)
    folded.fold(list(islice(stream, 4 * accounts)))
    for event in islice(stream, events):
        yield [int(account[1:]) for account in folded.fold([event])]
    folded.engine.close()


class Crowd(NamedTuple):
    """Accounts in classes of (nearly) one rate."""

    counts: Doubles  # accounts of each class
    rates: Doubles  # touches a second of one of them

    def distinct(self, seconds: float) -> float:
        """Return how many accounts are touched in so many seconds, on average."""
        return float((self.counts * -np.expm1(-self.rates * seconds)).sum())

    def encoded(self, seconds: float) -> float:
        """Return encodings a second when what changed is encoded every so many seconds."""
        return self.distinct(seconds) / seconds if seconds > 0 else float((self.counts * self.rates).sum())

    def aged(self, ratio: float = 2.0) -> float:
        """Return encodings a second of accounts that have only aged: at 1, 2, 4 ... ticks without a touch."""
        a_tick = self.rates * TICK
        return float((self.counts * self.rates * sum(np.exp(-a_tick * age) for age in ages(ratio))).sum())


def crowd(accounts: int, touched: float, exponent: float) -> Crowd:
    """Return accounts touched so many times a second in all: the r-th of them in proportion to r ** -exponent."""
    edges = np.unique(np.round(np.geomspace(1, accounts + 1, 2000)).astype(np.int64))
    first, last = edges[:-1].astype(np.float64), edges[1:].astype(np.float64)
    if exponent == 1:
        mass = np.log(last / first) / np.log(accounts + 1.0)
    else:
        rest = 1 - exponent
        mass = (last**rest - first**rest) / ((accounts + 1.0) ** rest - 1)
    return Crowd(last - first, touched * mass / (last - first))


class Fit(NamedTuple):
    """The power law that gathers touches as a stream does."""

    exponent: float
    worst: float  # relative error of the number of accounts in any of the windows


def fit(touched: Sequence[Sequence[int]], accounts: int, windows: Sequence[int]) -> Fit:
    """Return the law under which windows of so many events touch as many accounts as they did."""
    each = sum(map(len, touched)) / len(touched)
    seen = [
        np.mean(
            [
                len(set(chain.from_iterable(touched[at : at + size])))
                for at in range(0, len(touched) - size + 1, size)
            ]
        )
        for size in windows
    ]

    def worst(exponent: float) -> float:
        told = [crowd(accounts, size * each, exponent).distinct(1.0) for size in windows]
        return float(max(abs(one / other - 1) for one, other in zip(told, seen, strict=True)))

    best = min(np.arange(0.0, 1.3, 0.01).round(2).tolist(), key=worst)
    return Fit(best, worst(best))


def ages(ratio: float = 2.0) -> list[int]:
    """Return the ticks after a change at which an untouched account is encoded again, for a year.

    >>> ages()[:5]
    [1, 2, 4, 8, 16]
    """
    found: list[int] = []
    now = 0
    while now < YEAR:
        now = next_tick(0, now, ratio)
        found.append(now)
    return found


def kept(k: int, shards: int, missed: float = 1e-3) -> int:
    """Return how many each of the shards must name so that the share of the k best that is missed is so small.

    Accounts are spread by a hash: how many of the k best lie in one shard is binomial.

    >>> kept(200, 1), kept(200, 8), kept(200, 64)
    (200, 36, 9)
    """
    if shards == 1:
        return k
    share = 1 / shards
    chances = np.empty(k + 1)
    chances[0] = (1 - share) ** k
    for count in range(k):
        chances[count + 1] = chances[count] * (k - count) / (count + 1) * share / (1 - share)
    for named in range(k + 1):
        beyond = np.arange(named + 1, k + 1) - named
        if shards * float((chances[named + 1 :] * beyond).sum()) <= missed * k:
            return named
    return k
