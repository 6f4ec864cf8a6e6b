"""The topics as they must be: one table, made on the brokers and checked against them.

What is there is never altered. A partition count decides where every account lives, so it is named and left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import msgspec
from kafka import errors
from kafka.admin import ConfigResource, KafkaAdminClient
from kafka.net.compat import KafkaNetClient

from kithstream.streams.config import Config, KafkaConfig
from kithstream.streams.errors import TopicRefused, Unreachable
from kithstream.streams.kafka import names
from kithstream.streams.kafka.refusals import Refusals
from kithstream.streams.kafka.security import reach

HOUR: Final = 3_600_000  # milliseconds
DAY: Final = 24 * HOUR
CONNECTING: Final = 10.0  # seconds in which a broker must answer
_SEGMENT_BYTES: Final = 64 << 20  # of compacted topics: what is being written is not compacted
_UNKNOWN: Final = errors.UnknownTopicOrPartitionError.errno
_EXISTS: Final = errors.TopicAlreadyExistsError.errno


class Topic(msgspec.Struct, frozen=True):
    """What one topic must be."""

    name: str
    partitions: int
    kept: int | None  # milliseconds a record is kept; None keeps the newest record of each key, for ever
    sized_by: str = "engine.partitions"  # the setting that says how many partitions
    stamped: bool = False  # records carry the time at which the brokers appended them, not the writer's
    record_bytes: int | None = None  # largest batch; None leaves it to the brokers
    replication: int = 1

    @property
    def needed(self) -> Mapping[str, str]:
        """The settings, in the words of the brokers, without which state would be lost or wrong."""
        found = {
            "cleanup.policy": "delete" if self.kept else "compact",
            "min.insync.replicas": "2" if self.replication > 2 else "1",
        }
        if self.kept:
            found |= {"retention.ms": str(self.kept), "retention.bytes": "-1"}
        if self.stamped:
            found["message.timestamp.type"] = "LogAppendTime"
        if self.record_bytes:
            found["max.message.bytes"] = str(self.record_bytes)
        return found

    @property
    def settings(self) -> Mapping[str, str]:
        """All settings a topic is made with: those that are needed, and those that keep it small."""
        found = {"compression.type": "producer"}
        if self.kept:
            found["segment.ms"] = str(self.kept // 7)  # retention takes whole segments away
        else:
            found |= {
                "segment.ms": str(HOUR),
                "segment.bytes": str(_SEGMENT_BYTES),
                "min.cleanable.dirty.ratio": "0.1",
                "delete.retention.ms": str(DAY),  # who reads on within it sees every deletion
            }
        return {**self.needed, **found}


class Mismatch(msgspec.Struct, frozen=True):
    """One thing in which a topic is not what it must be, and what to do."""

    topic: str
    setting: str
    found: str
    expected: str
    cure: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting} is {self.found}, expected {self.expected}; {self.cure}"


def wanted(config: Config, lineage: str) -> tuple[Topic, ...]:
    """Return the topics of a tenant, with those of a lineage's vectors and steps.

    >>> [(topic.name, topic.partitions) for topic in wanted(Config(), "1f2e")][:3]
    [('engagements', 3), ('edges', 3), ('producer-vectors.1f2e', 3)]
    """
    name = names.topics(config.kafka.prefix)
    count = config.engine.partitions
    table = (
        Topic(name.engagements, count, 7 * DAY, stamped=True),
        Topic(name.edges, count, 7 * DAY, record_bytes=8 << 20),
        Topic(names.vectors(config.kafka.prefix, lineage), count, None),
        Topic(names.steps(config.kafka.prefix, lineage), 1, None, sized_by="one order", record_bytes=2 << 20),
        Topic(name.models, 1, None, sized_by="one order"),
        Topic(name.training, 1, 7 * DAY, sized_by="one order", record_bytes=2 << 20),
        Topic(name.requests, count, HOUR, stamped=True),
        Topic(name.replies, config.kafka.reply_partitions, HOUR, sized_by="kafka.reply_partitions"),
        Topic(name.candidates, count, None),
        Topic(name.control, count, 7 * DAY, stamped=True),
        Topic(name.owners, count, None),
        Topic(name.dead_letters, count, 14 * DAY, record_bytes=2 << 20),  # a record of 1 MiB, as base64
    )
    return tuple(msgspec.structs.replace(topic, replication=config.kafka.replication) for topic in table)


def create(config: KafkaConfig, topics: Sequence[Topic], *, seconds: float = CONNECTING) -> list[str]:
    """Make the topics that are missing and return their names, once every one of `topics` can be written to.

    Leaves what is there as it is: `check` says whether it fits. Somebody else may do the same at the same time.
    Raises Unreachable, TopicRefused, or ValueError for settings with which nobody can connect.
    """
    asked = {
        topic.name: {
            "num_partitions": topic.partitions,
            "replication_factor": topic.replication,
            "configs": topic.settings,
        }
        for topic in topics
    }
    with _admin(config, seconds) as admin:
        codes: dict[str, int] = {}
        for answer in admin.create_topics(asked, raise_errors=False)["topics"]:
            name, code = answer["name"], answer["error_code"]
            if code not in (0, _EXISTS):
                raise TopicRefused(f"{name}: {_reason(code, answer['error_message'])}")
            codes[name] = code
        admin.wait_for_topics(list(asked), timeout_ms=seconds * 1000)
    return [name for name, code in codes.items() if code == 0]


def check(config: KafkaConfig, topics: Sequence[Topic], *, seconds: float = CONNECTING) -> list[Mismatch]:
    """Return everything in which the brokers' topics are not what they must be. Raises as `create` does."""
    with _admin(config, seconds) as admin:
        there = _described(admin, topics)
        asked = [ConfigResource("TOPIC", topic.name) for topic in topics if topic.name in there]
        settings = admin.describe_configs(asked, config_filter="all")["topic"] if asked else {}
    found: list[Mismatch] = []
    for topic in topics:
        if topic.name not in there:
            cure = "run: kithstream topics create"
            found.append(Mismatch(topic.name, "topic", "missing", f"{topic.partitions} partitions", cure))
            continue
        found += _placed(topic, there[topic.name])
        found += _set(topic, {key: value["value"] for key, value in settings[topic.name].items()})
    return found


