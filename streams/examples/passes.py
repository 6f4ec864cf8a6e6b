"""A pass over a source, from where the folder stands to the source's end."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Protocol

import msgspec

from kithstream.models.features import SCHEMA
from kithstream.streams.alone import alone
from kithstream.streams.communities import folder as communities
from kithstream.streams.config import Config
from kithstream.streams.errors import UnusableSource
from kithstream.streams.examples import folder, standing
from kithstream.streams.examples.capture import Capture, Counts, Polled, positive_signals
from kithstream.streams.examples.folder import MANIFEST, Manifest, PartWriter
from kithstream.streams.state.store import RocksStore


class Source(Protocol):
    """Records in one order, the same whenever they are read."""

    @property
    def name(self) -> str:
        """What the manifest says of it."""
        ...

    @property
    def partitions(self) -> int: ...

    @property
    def salt(self) -> bytes:
        """Under which deleted accounts are remembered; empty where any will do."""
        ...

    def prepare(self, work: Path) -> bool:
        """Put stores to begin with into a directory that does not exist yet; False if there are none."""
        ...

    def begin(self, capture: Capture) -> None:
        """Bring a capture over these stores to a state from which `read` goes on."""
        ...

    def read(self, positions: Mapping[int, int], events: int) -> Generator[Polled, None, None]:
        """Yield what lies behind the positions, of which `events` records were read."""
        ...


class Made(msgspec.Struct, frozen=True):
    """What a pass left in its folder."""

    out: str
    events: int
    refused: int
    strays: int
    positive: int
    engaged: int
    ignored: int
    candidates: int
    forgotten: int
    warming: int
    waiting: int  # impressions whose window has not passed
    dropped: int
    late: int
    retracted: int
    unremembered: int
    parts: int
    seconds: float


def make(
    source: Source, path: Path, config: Config, heard: Callable[[int], object] = lambda events: None
) -> Made:
    """Write the examples of a source into a folder, or go on where the last pass stopped or was killed.

    The bytes of the files do not depend on where it was killed. `heard` is told the number of events read. Raises
    UnusableSource for a folder that was made of something else, StoreRefused for one in use.
    """
    began = time.perf_counter()
    path.mkdir(parents=True, exist_ok=True)
    with alone(path, f"{path} is in use by another pass"):
        manifest = _manifest(source, path, config)
        folder.sweep(path, manifest)
        with ExitStack() as stack:
            capture = _open(source, path, config, manifest, stack)
            manifest = _run(source, path, config, manifest, capture, heard)
        shutil.rmtree(standing.work(path), ignore_errors=True)
    counts = manifest.counts
    return Made(
        out=str(path),
        **msgspec.structs.asdict(counts),
        waiting=manifest.waiting,
        dropped=manifest.dropped,
        late=manifest.late,
        retracted=manifest.retracted,
        unremembered=manifest.unremembered,
        parts=len(manifest.parts),
        seconds=round(time.perf_counter() - began, 2),
    )


def _run(
    source: Source,
    path: Path,
    config: Config,
    manifest: Manifest,
    capture: Capture,
    heard: Callable[[int], object],
) -> Manifest:
    writer = PartWriter(path, len(manifest.parts))
    positions, events = dict(manifest.positions), manifest.events
    try:
        if not manifest.round and any(p.applied for p in capture.engine.partitions):
            source.begin(capture)
            positions = {p.number: p.applied for p in capture.engine.partitions}
            writer.write(capture.begin(capture.engine.watermark), capture.ids.names)
        with closing(source.read(positions, events)) as records:
            while poll := list(islice(records, config.engine.batch_events)):
                writer.write(capture.fold(poll), capture.ids.names)
                events += len(poll)
                positions.update({one.partition: one.offset + 1 for one in poll})
                heard(events)
                if writer.rows >= config.examples.part_rows:
                    manifest = _seal(path, manifest, writer, capture, positions, events)
                    writer = PartWriter(path, len(manifest.parts))
        if capture.round > manifest.round or not manifest.parts:
            manifest = _seal(path, manifest, writer, capture, positions, events)
        else:
            writer.abandon()
    except BaseException:
        writer.abandon()
        raise
    return manifest


def _seal(
    path: Path,
    manifest: Manifest,
    writer: PartWriter,
    capture: Capture,
    positions: Mapping[int, int],
    events: int,
) -> Manifest:
    """Close a part: first its files and where the pass stands, then the manifest that names both."""
    part = writer.close(capture.round)
    standing.save(path, capture)
    several = capture.impressions
    dropped, late, retracted, unremembered = (sum(c) for c in zip(*(i.counts for i in several), strict=True))
    manifest = msgspec.structs.replace(
        manifest,
        parts=(*manifest.parts, part),
        positions=dict(sorted(positions.items())),
        events=events,
        round=capture.round,
        counts=msgspec.structs.replace(capture.counts),
        waiting=sum(len(impressions) for impressions in several),
        dropped=dropped,
        late=late,
        retracted=retracted,
        unremembered=unremembered,
    )
    folder.store(path, manifest)
    standing.drop_others(path, capture.round)
    return manifest


def _manifest(source: Source, path: Path, config: Config) -> Manifest:
    """The folder's manifest, or that of an empty one."""
    signals = positive_signals(config.examples)
    settings = msgspec.to_builtins(config.examples) | {
        "signals": ",".join(signals),
        "batch_events": config.engine.batch_events,
        "ageing_ratio": config.model.ageing_ratio,
        "communities": config.engine.communities,
        "partitions": source.partitions,
        "source": source.name,
    }
    made_of = {name: str(value) for name, value in sorted(settings.items())}
    if not (path / MANIFEST).exists():
        return Manifest(SCHEMA.hash, made_of)
    manifest = folder.load(path)
    for name, value in made_of.items():
        if (found := manifest.made_of.get(name)) != value:
            raise UnusableSource(f"{path} was made with {name} {found!r}, not {value!r}; take another folder")
    return manifest


def _open(source: Source, path: Path, config: Config, manifest: Manifest, stack: ExitStack) -> Capture:
    """Open the stores that the manifest stands at, or those that the source begins with."""
    work = standing.work(path)
    shutil.rmtree(work, ignore_errors=True)
    standing.drop_others(path, manifest.round if manifest.parts else None)
    if manifest.parts:
        standing.bring_back(path, manifest.round)
    elif not source.prepare(work):
        (work / "state").mkdir(parents=True)
    versions, served = communities.served(work / communities.NAME, config.engine.communities)
    stores = []
    for number in range(source.partitions):
        stores.append(RocksStore(standing.store_at(work, number), config.store))
        stack.callback(stores[-1].close)
    capture = Capture(stores, config, salt=source.salt or secrets.token_bytes(16), versions=versions)
    if manifest.parts:
        standing.restore(path, manifest.round, capture)
    if served is not None:
        capture.engine.adopt(served)
    return capture


__all__ = ["make", "Made", "Source", "Counts"]
