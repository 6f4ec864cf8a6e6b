"""Pushed lists from the topic `candidates`: fresh ones, each account's in order, none lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NamedTuple, Self

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from kithstream.streams.clients import connection
from kithstream.streams.config import KafkaConfig
from kithstream.streams.errors import Unreachable
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.kafka import names
from kithstream.streams.kafka.wire import Pushed

_decode = msgspec.json.Decoder(Pushed).decode


class Withdrawn(msgspec.Struct, frozen=True):
    """What was pushed to this account is not to be shown any more: it is gone, or blocked what it was shown."""

    account: str


class Dropped(NamedTuple):
    """Records that were not given to the caller, by reason."""

    stale: int  # `valid_until` had passed
    superseded: int  # a newer list of the account was given before
    unreadable: int


class CandidateConsumer:
    """Iterates over pushed lists and withdrawals, for ever. One thread at a time.

    With a group the lists are shared among its consumers, and reading goes on where the group had come: a list
    counts as done once the next one is asked for, so that after a crash the last ones come again. Without a group
    all lists come, from `start`; so they do for a group that has not read before. The topic is compacted: its
    beginning is the newest list of every account.

    A list past its `valid_until` and one older than what this consumer gave for the account (remembered for the
    last `remembered` accounts) are dropped; a withdrawal is always given.
    """

    def __init__(
        self,
        config: KafkaConfig,
        *,
        group: str | None = None,
        start: Literal["beginning", "now"] = "beginning",
        clock: Callable[[], int] = wall_clock,
        remembered: int = 100_000,
        connecting: float = connection.CONNECTING,
    ) -> None:
        if group is not None and f"{config.prefix}{group}" == names.group(config.prefix):
            raise ValueError(f"group is {group!r}, which is the workers' own")
        self._config = config
        self._group = group
        self._start = start
        self._clock = clock
        self._remembered = remembered
        self._connecting = connecting
        self._consumer: KafkaConsumer | None = None
        self._closed = False
        self._fetched: deque[ConsumerRecord] = deque()
        self._given: dict[TopicPartition, int] = {}  # offset after what the caller is at
        self._finished: dict[TopicPartition, int] = {}  # offset after what the caller has left behind
        self._newest: dict[str, int] = {}  # account -> as_of of the list given last, oldest given first
        self._stale = self._superseded = self._unreadable = 0

    @property
    def dropped(self) -> Dropped:
        """How many records were dropped so far, and why."""
        return Dropped(self._stale, self._superseded, self._unreadable)

    def poll(self, timeout: float = 1.0) -> list[Pushed | Withdrawn]:
        """Return what is there, or what comes within `timeout` seconds; empty if nothing does.

        Lists returned by the call before are thereby done. Raises Unreachable.
        """
        found = []
        self._fetch(timeout)
        while self._fetched:
            if (value := self._next()) is not None:
                found.append(value)
        return found

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Pushed | Withdrawn:
        while not self._closed:
            self._fetch(1.0)
            while self._fetched:
                if (value := self._next()) is not None:
                    return value
        raise StopIteration

    def close(self) -> None:
        """Commit what is done and leave the group."""
        if self._closed:
            return
        self._closed = True
        if self._consumer is not None:
            self._commit(self._consumer)
            self._consumer.close(autocommit=False)

    def __enter__(self) -> Self:
        self._connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> KafkaConsumer:
        if self._closed:
            raise RuntimeError("the consumer is closed")
        if self._consumer is None:
            made = connection.consumer(
                self._config,
                self._connecting,
                group_id=None if self._group is None else f"{self._config.prefix}{self._group}",
                enable_auto_commit=False,
                auto_offset_reset="earliest" if self._start == "beginning" else "latest",
            )
            try:
                self._place(made)
            except BaseException:
                made.close(autocommit=False)
                raise
            self._consumer = made
        return self._consumer

    def _place(self, made: KafkaConsumer) -> None:
        topic = names.topics(self._config.prefix).candidates
        count = connection.partitions(made, topic, self._config)
        if self._group is not None:
            made.subscribe([topic])
            return
        parts = [TopicPartition(topic, number) for number in range(count)]
        made.assign(parts)
        if self._start == "now":
            for part, end in made.end_offsets(parts).items():
                made.seek(part, end)
        else:
            made.seek_to_beginning(*parts)

    def _fetch(self, timeout: float) -> None:
        """Leave behind what was given; fetch once all that was fetched before is."""
        consumer = self._connected()
        self._finished.update(self._given)
        self._given.clear()
        if self._fetched:
            return
        try:
            self._commit(consumer)
            for records in consumer.poll(timeout_ms=int(timeout * 1000)).values():
                self._fetched.extend(records)
        except KafkaError as error:
            raise Unreachable(f"pushed lists cannot be read from {self._config.servers}: {error}") from error

    def _commit(self, consumer: KafkaConsumer) -> None:
        finished, self._finished = self._finished, {}
        if self._group is None or not finished:
            return
        offsets = {part: OffsetAndMetadata(offset) for part, offset in finished.items()}
        try:
            consumer.commit(offsets, timeout_ms=int(self._connecting * 1000))
        except KafkaError:
            # The partitions have gone to another consumer, or the brokers are away: these lists come again.
            return

    def _next(self) -> Pushed | Withdrawn | None:
        """Return what the next record holds for the caller, if anything."""
        record = self._fetched.popleft()
        self._given[TopicPartition(record.topic, record.partition)] = record.offset + 1
        try:
            if record.value is None:
                return Withdrawn((record.key or b"").decode())
            pushed = _decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._unreadable += 1
            return None
        if pushed.valid_until <= self._clock():
            self._stale += 1
            return None
        newest = self._newest.pop(pushed.account, pushed.as_of)
        self._newest[pushed.account] = max(newest, pushed.as_of)
        if len(self._newest) > self._remembered:
            del self._newest[next(iter(self._newest))]
        if pushed.as_of < newest:
            self._superseded += 1
            return None
        return pushed
