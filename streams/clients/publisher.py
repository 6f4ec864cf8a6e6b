"""Events onto the topic `engagements`, each to its actor's partition, and the token that stands for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.producer.future import FutureRecordMetadata

from kithstream.streams.clients import connection
from kithstream.streams.config import KafkaConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import Undelivered, Unreachable
from kithstream.streams.events.stamp import EventLike, checked, wall_clock
from kithstream.streams.kafka.names import topics
from kithstream.streams.serve import tokens

_BATCH: Final = 1 << 17  # bytes of one partition's request
_SLACK: Final = 1.0  # seconds after which a producer is not waited for that should have given up
_ANOTHER: Final = 1.0  # seconds in which another producer must connect, or the one before is tried again


class Pending:
    """Events on their way to the brokers. `token` waits for them; whoever does not ask is told by `flush`."""

    def __init__(
        self,
        records: Sequence[bytes],
        sent: Sequence[FutureRecordMetadata],
        until: float,
        why: str = "",
        producer: KafkaProducer | None = None,
    ) -> None:
        self.producer = producer  # that sends them
        self._records = records
        self._sent = sent  # one a record, or fewer where sending broke off
        self._until = until  # seconds of time.monotonic(): nothing is confirmed later
        self._why = why
        self.asked = False

    def __len__(self) -> int:
        return len(self._records)

    @property
    def done(self) -> bool:
        """True once every event is confirmed or given up."""
        return all(future.is_done for future in reversed(self._sent)) or time.monotonic() >= self._until

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every event is confirmed or given up, or seconds have passed; return `done`."""
        until = self._until if timeout is None else min(self._until, time.monotonic() + timeout)
        for future in self._sent:
            if not future.is_done:
                with suppress(KafkaError):
                    future.get(max(0.0, until - time.monotonic()))
        return timeout is None or self.done  # a wait may end a moment before its time: it was given up then

    def token(self, timeout: float | None = None) -> str:
        """Return the token once the brokers have every event.

        Raises Undelivered if they do not get them, TimeoutError if that is open after `timeout` seconds.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{len(self)} events are not confirmed after {timeout:g} s")
        self.asked = True
        if self.lost():
            raise Undelivered(self.why(), self.lost())
        ends: dict[int, int] = {}
        for future in self._sent:
            _, partition, _, offset, *_ = future.value
            if offset >= ends.get(partition, 0):
                ends[partition] = offset + 1
        return tokens.write(ends)

    def lost(self) -> list[bytes]:
        """Return the records that are not confirmed."""
        confirmed = [future.succeeded() for future in self._sent]
        missing = len(self._records) - len(confirmed)
        if not missing and all(confirmed):
            return []
        flags = confirmed + [False] * missing
        return [record for record, there in zip(self._records, flags, strict=True) if not there]

    def unanswered(self) -> bool:
        """True if time ran out over an event, or its producer gave up waiting for the brokers."""
        waited = time.monotonic() >= self._until
        return any(
            isinstance(future.exception, KafkaTimeoutError) if future.is_done else waited
            for future in self._sent
        )

    def why(self) -> str:
        """Return the first reason in one sentence."""
        reasons = [str(future.exception) for future in self._sent if future.is_done and future.exception]
        reason = self._why or (reasons[0] if reasons else "the brokers do not answer")
        return f"{len(self.lost())} of {len(self)} events are not confirmed: {reason}"


class _Link(NamedTuple):
    """A producer. One that was left unanswered may never send again, even when its brokers are back (kafka-python
    3.0.12, after two restarts in a row): it makes way for another, and is closed when nobody waits for it.
    """

    producer: KafkaProducer
    topic: str
    route: Route


class EventPublisher:
    """Publishes events. Any number of threads may share one.

    `linger` is how many seconds a record may wait for others to share its request, `delivery` how long the
    brokers are tried, `connecting` how long the first connection is; at most `in_flight` events are unconfirmed
    at a time, then `send` waits.
    """

    def __init__(
        self,
        config: KafkaConfig,
        *,
        clock: Callable[[], int] = wall_clock,
        linger: float = 0.0,
        delivery: float = 30.0,
        connecting: float = connection.CONNECTING,
        in_flight: int = 50_000,
    ) -> None:
        if not 0 <= linger < delivery / 2:
            raise ValueError(f"linger is {linger:g}, expected less than half of delivery, {delivery:g}")
        self._config = config
        self._clock = clock
        self._linger = linger
        self._delivery = delivery
        self._connecting = connecting
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._doubted = False  # it was left unanswered
        self._former: list[KafkaProducer] = []
        self._sent: deque[Pending] = deque()
        self._failed: list[Pending] = []
        self._held = 0  # events in both
        self._closed = False

    def publish(self, events: Iterable[EventLike]) -> str:
        """Publish events and return the token that stands for them once the brokers have them all.

        An event without `time` or `id` gets the present and a random one. Raises InvalidEvent before any event of
        the call is sent, Undelivered if the brokers do not confirm them, Unreachable.
        """
        return self.send(events).token()

    def send(self, events: Iterable[EventLike]) -> Pending:
        """Publish events without waiting for the brokers; otherwise as `publish`."""
        if self._link is None or self._closed:
            self._connected()
        now = self._clock()
        actors, records = [], []
        for event in events:
            actor, record = checked(event, now)
            actors.append(actor)
            records.append(record)
        with self._lock:
            self._make_room(records)
            link = self._linked()
            pending = self._hand_over(link, actors, records, now // 1000)
            self._sent.append(pending)
            self._held += len(pending)
        return pending

    def flush(self) -> None:
        """Wait for everything sent so far; raises Undelivered with what was lost and nobody has asked about."""
        if self._link is None:
            return
        with suppress(KafkaTimeoutError):  # what is lost is told below
            self._link.producer.flush(timeout=self._delivery + _SLACK)
        with self._lock:
            self._settle(0)
            self._raise_lost([])

    def close(self) -> None:
        """Flush and disconnect; raises as `flush` does, disconnected all the same."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            if self._link is not None:
                self._former.append(self._link.producer)
            self._close_former()

    def __enter__(self) -> Self:
        self._connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(Undelivered):  # the block's own error is what its caller must see
            self.close()

    def _connected(self) -> None:
        with self._lock:
            self._linked()

    def _linked(self) -> _Link:
        """The producer in use, made if there is none; the lock is held."""
        if self._closed:
            raise RuntimeError("the publisher is closed")
        if self._link is None:
            self._link = self._made(self._connecting)
        elif self._doubted:
            with suppress(Unreachable):  # then the one that there is may as well be tried again
                made = self._made(min(self._connecting, _ANOTHER))
                self._former.append(self._link.producer)
                self._link, self._doubted = made, False
        return self._link

    def _made(self, seconds: float) -> _Link:
        topic = topics(self._config.prefix).engagements
        made = connection.producer(
            self._config,
            seconds,
            acks="all",
            enable_idempotence=True,
            linger_ms=round(self._linger * 1000),
            batch_size=_BATCH,
            delivery_timeout_ms=round(self._delivery * 1000),
            request_timeout_ms=round(min(10.0, self._delivery / 2) * 1000),
            max_block_ms=round(self._connecting * 1000),
        )
        try:
            return _Link(made, topic, Route(connection.partitions(made, topic, self._config)))
        except BaseException:
            connection.close(made)
            raise

    def _close_former(self) -> None:
        for producer in self._former:
            with suppress(KafkaError):  # nobody waits for what it holds
                connection.close(producer)
        self._former.clear()

    def _hand_over(
        self, link: _Link, actors: Sequence[str], records: Sequence[bytes], milliseconds: int
    ) -> Pending:
        """Give records to the producer; what it does not take is lost, and `token` says so."""
        send, topic, route = link.producer.send, link.topic, link.route
        sent: list[FutureRecordMetadata] = []
        why = ""
        try:
            for actor, record in zip(actors, records, strict=True):
                sent.append(
                    send(topic, record, actor.encode(), partition=route[actor], timestamp_ms=milliseconds)
                )
        except KafkaError as error:
            why = str(error)
        until = time.monotonic() + self._delivery + _SLACK
        return Pending(records, sent, until, why, link.producer)

    def _make_room(self, records: Sequence[bytes]) -> None:
        self._settle(max(0, self._in_flight - len(records)))
        if self._failed and self._held + len(records) > self._in_flight:
            self._raise_lost(records)

    def _settle(self, room: int) -> None:
        """Let go of what is confirmed, waiting while more than `room` events are held."""
        while self._sent and (self._sent[0].done or self._held > room):
            pending = self._sent.popleft()
            pending.wait()
            if pending.asked or not pending.lost():
                self._held -= len(pending)
            else:
                self._failed.append(pending)
            if self._link is not None and pending.producer is self._link.producer and pending.unanswered():
                self._doubted = True
        if self._former and not any(pending.producer in self._former for pending in self._sent):
            self._close_former()

    def _raise_lost(self, unsent: Sequence[bytes]) -> None:
        failed, self._failed = [pending for pending in self._failed if not pending.asked], []
        self._held = sum(map(len, self._sent))
        lost = [record for pending in failed for record in pending.lost()]
        for pending in failed:
            pending.asked = True
        if lost:
            raise Undelivered(failed[0].why(), [*lost, *unsent])
