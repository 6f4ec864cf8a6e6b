"""What befalls an engine between the events of its logs: it dies, comes back older, hears frames late or again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.engine import Engine
from kithstream.streams.state.memory import MemoryStore

STEPS = 60


def weathered(
    engine: Engine,
    logs: Sequence[Sequence[Record]],
    rng: random.Random,
    reopened: Callable[[list[MemoryStore]], Engine],
    *,
    most: int,
    meanwhile: Callable[[int, Engine], None] = lambda step, engine: None,
) -> Engine:
    """Fold logs under disturbances, at most `most` records less one at a time, then to their end; return the engine.

    `meanwhile` is called at each step. What is drawn depends on `rng` and on what the engine holds alone.
    """
    topic: list[list[bytes]] = [[] for _ in logs]  # every frame ever delivered, as Kafka keeps them
    kept = copies(engine)
    for step in range(STEPS):
        number = rng.randrange(3)
        meanwhile(step, engine)
        match rng.randrange(9):
            case 0 | 1:
                first = max(engine.partitions[number].applied - rng.randrange(3), 0)
                engine.apply(number, logs[number][first : first + rng.randrange(1, most)], first)
            case 2 | 3:
                waiting = engine.waiting()
                rng.shuffle(waiting)
                for frame in waiting[: rng.randrange(4)]:
                    topic[frame.destination].append(frame.raw)
                    engine.deliver(frame.destination, [frame.raw] * rng.randrange(1, 3))
                    if rng.random() < 0.5:
                        engine.acknowledge(frame)
            case 4 if topic[number]:  # a zombie sends again what it had sent long ago
                engine.deliver(number, [rng.choice(topic[number])])
            case 5:  # kill -9: only what was written is left
                engine = reopened(copies(engine))
            case 6:  # a partition comes back from an older copy and reads its part of the topic again
                stores = copies(engine)
                stores[number] = kept[number].copy()
                engine = reopened(stores)
                if topic[number]:
                    engine.deliver(number, topic[number])
                kept = copies(engine)
            case 7 | 8:
                engine.work()
    for number, log in enumerate(logs):
        first = engine.partitions[number].applied
        engine.apply(number, log[first:], first)
    engine.settle()
    return engine


def copies(engine: Engine) -> list[MemoryStore]:
    """Return a copy of every store."""
    return [partition.store.copy() for partition in engine.partitions]  # type: ignore[attr-defined]  # in memory
