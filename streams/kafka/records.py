"""The topic `engagements` read from outside, once: from given offsets to where it ended when reading began."""

from __future__ import annotations

import heapq
import shutil
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from kithstream.streams.clients import connection
from kithstream.streams.communities import folder as communities
from kithstream.streams.config import Config, KafkaConfig
from kithstream.streams.engine import frames
from kithstream.streams.engine.actors import Record
from kithstream.streams.errors import GapInLog, StoreRefused, Unreachable
from kithstream.streams.examples.capture import Capture, Polled
from kithstream.streams.kafka import names
from kithstream.streams.kafka.checkpoints import Checkpoints
from kithstream.streams.kafka.worker import shared_salt

_POLL: Final = 1000  # milliseconds
_NEVER: Final = 1 << 62
_HELD: Final = 5000  # records of a partition held from which on it is not asked for more


class TopicSource:
    """The engagements of a tenant, in the order of their append times; equal ones by partition.

    From the topic's beginning, or from the newest checkpoints that its workers left. Records are read up to the end
    that the topic has when reading begins.
    """

    def __init__(self, config: Config, checkpoints: Path | None = None) -> None:
        """Raises Unreachable, or StoreRefused where a partition has no checkpoint."""
        self._config = config
        self._topic = names.topics(config.kafka.prefix).engagements
        self._checkpoints = Checkpoints(checkpoints, 1)
        self._root = checkpoints
        client = _connected(config.kafka)
        try:
            self.partitions = connection.partitions(client, self._topic, config.kafka)
        finally:
            client.close(autocommit=False)
        self.salt = shared_salt(config.worker.salt, config.kafka)
        self.name = f"topic {self._topic}" + (f" from {checkpoints}" if checkpoints is not None else "")

    def prepare(self, work: Path) -> bool:
        if self._root is None:
            return False
        for number in range(self.partitions):
            found = self._checkpoints.of(number)
            if not found:
                raise StoreRefused(f"{self._root} has no checkpoint of partition {number}")
            self._checkpoints.restore(found[0], work / "state" / str(number))
        versions = self._root / communities.NAME
        if versions.exists():
            shutil.copytree(versions, work / communities.NAME)
        return True

    def begin(self, capture: Capture) -> None:
        """Bring the checkpoints of partitions to one state: each hears what the others' said before theirs.

        A frame tells of its sender's log up to an offset; what lies behind the sender's checkpoint is left for the
        pass, which folds it itself. Before a retraction the sender tells what it has folded of a poll under the offset
        of the poll before: such a frame of behind the checkpoint is known by the time of the poll's last record.
        """
        engine, config = capture.engine, self._config.kafka
        ends = {p.number: p.applied for p in engine.partitions}
        following = {number: _append_time(config, self._topic, number, end) for number, end in ends.items()}
        topic = names.topics(config.prefix).edges
        with closing(read_topic(config, topic, {p.number: p.edges for p in engine.partitions})) as records:
            for one in records:
                try:
                    frame = frames.decode(one.record.raw)
                except ValueError:
                    continue  # a dead letter of the workers
                end = ends[frame.source]
                if frame.upto < end or (frame.upto == end and frame.appended <= following[frame.source]):
                    engine.deliver(one.partition, [one.record.raw])

    def read(self, positions: Mapping[int, int], events: int) -> Generator[Polled, None, None]:
        yield from read_topic(
            self._config.kafka, self._topic, {n: positions.get(n, 0) for n in range(self.partitions)}
        )


def read_topic(
    config: KafkaConfig, topic: str, positions: Mapping[int, int]
) -> Generator[Polled, None, None]:
    """Yield records from these offsets to the present ends, merged by append time.

    Raises Unreachable, GapInLog where the topic begins later, StoreRefused where it ends before.
    """
    client = _connected(config)
    try:
        places = {number: TopicPartition(topic, number) for number in positions}
        client.assign(list(places.values()))
        begins, ends = (ask(list(places.values())) for ask in (client.beginning_offsets, client.end_offsets))
        for number, place in places.items():
            at = positions[number]
            if at > ends[place]:
                raise StoreRefused(
                    f"partition {number}: the state ends at offset {at}, {topic} at {ends[place]}; it has lost records"
                )
            if at < begins[place]:
                raise GapInLog(
                    f"partition {number}: {topic} begins at offset {begins[place]}, {at} is expected; begin with "
                    "a checkpoint"
                )
            client.seek(place, at)
        fetched = _Fetched(client, {number: ends[place] for number, place in places.items()}, places)
        yield from heapq.merge(*(fetched.of(number) for number in sorted(places)), key=_appended)
    except KafkaError as error:
        raise Unreachable(f"topic {topic} cannot be read: {error}") from error
    finally:
        client.close(autocommit=False)


def _append_time(config: KafkaConfig, topic: str, number: int, offset: int) -> int:
    """When the record of an offset was appended, microseconds; later than any if it is still to come."""
    with closing(read_topic(config, topic, {number: offset})) as records:
        found = next(records, None)
    return _NEVER if found is None else found.record.appended


class _Fetched:
    """Records that were fetched and not taken yet, by partition; a partition with enough of them is paused."""

    def __init__(
        self, client: KafkaConsumer, ends: Mapping[int, int], places: Mapping[int, TopicPartition]
    ) -> None:
        self._client = client
        self._ends = ends
        self._places = places
        self._held: dict[int, deque[Polled]] = {number: deque() for number in places}

    def of(self, number: int) -> Iterator[Polled]:
        """Yield a partition's records up to its end."""
        held, place, end = self._held[number], self._places[number], self._ends[number]
        while True:
            while held:
                yield held.popleft()
            if self._client.position(place) >= end:
                return
            self._fetch()

    def _fetch(self) -> None:
        full = [self._places[number] for number, held in self._held.items() if len(held) >= _HELD]
        ended = [place for n, place in self._places.items() if self._client.position(place) >= self._ends[n]]
        self._client.pause(*full, *ended)
        for place, batch in self._client.poll(_POLL).items():
            held, end = self._held[place.partition], self._ends[place.partition]
            for record in batch:
                if record.offset < end:
                    held.append(
                        Polled(
                            place.partition,
                            record.offset,
                            Record(record.timestamp * 1000, record.value or b""),
                        )
                    )
        self._client.resume(*full)


def _appended(one: Polled) -> int:
    return one.record.appended


def _connected(config: KafkaConfig) -> KafkaConsumer:
    return connection.consumer(config, connection.CONNECTING, enable_auto_commit=False)
