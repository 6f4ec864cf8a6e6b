"""A retrieval process goes on from a snapshot of its index and the rest of the topic, or reads all of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from kithstream.index.errors import SnapshotRefused
from kithstream.models.model import Model
from kithstream.streams.config import (
    Config,
    EngineConfig,
    IndexSection,
    KafkaConfig,
    RankingConfig,
    StoreConfig,
)
from kithstream.streams.engine.routing import Route
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.kafka.feed import Feed
from kithstream.streams.kafka.kept import Found, Kept, bounds_of
from kithstream.streams.kafka.names import vectors
from kithstream.streams.kafka.reading import Reading
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.kafka.topics import identify
from kithstream.streams.kafka.wire import PROGRESS, Progress, Vector
from kithstream.streams.serve.vectors import index_config

P = 3
ROUTE = Route(P)
MODEL = Model.day_zero(0)
INDEX = IndexSection(background=False, snapshot_seconds=0.01)
NAMES = [f"u{number}" for number in range(60)]
PATIENCE = 30.0  # seconds
_pack = msgspec.msgpack.encode
Record = tuple[int, bytes, bytes | None]


def vector(account: str, value: int, generation: int = 1, near: list[str] | None = None) -> Record:
    raw = np.random.default_rng(value).normal(size=MODEL.dim).astype("<f4").tobytes()
    told = Vector(generation, value, 0, 149, 3, 12, near or [], raw, near or [], len(near or []))
    return ROUTE[account], account.encode(), _pack(told)


def gone(account: str, generation: int = 1) -> Record:
    told = Vector(generation, 9, 0, 0, 0, 0, [], b"", deleted=True)
    return ROUTE[account], account.encode(), _pack(told)


def progress(applied: int, generation: int = 1) -> list[Record]:
    return [(n, PROGRESS, _pack(Progress(generation, applied, [applied] * P, 1, 1, True))) for n in range(P)]


CROWD = [vector(name, at, near=NAMES[:3]) for at, name in enumerate(NAMES)]


class Retrieval:
    """The part of a retrieval process that is asked here: one feed after the other, on one disk."""

    def __init__(self, kafka: KafkaConfig, folder: Path) -> None:
        self.config = Config(kafka=kafka, engine=EngineConfig(partitions=P), index=INDEX)
        self.topic = vectors(kafka.prefix, MODEL.lineage)
        self.folder = folder

    def publish(self, records: list[Record]) -> None:
        producer = KafkaProducer(bootstrap_servers=self.config.kafka.servers, acks="all")
        for number, key, value in records:
            producer.send(self.topic, value, key=key, partition=number)
        producer.close()

    def kept(self, model: Model = MODEL) -> Kept:
        return Kept(self.folder, model, self.topic, identify(self.config.kafka, self.topic))

    async def load(self, *, now: int | None = None, model: Model = MODEL) -> Found | None:
        bounds = await bounds_of(self.config.kafka, self.topic, P)
        settings = index_config(model, INDEX)
        return self.kept(model).load(settings, bounds, now or wall_clock(), facts=True)

    async def feed(self, found: Found | None, *, save: bool = True) -> Feed:
        """Follow until all that is there is read, and a snapshot of it written."""
        reading = Reading(ROUTE, StoreConfig(), RankingConfig(), self.folder / "own", wall_clock)
        kept = self.kept() if save else None
        feed = Feed(self.config, reading, MODEL, Follower(MODEL), lambda *_: None, kept, found)
        task = asyncio.create_task(feed._follow())
        end = time.monotonic() + PATIENCE
        while not feed.caught_up or (save and not feed.saved):
            assert not task.done(), task
            assert time.monotonic() < end
            await asyncio.sleep(0.01)  # between two looks
        task.cancel()
        await asyncio.wait([task])
        feed.close()
        return feed


@pytest.fixture
def retrieval(tenant: KafkaConfig, tmp_path: Path) -> Retrieval:
    return Retrieval(tenant, tmp_path)


def run(body: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(body(), 2 * PATIENCE))  # type: ignore[arg-type]  # coroutine functions


def test_an_index_is_merged_once_every_account_has_a_vector_in_it(retrieval: Retrieval) -> None:
    """Many merges of what fills it would cost more than one graph of all."""
    index = msgspec.structs.replace(INDEX, background=True, exact_rows=10)
    retrieval.config = msgspec.structs.replace(retrieval.config, index=index)

    async def body() -> None:
        retrieval.publish(CROWD)
        reading = Reading(ROUTE, StoreConfig(), RankingConfig(), retrieval.folder / "own", wall_clock)
        feed = Feed(retrieval.config, reading, MODEL, Follower(MODEL), lambda *_: None)
        task = asyncio.create_task(feed._follow())

        async def until(true: Callable[[], bool]) -> None:
            end = time.monotonic() + PATIENCE
            while not true():
                assert not task.done(), task
                assert time.monotonic() < end
                await asyncio.sleep(0.01)  # between two looks

        await until(lambda: feed.caught_up)
        read = feed.read
        retrieval.publish([CROWD[0]])
        await until(lambda: feed.read > read)
        assert feed.index._thread is None, "the merger runs"
        retrieval.publish(progress(5))
        await until(lambda: feed.index.stats().rebuilds == 1)
        task.cancel()
        await asyncio.wait([task])
        feed.close()

    run(body)


def held(feed: Feed) -> tuple[object, ...]:
    """Everything that answers are made of, in names."""
    facts = feed.tail.facts
    assert facts is not None
    arrays = facts.arrays()
    near = {
        name: [
            [facts.names[n] for n in arrays[side][at] if n] for side in ("facts.followers", "facts.followees")
        ]
        for at, name in enumerate(facts.names)
        if name
    }
    ids = sorted(feed.index.ids())
    return (
        {name: feed.index.vector(name).tobytes() for name in ids},
        {name: sides for name, sides in near.items() if any(sides)},
        feed.tail.token,
        feed.tail.whole,
        [feed.tail.generation(number) for number in range(P)],
        [sorted(feed.tail.stale(number)) for number in range(P)],
        feed.tail.glances(NAMES, 3 * 86_400_000_000),
    )


def test_snapshot_and_the_rest_are_what_the_whole_topic_is(retrieval: Retrieval) -> None:
    """Changes, deletions, a zombie and a new owner lie behind the snapshot; what lies before is not read again."""

    async def body() -> None:
        retrieval.publish([*CROWD, *progress(5)])
        first = await retrieval.feed(None)
        assert first.read == len(CROWD) + P
        rest = [vector("u3", 700), gone("u4"), vector("u5", 800, 2), vector("u5", 900, 1), *progress(9, 2)]
        retrieval.publish(rest)
        found = await retrieval.load()
        assert found is not None
        again = await retrieval.feed(found)
        assert again.read == len(rest)
        whole = await retrieval.feed(None, save=False)
        assert held(again) == held(whole)
        assert "u4" not in again.index
        third = await retrieval.load()  # what the second left
        assert third is not None
        assert sum(third.positions.values()) == len(CROWD) + P + len(rest)
        assert held(await retrieval.feed(third, save=False)) == held(whole)

    run(body)


def test_no_snapshot_is_no_refusal(retrieval: Retrieval) -> None:
    async def body() -> None:
        assert await retrieval.load() is None

    run(body)


def test_a_topic_that_was_made_again_is_read_from_its_beginning(
    retrieval: Retrieval, admin: KafkaAdminClient
) -> None:
    """It has the name and more records: offsets alone tell nothing."""

    async def body() -> None:
        retrieval.publish([*CROWD, *progress(5)])
        await retrieval.feed(None)
        admin.delete_topics([retrieval.topic])
        end = time.monotonic() + PATIENCE
        while True:
            try:
                admin.create_topics([NewTopic(retrieval.topic, P, 1)])
                break
            except Exception:  # the brokers have not let go of the old one yet
                assert time.monotonic() < end
        admin.wait_for_topics([retrieval.topic], timeout_ms=PATIENCE * 1000)
        retrieval.publish([*CROWD, *CROWD, *progress(5)])
        with pytest.raises(SnapshotRefused, match="topic_id is"):
            await retrieval.load()

    run(body)


def test_one_that_reaches_beyond_the_topic_or_before_it_is_refused(
    retrieval: Retrieval, admin: KafkaAdminClient
) -> None:
    async def body() -> None:
        retrieval.publish([*CROWD, *progress(5)])
        feed = await retrieval.feed(None)
        bounds = await bounds_of(retrieval.config.kafka, retrieval.topic, P)
        at = dict(bounds.end)
        for wrong in (at | {1: at[1] + 1}, at | {1: -1}):
            retrieval.kept().begin(feed.index, feed.tail, wrong, wall_clock())()
            with pytest.raises(
                SnapshotRefused, match=rf"offset {wrong[1]} of partition 1, the topic from 0 to"
            ):
                await retrieval.load()

    run(body)


def test_one_that_is_older_than_deletions_are_kept_for_is_refused(retrieval: Retrieval) -> None:
    """A compacted topic forgets a tombstone in the end: who reads on from before it would keep the account."""

    async def body() -> None:
        retrieval.publish([*CROWD, *progress(5)])
        await retrieval.feed(None)
        keeps = identify(retrieval.config.kafka, retrieval.topic).tombstones * 1000
        assert await retrieval.load(now=wall_clock() + keeps // 2 - 60_000_000) is not None
        for now in (wall_clock() + keeps // 2 + 1, wall_clock() - 3_600_000_000):
            with pytest.raises(SnapshotRefused, match="s old"):
                await retrieval.load(now=now)

    run(body)


def test_a_damaged_one_and_one_of_another_lineage_are_refused(retrieval: Retrieval) -> None:
    async def body() -> None:
        retrieval.publish([*CROWD, *progress(5)])
        await retrieval.feed(None)
        other = Model.day_zero(1)
        assert await retrieval.load(model=other) is None  # it has a folder of its own
        kept = retrieval.kept().folder
        kept.rename(kept.with_name(other.lineage))
        with pytest.raises(SnapshotRefused, match="lineage is"):
            await retrieval.load(model=other)
        kept.with_name(other.lineage).rename(kept)
        (folder,) = (path for path in kept.iterdir() if path.is_dir())
        for file in sorted(folder.iterdir()):
            with broken(file), pytest.raises(SnapshotRefused, match=file.name.replace(".", r"\.")):
                await retrieval.load()
        assert await retrieval.load() is not None
        retrieval.kept().remove()
        assert await retrieval.load() is None

    run(body)


@contextmanager
def broken(file: Path) -> Iterator[None]:
    """A bit of the file is another one meanwhile."""
    whole = file.read_bytes()
    wrong = bytearray(whole)
    wrong[len(wrong) // 2] ^= 1
    file.write_bytes(wrong)
    yield
    file.write_bytes(whole)
