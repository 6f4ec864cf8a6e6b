"""Questions over the topics `retrieval-requests` and `replies`: whom should this account follow?"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from random import Random, SystemRandom
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from kithstream.streams.clients import connection
from kithstream.streams.config import KafkaConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import KithstreamError, NotYet, Unanswerable, Unavailable
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.wire import Failure, Reply, Request
from kithstream.streams.serve import tokens
from kithstream.streams.serve.answers import Answer, Explain, Level, Question, check

WAY_BACK: Final = (
    0.1  # share of a deadline that the reply's own way is given: `not_yet` must arrive in time too
)
_POLL: Final = 100  # milliseconds between two looks at passed deadlines, where no reply comes


class _Addressed(msgspec.Struct):
    """The id alone of a reply, which may be for another client of the same partition."""

    id: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Reply).decode
_decode_id = msgspec.json.Decoder(_Addressed).decode


class _Waiting(NamedTuple):
    future: Future[Answer]
    until: float  # seconds of time.monotonic()
    deadline: float  # seconds


class _Link(NamedTuple):
    producer: KafkaProducer
    consumer: KafkaConsumer
    requests: str
    replies: TopicPartition
    route: Route
    receiver: threading.Thread


class RetrievalClient:
    """Asks the workers over Kafka. Any number of threads may share one, and ask at the same time.

    Replies come to one partition of `replies`, `reply_partition` or one drawn from `random`; clients that share a
    partition read each other's replies and let them go. At most `in_flight` questions wait at a time.
    """

    def __init__(
        self,
        config: KafkaConfig,
        *,
        reply_partition: int | None = None,
        random: Random | None = None,
        connecting: float = connection.CONNECTING,
        in_flight: int = 10_000,
    ) -> None:
        self._config = config
        self._reply_partition = reply_partition
        self._random = random or SystemRandom()
        self._connecting = connecting
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._prefix = f"{self._random.getrandbits(64):016x}-"
        self._numbers = itertools.count()
        self._waiting: dict[str, _Waiting] = {}
        self._late = 0

    @property
    def late(self) -> int:
        """Replies that came when nobody waited for them any more."""
        return self._late

    def ask(
        self,
        account: str,
        k: int = 20,
        *,
        after: str = "",
        level: Level = "vectors",
        exclude: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        languages: Sequence[str] = (),
        reasons: int = 20,
        explain: Explain = "short",
        deadline: float = 1.0,
    ) -> Answer:
        """Return whom an account should follow, from state that includes the token `after`.

        Raises NotYet if the state does not come to include it in time, Unavailable if no answer comes within
        `deadline` seconds, Unanswerable for a deleted or deactivated account, ValueError for what cannot be asked,
        Unreachable.
        """
        question = Question(account, k, after, exclude, allow, languages, reasons, level, explain)
        correlation, future = self._send(question, deadline)
        try:
            return future.result(deadline)
        except TimeoutError:
            self._expire(correlation)
        return future.result()

    def submit(self, question: Question, *, deadline: float = 1.0) -> Future[Answer]:
        """`ask` without waiting: the future has the answer, or raises what `ask` raises."""
        return self._send(question, deadline)[1]

    def close(self) -> None:
        """Disconnect; whoever still waits gets Unavailable."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            link = self._link
        if link is not None:
            link.receiver.join()
            link.consumer.close(autocommit=False)
            connection.close(link.producer)
        self._fail_all(Unavailable("the client was closed"))

    def __enter__(self) -> Self:
        self._connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- asking ----------------------------------------------------------------------------------------------

    def _send(self, question: Question, deadline: float) -> tuple[str, Future[Answer]]:
        link = self._connected()
        check(question)
        tokens.read(question.after, link.route.partitions)
        if not deadline > 0:
            raise ValueError(f"deadline is {deadline}, expected seconds above 0")
        if len(self._waiting) >= self._in_flight:
            raise Unavailable(f"{self._in_flight} questions wait already")
        correlation = f"{self._prefix}{next(self._numbers)}"
        request = Request(
            id=correlation,
            account=question.account,
            reply_topic=link.replies.topic,
            reply_partition=link.replies.partition,
            k=question.k,
            after=question.after,
            level=question.level,
            exclude=question.exclude,
            allow=question.allow,
            languages=question.languages,
            reasons=question.reasons,
            explain=question.explain,
            deadline_ms=deadline * (1 - WAY_BACK) * 1000,
        )
        raw, key = _encode(request), question.account.encode()
        future: Future[Answer] = Future()
        self._waiting[correlation] = _Waiting(future, time.monotonic() + deadline, deadline)
        try:
            sent = link.producer.send(link.requests, raw, key, partition=link.route[question.account])
        except KafkaError as error:
            self._undelivered(correlation, error)
        else:
            sent.add_errback(self._undelivered, correlation)
        if not link.receiver.is_alive():
            self._fail(correlation, Unavailable("nobody receives replies any more"))
        return correlation, future

    def _undelivered(self, correlation: str, error: BaseException) -> None:
        self._fail(correlation, Unavailable(f"the question did not reach the brokers: {error}"))

    def _expire(self, correlation: str) -> None:
        waiting = self._waiting.get(correlation)
        if waiting is not None:
            self._fail(correlation, Unavailable(f"no answer came within {waiting.deadline:g} s"))

    def _fail(self, correlation: str, error: BaseException) -> None:
        waiting = self._waiting.pop(correlation, None)
        if waiting is not None and waiting.future.set_running_or_notify_cancel():
            waiting.future.set_exception(error)

    def _fail_all(self, error: BaseException) -> None:
        for correlation in list(self._waiting):
            self._fail(correlation, error)

    # -- receiving -------------------------------------------------------------------------------------------

    def _receive(self, consumer: KafkaConsumer) -> None:
        swept = time.monotonic()
        try:
            while not self._closing.is_set():
                try:
                    for records in consumer.poll(timeout_ms=_POLL).values():
                        for record in records:
                            self._take(record.value)
                except KafkaError as error:
                    self._fail_all(Unavailable(f"replies cannot be read: {error}"))
                    self._closing.wait(_POLL / 1000)
                now = time.monotonic()
                if now - swept < _POLL / 1000:
                    continue
                swept = now
                passed = [id for id, waiting in list(self._waiting.items()) if waiting.until < now]
                for correlation in passed:
                    self._expire(correlation)
        except BaseException as failure:
            self._failure = failure
            self._fail_all(Unavailable("receiving has stopped"))

    def _take(self, raw: bytes | None) -> None:
        """Hand a reply to whoever waits for it."""
        try:
            correlation = _decode_id(raw or b"").id
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # whose it was cannot be known: its question ends with its deadline
        waiting = self._waiting.pop(correlation, None)
        if waiting is None:
            self._late += correlation.startswith(self._prefix)
            return
        if not waiting.future.set_running_or_notify_cancel():
            return
        try:
            reply = _decode(raw or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            waiting.future.set_exception(Unavailable(f"the reply cannot be read: {error}"))
            return
        if reply.answer is not None:
            waiting.future.set_result(reply.answer)
        else:
            waiting.future.set_exception(raised(reply.failure or Failure("internal", "an empty reply")))

    # -- connecting ------------------------------------------------------------------------------------------

    def _connected(self) -> _Link:
        if self._failure is not None:
            raise RuntimeError("receiving has stopped; see the cause") from self._failure
        with self._lock:
            if self._closing.is_set():
                raise RuntimeError("the client is closed")
            if self._link is None:
                self._link = self._connect()
            return self._link

    def _connect(self) -> _Link:
        names = topics(self._config.prefix)
        producer = connection.producer(
            self._config,
            self._connecting,
            acks=1,  # a lost question ends with its deadline, a repeated one is answered twice: neither does harm
            enable_idempotence=False,  # with it a partition's questions go one request after the other
            linger_ms=0,
            request_timeout_ms=5_000,
            delivery_timeout_ms=5_000,
        )
        try:
            route = Route(connection.partitions(producer, names.requests, self._config))
            consumer = connection.consumer(self._config, self._connecting, enable_auto_commit=False)
            try:
                replies = self._place(consumer, names.replies)
            except BaseException:
                consumer.close(autocommit=False)
                raise
        except BaseException:
            connection.close(producer)
            raise
        receiver = threading.Thread(
            target=self._receive, args=(consumer,), name="kithstream-replies", daemon=True
        )
        receiver.start()
        return _Link(producer, consumer, names.requests, replies, route, receiver)

    def _place(self, consumer: KafkaConsumer, topic: str) -> TopicPartition:
        """Read one partition of the replies from its end."""
        count = connection.partitions(consumer, topic, self._config)
        number = self._random.randrange(count) if self._reply_partition is None else self._reply_partition
        if not 0 <= number < count:
            raise ValueError(f"reply_partition is {number}, {topic} has {count}")
        replies = TopicPartition(topic, number)
        consumer.assign([replies])
        consumer.seek(replies, consumer.end_offsets([replies])[replies])
        return replies


def raised(failure: Failure) -> KithstreamError | ValueError:
    """Return the error that tells a caller what a failure asks of it."""
    match failure.error:
        case "not_yet":
            return NotYet(failure.message)
        case "gone" | "deactivated":
            return Unanswerable(failure.message, gone=failure.error == "gone")
        case "invalid":
            return ValueError(failure.message)
        case "unavailable":
            return Unavailable(failure.message)
        case code:  # `internal`, and what later versions add
            return Unavailable(f"{code}: {failure.message}")
