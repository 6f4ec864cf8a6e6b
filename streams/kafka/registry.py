"""Which lineages were published, and which one is to be served: one compacted topic, and what changes it.

A lineage is published in an order that makes it atomic: its topics, its weights and id vectors into its topic of steps,
its description here, then the pointer. Whoever reads the pointer finds all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from kithstream.models.delta import Delta
from kithstream.models.features import SCHEMA
from kithstream.models.ids import IdVectors
from kithstream.models.lineage import lineage_of_content
from kithstream.models.model import Model
from kithstream.models.ranker import PAIRS
from kithstream.models.tower import Tower, TowerConfig
from kithstream.streams.config import Config
from kithstream.streams.errors import StoreRefused
from kithstream.streams.kafka import learned
from kithstream.streams.kafka.base import base_model
from kithstream.streams.kafka.names import steps, topics
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.starting import start
from kithstream.streams.kafka.steps import Follower, records
from kithstream.streams.kafka.topics import create, wanted

CURRENT: Final = b"\0current"  # key of the pointer: no lineage holds a NUL
_encode = msgspec.json.Encoder().encode


class Published(msgspec.Struct, frozen=True):
    """One lineage (JSON); the key is its name."""

    lineage: str
    schema: str  # of the features; a build with another cannot serve it
    tower: TowerConfig
    seed: int
    step: int  # of what was published; training goes on from there
    offset: int  # of the training log, from which it is trained on
    at: int  # microseconds


class Current(msgspec.Struct, frozen=True):
    """The lineage that is to be served (JSON)."""

    lineage: str
    former: str  # what was before it
    at: int  # microseconds
    settled: bool = (
        False  # every worker that was there serves it; the former one's vectors are published no more
    )


_published = msgspec.json.Decoder(Published).decode
_current = msgspec.json.Decoder(Current).decode


class Registry:
    """The topic's content. `base` is the lineage of the settings, which is served until another is published."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.published: dict[str, Published] = {}
        self.current: Current | None = None
        self.unusable = 0  # records that are none of ours
        self.at = 0  # of the topic, to be read next

    def feed(self, pairs: Iterable[tuple[bytes | None, bytes | None]]) -> bool:
        """Take records in their order; True if the pointer was among them."""
        moved = False
        for key, value in pairs:
            try:
                if key == CURRENT:
                    self.current = _current(value or b"")
                    moved = True
                elif key is not None and value is not None:
                    found = _published(value)
                    self.published[found.lineage] = found
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.unusable += 1
        return moved

    def apply(self) -> int:
        """Nothing is kept back: what was fed is there."""
        return len(self.published)

    @property
    def serving(self) -> str:
        """The lineage that is to be served."""
        return self.base if self.current is None else self.current.lineage

    @property
    def needed(self) -> list[str]:
        """Lineages that must be there: the one to be served, then the former one until all have switched."""
        current = self.current
        if current is None or current.settled or not current.former:
            return [self.serving]
        return [current.lineage, current.former]


async def read(config: Config, base: str) -> Registry:
    """Return what the topic holds now."""
    registry = Registry(base)
    await learned.catch_up(config.kafka, topics(config.kafka.prefix).models, registry)
    return registry


async def open_lineage(config: Config, registry: Registry, lineage: str) -> tuple[Model, Follower]:
    """Return a lineage's model at its newest published step, and what keeps it there.

    Raises StoreRefused for one that nobody published, or of features that this build does not make.
    """
    model = base_model(config.model) if lineage == registry.base else _empty(registry, lineage)
    follower = Follower(model)
    await learned.catch_up(config.kafka, steps(config.kafka.prefix, lineage), follower)
    return model, follower


def _empty(registry: Registry, lineage: str) -> Model:
    found = registry.published.get(lineage)
    if found is None:
        raise StoreRefused(f"lineage {lineage} is to be served and was not published")
    if found.schema != SCHEMA.hash:
        raise StoreRefused(f"lineage {lineage} is of schema {found.schema}, this build has {SCHEMA.hash}")
    ids = IdVectors(found.tower.id_dim, found.tower.sign_dim, found.seed, found.tower.born)
    return Model(Tower(found.tower), ids, lineage, found.step)


