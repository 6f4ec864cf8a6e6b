"""Where the CPU of a fold goes: each step's own time, what it calls in other steps left out.

The thread's CPU is charged to the innermost step that runs; RocksDB's own threads are the process's CPU beyond the
thread's. Parts with clocks and parts without alternate, so that what the clocks cost is seen: `uninstrumented`.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.fold import fold, records_of
from bench.load import world_follows
from kithstream.streams.config import EngineConfig, StoreConfig
from kithstream.streams.engine import frames
from kithstream.streams.engine.actors import Actors
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.engine.partition import Batch
from kithstream.streams.engine.targets import Targets
from kithstream.streams.events import wire
from kithstream.streams.load import load
from kithstream.streams.state.protocol import Changes
from kithstream.streams.state.store import RocksStore
from kithstream.streams.world import SimulationConfig, World

PARTITIONS: Final = 3
BATCH: Final = 2000
PARTS: Final = 10  # every other one with clocks: five of each
# What is charged to which step. Everything else that the stages do is theirs.
STEPS: Final[tuple[tuple[object, str, str], ...]] = (
    (Actors, "decode", "decode"),
    (Actors, "apply", "out-ledger"),
    (Actors, "work", "out-ledger"),
    (Targets, "apply", "in-ledger"),
    (Targets, "work", "in-ledger"),
    (frames, "encode", "exchange"),
    (frames, "decode", "exchange"),
    *((Batch, name, "rows") for name in dir(Batch) if name.startswith("fold_")),
    *((RocksStore, name, "store") for name in ("get", "write")),
)


class Steps(NamedTuple):
    """Microseconds of CPU an event, by step, of each part."""

    together: dict[str, list[float]]
    alone: dict[str, list[float]]


class Clocks:
    """Charges the thread's CPU to the innermost step that runs."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()  # nanoseconds
        self._stack: list[str] = []
        self._since = 0

    def charged(self, step: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its own time charged to a step."""

        def timed(*words: Any, **named: Any) -> Any:
            self._turn()
            self._stack.append(step)
            try:
                return work(*words, **named)
            finally:
                self._turn()
                self._stack.pop()

        return timed

    def _turn(self) -> None:
        now = time.thread_time_ns()
        if self._stack:
            self.spent[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def running(self, charges: Sequence[tuple[object, str, str]] = STEPS) -> Iterator[None]:
        """Charge steps until the end of the block."""
        plain = [(owner, name, getattr(owner, name)) for owner, name, _ in charges]
        for (owner, name, work), (_, _, step) in zip(plain, charges, strict=True):
            setattr(owner, name, self.charged(step, work))
        try:
            yield
        finally:
            for owner, name, work in plain:
                setattr(owner, name, work)


def measure(accounts: int, edges: int, events: int, seed: int) -> Steps:
    """Fold a world's events behind a graph; the first half fills the state."""
    world = SimulationConfig(seed=seed, accounts=accounts)
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        stores = [RocksStore(Path(folder) / str(n), StoreConfig()) for n in range(PARTITIONS)]
        engine = Engine(stores, EngineConfig(partitions=PARTITIONS, batch_events=BATCH), salt=bytes(16))
        if edges:
            load(engine, world_follows(World.build(world), edges, seed), now=world.start)
        logs = records_of(engine, world, events)
        gc.collect()
        gc.freeze()
        rounds = max(map(len, logs)) // BATCH + 1
        warm = rounds // 2
        fold(engine, logs, 0, warm, BATCH)
        together: dict[str, list[float]] = {}
        writes: list[list[Changes]] = [[] for _ in stores]
        told: list[bytes] = []
        cuts = [warm + (rounds - warm) * part // PARTS for part in range(PARTS + 1)]
        for part, (first, last) in enumerate(zip(cuts, cuts[1:], strict=False)):
            if first == last:
                raise ValueError(f"events is {events}, too few for {PARTS} parts of a batch and more")
            if part % 2:
                costs = _charged(engine, logs, first, last)
            else:
                cpu = time.process_time_ns()
                count = fold(engine, logs, first, last, BATCH)
                costs = {"uninstrumented": (time.process_time_ns() - cpu) / count / 1000}
            for name, cost in costs.items():
                together.setdefault(name, []).append(cost)
        written = max(rounds - 2, warm)
        with _captured(engine, writes, told):
            count = fold(engine, logs, written, rounds, BATCH)
        engine.settle()
        engine.close()
        alone = _alone(Path(folder), [r for log in logs for r in log[:20_000]], writes, told, count)
    return Steps(together, alone)


def _charged(engine: Engine, logs: Sequence[list[Record]], first: int, last: int) -> dict[str, float]:
    clocks = Clocks()
    cpu, own = time.process_time_ns(), time.thread_time_ns()
    with clocks.running():
        count = fold(engine, logs, first, last, BATCH)
    cpu, own = time.process_time_ns() - cpu, time.thread_time_ns() - own
    spent = {step: clocks.spent[step] for step in dict.fromkeys(step for _, _, step in STEPS)}
    spent["rest"] = own - sum(spent.values())
    spent["store's threads"] = cpu - own
    return {step: nanoseconds / count / 1000 for step, nanoseconds in spent.items()}


@contextmanager
def _captured(engine: Engine, writes: Sequence[list[Changes]], told: list[bytes]) -> Iterator[None]:
    """Keep what is written to each store, and the frames that are delivered."""
    for partition, kept in zip(engine.partitions, writes, strict=True):

        def write(
            changes: Changes, *more: Any, kept: list[Changes] = kept, into: Any = partition.store
        ) -> None:
            kept.append({column: dict(pairs) for column, pairs in changes.items()})
            type(into).write(into, changes, *more)

        partition.store.write = write  # type: ignore[method-assign]
    deliver = engine.deliver

    def delivered(destination: int, raw: Sequence[bytes]) -> Any:
        told.extend(raw)
        return deliver(destination, raw)

    engine.deliver = delivered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del engine.deliver
        for partition in engine.partitions:
            del partition.store.write  # type: ignore[attr-defined]


def _alone(
    folder: Path,
    records: Sequence[Record],
    writes: Sequence[Sequence[Changes]],
    told: Sequence[bytes],
    count: int,
) -> dict[str, list[float]]:
    """What decoding, exchange and store take over the same bytes with nothing around them; five times each."""

    def decode() -> None:
        for appended, raw in records:
            wire.decode(raw, now=appended)

    def exchange() -> None:
        for raw in told:
            frames.encode(frames.decode(raw))

    def timed(work: Callable[[], None], events: int) -> float:
        began = time.process_time_ns()
        work()
        return (time.process_time_ns() - began) / events / 1000

    found: dict[str, list[float]] = {"decode": [], "exchange": [], "store": []}
    for turn in range(PARTS // 2):
        found["decode"].append(timed(decode, len(records)))
        found["exchange"].append(timed(exchange, count))
        stores = [RocksStore(folder / f"alone{turn}-{n}", StoreConfig()) for n in range(len(writes))]

        def write(stores: Sequence[RocksStore] = stores) -> None:
            for store, batches in zip(stores, writes, strict=True):
                for changes in batches:
                    store.write(changes)

        found["store"].append(timed(write, count))
        for store in stores:
            store.close()
    return found
