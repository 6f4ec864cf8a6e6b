"""A worker: the stream process, which this runs, and the retrieval process, which this starts and looks after."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection
from functools import partial
from hashlib import blake2b
from typing import Final

from kafka import KafkaAdminClient

from kithstream.models.lineage import lineage_of
from kithstream.streams import logs
from kithstream.streams.config import Config, KafkaConfig
from kithstream.streams.errors import TopicRefused
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.kafka import registry, wire
from kithstream.streams.kafka.app import ends, make_app
from kithstream.streams.kafka.channel import Channel
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.producer import Producer
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.stream import Stream
from kithstream.streams.kafka.topics import Ends, check, identities, wanted
from kithstream.streams.kafka.turnover import Turnover
from kithstream.streams.metrics import StreamMetrics
from kithstream.streams.serve import access

_log = logging.getLogger(__name__)

TELLING: Final = 0.5  # seconds between two words on how folding stands
RESTART: Final = 1.0  # seconds before a dead retrieval process is started again
ENDING: Final = 4.0  # seconds in which the retrieval process must answer what is in flight and end
RELEASING: Final = 5.0  # seconds in which the retrieval process must let go of a store
STARTING: Final = 20.0  # the same of one that has not said anything yet: it has its libraries to load


class RetrievalProcess:
    """The other process of this worker. Started again when it dies, and told again what it needs to know."""

    def __init__(
        self,
        config: Config,
        worker: str,
        base: str,
        stale: Callable[[wire.Stale], None],
        switched: Callable[[str], None],
        started: Callable[[str], None],
    ) -> None:
        self.restarts = 0
        self._log = config.log
        self._hello = wire.Hello(config, worker, base)
        self._stale = stale
        self._switched = switched
        self._started = started
        self._opened: dict[int, wire.Opened] = {}
        self._standing: wire.Standing | None = None
        self._channel: Channel[wire.ToStream] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._closed: dict[int, asyncio.Event] = {}
        self._spoke = False  # since it was started
        self._stopping = False

    async def run(self) -> None:
        """Keep the process alive until `stop`."""
        while not self._stopping:
            await self._start()
            await self._listen()
            await self._let_go()
            if not self._stopping:
                assert self._process is not None
                status = await self._process.wait()
                _log.error("the retrieval process ended with %s; it is started again", status)
                self.restarts += 1
                await asyncio.sleep(RESTART)

    async def stop(self) -> None:
        """Let the process answer what is in flight, and end it."""
        self._stopping = True
        if self._channel is not None:
            await self._channel.close()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), ENDING)
            except TimeoutError:
                _log.warning("the retrieval process does not end; it is ended")
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()

    def tell(self, message: wire.ToRetrieval) -> None:
        match message:
            case wire.Opened():
                self._opened[message.partition] = message
            case wire.Standing():
                self._standing = message
        if self._channel is not None:
            self._channel.send(message)

    async def release(self, number: int) -> None:
        self._opened.pop(number, None)
        if self._channel is None:
            return
        closed = self._closed[number] = asyncio.Event()
        self._channel.send(wire.Closing(number))
        try:
            await asyncio.wait_for(closed.wait(), RELEASING if self._spoke else STARTING)
        except TimeoutError:
            _log.error("the retrieval process does not let go of partition %d; it is ended", number)
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
        finally:
            self._closed.pop(number, None)

    async def _start(self) -> None:
        self._spoke = False
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "kithstream.streams.kafka.retrieval", "--fd", str(theirs.fileno())]
        command += ["--parent", str(os.getpid()), "--format", self._log.format, "--level", self._log.level]
        with theirs:
            # One thread of BLAS: a second one for a product of microseconds costs questions milliseconds.
            environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
            self._process = await asyncio.create_subprocess_exec(
                *command, pass_fds=[theirs.fileno()], env=environment
            )
        self._channel = await Channel.open(ours, wire.ToStream)
        self._channel.send(self._hello)
        for opened in self._opened.values():
            self._channel.send(opened)
        if self._standing is not None:
            self._channel.send(self._standing)

    async def _listen(self) -> None:
        assert self._channel is not None
        async for message in self._channel:
            self._spoke = True
            match message:
                case wire.Closed():
                    if message.partition in self._closed:
                        self._closed[message.partition].set()
                case wire.Serving():
                    self._started(message.url)
                case wire.Stale():
                    self._stale(message)
                case wire.Switched():
                    self._switched(message.lineage)

    async def _let_go(self) -> None:
        channel, self._channel = self._channel, None
        for closed in self._closed.values():
            closed.set()
        if channel is not None:
            await channel.close()


def work(config: Config, started: Callable[[str], None]) -> None:
    """Run a worker in this process until SIGTERM or SIGINT; raises KithstreamError or ValueError with the reason.

    `started` is called with the URL once HTTP takes connections.
    """
    logs.configure(config.log, "worker")
    access.check(config.serve)
    base = lineage_of(config.model.path, config.model.seed)
    wrong = check(config.kafka, wanted(config, base))
    if wrong:
        raise TopicRefused("; ".join(map(str, wrong)) + ". Run: kithstream topics create")
    asyncio.run(run(config, base, shared_salt(config.worker.salt, config.kafka), started))


async def run(config: Config, base: str, salt: bytes, started: Callable[[str], None]) -> None:
    """Work until SIGTERM or SIGINT; raises what ended it otherwise.

    Either way the process is gone `worker.drain_seconds` later, whatever hangs.
    """
    loop = asyncio.get_running_loop()
    worker = f"{socket.gethostname()}-{os.getpid()}"
    names = topics(config.kafka.prefix)
    ended: asyncio.Future[None] = loop.create_future()

    def failed(error: BaseException) -> None:
        if not ended.done():
            ended.set_exception(error)

    def tell(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(error)

    def end_in_time() -> None:
        late = threading.Timer(config.worker.drain_seconds, os._exit, (1,))
        late.daemon = True
        late.start()

    def stop() -> None:
        _log.info("draining, at most %g s", config.worker.drain_seconds)
        end_in_time()
        if not ended.done():
            ended.set_result(None)

    async def offsets(topic: str, numbers: Collection[int]) -> Ends:
        return await ends(app, topic, numbers)

    known = await registry.read(config, base)
    (model, taught), *others = [
        await registry.open_lineage(config, known, lineage) for lineage in known.needed
    ]
    metrics = StreamMetrics()
    retrieval = RetrievalProcess(
        config,
        worker,
        base,
        lambda message: stream.stale(message),
        lambda lineage: turnover.switched(lineage),
        started,
    )
    producer = Producer(config.kafka, failed, linger_milliseconds=config.worker.linger_milliseconds)
    stream = Stream(
        config,
        names,
        model,
        taught,
        producer,
        retrieval,
        worker=worker,
        salt=salt,
        clock=wall_clock,
        offsets=offsets,
        identities=partial(identities, config.kafka),
        folded=metrics.folded,
        flushed=metrics.flushed,
    )
    for other in others:
        stream.add(*other)
    turnover = Turnover(config, known, stream, producer)
    app = make_app(config, names, stream, failed)

    broken: list[BaseException] = []

    async def drained(*_: object, **__: object) -> None:
        if ended.done() and ended.exception() is not None:
            return  # what is written is whole; a store that fails would fail again
        try:
            await stream.close()
        except Exception as error:  # Faust would stop half of itself and wait for the rest for ever
            _log.exception("draining failed")
            broken.append(error)

    app.on_before_shutdown.connect(drained)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with producer:
        answering = asyncio.create_task(retrieval.run())
        turning = asyncio.create_task(turnover.run())
        for task in (answering, turning):
            task.add_done_callback(tell)
        app.finalize()
        try:
            await app.start()
            while not ended.done():
                await asyncio.wait([ended], timeout=TELLING)
                if app.crashed:
                    failed(app.crash_reason or RuntimeError("the Faust application crashed"))
                stream.tell_standing()
                retrieval.tell(wire.Exposed(metrics.text(stream, retrieval.restarts)))
            await ended
        except BaseException:
            end_in_time()
            raise
        finally:
            await app.stop()
            await retrieval.stop()
            for task in (answering, turning):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    if broken:
        raise broken[0]


def shared_salt(secret: str, config: KafkaConfig) -> bytes:
    """Return 16 bytes that all workers of a tenant share; without a secret they come from the cluster's id."""
    if not secret:
        admin = KafkaAdminClient(**reach(config))
        try:
            secret = admin.describe_cluster()["cluster_id"]
        finally:
            admin.close()
    return blake2b(f"{config.prefix}\0{secret}".encode(), digest_size=16).digest()
