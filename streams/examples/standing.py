"""Where a pass stands, beside the parts of its folder: the stores as of a round, and what was derived from them.

Stores are RocksDB checkpoints (hard links to what does not change); the rest is read back bit for bit, so that a
pass that goes on writes what one without a break writes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from kithstream.models import checkpoint
from kithstream.models.checkpoint import Array, Checkpoint, Header
from kithstream.models.features import SCHEMA, ConsumerFeatures, ProducerFeatures
from kithstream.models.tower import TowerConfig
from kithstream.streams.communities import folder as communities
from kithstream.streams.examples.capture import Capture, Counts
from kithstream.streams.examples.folder import STATE
from kithstream.streams.examples.impressions import Block, Engagement, Shown, block_of
from kithstream.streams.manifest import flush

_DERIVED: Final = "derived.msgpack"
_FEATURES: Final = "features.safetensors"
_WORK: Final = "work"


class _Waiting(msgspec.Struct, array_like=True):
    """An impression that waits; its features are at its place in the file of features."""

    time: int
    offset: int
    actor: str
    target: str
    id: str
    encoded: bool


class _Partition(msgspec.Struct, array_like=True):
    """The open impressions of a partition."""

    waiting: list[_Waiting]
    engagements: list[Engagement]
    counts: tuple[int, int, int, int]


class _Derived(msgspec.Struct, array_like=True):
    """What is held in memory beside the features."""

    as_of: int
    tick: int
    round: int
    counts: Counts
    names: list[str | None]
    free: list[int]
    listed: list[str]
    ageing: list[tuple[str, int, int]]
    partitions: list[_Partition]


def work(path: Path) -> Path:
    """Return the directory of a folder in which a pass keeps the stores that it writes."""
    return path / STATE / _WORK


def standing(path: Path, number: int) -> Path:
    """Return the directory of what stood at a round."""
    return path / STATE / f"{number:012d}"


def store_at(folder: Path, number: int) -> Path:
    """Return the directory of a partition's store."""
    return folder / "state" / str(number)


def save(path: Path, capture: Capture) -> None:
    """Write down where a pass stands, all or nothing; what was returned of it must be written."""
    capture.release()
    capture.engine.settle()  # at rest: this only forgets what was acknowledged
    place = standing(path, capture.round)
    aside = place.with_name(f"{place.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)  # of a pass that was killed before its manifest
    (aside / "state").mkdir(parents=True)
    for partition in capture.engine.partitions:
        partition.store.checkpoint(store_at(aside, partition.number))
    versions = work(path) / communities.NAME
    if versions.exists():
        shutil.copytree(versions, aside / communities.NAME)
    (aside / _DERIVED).write_bytes(msgspec.msgpack.encode(_derived(capture)))
    checkpoint.write(aside / _FEATURES, _header(), _arrays(capture))
    flush(aside / _DERIVED)
    flush(aside)
    os.rename(aside, place)
    flush(place.parent)


def bring_back(path: Path, number: int) -> None:
    """Make the working directory what stood at a round; raises OSError if that is not there."""
    place = standing(path, number)
    shutil.copytree(place, work(path), ignore=shutil.ignore_patterns(_DERIVED, _FEATURES))


def restore(path: Path, number: int, capture: Capture) -> None:
    """Take over what stood at a round into a capture over the stores that were brought back."""
    place = standing(path, number)
    derived = msgspec.msgpack.decode((place / _DERIVED).read_bytes(), type=_Derived)
    features = checkpoint.read(place / _FEATURES, SCHEMA.hash)
    rows = len(derived.names)
    nothing = np.zeros((rows, 0), np.float32)
    capture.ids.restore(
        derived.names,
        derived.free,
        nothing,
        nothing,
        np.zeros((rows, 2), np.float32),
        np.zeros(rows, np.int64),
    )
    capture.producers.restore(features, rows)
    capture.as_of, capture.round, capture.counts = derived.as_of, derived.round, derived.counts
    capture.vectors.tick = derived.tick
    capture.vectors.ageing.restore(derived.ageing)
    capture.listed.update(derived.listed)
    for number, saved in enumerate(derived.partitions):
        impressions = capture.impressions[number]
        block = _block(features, number, [one.encoded for one in saved.waiting])
        impressions.restore(
            [
                Shown(one.time, one.offset, one.actor, one.target, one.id, block, at)
                for at, one in enumerate(saved.waiting)
                if block is not None
            ],
            saved.engagements,
            saved.counts,
        )


def drop_others(path: Path, number: int | None) -> None:
    """Remove what stood at other rounds; the working directory stays."""
    keep = {work(path)} | ({standing(path, number)} if number is not None else set())
    for place in (path / STATE).iterdir() if (path / STATE).exists() else ():
        if place not in keep:
            shutil.rmtree(place)


def _derived(capture: Capture) -> _Derived:
    return _Derived(
        as_of=capture.as_of,
        tick=capture.vectors.tick,
        round=capture.round,
        counts=capture.counts,
        names=list(capture.ids.names),
        free=list(capture.ids.free),
        listed=sorted(capture.listed),
        ageing=capture.vectors.ageing.scheduled(),
        partitions=[
            _Partition(
                [
                    _Waiting(s.time, s.offset, s.actor, s.target, s.id, bool(s.block.encoded[s.place]))
                    for s in impressions.waiting()
                ],
                impressions.engagements(),
                impressions.counts,
            )
            for impressions in capture.impressions
        ],
    )


def _arrays(capture: Capture) -> dict[str, Array]:
    arrays = capture.producers.arrays()
    for number, impressions in enumerate(capture.impressions):
        waiting = impressions.waiting()
        if not waiting:
            continue
        block = block_of(waiting)
        for side, features in (("consumer", block.consumers), ("producer", block.producers)):
            arrays |= {f"open.{number}.{side}.{name}": array for name, array in features._asdict().items()}
    return arrays


def _block(saved: Checkpoint, number: int, encoded: Sequence[bool]) -> Block | None:
    if not encoded:
        return None
    return Block(
        ConsumerFeatures._make(saved.arrays[f"open.{number}.consumer.{n}"] for n in ConsumerFeatures._fields),
        ProducerFeatures._make(saved.arrays[f"open.{number}.producer.{n}"] for n in ProducerFeatures._fields),
        encoded,
    )


def _header() -> Header:
    return Header(
        lineage="examples",
        step=0,
        schema_hash=SCHEMA.hash,
        tower=TowerConfig(),
        seed=0,
        created_by="kithstream examples",
    )
