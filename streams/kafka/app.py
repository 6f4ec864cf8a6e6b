"""The Faust application of a worker: which agent reads which topic. The fold behind them is in `stream`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final, cast

from faust import SASLCredentials, SSLCredentials
from faust.types import TP
from faust.types.auth import AuthProtocol, SASLMechanism

from kithstream.streams.config import Config, KafkaConfig
from kithstream.streams.kafka.names import Topics, group
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.stream import Stream
from kithstream.streams.kafka.topics import Ends
from kithstream.streams.kafka.transport import RAW, SCHEME, App, Consumer, Fetch, Fetches, register

_log = logging.getLogger(__name__)
Fold = Callable[
    [int, Fetch], Awaitable[int | None]
]  # partition, fetch -> offset to read on from, if one is missing
COMMIT_SECONDS: Final = 1.0


def make_app(config: Config, names: Topics, stream: Stream, failed: Callable[[BaseException], None]) -> App:
    """Return the application that feeds a stream; `failed` hears of a partition that cannot be opened."""
    register()
    kafka, worker, partitions = config.kafka, config.worker, config.engine.partitions
    datadir = Path(worker.data) / "faust"
    datadir.mkdir(parents=True, exist_ok=True)
    app = App(
        group(kafka.prefix),
        broker=[f"{SCHEME}://{server}" for server in reach(kafka)["bootstrap_servers"]],
        broker_credentials=_credentials(kafka),
        store="memory://",
        datadir=str(datadir),
        topic_partitions=partitions,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        stream_buffer_maxsize=4 * partitions + 16,
        web_enabled=False,
        broker_session_timeout=worker.session_seconds,
        broker_heartbeat_interval=worker.session_seconds / 5,
        broker_commit_interval=COMMIT_SECONDS,
        broker_max_poll_records=worker.poll_records,
        consumer_auto_offset_reset="earliest",
    )
    app.hot = (
        names.requests,
        names.edges,
        names.engagements,
    )  # questions first, then what is nearest to an answer
    app.pace = worker.poll_milliseconds / 1000
    app.stores = bridge = _Bridge(app, names, stream, failed)

    def raw(topic: str) -> Any:
        return app.topic(topic, value_serializer=RAW, key_serializer="raw", partitions=partitions)

    @app.agent(raw(names.engagements), name="actors")
    async def actors(events: Any) -> None:
        async for event in events.events():
            await bridge.fold(names.engagements, event.value, stream.act)

    @app.agent(raw(names.edges), name="targets")
    async def targets(events: Any) -> None:
        async for event in events.events():
            await bridge.fold(names.edges, event.value, stream.hear)

    @app.agent(raw(names.requests), name="queries")
    async def queries(events: Any) -> None:
        async for event in events.events():
            fetches: Fetches = event.value
            for number, fetch in fetches.items():
                stream.ask(number, [(r.timestamp, r.value or b"") for r in fetch.records])
                bridge.asked[TP(names.requests, number)] = fetch.ends

    @app.agent(raw(names.control), name="control")
    async def control(events: Any) -> None:
        async for event in events.events():
            message = event.message
            await stream.control(
                message.partition, message.offset, int(message.timestamp * 1000), event.value or b""
            )

    app.task(stream.flushing)
    return app


class _Bridge:
    """Faust's partitions to the stream's, and back."""

    def __init__(
        self, app: App, names: Topics, stream: Stream, failed: Callable[[BaseException], None]
    ) -> None:
        self.asked: dict[TP, int] = {}
        self._app = app
        self._names = names
        self._stream = stream
        self._failed = failed

    async def assigned(self, partitions: Collection[TP], generation: int) -> None:
        mine = {tp.partition for tp in partitions if tp.topic == self._names.engagements}
        for topic in (self._names.edges, self._names.requests, self._names.control):
            other = {tp.partition for tp in partitions if tp.topic == topic}
            if other != mine:
                self._failed(
                    RuntimeError(f"of {topic} {sorted(other)} was assigned, of engagements {sorted(mine)}")
                )
                return
        self.asked = {tp: at for tp, at in self.asked.items() if tp.partition in mine}
        try:
            await self._stream.assigned(mine, generation)
        except Exception as error:
            self._failed(error)

    async def revoked(self, partitions: Collection[TP]) -> None:
        await self._stream.revoked()

    def position(self, tp: TP) -> int | None:
        if tp.topic == self._names.requests:
            return self.asked.get(TP(*tp))
        return self._stream.position(tp.topic, tp.partition)

    async def fold(self, topic: str, fetches: Fetches, into: Fold) -> None:
        """Fold fetches; where something before one is missing, read on from what the state reaches to."""
        for number, fetch in fetches.items():
            try:
                missing = await into(number, fetch)
            except Exception as error:  # Faust would acknowledge the fetch and go on; the worker must not
                self._failed(error)
                raise
            if missing is not None:
                _log.info("%s %d is read again from offset %d, not %d", topic, number, missing, fetch.begins)
                await cast(Consumer, self._app.consumer).reseek(TP(topic, number), missing)
        await asyncio.sleep(0)  # the producer's turn


async def ends(app: App, topic: str, numbers: Collection[int]) -> Ends:
    """Return where partitions of a topic begin and end, as the brokers say."""
    tps = [TP(topic, number) for number in numbers]
    if not tps:
        return Ends({}, {})
    first = await app.consumer.earliest_offsets(*tps)
    end = await app.consumer.highwaters(*tps)
    return Ends({tp.partition: at for tp, at in first.items()}, {tp.partition: at for tp, at in end.items()})


def _credentials(config: KafkaConfig) -> SASLCredentials | SSLCredentials | None:
    settings = reach(config)
    context = settings.get("ssl_context")
    if config.security.startswith("SASL"):
        credentials = SASLCredentials(
            username=config.username,
            password=config.password,
            mechanism=SASLMechanism(config.sasl_mechanism),
            ssl_context=context,
        )
        credentials.protocol = AuthProtocol(config.security)
        return credentials
    return SSLCredentials(context=context) if context is not None else None
