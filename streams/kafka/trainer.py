"""The trainer on Kafka: reads the training log in its order, publishes small steps, goes on exactly where it was.

One trainer a tenant and lineage. Its checkpoint holds the model, what the optimiser knows and the place in the log, in
one file. A trainer that comes back learns silently up to the newest step that was published, so that workers are never
taken back; whoever replaces it takes a greater run, and what the other still publishes is not heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from kithstream.models.checkpoint import CheckpointError
from kithstream.models.lineage import lineage_of
from kithstream.models.model import Model
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams import logs, metrics
from kithstream.streams.alone import alone
from kithstream.streams.config import Config
from kithstream.streams.errors import GapInLog, StoreRefused, TopicRefused
from kithstream.streams.kafka import dead_letters, learned, registry
from kithstream.streams.kafka.base import base_model
from kithstream.streams.kafka.names import steps, topics
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.registry import Registry
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.starting import start
from kithstream.streams.kafka.steps import Follower, records
from kithstream.streams.kafka.topics import check, wanted
from kithstream.streams.learning import Learner

_log = logging.getLogger(__name__)

EXAMPLE_KEPT: Final = 65_536  # bytes of an unusable example that its dead letter holds
FETCHED: Final = 200  # records of the log learned from between two looks at the clock
_WAIT: Final = 200  # milliseconds for which a fetch may wait


class Trainer:
    """A learner between its log and its topic of steps. One event loop."""

    def __init__(
        self,
        config: Config,
        learner: Learner,
        published: Follower,
        producer: Producer,
        path: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`published` is where the topic of steps stood; `path` is the checkpoint's."""
        self.learner = learner
        self.run = published.run + 1
        self.examples = self.unusable = self.published = 0
        self.behind = 0  # records of the log that are not learned from
        self.loss = float("nan")  # mean over the examples of the last batch that had some
        self.as_of = 0  # microseconds: the newest example
        self._config = config
        self._producer = producer
        self._path = path
        self._names = topics(config.kafka.prefix)
        self._steps = steps(config.kafka.prefix, learner.model.lineage)
        self._since = published.step  # nothing older is published
        self._told = -1
        self._monotonic = monotonic
        self._published_at = self._saved_at = monotonic()

    async def learn(self, batch: list[tuple[int, int, bytes]]) -> None:
        """Learn from records (offset, append time in ms, bytes); those that cannot be used become dead letters."""
        found = await asyncio.to_thread(self._learn, batch)
        waiting = []
        for (offset, appended, raw), reason in found:
            self.unusable += 1
            letter = dead_letters.letter(
                "malformed_example",
                reason,
                self._names.training,
                0,
                offset,
                appended * 1000,
                raw,
                kept=EXAMPLE_KEPT,
            )
            waiting.append(await self._producer.send(self._names.dead_letters, 0, letter))
        if waiting:
            await asyncio.gather(*waiting)

    def _learn(self, batch: list[tuple[int, int, bytes]]) -> list[tuple[tuple[int, int, bytes], str]]:
        unusable = []
        trained, loss = 0, 0.0
        for record in batch:
            offset, appended, raw = record
            done = self.learner.take(offset, raw)
            trained, loss = trained + done.trained, loss + done.loss
            if done.trained:
                self.as_of = appended * 1000
            if done.unusable:
                unusable.append((record, done.unusable))
        if trained:
            self.examples += trained
            self.loss = loss / trained
        return unusable

    async def tell(self, *, now: bool = False) -> bool:
        """Publish what was learned if it is time to, and wait until the brokers have it; True if something was."""
        clock, model = self._monotonic(), self.learner.model
        due = now or clock - self._published_at >= self._config.trainer.publish_seconds
        if not due or model.step == self._told or model.step <= self._since:
            return False
        delta = await asyncio.to_thread(self.learner.trainer.delta)
        pairs = list(records(delta, self.run, self.learner.offset, self.as_of))
        done = asyncio.Event()
        await self._producer.send_all(self._steps, 0, pairs, acknowledged=done.set)
        await done.wait()
        self._published_at, self._told = clock, model.step
        self.published += len(pairs)
        return True

    async def save(self, *, now: bool = False) -> bool:
        """Write the checkpoint if it is time to; True if it was written. What it holds was published before."""
        clock = self._monotonic()
        if not now and clock - self._saved_at < self._config.trainer.checkpoint_seconds:
            return False
        await self.tell(now=True)
        await asyncio.to_thread(self.learner.save, self._path)
        self._saved_at = self._monotonic()
        return True

    async def read(self, stopping: asyncio.Event, known: Registry) -> None:
        """Learn until told to stop, or until another lineage is to be served; then publish and save."""
        tp = TopicPartition(self._names.training, 0)
        consumer = AIOKafkaConsumer(
            **reach(self._config.kafka),
            auto_offset_reset="none",
            enable_auto_commit=False,
            max_partition_fetch_bytes=4 << 20,
            fetch_max_wait_ms=_WAIT,
        )
        consumer.assign([tp])
        await start(consumer, self._config.kafka)
        try:
            await self._check(consumer, tp)
            consumer.seek(tp, self.learner.offset)
            while not stopping.is_set() and known.serving == self.learner.model.lineage:
                found = await consumer.getmany(tp, timeout_ms=_WAIT, max_records=FETCHED)
                batch = [(r.offset, r.timestamp, r.value or b"") for r in found.get(tp, ())]
                if batch:
                    await self.learn(batch)
                self.behind = max((consumer.highwater(tp) or 0) - self.learner.offset, 0)
                await self.tell()
                await self.save()
            await self.save(now=True)
        finally:
            await consumer.stop()

    async def _check(self, consumer: AIOKafkaConsumer, tp: TopicPartition) -> None:
        first = (await consumer.beginning_offsets([tp]))[tp]
        end = (await consumer.end_offsets([tp]))[tp]
        at = self.learner.offset
        if at > end:
            raise StoreRefused(
                f"{self._path} stands at offset {at}, {tp.topic} ends at {end}; the topic has lost records"
            )
        if at < first:
            if not self._config.trainer.accept_gap:
                raise GapInLog(
                    f"{self._path} stands at offset {at}, {tp.topic} begins at {first}; go on without what is lost "
                    f"by -o trainer.accept_gap=true"
                )
            self.learner.offset = first


