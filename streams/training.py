"""A model from a stream: its events go once through the whole chain, which learns from every follow."""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config
from kithstream.streams.engine.log import records, segments
from kithstream.streams.errors import StoreRefused
from kithstream.streams.progress import Progress
from kithstream.streams.serve.embedded import Embedded, Pumped


class Timed(NamedTuple):
    """An event as it was published, and when."""

    time: int  # microseconds
    raw: bytes


class Trained(msgspec.Struct, frozen=True):
    """What a pass did."""

    events: int
    refused: int
    examples: int  # follows trained on
    step: int
    lineage: str
    seconds: float
    out: str


def train(events: Iterable[Timed], out: Path, config: Config) -> Trained:
    """Fold events in their order into a runtime of their own, and save its model.

    Time follows the events. The runtime is thrown away; `config.model.path` is what learning starts from.
    """
    began = time.perf_counter()
    config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, learn=True))
    clock = StreamClock()
    count = refused = examples = 0

    def pumped(done: Pumped) -> None:
        nonlocal refused, examples
        refused += len(done.dead)
        examples += done.learned

    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="kithstream-train-") as folder,
        Embedded(Path(folder), config, clock=clock) as live,
        Progress("train") as progress,
    ):
        live.on_pumped = pumped
        source = iter(events)
        while batch := list(islice(source, config.engine.batch_events)):
            clock.advance(max(event.time for event in batch))
            live.publish(event.raw for event in batch)
            live.catch_up()
            count += len(batch)
            progress.advance(len(batch))
        live.save_model(out)
        model = live.chain.model
        return Trained(
            count,
            refused,
            examples,
            model.step,
            model.lineage,
            round(time.perf_counter() - began, 2),
            str(out),
        )


def published(path: Path) -> Iterator[Timed]:
    """Yield what the log of a runtime's directory holds, in the order in which it was appended.

    Changes nothing in the directory. Raises StoreRefused if a log no longer begins at its first record.
    """
    return heapq.merge(*(_partition(folder) for folder in sorted((path / "log").iterdir())), key=_time)


def _time(event: Timed) -> int:
    return event.time


def _partition(folder: Path) -> Iterator[Timed]:
    files = segments(folder)
    if files and int(files[0].stem):
        raise StoreRefused(f"log {folder} begins at offset {int(files[0].stem)}: its older events are gone")
    for file in files:
        yield from (Timed(record.appended, record.raw) for record in records(file))
