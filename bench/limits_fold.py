"""What folding could cost at least: its own reads and writes replayed into a bare RocksDB, and its records decoded.

One engine folds. What it reads and writes of its stores is noted with the clock stopped, and replayed in the same
order, as write batches made before the clock starts, into databases that were copied from the stores before the first
window and are opened with the same options. So both do the same work on the same state; what differs is everything
that is not RocksDB. A CPU second is the whole process's, RocksDB's threads included: what they do late is charged to
whoever is measured then.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from rocksdict import WriteBatch

from bench.distance import Distance
from bench.fold import fold
from kithstream.streams.config import EngineConfig, StoreConfig
from kithstream.streams.engine import frames
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.engine.partition import OUTBOX
from kithstream.streams.engine.routing import Route
from kithstream.streams.events import wire
from kithstream.streams.events.wire import Event
from kithstream.streams.simulate import simulate
from kithstream.streams.state.protocol import Changes, Column, Dropped
from kithstream.streams.state.store import RocksStore
from kithstream.streams.world import SimulationConfig

PARTITIONS = 3
BATCH = 2000
MIX = "full mix of a simulated world"

Read = tuple[int, Column, list[bytes]]  # a store's number, and what it was asked
Written = tuple[int, list[tuple[Column, bytes, bytes | None]], list[Dropped]]


class Noting(RocksStore):
    """A store that notes what it is asked, and how long each kind of call takes its caller."""

    notes: list[Read | Written] | None = None  # nothing is noted until there is a list
    number = 0

    def __init__(self, path: Path, config: StoreConfig) -> None:
        super().__init__(path, config)
        self.reading = self.writing = self.noting = 0.0  # CPU seconds of the thread that calls

    def get(self, column: Column, keys: Sequence[bytes]) -> list[bytes | None]:
        began = time.thread_time()
        found = super().get(column, keys)
        ended = time.thread_time()
        self.reading += ended - began
        if self.notes is not None and keys:
            self.notes.append((self.number, column, list(keys)))
            self.noting += time.thread_time() - ended
        return found

    def write(self, changes: Changes, dropped: Sequence[Dropped] = ()) -> None:
        began = time.thread_time()
        super().write(changes, dropped)
        ended = time.thread_time()
        self.writing += ended - began
        if self.notes is not None:
            flat = [
                (column, key, None if pairs[key] is None else bytes(pairs[key] or b""))
                for column, pairs in changes.items()
                for key in sorted(pairs)
            ]
            self.notes.append((self.number, flat, list(dropped)))
            self.noting += time.thread_time() - ended


class Bare:
    """RocksDB alone, with a store's options, on a copy of a store."""

    def __init__(self, path: Path, config: StoreConfig) -> None:
        self._store = RocksStore(path, config)  # opens with the same options; its methods are not called
        self._db: Any = self._store._db
        self._columns: Any = self._store._columns
        self._handles: Any = self._store._handles

    def reader(self, column: Column, keys: list[bytes]) -> Callable[[], object]:
        """Return a call that gets these keys at once."""
        get = self._columns[column].get
        return lambda: get(keys)

    def writer(
        self, flat: Sequence[tuple[Column, bytes, bytes | None]], dropped: Sequence[Dropped]
    ) -> Callable[[], object]:
        """Return a call that writes a batch that is made already."""
        batch = WriteBatch(raw_mode=True)
        for drop in dropped:
            batch.delete_range(drop.begin, drop.end, self._handles[drop.column])
        for column, key, value in flat:
            if value is None:
                batch.delete(key, self._handles[column])
            else:
                batch.put(key, value, self._handles[column])
        write, options = self._db.write, self._store._write
        return lambda: write(batch, options)

    def scan(self, column: Column) -> Iterator[tuple[bytes, bytes]]:
        """Yield everything of a column."""
        return self._store.scan(column, b"")

    def close(self) -> None:
        """Release the files."""
        del self._handles, self._columns, self._db
        self._store.close()


