"""A model from a stream: its events go once through the whole chain, which learns from every follow."""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config
from kithstream.streams.engine.actors import Record
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


class Placed(NamedTuple):
    """A record of a log, and where it lies."""

    partition: int
    offset: int
    record: Record


def published(path: Path) -> Iterator[Timed]:
    """Yield what the log of a runtime's directory holds, in the order in which it was appended.

    Changes nothing in the directory. Raises StoreRefused if a log no longer begins at its first record.
    """
    return (Timed(*one.record) for one in placed(path))


def placed(path: Path, positions: Mapping[int, int] | None = None) -> Iterator[Placed]:
    """Yield the records of a runtime's directory from these offsets on (0), in the order of `published`.

    Changes nothing in the directory. Raises StoreRefused if a log begins behind its offset.
    """
    folders = sorted((path / "log").iterdir(), key=lambda folder: int(folder.name))
    begin = positions or {}
    return heapq.merge(
        *(_partition(folder, begin.get(int(folder.name), 0)) for folder in folders), key=_appended
    )


def _appended(one: Placed) -> int:
    return one.record.appended


def _partition(folder: Path, begin: int) -> Iterator[Placed]:
    files = segments(folder)
    if files and int(files[0].stem) > begin:
        raise StoreRefused(
            f"log {folder} begins at offset {int(files[0].stem)}, expected {begin}: its older events are gone"
        )
    for file, following in zip(files, [*files[1:], None], strict=True):
        if following is not None and int(following.stem) <= begin:
            continue
        for offset, record in enumerate(records(file), int(file.stem)):
            if offset >= begin:
                yield Placed(int(folder.name), offset, record)
