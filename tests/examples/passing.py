"""A pass that is killed: `python passing.py FOLDER N` dies by SIGKILL when it has read N events."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from kithstream.streams.config import (
    Config,
    EngineConfig,
    ExamplesConfig,
    IndexSection,
    ModelConfig,
    StoreConfig,
)
from kithstream.streams.events.record import Record
from kithstream.streams.examples.passes import Made, make
from kithstream.streams.examples.sources import FileSource
from kithstream.streams.simulate import simulate
from kithstream.streams.world import MIX, SimulationConfig

EVENTS = 1500
MORE = {"impression": 0.2, "account_delete": 0.01, "retract": 0.03}
WORLD = SimulationConfig(seed=7, accounts=120, batch=64, events_per_account_day=60.0, mix={**MIX, **MORE})
CONFIG = Config(
    store=StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20),
    engine=EngineConfig(batch_events=50),
    model=ModelConfig(example_batch=16),
    index=IndexSection(background=False),
    examples=ExamplesConfig(part_rows=700),
)


@cache
def events(count: int = EVENTS) -> list[Record]:
    return [event for batch in simulate(WORLD, count) for event in batch]


def source(count: int = EVENTS, partitions: int = 3) -> FileSource:
    return FileSource("simulated", partitions, lambda: iter(events(count)))


def until(path: Path, last: int, config: Config = CONFIG) -> Made:
    """Go on with the pass until it has read so many events."""

    def heard(count: int) -> None:
        if count >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    return make(source(), path, config, heard)


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """What a pass leaves for those who read it."""
    for file in sorted(path.iterdir()):
        if file.suffix in (".parquet", ".json"):
            yield file.name, file.read_bytes()


if __name__ == "__main__":
    until(Path(sys.argv[1]), int(sys.argv[2]))