class Window(msgspec.Struct):
    """One part of the events: CPU seconds of whoever did it."""

    events: int
    whole: float = 0.0  # the engine, process
    reading: float = 0.0  # of it, inside of gets
    writing: float = 0.0  # of it, inside of writes
    decoding: float = 0.0  # the engine's parser, apart
    framing: float = 0.0  # frames of the exchange, encoded and decoded, apart
    raw_reading: float = 0.0  # inside of gets
    raw_writing: float = 0.0  # inside of writes
    raw_store: float = 0.0  # both, process: RocksDB's threads included
    raw_decoding: float = 0.0
    raw_framing: float = 0.0

    @property
    def bare(self) -> float:
        """All that is raw, RocksDB's threads included."""
        return self.raw_store + self.raw_decoding + self.raw_framing


class Folding:
    """An engine beside bare databases that hold the same."""

    def __init__(self, folder: Path, logs: Sequence[Sequence[Record]], warm: int) -> None:
        """Fold the first `warm` rounds, then copy the stores."""
        self.logs = [list(log) for log in logs]
        config = StoreConfig()
        self.stores = [Noting(folder / "ours" / str(n), config) for n in range(PARTITIONS)]
        for number, store in enumerate(self.stores):
            store.number = number
        self.engine = Engine(
            self.stores, EngineConfig(partitions=PARTITIONS, batch_events=BATCH), salt=bytes(16)
        )
        fold(self.engine, self.logs, 0, warm, BATCH)
        self.engine.settle()
        (folder / "bare").mkdir()
        for number, store in enumerate(self.stores):
            store.checkpoint(folder / "bare" / str(number))
        self.bare = [Bare(folder / "bare" / str(n), config) for n in range(PARTITIONS)]
        self.place = warm

    def window(self, rounds: int) -> Window:
        """Fold so many rounds, then do the same reads and writes and the same decoding bare."""
        notes: list[Read | Written] = []
        sent: list[bytes] = []
        for store in self.stores:
            store.notes = notes
            store.reading = store.writing = store.noting = 0.0
        cpu = time.process_time()
        events = fold(self.engine, self.logs, self.place, self.place + rounds, BATCH)
        cpu = time.process_time() - cpu
        for store in self.stores:
            store.notes = None
        found = Window(events)
        found.whole = cpu - sum(store.noting for store in self.stores)
        found.reading = sum(store.reading for store in self.stores)
        found.writing = sum(store.writing for store in self.stores)
        self._replay(notes, found)
        for note in notes:
            if len(note) == 3 and isinstance(note[1], list):
                sent += [value for _, key, value in note[1] if value is not None and key.startswith(OUTBOX)]
        self._decode(rounds, found)
        _frames([raw for raw in sent if raw.startswith(frames.SEAL)], found)
        self.place += rounds
        return found

    def _replay(self, notes: Sequence[Read | Written], found: Window) -> None:
        gc.collect()
        calls: list[tuple[bool, Callable[[], object]]] = []
        for note in notes:
            number, what, rest = note
            if isinstance(what, Column):
                calls.append((True, self.bare[number].reader(what, rest)))  # type: ignore[arg-type]
            else:
                calls.append((False, self.bare[number].writer(what, rest)))  # type: ignore[arg-type]
        whole = time.process_time()
        for reads, call in calls:
            began = time.thread_time()
            call()
            spent = time.thread_time() - began
            if reads:
                found.raw_reading += spent
            else:
                found.raw_writing += spent
        found.raw_store = time.process_time() - whole

    def _decode(self, rounds: int, found: Window) -> None:
        begin, end = self.place * BATCH, (self.place + rounds) * BATCH
        records = [record for log in self.logs for record in log[begin:end]]
        began = time.process_time()
        for appended, raw in records:
            wire.decode(raw, now=appended)
        found.decoding = time.process_time() - began
        decode = msgspec.json.Decoder(Event).decode
        began = time.process_time()
        for _, raw in records:
            decode(raw)
        found.raw_decoding = time.process_time() - began

    def differences(self) -> int:
        """How many keys differ between the engine's stores and the bare ones: none, if the work was the same."""
        return sum(
            len(set(store.scan(column, b"")) ^ set(bare.scan(column)))
            for store, bare in zip(self.stores, self.bare, strict=True)
            for column in Column
        )

    def close(self) -> None:
        """Close everything."""
        for bare in self.bare:
            bare.close()
        self.engine.close()


