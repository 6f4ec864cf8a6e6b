"""Topics are made once, left as they are, and named in everything that is wrong with them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier

import msgspec
import pytest
from click.testing import CliRunner, Result
from kafka.admin import KafkaAdminClient

from kithstream.models.model import Model
from kithstream.streams.cli import cli
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.errors import TopicRefused
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.topics import DAY, HOUR, Topic, check, create, wanted

LINEAGE = "1f2e"
NAMES = (
    "engagements",
    "edges",
    f"producer-vectors.{LINEAGE}",
    f"model-steps.{LINEAGE}",
    "models",
    "training",
    "retrieval-requests",
    "replies",
    "candidates",
    "account-control",
    "owners",
    "dead-letters",
)
replace = msgspec.structs.replace
_numbers = count(1)


@pytest.fixture
def config(broker: LocalKafka) -> Config:
    """Settings with a prefix that no other test has."""
    return Config(kafka=KafkaConfig(servers=broker.servers, prefix=f"topics-{next(_numbers)}."))


def one(config: Config, name: str) -> Topic:
    """The topic that ends in a name."""
    (found,) = [topic for topic in wanted(config, LINEAGE) if topic.name == config.kafka.prefix + name]
    return found


def test_what_is_made_is_as_it_must_be(config: Config) -> None:
    table = wanted(config, LINEAGE)
    missing = check(config.kafka, table)
    assert [(found.topic, found.setting, found.found) for found in missing] == [
        (config.kafka.prefix + name, "topic", "missing") for name in NAMES
    ]
    assert "kithstream topics create" in missing[0].cure
    assert create(config.kafka, table) == [config.kafka.prefix + name for name in NAMES]
    assert check(config.kafka, table) == []


def test_making_twice_makes_nothing_and_fills_gaps(config: Config) -> None:
    table = wanted(config, LINEAGE)
    assert create(config.kafka, table[:4]) == [topic.name for topic in table[:4]]
    assert create(config.kafka, table) == [topic.name for topic in table[4:]]
    assert create(config.kafka, table) == []
    assert check(config.kafka, table) == []


def test_many_may_make_them_at_once(config: Config) -> None:
    table = wanted(config, LINEAGE)
    begin = Barrier(8)

    def make(_: int) -> list[str]:
        begin.wait(10)
        return create(config.kafka, table)

    with ThreadPoolExecutor(8) as pool:
        made = [name for names in pool.map(make, range(8)) for name in names]
    assert sorted(made) == sorted(topic.name for topic in table)
    assert check(config.kafka, table) == []


def test_topics_of_accounts_have_one_partition_count(config: Config) -> None:
    sized = replace(
        config, engine=EngineConfig(partitions=5), kafka=replace(config.kafka, reply_partitions=2)
    )
    counts = {
        topic.name.removeprefix(config.kafka.prefix): topic.partitions for topic in wanted(sized, LINEAGE)
    }
    ordered = dict.fromkeys((f"model-steps.{LINEAGE}", "models", "training"), 1)
    assert counts == dict.fromkeys(NAMES, 5) | {"replies": 2} | ordered


@pytest.mark.parametrize(
    ("name", "other", "setting", "found", "expected"),
    [
        ("engagements", {"partitions": 5}, "partitions", "5", "3"),
        ("replies", {"partitions": 1}, "partitions", "1", "16"),
        ("engagements", {"kept": None}, "cleanup.policy", "compact", "delete"),
        ("candidates", {"kept": DAY}, "cleanup.policy", "delete", "compact"),
        ("owners", {"kept": DAY}, "cleanup.policy", "delete", "compact"),
        ("engagements", {"kept": 7 * DAY - 1}, "retention.ms", str(7 * DAY - 1), str(7 * DAY)),
        ("dead-letters", {"kept": 7 * DAY}, "retention.ms", str(7 * DAY), str(14 * DAY)),
        ("engagements", {"stamped": False}, "message.timestamp.type", "CreateTime", "LogAppendTime"),
        ("retrieval-requests", {"stamped": False}, "message.timestamp.type", "CreateTime", "LogAppendTime"),
        ("account-control", {"stamped": False}, "message.timestamp.type", "CreateTime", "LogAppendTime"),
        ("edges", {"record_bytes": 1 << 20}, "max.message.bytes", str(1 << 20), str(8 << 20)),
    ],
)
def test_what_is_wrong_is_named_and_left(
    config: Config, name: str, other: dict[str, object], setting: str, found: str, expected: str
) -> None:
    right = one(config, name)
    create(config.kafka, [replace(right, **other)])
    assert create(config.kafka, [right]) == []
    mismatches = {mismatch.setting: mismatch for mismatch in check(config.kafka, [right])}
    mismatch = mismatches.pop(setting)
    assert mismatches.keys() <= {"retention.ms"}  # a compacted topic has no retention to speak of
    assert (mismatch.topic, mismatch.found, mismatch.expected) == (right.name, found, expected)
    assert str(mismatch).startswith(f"{right.name}: {setting} is {found}, expected {expected}; ")


@pytest.mark.parametrize(
    ("name", "setting"), [("edges", "engine.partitions"), ("replies", "kafka.reply_partitions")]
)
def test_a_wrong_partition_count_is_told_with_the_setting_to_change(
    config: Config, name: str, setting: str
) -> None:
    right = one(config, name)
    create(config.kafka, [replace(right, partitions=2)])
    (mismatch,) = check(config.kafka, [right])
    assert f"{setting}=2" in mismatch.cure
    assert "kafka.prefix" in mismatch.cure


def test_longer_retention_and_larger_batches_are_right(config: Config) -> None:
    right = one(config, "edges")
    create(config.kafka, [replace(right, kept=8 * DAY, record_bytes=9 << 20)])
    assert check(config.kafka, [right]) == []


@pytest.mark.parametrize(
    ("key", "given", "right"),
    [
        ("retention.ms", "-1", True),
        ("retention.bytes", "1000000", False),
        ("cleanup.policy", "compact,delete", False),
    ],
)
def test_what_somebody_else_made_is_judged_by_what_it_keeps(
    config: Config, key: str, given: str, right: bool
) -> None:
    topic = one(config, "engagements")
    spec = {"num_partitions": topic.partitions, "configs": {**topic.settings, key: given}}
    with KafkaAdminClient(bootstrap_servers=config.kafka.servers) as admin:
        admin.create_topics({topic.name: spec}, wait_for_metadata=True)
    found = check(config.kafka, [topic])
    assert [(m.setting, m.found) for m in found] == ([] if right else [(key, given)])
    for mismatch in found:
        assert f"--topic {topic.name} --add-config {key}={topic.needed[key]}" in mismatch.cure


def test_fewer_replicas_than_set_are_named(config: Config) -> None:
    table = wanted(config, LINEAGE)
    create(config.kafka, table)
    wider = replace(config, kafka=replace(config.kafka, replication=3))
    found = check(config.kafka, wanted(wider, LINEAGE))
    assert {(m.topic, m.found, m.expected) for m in found if m.setting == "replication"} == {
        (topic.name, "1", "3") for topic in table
    }
    assert {m.setting for m in found} == {"replication", "min.insync.replicas"}


def test_a_replication_that_cannot_be_had_is_refused(config: Config) -> None:
    wider = replace(config, kafka=replace(config.kafka, replication=3))
    with pytest.raises(TopicRefused, match=r"engagements: InvalidReplicationFactor: .*1 broker"):
        create(config.kafka, wanted(wider, LINEAGE))


def test_tenants_do_not_see_each_other(config: Config) -> None:
    table = wanted(config, LINEAGE)
    other = replace(config.kafka, prefix=f"{config.kafka.prefix}other.")
    create(config.kafka, table)
    assert {m.setting for m in check(other, wanted(replace(config, kafka=other), LINEAGE))} == {"topic"}
    with KafkaAdminClient(bootstrap_servers=config.kafka.servers) as admin:
        there = {name for name in admin.list_topics() if name.startswith(config.kafka.prefix)}
    assert there == {topic.name for topic in table}
    assert topics(config.kafka.prefix).engagements in there


def test_another_lineage_adds_its_vectors_and_steps_alone(config: Config) -> None:
    create(config.kafka, wanted(config, LINEAGE))
    table = wanted(config, "0a0a")
    prefix = config.kafka.prefix
    assert create(config.kafka, table) == [f"{prefix}producer-vectors.0a0a", f"{prefix}model-steps.0a0a"]


def test_compacted_topics_are_compacted_while_they_are_written(config: Config) -> None:
    for name in (f"producer-vectors.{LINEAGE}", "candidates", "owners"):
        settings = one(config, name).settings
        assert int(settings["segment.ms"]) == HOUR
        assert float(settings["min.cleanable.dirty.ratio"]) < 0.5


# -- the command line ----------------------------------------------------------------------------------------


def run(config: Config, name: str, *more: str) -> Result:
    kafka = [f"kafka.{key}={getattr(config.kafka, key)}" for key in ("servers", "prefix")]
    options = [word for option in kafka for word in ("-o", option)]
    return CliRunner().invoke(cli, ["topics", name, *options, *more])


def test_the_command_makes_them_once_and_finds_them_right(config: Config) -> None:
    prefix = config.kafka.prefix
    missing = run(config, "check", "--json")
    assert missing.exit_code == 1
    vectors = f"{prefix}producer-vectors.{Model.day_zero(0).lineage}"
    assert [json.loads(line)["topic"] for line in missing.stdout.splitlines()][2] == vectors
    first = json.loads(run(config, "create", "--json").stdout)
    again = json.loads(run(config, "create", "--json").stdout)
    assert first["created"] == again["there"]
    assert len(first["created"]) == len(NAMES)
    assert first["there"] == again["created"] == []
    assert run(config, "create").stdout.splitlines()[0] == f"there    {prefix}engagements"
    right = run(config, "check")
    assert (right.exit_code, right.stdout, right.stderr) == (0, "", "12 topics are as they must be\n")


def test_the_command_names_what_does_not_fit(config: Config) -> None:
    run(config, "create")
    for name in ("create", "check"):
        result = run(config, name, "-o", "engine.partitions=4")
        assert result.exit_code == 1
        lines = (result.stderr if name == "create" else result.stdout).splitlines()
        assert (
            len(lines) == len(NAMES) - 4
        )  # of one partition are the model's three; replies have their own count
        assert lines[0].startswith(f"{config.kafka.prefix}engagements: partitions is 3, expected 4; ")


def test_a_checkpoint_names_the_topic_of_its_vectors(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    Model.day_zero(0, lineage="0a0a").save(path)
    for more in (["--model", str(path)], ["-o", f"model.path={path}"]):
        made = run(config, "create", "--json", *more)
        found = json.loads(made.stdout)
        assert f"{config.kafka.prefix}producer-vectors.0a0a" in found["created"] + found["there"]


def test_a_replication_that_cannot_be_had_is_a_mistake_in_the_command(config: Config) -> None:
    result = run(config, "create", "-o", "kafka.replication=3")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert "InvalidReplicationFactor" in result.stderr