def train(config: Config, port: int, started: Callable[[str], None]) -> None:
    """Train in this process until SIGTERM or SIGINT; raises KithstreamError or ValueError with the reason.

    With a `port`, metrics are served there on the loopback. `started` is called with the checkpoint's path.
    """
    logs.configure(config.log, "trainer")
    base = lineage_of(config.model.path, config.model.seed)
    wrong = check(config.kafka, wanted(config, base))
    if wrong:
        raise TopicRefused("; ".join(map(str, wrong)) + ". Run: kithstream topics create")
    folder = Path(config.trainer.data)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, f"{folder} is another trainer's"):
        asyncio.run(_run(config, base, folder, port, started))


async def _run(config: Config, base: str, folder: Path, port: int, started: Callable[[str], None]) -> None:
    """Train the lineage that is to be served; when that becomes another one, save and go on with it."""
    stopping = asyncio.Event()
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    known = await registry.read(config, base)

    async with Producer(config.kafka, failed) as producer:
        models = topics(config.kafka.prefix).models
        watching = asyncio.create_task(learned.follow(config.kafka, models, known))
        try:
            while not stopping.is_set():
                lineage = known.serving
                model, published = await registry.open_lineage(config, known, lineage)
                path = folder / f"{lineage}.safetensors"
                learner = open_learner(config, known, published, model, path)
                trainer = Trainer(config, learner, published, producer, path)
                with metrics.of_trainer(trainer, port):
                    started(str(path))
                    reading = asyncio.create_task(trainer.read(stopping, known))
                    ended = asyncio.create_task(stopping.wait())
                    await asyncio.wait([reading, ended, watching], return_when=asyncio.FIRST_COMPLETED)
                    ended.cancel()
                    if watching.done():
                        failed(watching.exception() or RuntimeError("the registry is read no more"))
                    if failures:
                        reading.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            await reading
                        raise failures[0]
                    await reading
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


def open_learner(config: Config, known: Registry, published: Follower, model: Model, path: Path) -> Learner:
    """Return the learner of a checkpoint; where there is none, one that begins.

    It begins where the lineage does, if nothing was learned since, or at the first record for the lineage of the
    settings. If the settings accept a gap, it goes on behind what was published with that `model`, and the optimiser
    starts anew. Raises StoreRefused where neither can be.
    """
    section, partitions = config.model, config.engine.partitions
    if path.exists():
        try:
            return Learner.load(
                path,
                partitions,
                TrainerConfig(),
                example_batch=section.example_batch,
                idle_days=section.idle_days,
                ranking=config.ranking,
            )
        except CheckpointError as error:
            raise StoreRefused(f"{error}; remove it to learn anew from the log") from error
    lineage, offset = model.lineage, published.offset
    if published.run and not config.trainer.accept_gap:
        if lineage != known.base:
            raise StoreRefused(
                f"{path} is not there, and lineage {lineage} was trained before; bring it, or go on from what was "
                f"published by -o trainer.accept_gap=true"
            )
        model, offset = base_model(section), 0
    trainer = OnlineTrainer.begin(model, TrainerConfig(), section.seed)
    learner = Learner(
        trainer,
        partitions,
        example_batch=section.example_batch,
        idle_days=section.idle_days,
        ranking=config.ranking,
    )
    learner.offset = offset
    return learner
