"""What a worker writes: one idempotent producer, whole batches; a write that fails for good is told once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from aiokafka import AIOKafkaProducer

from kithstream.streams.config import KafkaConfig
from kithstream.streams.kafka.security import reach
from kithstream.streams.kafka.starting import start

BATCH_BYTES: Final = 900_000  # below the brokers' default of what a batch may hold
Acknowledged = Callable[[], None]


class Producer:
    """An aiokafka producer whose failures are told once, to `failed`; writes to one partition keep their order."""

    def __init__(
        self,
        config: KafkaConfig,
        failed: Callable[[BaseException], None],
        *,
        linger_milliseconds: float = 0.0,
    ) -> None:
        self._config = config
        self._linger = linger_milliseconds
        self._failed = failed
        self._flying: set[asyncio.Future[object]] = set()
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect; raises Unreachable."""
        self._producer = AIOKafkaProducer(
            **reach(self._config),
            acks="all",
            enable_idempotence=True,
            linger_ms=self._linger,
            max_batch_size=BATCH_BYTES,
            max_request_size=2 * BATCH_BYTES,
        )
        await start(self._producer, self._config)

    async def stop(self) -> None:
        """Send what waits, and disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def send(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        acknowledged: Acknowledged | None = None,
    ) -> asyncio.Future[object]:
        """Put a record on its way; the future is done when the brokers have it for good."""
        future = await self._ready.send(topic, value, key, partition=partition, headers=list(headers) or None)
        return self._watch(future, acknowledged)

    async def send_all(
        self,
        topic: str,
        partition: int,
        pairs: Iterable[tuple[bytes, bytes | None]],
        *,
        acknowledged: Acknowledged | None = None,
    ) -> None:
        """Put many records of one partition on their way, in as few batches as they fit in."""
        producer = self._ready
        builder = producer.create_batch()
        last: asyncio.Future[object] | None = None
        for key, value in pairs:
            if builder.append(timestamp=None, key=key, value=value) is None:
                last = self._watch(await producer.send_batch(builder, topic, partition=partition), None)
                builder = producer.create_batch()
                if builder.append(timestamp=None, key=key, value=value) is None:
                    raise ValueError(f"a record of {len(value or b'')} bytes for {topic} fits in no batch")
        if builder.record_count():
            builder.close()
            last = self._watch(await producer.send_batch(builder, topic, partition=partition), None)
        if acknowledged is not None and last is not None:
            done = acknowledged  # batches of one partition are acknowledged in their order

            def tell(future: asyncio.Future[object]) -> None:
                if not future.cancelled() and future.exception() is None:
                    done()

            last.add_done_callback(tell)

    async def settle(self) -> None:
        """Wait until the brokers have everything that was sent."""
        while self._flying:
            await asyncio.wait(list(self._flying))

    @property
    def _ready(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise RuntimeError("the producer is not started")
        return self._producer

    def _watch(
        self, future: asyncio.Future[object], acknowledged: Acknowledged | None
    ) -> asyncio.Future[object]:
        self._flying.add(future)

        def done(future: asyncio.Future[object]) -> None:
            self._flying.discard(future)
            if future.cancelled():
                return
            error = future.exception()
            if error is not None:
                self._failed(error)
            elif acknowledged is not None:
                acknowledged()

        future.add_done_callback(done)
        return future
