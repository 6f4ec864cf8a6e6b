"""The retrieval process of a worker: all vectors in a live index, the owned stores as replicas, answers.

Started by the stream process with one end of a pair of sockets; ends when the other end does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import anyio
import anyio.to_thread
import msgspec
from aiokafka.errors import KafkaError
from yarl import URL

from kithstream.__main__ import ready
from kithstream.index.errors import SnapshotRefused
from kithstream.models.model import Model
from kithstream.streams import logs
from kithstream.streams.communities import folder
from kithstream.streams.config import Config, LogConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import KithstreamError, NotYet, StoreRefused, Unanswerable, Unavailable
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.kafka import learned, wire
from kithstream.streams.kafka.channel import Channel
from kithstream.streams.kafka.feed import Feed
from kithstream.streams.kafka.kept import Found, Kept, bounds_of
from kithstream.streams.kafka.names import topics, vectors
from kithstream.streams.kafka.owners import Owners
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.push import Pushes
from kithstream.streams.kafka.reading import Reading, own_folder
from kithstream.streams.kafka.registry import Registry, open_lineage
from kithstream.streams.kafka.tail import Fed
from kithstream.streams.kafka.topics import identify
from kithstream.streams.kafka.waiting import Waiting
from kithstream.streams.metrics import of_serving
from kithstream.streams.serve import answers, http, tokens
from kithstream.streams.serve.answers import Answer, Question
from kithstream.streams.serve.served import Served
from kithstream.streams.serve.service import Readiness, Relayed
from kithstream.streams.serve.vectors import index_config

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_request = msgspec.json.Decoder(wire.Request).decode
_address = msgspec.json.Decoder(wire.Address).decode

THREADS: Final = 2  # that answer at a time: Python runs one, the index' products run beside it
DECIDING: Final = 0.05  # seconds between two looks at which lineage to serve
AGAIN: Final = 0.002  # seconds before a question is tried again that found less than was known
LOOKING: Final = 0.05  # seconds between two looks at the stores when nobody asks: see `keep_up`
SAID: Final = 300  # characters of why a question is no question
LONGEST: Final = 60.0  # seconds that a question over the stream may wait
PUSHING: Final = 0.1  # seconds between two looks at who is due
PUSHED_AT_ONCE: Final = 16
UNCHANGED: Final = 0.5  # of its validity after which an unchanged list is pushed again
REMEMBERED: Final = 200_000  # pushed lists whose content is remembered
_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


class Retrieval:
    """Everything that this process answers from; the `Service` behind its HTTP server."""

    def __init__(
        self,
        config: Config,
        worker: str,
        base: str,
        own: Path,
        tell: Callable[[wire.ToStream], None],
        producer: Producer,
        *,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """`base` is the lineage of the settings."""
        self.config = config
        self.route = Route(config.engine.partitions)
        versions = folder.readable(Path(config.worker.data) / folder.NAME, config.engine.communities)
        self.answered = Served(config.serve.shadow_seconds)
        self.reading = Reading(self.route, config.store, config.ranking, own, clock, versions, self.answered)
        self.feeds: dict[str, Feed] = {}
        self._kept: dict[str, Kept] = {}
        self.served: Feed | None = None  # the one that answers are made of
        self.registry = Registry(base)
        self.names = topics(config.kafka.prefix)
        self.owners = Owners(self.names.owners, config.engine.partitions, worker)
        self.pushes = Pushes(config.worker.push_seconds, config.worker.push_rate)
        self.metrics = of_serving()
        self.url = ""
        self.pushed = self.dropped = self.unusable = self.snapshots_refused = 0
        self.standing = wire.Standing(True, False, 0)
        self.refused = ""  # why the lineage that is to be served is not
        self._tell = tell
        self._producer = producer
        self._clock = clock
        self._heard = 0.0  # when the stream process last said how it stands
        self._generations: dict[int, int] = {}
        self._text = b""
        self._lists: dict[str, tuple[int, int]] = {}  # account -> hash of the list pushed last, when
        self._answering = anyio.CapacityLimiter(min(config.serve.threads, THREADS))
        self._waiting = Waiting(self.reading.look, self.reading.includes)
        self._asked: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    # -- what the stream process says ------------------------------------------------------------------------

    async def hear(self, message: wire.ToRetrieval) -> None:
        """Do what the stream process says."""
        match message:
            case wire.Opened():
                await anyio.to_thread.run_sync(self.reading.open, message.partition, Path(message.path))
                self._generations[message.partition] = message.generation
                for feed in self.feeds.values():
                    self._tell_old(feed, message.partition, message.generation)
                if self.url:
                    await self._own(message.partition)
            case wire.Closing():
                self._generations.pop(message.partition, None)
                await self.owners.leave(self._producer, message.partition)
                await anyio.to_thread.run_sync(self.reading.close, message.partition)
                self._tell(wire.Closed(message.partition))
            case wire.Standing():
                self.standing = message
                self._heard = time.monotonic()
            case wire.Written():
                self._waiting.moved()
            case wire.Changed():
                self.pushes.changed(message.accounts, message.urgent, time.monotonic())
            case wire.Asked():
                for timestamp, raw in message.requests:
                    self._ask(timestamp, raw)
            case wire.Exposed():
                self._text = message.text

    async def serving(self, url: str) -> None:
        """Take note that HTTP takes connections."""
        self.url = self.config.worker.advertise or url
        self._tell(wire.Serving(self.url))
        for number in list(self._generations):
            await self._own(number)

    async def _own(self, number: int) -> None:
        generation = self._generations.get(number)
        if generation is not None:  # it was not taken away meanwhile
            await self.owners.own(self._producer, number, self.url, generation)

    # -- lineages --------------------------------------------------------------------------------------------

    async def lead(self) -> None:
        """Serve the lineage that is to be served, for ever: fill it beside the other, then switch."""
        running: dict[str, asyncio.Task[None]] = {}
        topic = self.names.models

        await learned.catch_up(self.config.kafka, topic, self.registry)
        async with asyncio.TaskGroup() as group:
            group.create_task(learned.follow(self.config.kafka, topic, self.registry))
            while True:
                for lineage in self._wanted():
                    if lineage not in self.feeds and (feed := await self._open(lineage)) is not None:
                        running[lineage] = group.create_task(feed.run())
                self._switch()
                for lineage in set(self.feeds) - set(self._wanted()):
                    feed = self.feeds.pop(lineage)
                    running[lineage].cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await running.pop(lineage)
                    await anyio.to_thread.run_sync(feed.close)
                    if (kept := self._kept.pop(lineage, None)) is not None:
                        await anyio.to_thread.run_sync(kept.remove)
                await asyncio.sleep(DECIDING)

    def _wanted(self) -> list[str]:
        """The lineage to be served, and what answers are made of until it can be."""
        if self.served is None:
            return self.registry.needed
        return list(dict.fromkeys((self.registry.serving, self.served.lineage)))

    async def _open(self, lineage: str) -> Feed | None:
        try:
            model, follower = await open_lineage(self.config, self.registry, lineage)
        except StoreRefused as error:
            if self.refused != str(error):
                _log.error("%s", error)
            self.refused = str(error)
            return None
        self.refused = ""
        kept, found = await self._remembered(model)
        feed = self.feeds[lineage] = Feed(
            self.config, self.reading, model, follower, self._fed, kept, found, clock=self._clock
        )
        for number, generation in self._generations.items():
            self._tell_old(feed, number, generation)
        return feed

    async def _remembered(self, model: Model) -> tuple[Kept | None, Found | None]:
        """What is kept of a lineage on the disk; nothing where the topic's vectors are all to be read."""
        section = self.config
        if section.index.snapshot_seconds <= 0:
            return None, None
        topic = vectors(section.kafka.prefix, model.lineage)
        try:
            identity = await anyio.to_thread.run_sync(identify, section.kafka, topic)
            kept = Kept(Path(section.worker.data), model, topic, identity)
            bounds = await bounds_of(section.kafka, topic, section.engine.partitions)
            load = partial(
                kept.load,
                index_config(model, section.index),
                bounds,
                self._clock(),
                facts=section.ranking.ranker,
            )
            found = await anyio.to_thread.run_sync(load)
        except SnapshotRefused as error:
            self.snapshots_refused += 1
            _log.warning("a snapshot of the index is refused, all vectors are read: %s", error)
            found = None
            await anyio.to_thread.run_sync(kept.remove)
        except (KithstreamError, KafkaError) as error:
            _log.warning("no snapshots of the index of %s: %s", model.lineage, error)
            return None, None
        self._kept[model.lineage] = kept
        return kept, found

    def _switch(self) -> None:
        """Answer by the lineage that is to be served once all of it is here; at first by the former one if need be."""
        wanted = [self.feeds[lineage] for lineage in self._wanted() if lineage in self.feeds]
        if not all(feed.caught_up for feed in wanted):
            return
        best = next((feed for feed in wanted if feed.tail.whole), wanted[-1] if wanted else None)
        if best is None or best is self.served or (self.served is not None and not best.tail.whole):
            return
        self.served = best
        self.reading.take(best.view)
        self._waiting.check()
        self._tell(wire.Switched(best.lineage))
        _log.info("answers are of lineage %s", best.lineage)

    def _fed(self, feed: Feed, fed: Fed) -> None:
        """Take note of what a batch of vectors did."""
        self.unusable += fed.unusable
        if feed is self.served:
            self._waiting.check()
            self.metrics.visible(
                fed.upserted,
                [came.appended for came in fed.reached],
                [came.watermark for came in fed.reached],
            )
        for number, accounts in fed.stale.items():
            if number in self._generations:
                self._tell_stale(feed, number, list(accounts))

    def _tell_old(self, feed: Feed, number: int, generation: int) -> None:
        """Tell of what a zombie wrote before this process read for an owner of this generation."""
        stale = feed.tail.stale(number)
        if stale or feed.tail.generation(number) > generation:
            self._tell_stale(feed, number, stale)

    def _tell_stale(self, feed: Feed, number: int, accounts: list[str]) -> None:
        self._tell(wire.Stale(number, accounts, feed.tail.generation(number)))

    @property
    def behind(self) -> int:
        """Vectors known to be published and not in the index that answers."""
        return 0 if self.served is None else self.served.behind

    # -- the service -----------------------------------------------------------------------------------------

    @property
    def partitions(self) -> int:
        return self.route.partitions

    @property
    def failed(self) -> bool:
        return False  # a process that cannot go on ends

    def clock(self) -> int:
        return self._clock()

    def readiness(self) -> Readiness:
        behind = self.standing.behind + self.behind
        for missing, holds in (
            ("The index has not caught up with the published vectors yet.", self.served is not None),
            (f"The lineage that is to be served is not: {self.refused}.", not self.refused),
            ("The stream process is silent.", not self._silent),
            ("Partitions are being moved.", not self.standing.rebalancing),
            ("What was published before the last assignment is not visible yet.", self.standing.caught_up),
        ):
            if not holds:
                return Readiness(False, behind, missing)
        return Readiness(True, behind, "")

    async def publish(self, checked: Sequence[tuple[str, bytes]], now: int) -> str:
        topic = self.names.engagements
        try:
            sent = [
                await self._producer.send(topic, self.route[actor], raw, key=actor.encode())
                for actor, raw in checked
            ]
            told: list[Any] = await asyncio.gather(*sent)
        except (KafkaError, OSError) as error:
            raise Unavailable(f"the brokers did not take every event ({type(error).__name__})") from error
        ends: dict[int, int] = {}
        for record in told:
            ends[record.partition] = max(ends.get(record.partition, 0), record.offset + 1)
        return tokens.write(ends)

    async def answer(self, question: Question, seconds: float) -> Answer:
        deadline = time.monotonic() + seconds
        number = self.route[question.account]
        while True:
            self._check_available()
            if not self.reading.includes(question):
                began = time.perf_counter()
                try:
                    await self._waiting.until_included(question, number, deadline - time.monotonic())
                finally:
                    self.metrics.waited(time.perf_counter() - began)
                self._check_available()
            left = max(deadline - time.monotonic(), 0.0)
            with anyio.move_on_after(left + 1.0):  # for a thread, if all are taken
                try:
                    work = partial(self.reading.answer, question)
                    return await anyio.to_thread.run_sync(work, limiter=self._answering)
                except NotYet:
                    if left > 0:
                        await asyncio.sleep(AGAIN)
                        continue
                    raise NotYet(f"the state did not include the token within {seconds:g} s") from None
            raise Unavailable(f"no thread was free to answer within {seconds:g} s: too many questions")

    async def keep_up(self) -> None:
        """Look at the stores for ever, so that no question has to read much.

        A replica that has seen its writer's next log before the flush of the last one need not open the store
        anew, which takes as long as reading the log does.
        """
        while True:
            await anyio.to_thread.run_sync(self.reading.look, self.reading.numbers)
            await asyncio.sleep(LOOKING)

    async def relay(
        self, account: str, target: str, authorization: str | None, *, forwarded: bool
    ) -> Relayed | None:
        number = self.route[account]
        if number in self._generations:
            return None
        owner = self.owners.of(number)
        if forwarded or owner is None or owner.url == self.url:
            raise Unavailable(f"partition {number} is being moved")
        headers = {http.FORWARDED: "1"}
        if authorization is not None:
            headers["authorization"] = authorization
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        limit = aiohttp.ClientTimeout(total=self.config.serve.deadline_ms / 1000 + 1.0)
        url = URL(owner.url + target, encoded=True)
        try:
            async with self._session.get(url, headers=headers, timeout=limit, allow_redirects=False) as reply:
                body = await reply.read()
                retry = reply.headers.get("retry-after", "")
                return Relayed(reply.status, reply.headers.get("content-type", http.JSON), body, retry)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"the owner of partition {number} does not answer") from error

    def exposed(self) -> bytes:
        return self._text

    @property
    def _silent(self) -> bool:
        return time.monotonic() - self._heard > self.config.worker.session_seconds

    def _check_available(self) -> None:
        """A stream process that is stopped or being moved may not own its partitions any more."""
        if self.standing.rebalancing or self._silent:
            raise Unavailable("partitions are being moved")
        if self.served is None:
            raise Unavailable("the index has not caught up with the published vectors yet")

    # -- questions over the stream ---------------------------------------------------------------------------

    def _ask(self, timestamp: int, raw: bytes) -> None:
        try:
            address = _address(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.dropped += 1
            return
        left = timestamp / 1000 + address.deadline_ms / 1000 - self._clock() / 1e6
        if address.reply_topic != self.names.replies or left <= 0:
            self.dropped += 1
            return
        if len(self._asked) >= self.config.serve.requests:
            raw = b""  # it costs no more than to say so
        task = asyncio.create_task(self._answer(address, raw, min(left, LONGEST)))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(self, address: wire.Address, raw: bytes, seconds: float) -> None:
        began = time.perf_counter()
        failure: wire.Failure | None = None
        answer: Answer | None = None
        try:
            if not raw:
                raise Unavailable(f"{self.config.serve.requests} questions are in flight")
            question = _question(_request(raw))
            answers.check(question)
            answer = await self.answer(question, seconds)
            self.metrics.queried(time.perf_counter() - began)
        except NotYet as error:
            failure = wire.Failure("not_yet", str(error))
        except Unanswerable as error:
            failure = wire.Failure("gone" if error.gone else "deactivated", str(error))
        except Unavailable as error:
            failure = wire.Failure("unavailable", str(error))
        except (ValueError, RecursionError) as error:
            failure = wire.Failure("invalid", str(error)[:SAID])
        except Exception:
            _log.exception("a question over the stream failed")
            failure = wire.Failure("internal", "the worker has failed; its log says why")
        reply = _encode(wire.Reply(address.id, answer, failure))
        try:
            await self._producer.send(
                self.names.replies, address.reply_partition, reply, key=address.id.encode()
            )
        except (KafkaError, AssertionError, ValueError):  # no such partition
            self.dropped += 1

    # -- pushes ----------------------------------------------------------------------------------------------

    async def push(self) -> None:
        """Push fresh lists for ever, as they become due and questions leave room for them."""
        while True:
            await asyncio.sleep(PUSHING)
            if not self.readiness().ready:
                continue
            for _ in range(max(PUSHED_AT_ONCE, math.ceil(self.config.worker.push_rate * PUSHING))):
                busy = self._answering.borrowed_tokens > 0  # may change with each
                taken = self.pushes.take(time.monotonic(), 1, busy=busy)
                if not taken:
                    break
                await self._push(taken[0])

    async def _push(self, account: str) -> None:
        section, number = self.config.worker, self.route[account]
        try:
            answer = await self.answer(Question(account, section.push_k, level="state"), 1.0)
        except Unanswerable:
            self._lists.pop(account, None)
            await self._producer.send(self.names.candidates, number, None, key=account.encode())
            self.pushed += 1
            return
        except (Unavailable, NotYet):
            self.pushes.changed((), [account], time.monotonic())  # when its turn comes again
            return
        valid = int(section.push_valid_seconds * 1e6)
        content = hash(tuple(candidate.account for candidate in answer.candidates))
        known = self._lists.get(account)
        if known is not None and known[0] == content and answer.as_of - known[1] < UNCHANGED * valid:
            return
        if len(self._lists) >= REMEMBERED:
            self._lists.clear()
        self._lists[account] = content, answer.as_of
        pushed = wire.Pushed(
            account,
            answer.candidates,
            answer.as_of,
            answer.as_of + valid,
            answer.model,
            answer.step,
            answer.token,
        )
        await self._producer.send(self.names.candidates, number, _encode(pushed), key=account.encode())
        self.pushed += 1

    async def close(self) -> None:
        """Finish the questions in flight."""
        if self._asked:
            await asyncio.wait(list(self._asked))
        if self._session is not None:
            await self._session.close()


def _question(request: wire.Request) -> Question:
    return Question(
        request.account,
        request.k,
        request.after,
        request.exclude,
        request.allow,
        request.languages,
        request.reasons,
        request.level,
        request.explain,
    )


async def run(end: socket.socket) -> None:
    """Answer until the other end of the channel is closed."""
    channel = await Channel[wire.ToRetrieval].open(end, wire.ToRetrieval)
    hello = await anext(channel)
    if not isinstance(hello, wire.Hello):
        raise RuntimeError(f"the first word is {type(hello).__name__}, expected Hello")
    config = hello.config
    stopping = asyncio.Event()
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        stopping.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the stream process says when
    with own_folder(Path(config.worker.data)) as own:
        producer = Producer(config.kafka, failed)
        retrieval = Retrieval(config, hello.worker, hello.base, own, channel.send, producer)
        retrieval.metrics.watch_worker(retrieval)

        async def hear() -> None:
            async for message in channel:
                await retrieval.hear(message)
            stopping.set()

        async def serve() -> None:
            await http.serve_until(
                stopping, retrieval, config.serve, retrieval.metrics, started=retrieval.serving
            )

        async with producer:
            tasks = [
                _watched(work, failed)
                for work in (
                    hear(),
                    retrieval.lead(),
                    retrieval.owners.follow(config.kafka, producer),
                    retrieval.keep_up(),
                    retrieval.push(),
                )
            ]
            await serve()
            await retrieval.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(KafkaError):
                await producer.settle()
    await channel.close()
    if failures:
        raise failures[0]


def _watched(work: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(error)

    task.add_done_callback(done)
    return task


def die_with(parent: int) -> None:
    """Be killed with the process that started this one, on Linux.

    Its stores may be another process' a moment later, or be replaced. Elsewhere the closed channel ends this process,
    once it has read that, and a replica whose directory was replaced refuses to be read.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was asked for
        raise SystemExit("kithstream: the worker of this retrieval process is gone")


def main() -> None:
    """Run the process that a worker starts."""
    parser = argparse.ArgumentParser(description="The retrieval process of a worker; started by the worker.")
    parser.add_argument("--fd", type=int, required=True, help="One end of the channel.")
    parser.add_argument("--parent", type=int, required=True, help="Process id of the worker.")
    parser.add_argument("--format", default=LogConfig().format, help="As log.format.")
    parser.add_argument("--level", default=LogConfig().level, help="As log.level.")
    given = parser.parse_args()
    die_with(given.parent)
    logs.configure(msgspec.convert({"format": given.format, "level": given.level}, LogConfig), "retrieval")
    ready()
    try:
        asyncio.run(run(socket.socket(fileno=given.fd)))
    except KithstreamError as error:
        raise SystemExit(f"kithstream: {error}") from error
    logging.shutdown()
    os._exit(0)  # a merge of the index may be under way; nothing of this process has to outlive it


if __name__ == "__main__":
    main()
