"""Dead letters listed and replayed, over a real broker and by the command line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from drive import MODEL, PARTITIONS, Drive, run
from kafka import KafkaProducer
from test_stream import NOW, ROUTE, follow, holds

from kithstream.streams.cli import cli
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.events import wire as events
from kithstream.streams.kafka import dead_letters, names, replaying
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.topics import create, wanted
from kithstream.streams.kafka.wire import DeadLetter

WEEKS = 30 * 86_400_000_000


def command(kafka: KafkaConfig, *words: str) -> Result:
    """Run a command against the broker of a tenant."""
    settings = (f"kafka.servers={kafka.servers}", f"kafka.prefix={kafka.prefix}")
    given = [part for option in settings for part in ("-o", option)]
    return CliRunner().invoke(cli, ["dead-letters", *words, *given])


def bury(kafka: KafkaConfig, *letters: bytes, timestamps: tuple[int, ...] = ()) -> None:
    """Write records into the topic of dead letters."""
    producer = KafkaProducer(bootstrap_servers=kafka.servers, max_request_size=4 << 20)
    for at, raw in enumerate(letters):
        when = timestamps[at] if timestamps else None
        producer.send(names.topics(kafka.prefix).dead_letters, raw, partition=0, timestamp_ms=when).get(20)
    producer.close()


def test_what_was_too_early_is_replayed_and_counts_once(tenant: KafkaConfig, tmp_path: Path) -> None:
    early = follow("u1", "u2", NOW * 2)  # the publisher's clock is wrong, or the brokers'
    late = follow("u3", "u4", NOW - WEEKS)
    odd = b'{"id":"\x1b[31m\xe2\x80\xae","signal":"poke"}'

    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish([follow("u3", "u2"), early, late])
            drive.publish([odd], partition=1)
            await drive.settle()
            assert Counter(d.reason for d in drive.dead()) == {"future": 1, "too_late": 1, "malformed": 1}

            listed = command(tenant, "list", "--json")
            found = [msgspec.json.decode(raw, type=DeadLetter) for raw in listed.stdout.splitlines()]
            assert sorted(map(msgspec.structs.astuple, found)) == sorted(
                map(msgspec.structs.astuple, drive.dead())
            )
            by = {letter.reason: letter for letter in found}
            assert dead_letters.content(by["future"]) == events.encode(early)
            assert by["future"].size == len(events.encode(early))
            told = command(tenant, "list", "--partition", "1", "--reason", "malformed").stdout
            assert "malformed" in told
            assert f"{tenant.prefix}engagements/1@" in told
            assert told.isascii()
            assert "\x1b" not in told
            assert len(command(tenant, "list", "--limit", "2").stdout.splitlines()) == 2
            assert command(tenant, "list", "--topic", "edges").stdout == ""

            ends = {n: len(drive.read(drive.names.engagements, n)) for n in range(PARTITIONS)}
            dry = json.loads(command(tenant, "replay", "--all", "--dry-run", "--json").stdout)
            assert dry == {"would_publish": 3, "repeats": 0, "unreadable": 0, "refused": {}}
            assert ends == {n: len(drive.read(drive.names.engagements, n)) for n in range(PARTITIONS)}
            for _ in range(2):  # an event has an id, so again makes no difference
                done = json.loads(command(tenant, "replay", "--reason", "future", "--json").stdout)
                assert done == {"published": 1, "repeats": 0, "unreadable": 0, "refused": {}}
            again = drive.read(drive.names.engagements, ROUTE["u1"])[-2:]
            assert [record.value for record in again] == [events.encode(early)] * 2
            assert [record.key for record in again] == [b"u1"] * 2

    run(body())
    holds(tmp_path, [follow("u3", "u2")])


def test_a_record_that_was_mended_by_time_is_folded(tenant: KafkaConfig, tmp_path: Path) -> None:
    event = follow("u1", "u2")
    letter = dead_letters.letter(
        "malformed",
        "of an earlier build",
        f"{tenant.prefix}engagements",
        ROUTE["u1"],
        0,
        NOW,
        events.encode(event),
    )
    bury(tenant, letter, letter, b"no letter", b"[" * 2000)

    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            done = json.loads(command(tenant, "replay", "--all", "--json").stdout)
            assert done == {"published": 1, "repeats": 1, "unreadable": 2, "refused": {}}
            await drive.settle()
            assert drive.stream.counts.accepted == 1

    run(body())
    holds(tmp_path, [event])


def test_what_cannot_be_replayed_is_refused_and_named(tenant: KafkaConfig) -> None:
    prefix, raw = tenant.prefix, events.encode(follow("u1", "u2"))

    def one(reason: str, topic: str, offset: int, record: bytes = raw, partition: int = 0) -> bytes:
        return dead_letters.letter(reason, "why", topic, partition, offset, NOW, record)

    engagements = f"{prefix}engagements"
    old = msgspec.json.encode({**msgspec.json.decode(one("x", engagements, 9)), "record": "not base64!"})
    bury(
        tenant,
        one("oversize", engagements, 0, b"x" * 50_000),
        one("deleted", engagements, 1, b""),
        one("malformed_example", f"{prefix}training", 2),
        one("malformed", "somebody-elses", 3),
        one("malformed", engagements, 4, b""),
        one("malformed", engagements, 5, partition=77),
        old,
    )
    done = json.loads(command(tenant, "replay", "--all", "--json").stdout)
    assert done["published"] == 0
    assert done["refused"] == {
        "the letter does not hold all of the record": 2,
        "of a deleted account": 1,
        "an example: examples are learned in their order": 1,
        "of a topic that is not replayed": 1,
        "the record is empty": 1,
        "of a partition that is not there": 1,
    }
    assert len(command(tenant, "list").stdout.splitlines()) == 7


def test_since_leaves_older_letters_out(tenant: KafkaConfig) -> None:
    def one(offset: int) -> bytes:
        return dead_letters.letter("malformed", "why", f"{tenant.prefix}edges", 0, offset, NOW, b"frame")

    day = 86_400_000
    first = NOW // 1000
    bury(tenant, one(1), one(2), one(3), timestamps=(first, first + day, first + 2 * day))
    newer = replaying.wanted(tenant, since=NOW + 86_400_000_000)
    assert [letter.offset for letter in replaying.read(tenant, newer, Counter())] == [2, 3]
    late = replaying.wanted(tenant, since=NOW + 30 * 86_400_000_000)
    assert not list(replaying.read(tenant, late, Counter()))
    listed = command(tenant, "list", "--json", "--since", "2026-01-01", "--topic", "edges").stdout
    assert len(listed.splitlines()) == 3


def test_a_letter_of_the_largest_frame_fits_the_topic_and_is_replayed(
    broker: LocalKafka, tmp_path: Path
) -> None:
    tenant = KafkaConfig(servers=broker.servers, prefix="letters.")  # topics as `topics create` makes them
    config = Config(kafka=tenant, engine=EngineConfig(partitions=PARTITIONS))
    create(tenant, wanted(config, MODEL.lineage))
    raw = b"\x00" * 999_000  # with the overhead of a batch the most that brokers take by default

    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            producer = KafkaProducer(bootstrap_servers=tenant.servers, max_request_size=4 << 20)
            producer.send(drive.names.edges, raw, partition=2).get(20)
            producer.send(drive.names.engagements, b"x" * 999_000, key=b"k" * 900, partition=2).get(20)
            producer.close()
            await drive.settle()
            by = {letter.reason: letter for letter in drive.dead()}
            assert dead_letters.content(by["malformed_frame"]) == raw
            assert dead_letters.content(by["oversize"]) is None
            assert by["oversize"].size == 999_000
            done = json.loads(command(tenant, "replay", "--topic", "edges", "--json").stdout)
            assert done["published"] == 1

    run(body())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("replay",), "which letters?"),
        (("list", "--since", "yesterday"), "--since is 'yesterday'"),
        (("list", "--limit", "0"), "0 is not in the range"),
    ],
)
def test_a_mistake_is_told_in_one_line(words: tuple[str, ...], said: str) -> None:
    result = command(KafkaConfig(servers="127.0.0.1:1"), *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_line_is_plain_text_whatever_a_letter_holds() -> None:
    letter = DeadLetter("r\u202e", "d\x1b[2J\n", "t\u2066", 0, 1, 1 << 70, "////", 3)
    line = replaying.line(letter)
    assert line.isascii()
    assert line.isprintable()