def publish(config: Config, path: Path, clock: Callable[[], int]) -> Current:
    """Publish a checkpoint's model as a lineage of its own, to be served from now on; return the pointer.

    The lineage is named by the file's content, so that the same file is the same lineage. Raises CheckpointError,
    StoreRefused if it is the one that is served, Unreachable, TopicRefused.
    """
    model = Model.load(path)
    model.lineage = lineage_of_content(path)
    create(config.kafka, wanted(config, model.lineage))
    return asyncio.run(_publish(config, model, clock))


def point(config: Config, lineage: str, clock: Callable[[], int]) -> Current:
    """Let a published lineage be served from now on; empty is the former one. Raises StoreRefused if there is none."""
    return asyncio.run(_point(config, lineage, clock))


def look(config: Config) -> Registry:
    """Return what was published; raises Unreachable."""
    return asyncio.run(read(config, base_model(config.model).lineage))


async def _publish(config: Config, model: Model, clock: Callable[[], int]) -> Current:
    registry = await read(config, base_model(config.model).lineage)
    names = topics(config.kafka.prefix)
    if registry.serving == model.lineage:
        raise StoreRefused(f"lineage {model.lineage} is the one that is served")
    async with _sending(config) as producer:
        if model.lineage not in registry.published:
            accounts = sorted(name for name in model.ids.names if name is not None)
            rows = model.ids.rows_of(accounts)
            base = Delta(
                lineage=model.lineage,
                schema_hash=model.schema_hash,
                since=0,
                step=model.step,
                weights={name: p.detach().numpy().tobytes() for name, p in model.tower.named_parameters()},
                accounts=tuple(accounts),
                target=model.ids.target[rows].tobytes(),
                source=model.ids.source[rows].tobytes(),
                ranker=model.ranker.packed(),
                ranker_hash=PAIRS.hash,
            )
            offset = await _end(config, names.training)
            pairs = records(base, 0, offset, 0)
            await producer.send_all(steps(config.kafka.prefix, model.lineage), 0, pairs)
            await producer.settle()
            header = model.header()
            told = Published(
                model.lineage, model.schema_hash, header.tower, header.seed, model.step, offset, clock()
            )
            raw = _encode(told)
            await (await producer.send(names.models, 0, raw, key=model.lineage.encode()))
        return await _move(producer, names.models, Current(model.lineage, registry.serving, clock()))


async def _point(config: Config, lineage: str, clock: Callable[[], int]) -> Current:
    registry = await read(config, base_model(config.model).lineage)
    wanted = lineage or (registry.current.former if registry.current else "")
    if not wanted:
        raise StoreRefused("nothing was served before: there is nothing to go back to")
    if wanted == registry.serving:
        raise StoreRefused(f"lineage {wanted} is the one that is served")
    if wanted != registry.base and wanted not in registry.published:
        known = ", ".join([registry.base, *registry.published])
        raise StoreRefused(f"lineage is {wanted!r}, expected one of {known}")
    async with _sending(config) as producer:
        models = topics(config.kafka.prefix).models
        return await _move(producer, models, Current(wanted, registry.serving, clock()))


async def _move(producer: Producer, topic: str, current: Current) -> Current:
    await (await producer.send(topic, 0, _encode(current), key=CURRENT))
    return current


async def settle(producer: Producer, config: Config, current: Current) -> None:
    """Tell whoever comes later that the former lineage is not needed."""
    settled = msgspec.structs.replace(current, settled=True)
    await _move(producer, topics(config.kafka.prefix).models, settled)


def _sending(config: Config) -> Producer:
    failures: list[BaseException] = []  # a write that fails raises where it is awaited
    return Producer(config.kafka, failures.append)


async def _end(config: Config, topic: str) -> int:
    consumer = AIOKafkaConsumer(**reach(config.kafka))
    tp = TopicPartition(topic, 0)
    consumer.assign([tp])
    await start(consumer, config.kafka)
    try:
        return int((await consumer.end_offsets([tp]))[tp])
    finally:
        await consumer.stop()