def _frames(sent: Sequence[bytes], found: Window) -> None:
    began = time.process_time()
    for raw in sent:
        frames.encode(frames.decode(raw))
    found.framing = time.process_time() - began
    decode, encode = msgspec.msgpack.Decoder(frames.Frame).decode, msgspec.msgpack.Encoder().encode
    packed = [raw[7:] for raw in sent]
    began = time.process_time()
    for raw in packed:
        encode(decode(raw))
    found.raw_framing = time.process_time() - began


def recorded(accounts: int, events: int, seed: int) -> list[list[Record]]:
    """Return a simulated world's records by partition, with append times that never go back."""
    encode = msgspec.json.Encoder().encode
    logs: list[list[Record]] = [[] for _ in range(PARTITIONS)]
    newest = [0] * PARTITIONS
    route = Route(PARTITIONS)
    for event in chain.from_iterable(simulate(SimulationConfig(seed=seed, accounts=accounts), events)):
        number = route[event["actor"]]
        newest[number] = max(newest[number], event["time"])
        logs[number].append(Record(newest[number], encode(event)))
    return logs


def measure(given: argparse.Namespace) -> list[Distance]:
    """Return decoding, frames, reads, writes and the whole of a fold beside their limits."""
    logs = recorded(given.accounts, given.events, given.seed)
    rounds = max(map(len, logs)) // BATCH
    warm = rounds // 2
    step = max((rounds - warm) // given.runs, 1)
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        folding = Folding(Path(folder), logs, warm)
        found = [folding.window(step) for _ in range(given.runs)]
        wrong = folding.differences()
        folding.close()
    if wrong:
        raise AssertionError(f"{wrong} keys of the bare databases differ from the stores'")
    return distances(found, {"accounts": given.accounts, "events": given.events, "batch": BATCH})


def distances(windows: Sequence[Window], sizes: dict[str, Any]) -> list[Distance]:
    """Return what windows say, microseconds of CPU an event."""

    def each(value: Callable[[Window], float]) -> list[float]:
        return [value(one) / one.events * 1e6 for one in windows]

    def distance(
        what: str, by: str, limit: str, ours: Callable[[Window], float], bare: Callable[[Window], float]
    ) -> Distance:
        return Distance(
            "fold", "ingest", what, by, limit, "us_per_event", "cost", each(ours), each(bare), sizes, MIX
        )

    rocks, spec = f"rocksdict {version('rocksdict')}", f"msgspec {version('msgspec')}"
    return [
        distance(
            "decode and check a record",
            spec,
            "the same records decoded into the same struct, unchecked",
            lambda w: w.decoding,
            lambda w: w.raw_decoding,
        ),
        distance(
            "frames of the exchange, encoded and decoded",
            spec,
            "the same frames as msgpack, without seal and checksum",
            lambda w: w.framing,
            lambda w: w.raw_framing,
        ),
        distance(
            "reads of a fold",
            rocks,
            "the same keys in the same list gets, between the same writes",
            lambda w: w.reading,
            lambda w: w.raw_reading,
        ),
        distance(
            "writes of a fold",
            rocks,
            "the same batches, made before the clock starts; without RocksDB's threads, as ours",
            lambda w: w.writing,
            lambda w: w.raw_writing,
        ),
        Distance(
            "fold",
            "ingest",
            "fold, whole",
            f"{rocks}, {spec}",
            "reads, writes, frames and decoding alone, as above: a fold that computes nothing",
            "events_per_cpu_second",
            "rate",
            [one.events / one.whole for one in windows],
            [one.events / one.bare for one in windows],
            sizes,
            MIX,
            bar="fold",
        ),
    ]