class Ends(NamedTuple):
    """Where a topic's partitions begin and end."""

    first: Mapping[int, int]
    end: Mapping[int, int]


class Identity(msgspec.Struct, frozen=True):
    """What tells a compacted topic from another one of its name, and for how long it keeps tombstones."""

    id: str
    tombstones: int  # milliseconds


def identify(config: KafkaConfig, name: str, *, seconds: float = CONNECTING) -> Identity:
    """Return what a topic is. Raises as `create` does, and TopicRefused if it is not there."""
    with _admin(config, seconds) as admin:
        (answer,) = admin.describe_topics([name])
        if answer["error_code"]:
            raise TopicRefused(f"{name}: {_reason(answer['error_code'], None)}")
        found = admin.describe_configs([ConfigResource("TOPIC", name)], config_filter="all")["topic"][name]
        if "delete.retention.ms" not in found:
            raise TopicRefused(
                f"{name}: delete.retention.ms cannot be read; the user needs the right DescribeConfigs"
            )
        return Identity(str(answer["topic_id"]), int(found["delete.retention.ms"]["value"]))


def identities(config: KafkaConfig, names: Sequence[str], *, seconds: float = CONNECTING) -> dict[str, str]:
    """Return the id that the brokers gave each topic that is there when it was created. Raises Unreachable."""
    with _admin(config, seconds) as admin:
        found = admin.describe_topics(list(names))
    return {topic["name"]: str(topic["topic_id"]) for topic in found if not topic["error_code"]}


def _placed(topic: Topic, replicas: Sequence[int]) -> Iterator[Mismatch]:
    """Compare the replicas of each partition that is there."""
    count = len(replicas)
    if count != topic.partitions:
        cure = (
            f"it is never altered, accounts live by it: set {topic.sized_by}={count}, "
            "or begin anew under another kafka.prefix"
        )
        yield Mismatch(topic.name, "partitions", str(count), str(topic.partitions), cure)
    if min(replicas) < topic.replication:
        cure = "add replicas with kafka-reassign-partitions"
        yield Mismatch(topic.name, "replication", str(min(replicas)), str(topic.replication), cure)


def _set(topic: Topic, found: Mapping[str, str]) -> Iterator[Mismatch]:
    """Compare the settings that are needed."""
    for key, expected in topic.needed.items():
        if key not in found:
            raise TopicRefused(
                f"{topic.name}: {key} cannot be read; the user needs the right DescribeConfigs"
            )
        if not _serves(key, found[key], expected):
            cure = f"run: kafka-configs --alter --topic {topic.name} --add-config {key}={expected}"
            yield Mismatch(topic.name, key, found[key], expected, cure)


def _serves(key: str, found: str, expected: str) -> bool:
    if key in ("min.insync.replicas", "max.message.bytes"):
        return int(found) >= int(expected)
    if key == "retention.ms":
        return int(found) == -1 or int(found) >= int(expected)  # -1 keeps for ever
    return found == expected


def _described(admin: KafkaAdminClient, topics: Sequence[Topic]) -> dict[str, list[int]]:
    """Return how many replicas each partition has, of the topics that are there."""
    found = {}
    for answer in admin.describe_topics([topic.name for topic in topics]):
        code = answer["error_code"]
        if code == _UNKNOWN:
            continue
        if code:
            raise TopicRefused(f"{answer['name']}: {_reason(code, None)}")
        found[answer["name"]] = [len(partition["replica_nodes"]) for partition in answer["partitions"]]
    return found


def _reason(code: int, said: str | None) -> str:
    error = errors.for_code(code)
    return f"{error.__name__.removesuffix('Error')}: {said or error.description}"


@contextmanager
def _admin(config: KafkaConfig, seconds: float) -> Iterator[KafkaAdminClient]:
    """Connect; raises Unreachable with the reason, which kafka-python tells its log alone."""
    settings = reach(config)
    opened: list[KafkaNetClient] = []

    def client(**given: object) -> KafkaNetClient:
        opened.append(KafkaNetClient(**given))
        return opened[-1]

    milliseconds = int(seconds * 1000)
    with Refusals.of("kafka", alone=True) as refusals:
        try:
            yield KafkaAdminClient(
                **settings,
                kafka_client=client,
                bootstrap_timeout_ms=milliseconds,
                request_timeout_ms=milliseconds,
            )
        except errors.KafkaError as error:
            why = refusals.why(config.security, error)
            raise Unreachable(
                f"no broker of {config.servers} could be used in {seconds:g} s: {why}"
            ) from error
        finally:
            for net in opened:
                net.close()  # the admin client leaves its thread behind where it cannot connect
