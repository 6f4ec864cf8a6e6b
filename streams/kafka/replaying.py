"""Dead letters read and replayed, for an operator: `kithstream dead-letters`."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from kithstream.streams.clients import connection
from kithstream.streams.config import KafkaConfig
from kithstream.streams.errors import Unreachable
from kithstream.streams.kafka import names, records
from kithstream.streams.kafka.dead_letters import content
from kithstream.streams.kafka.wire import DeadLetter

SHOWN: Final = 80  # of base64: a line shows the first 60 bytes of a record
SECONDS: Final = 30.0  # for the brokers to take what is replayed
_LAST: Final = 253_402_300_799  # seconds since 1970: the end of the year 9999
_AT_ONCE: Final = 500  # records on their way
_decode = msgspec.json.Decoder(DeadLetter).decode


class Wanted(msgspec.Struct, frozen=True):
    """Which letters: those that fit every filter that is set."""

    reasons: Collection[str] = ()
    topics: Collection[str] = ()  # the records' own, with the prefix
    partitions: Collection[int] = ()
    since: int | None = None  # microseconds: when the letter was written

    def fits(self, letter: DeadLetter) -> bool:
        """True if the letter is one of them; `since` is left to the brokers."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.topics or letter.topic in self.topics)
            and (not self.partitions or letter.partition in self.partitions)
        )


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did, or would do."""

    published: int
    repeats: int  # letters of a record that another letter told of before
    refused: Mapping[str, int]  # by why
    unreadable: int  # records that are no letters


def wanted(
    config: KafkaConfig,
    reasons: Collection[str] = (),
    sources: Collection[str] = (),
    partitions: Collection[int] = (),
    since: int | None = None,
) -> Wanted:
    """Return a filter; `sources` are topics, with the tenant's prefix or without."""
    prefix = config.prefix
    full = [name if name.startswith(prefix) else prefix + name for name in sources]
    return Wanted(reasons, full, partitions, since)


def line(told: DeadLetter) -> str:
    """Return a letter in one line: nothing in it can move a terminal's cursor or turn its text around."""
    when = datetime.fromtimestamp(min(max(told.time // 1_000_000, 0), _LAST), UTC).isoformat(
        timespec="seconds"
    )
    try:
        start = base64.b64decode(told.record[:SHOWN], validate=True)
    except (binascii.Error, ValueError):
        start = b""
    size = f"{told.size} bytes" if told.size >= 0 else "? bytes"
    place = f"{told.topic}/{told.partition}@{told.offset}"
    shown = start.decode("utf-8", "backslashreplace")
    return "  ".join(ascii(part)[1:-1] for part in (when, place, told.reason, told.detail, size, shown))


def read(config: KafkaConfig, wanted: Wanted, unreadable: Counter[str]) -> Iterator[DeadLetter]:
    """Yield letters, the oldest first, up to where the topic ends now; what is none is counted in `unreadable`.

    Raises Unreachable.
    """
    topic = names.topics(config.prefix).dead_letters
    with closing(records.read_topic(config, topic, _begins(config, topic, wanted.since))) as found:
        for one in found:
            try:
                told = _decode(one.record.raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                unreadable["no letter"] += 1
                continue
            if wanted.fits(told):
                yield told


def replay(
    config: KafkaConfig, letters: Iterable[DeadLetter], unreadable: Counter[str], *, dry: bool = False
) -> Replayed:
    """Publish records again to the partitions that they came from; an event counts once however often it is there.

    With `dry` nothing is published. Raises Unreachable where the brokers do not take all of them: again does no harm.
    """
    seen: set[tuple[str, int, int]] = set()
    refused: Counter[str] = Counter()
    repeats = published = 0
    with closing(_Again(config)) as again:
        for told in letters:
            place = told.topic, told.partition, told.offset
            if place in seen:
                repeats += 1
                continue
            seen.add(place)
            why = again.why_not(told)
            if why:
                refused[why] += 1
                continue
            published += 1
            if not dry:
                again.publish(told)
        again.settle()
    return Replayed(published, repeats, dict(refused), unreadable.total())


class _Again:
    """Publishes records where they came from."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        name = names.topics(config.prefix)
        self._topics = (name.engagements, name.control, name.edges)
        self._training = name.training
        self._producer = connection.producer(
            config, connection.CONNECTING, acks="all", max_request_size=2 << 20
        )
        self._partitions: dict[str, int] = {}
        self._flying: list[object] = []

    def why_not(self, told: DeadLetter) -> str:
        """Return why a letter cannot be replayed; empty if it can."""
        if told.reason == "deleted":
            return "of a deleted account"
        if told.topic == self._training:
            return "an example: examples are learned in their order"
        if told.topic not in self._topics:
            return "of a topic that is not replayed"
        raw = content(told)
        if raw is None:
            return "the letter does not hold all of the record"
        if not raw:
            return "the record is empty"
        if told.topic not in self._partitions:
            self._partitions[told.topic] = connection.partitions(self._producer, told.topic, self._config)
        if not 0 <= told.partition < self._partitions[told.topic]:
            return "of a partition that is not there"
        return ""

    def publish(self, told: DeadLetter) -> None:
        key = None if told.key is None else base64.b64decode(told.key)
        sent = self._producer.send(told.topic, content(told), key=key, partition=told.partition)
        self._flying.append(sent)
        if len(self._flying) >= _AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Wait until the brokers have everything."""
        flying, self._flying = self._flying, []
        try:
            for sent in flying:
                sent.get(SECONDS)  # type: ignore[attr-defined]
        except KafkaError as error:
            raise Unreachable(f"the brokers did not take every record: {error}") from error

    def close(self) -> None:
        connection.close(self._producer)


def _begins(config: KafkaConfig, topic: str, since: int | None) -> dict[int, int]:
    """Where each partition begins, or the first offset written since a time."""
    client = connection.consumer(config, connection.CONNECTING, enable_auto_commit=False)
    try:
        places = [TopicPartition(topic, n) for n in range(connection.partitions(client, topic, config))]
        begins = {place.partition: at for place, at in client.beginning_offsets(places).items()}
        if since is None:
            return begins
        ends = client.end_offsets(places)
        found = client.offsets_for_times(dict.fromkeys(places, max(since // 1000, 0)))
        return {
            place.partition: ends[place]
            if found.get(place) is None
            else max(found[place].offset, begins[place.partition])
            for place in places
        }
    except KafkaError as error:
        raise Unreachable(f"topic {topic} cannot be read: {error}") from error
    finally:
        client.close(autocommit=False)
