"""Pieces put together by hand: Bytewax reads Kafka and keeps features, the tower encodes, usearch holds vectors.

Not a command of its own: `python -m bench.peers glue` starts it. One Bytewax worker, no recovery store: state is in
memory and a crash loses it. The changed accounts of at most 10 ms or 64 events are encoded together. An event whose
id begins with `timed-` counts as visible when both accounts' vectors are in the index; its id and the time, by the
machine's monotonic clock, are written to a file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import bytewax.operators as op
import msgspec
import numpy as np
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from usearch.index import Index

from bench.peers.engines import EF, EF_CONSTRUCTION, LINKS
from bench.peers.features import Account, rows_of
from bench.peers.progress import Progress
from kithstream.models.features import IN, OUT
from kithstream.models.model import Model

TIMED = "timed-"


class Deed(NamedTuple):
    """One side of an event."""

    direction: int
    signal: str
    other: str
    time: int
    id: str
    partition: int
    offset: int


def deeds(message: Any) -> Iterator[tuple[str, Deed]]:
    """Both sides of an event with a target."""
    event = msgspec.json.decode(message.value)
    if "target" not in event:
        return
    at = event["signal"], event["time"], event["id"], message.partition, message.offset
    for direction, name, other in (
        (OUT, event["actor"], event["target"]),
        (IN, event["target"], event["actor"]),
    ):
        yield name, Deed(direction, at[0], other, *at[1:])


def folded(state: Account | None, deed: Deed) -> tuple[Account, tuple[Account, Deed]]:
    """The account after its part of the event."""
    account = state or Account(deed.time)
    account.fold(deed.direction, deed.signal, deed.other, deed.time)
    return account, (account, deed)


class Vectors(StatelessSinkPartition[Any]):
    """Encodes and upserts; tells what has become visible."""

    def __init__(self, progress: Progress, path: Path, topic: str) -> None:
        self._model = Model.day_zero(0)
        self._index = Index(
            ndim=self._model.dim,
            metric="ip",
            dtype="f32",
            connectivity=LINKS,
            expansion_add=EF_CONSTRUCTION,
            expansion_search=EF,
        )
        self._numbers: dict[str, int] = {}
        self._half: set[str] = set()  # events of which one side is in
        self._progress = progress
        self._told = open(path, "a")  # noqa: SIM115  # open as long as the process runs
        self._topic = topic

    def write_batch(self, items: list[Any]) -> None:
        """Take the collected accounts of a moment."""
        for _, batch in items:
            changed = {name: account for name, (account, _) in batch}
            vectors = self._model.encode_producers(
                rows_of(list(changed), list(changed.values()), time.time_ns() // 1000)
            ).vectors
            known = [self._numbers[name] for name in changed if name in self._numbers]
            if known:
                self._index.remove(np.array(known, np.uint64), threads=1)
            numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in changed]
            self._index.add(np.array(numbers, np.uint64), vectors, threads=1)
            now = time.monotonic()
            for _, (_, deed) in batch:
                self._progress.note(str(deed.direction), self._topic, deed.partition, deed.offset)
                if deed.id.startswith(TIMED):
                    if deed.id in self._half:
                        self._half.discard(deed.id)
                        self._told.write(f"{deed.id} {now}\n")
                    else:
                        self._half.add(deed.id)
            self._told.flush()


class Sink(DynamicSink[Any]):
    """Where the dataflow ends."""

    def __init__(self, *given: Any) -> None:
        self._given = given

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Vectors:
        """One worker, one index."""
        return Vectors(*self._given)


def main() -> None:
    """Work until told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("servers", "topic"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    progress = Progress(given.folder / "progress")
    progress.start()
    (given.folder / "versions").write_text(f"bytewax {version('bytewax')}, usearch {version('usearch')}")
    flow = Dataflow("glue")
    read = kop.input("read", flow, brokers=[given.servers], topics=[given.topic])
    sides = op.flat_map("sides", read.oks, deeds)
    states = op.stateful_map("fold", sides, folded)
    together = op.key_on("together", op.map("named", states, lambda item: item), lambda _: "all")
    batches = op.collect("collect", together, timedelta(milliseconds=10), 64)
    op.output("vectors", batches, Sink(progress, given.folder / "visible", given.topic))
    run_main(flow)


if __name__ == "__main__":
    main()
