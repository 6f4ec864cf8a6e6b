"""The stream process over a real broker: nothing lost, nothing twice, nothing that stops a partition."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from drive import MODEL, PARTITIONS, Drive, run
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from promises import agree

from kithstream.streams import manifest
from kithstream.streams.config import EngineConfig, KafkaConfig, StoreConfig, WorkerConfig
from kithstream.streams.engine import frames
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.frames import Frame
from kithstream.streams.engine.partition import FORMAT, LAYOUT, UPGRADED
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import GapInLog, StoreRefused, WrongLayout
from kithstream.streams.events import wire as events
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka import wire
from kithstream.streams.kafka.names import vectors
from kithstream.streams.kafka.stream import HELD
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore

NOW = 1_790_600_000_000_000
ROUTE = Route(PARTITIONS)
NAMES = [f"u{number}" for number in range(24)]


def follow(actor: str, target: str, time: int = NOW - 1000, signal: str = "follow") -> Event:
    return Event(f"{signal}-{actor}-{target}-{time}", signal, actor, time, target=target)


def world() -> list[Event]:
    """Follows, blocks, likes and undos among a few accounts."""
    found = [
        follow(a, b, NOW - 1000 - at) for at, a in enumerate(NAMES) for b in NAMES[at % 5 :: 5] if a != b
    ]
    found += [follow(a, b, NOW - 500, "unfollow") for a, b in zip(NAMES[::3], NAMES[1::3], strict=True)]
    found += [follow(a, b, NOW - 400, "block") for a, b in zip(NAMES[::4], NAMES[2::4], strict=True)]
    found += [Event(f"p-{a}", "profile", a, NOW - 300, language="de", country="AT") for a in NAMES[::6]]
    return found


def engine_of(folder: Path) -> Engine:
    small = StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20)
    stores = [RocksStore(folder / "state" / str(number), small) for number in range(PARTITIONS)]
    return Engine(stores, EngineConfig(partitions=PARTITIONS), salt=b"salt" * 4)


def holds(folder: Path, published: list[Event]) -> None:
    """Assert that the stores under a folder hold what the events mean."""
    engine = engine_of(folder)
    agree(engine, published)
    engine.close()


def test_the_state_is_what_the_log_means_and_vectors_are_out(tenant: KafkaConfig, tmp_path: Path) -> None:
    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()
            listed = {record.key.decode() for record in drive.everywhere(drive.vectors) if record.key[0]}
            assert listed == set(NAMES)
            assert drive.stream.caught_up
            assert not drive.dead()

    run(body())
    holds(tmp_path, world())


def test_a_stray_goes_to_its_own_partition_once(tenant: KafkaConfig, tmp_path: Path) -> None:
    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            stray = follow("u1", "u2")
            wrong = (ROUTE["u1"] + 1) % PARTITIONS
            drive.publish([stray], partition=wrong)
            await drive.settle()
            assert drive.stream.counts.moved == 1
            (moved,) = drive.read(drive.names.engagements, ROUTE["u1"])
            assert moved.value == events.encode(stray)
            assert dict(moved.headers) == {wire.MOVED: f"{wrong}:0".encode()}
            producer = KafkaProducer(bootstrap_servers=tenant.servers)
            again = events.encode(follow("u1", "u3"))
            producer.send(drive.names.engagements, again, partition=wrong, headers=[(wire.MOVED, b"1:1")])
            producer.close()
            await drive.settle()
            assert drive.stream.counts.moved == 1
            (dead,) = drive.dead()
            assert (dead.reason, dead.partition, dead.offset) == ("wrong_partition", wrong, 1)

    run(body())
    holds(tmp_path, [follow("u1", "u2")])


def test_poison_becomes_dead_letters_and_the_stream_goes_on(tenant: KafkaConfig, tmp_path: Path) -> None:
    poison = [b"", b"{", b"\xff\xfe", b'{"signal":"follow"}', b"x" * 20_000]

    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish([*poison[:3], follow("u1", "u2"), *poison[3:]], partition=ROUTE["u1"])
            await drive.settle()
            dead = drive.dead()
            assert [d.reason for d in dead] == ["malformed", "malformed", "malformed", "missing", "oversize"]
            assert [d.offset for d in dead] == [0, 1, 2, 4, 5]
            assert {d.topic for d in dead} == {drive.names.engagements}
            assert base64.b64decode(dead[3].record) == poison[3]
            assert drive.stream.counts.dead == {"malformed": 3, "missing": 1, "oversize": 1}

    run(body())
    holds(tmp_path, [follow("u1", "u2")])


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xc1",
        b"not a frame",
        msgspec.msgpack.encode([1, [b"no nul", b"x"]]),
        frames.encode(Frame(NOW, states=[b"u2\0\xffu1\0", bytes(14)], source=0, upto=1)),  # of no family
    ],
)
def test_a_corrupt_frame_is_buried_and_its_neighbours_are_folded(
    bad: bytes, tenant: KafkaConfig, tmp_path: Path
) -> None:
    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            producer = KafkaProducer(bootstrap_servers=tenant.servers)
            drive.publish([follow("u1", "u2")])
            for raw in (bad, b"another", bad):
                producer.send(drive.names.edges, raw, partition=ROUTE["u2"]).get(10)
            drive.publish([follow("u3", "u2")])
            producer.close()
            await drive.settle()
            dead = drive.dead()
            assert {(one.reason, one.topic) for one in dead} == {("malformed_frame", drive.names.edges)}
            found = sorted((one.offset, base64.b64decode(one.record)) for one in dead)
            assert [raw for _, raw in found] == [bad, b"another", bad]
            partition = drive.stream.shards[ROUTE["u2"]].partition
            assert partition.heard[ROUTE["u1"]] >= 1
            assert partition.edges == drive.fetch(drive.names.edges, ROUTE["u2"], 0).ends

    run(body())
    holds(tmp_path, [follow("u1", "u2"), follow("u3", "u2")])


def test_what_a_dead_process_had_not_sent_or_published_comes_from_its_store(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    """The process dies after its write: frames wait in the outbox, vectors behind marks."""

    async def dies() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish([follow("u1", "u2")])
            await drive.settle()
            drive.publish([follow("u3", "u2"), follow("u2", "u1")])
            for number in range(PARTITIONS):
                at = drive.stream.position(drive.names.engagements, number)
                assert at is not None
                fetch = drive.fetch(drive.names.engagements, number, at)
                # What a process does that dies in `act`, behind the write and before the first send.
                shard = drive.stream.shards[number]
                records = [Record(r.timestamp * 1000, r.value) for r in fetch.records]
                shard.act(shard.decode(records, [r.offset for r in fetch.records]), fetch.ends)

    async def lives() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            before = {(r.partition, r.offset) for r in drive.everywhere(drive.vectors)}
            await drive.own()
            await drive.settle()
            fresh = [r.key for r in drive.everywhere(drive.vectors) if (r.partition, r.offset) not in before]
            assert {b"u1", b"u2"} <= set(fresh)
            assert drive.stream.outbox == 0
            marks = [shard.partition.marked for shard in drive.stream.shards.values()]
            assert marks == [{}] * PARTITIONS

    run(dies())
    run(lives())
    holds(tmp_path, [follow("u1", "u2"), follow("u3", "u2"), follow("u2", "u1")])


def test_an_empty_directory_begins_with_the_newest_checkpoint(tenant: KafkaConfig, tmp_path: Path) -> None:
    worker = WorkerConfig(checkpoints=str(tmp_path / "shared"))
    first, second = tmp_path / "first", tmp_path / "second"

    async def one() -> None:
        async with Drive(tenant, first, worker=worker, now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()
            await drive.stream.close()

    async def other() -> None:
        async with Drive(tenant, second, worker=worker, now=NOW, name="w2") as drive:
            await drive.own()
            for number, shard in drive.stream.shards.items():
                assert shard.partition.applied == drive.fetch(drive.names.engagements, number, 0).ends
            drive.publish([follow("u1", "u9", NOW - 10)])
            await drive.settle()

    run(one())
    run(other())
    holds(second, [*world(), follow("u1", "u9", NOW - 10)])


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tenant: KafkaConfig, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A bit that is flipped where RocksDB does not look when it opens is met all the same."""
    worker = WorkerConfig(checkpoints=str(tmp_path / "shared"))

    async def one() -> None:
        async with Drive(tenant, tmp_path / "first", worker=worker, now=NOW) as drive:
            for part in (world()[:50], world()[50:]):
                await drive.own()
                drive.publish(part)
                await drive.settle()
                await drive.stream.close()

    reached: list[int] = []

    async def other() -> None:
        async with Drive(tenant, tmp_path / "second", worker=worker, now=NOW, name="w2") as drive:
            await drive.own()
            reached.extend(shard.partition.applied for shard in drive.stream.shards.values())
            await drive.settle()

    run(one())
    names = []
    for number in range(PARTITIONS):
        older, newest = sorted((tmp_path / "shared" / str(number)).iterdir())
        there = {path.name for path in older.iterdir()}  # on one disk both name the same bytes
        tables = sorted(path for path in newest.glob("*.sst") if path.name not in there)
        file = newest / manifest.NAME if damage == "manifest" else tables[0]
        names.append(file.name)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if damage in ("remove", "manifest"):
            file.unlink()
        else:
            file.write_bytes(content if damage == "flip" else content[:-1])
    with caplog.at_level("ERROR"):
        run(other())
    for name in names:
        assert name in caplog.text
    assert reached == [
        int(min((tmp_path / "shared" / str(n)).iterdir()).name.split("-")[0]) for n in range(PARTITIONS)
    ]
    holds(tmp_path / "second", world())


def test_a_checkpoint_of_the_build_before_is_taken_and_upgraded(tenant: KafkaConfig, tmp_path: Path) -> None:
    """It has no manifest, and stores of the format before."""
    worker = WorkerConfig(checkpoints=str(tmp_path / "shared"))

    async def one() -> None:
        async with Drive(tenant, tmp_path / "first", worker=worker, now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()
            for number, shard in drive.stream.shards.items():
                layout = f"{UPGRADED} {number}/{PARTITIONS}".encode()
                shard.partition.store.write({Column.META: {LAYOUT: layout}})
            await drive.stream.close()

    async def other() -> None:
        async with Drive(tenant, tmp_path / "second", worker=worker, now=NOW, name="w2") as drive:
            await drive.own()
            for number, shard in drive.stream.shards.items():
                assert shard.partition.applied == drive.fetch(drive.names.engagements, number, 0).ends
                (layout,) = shard.partition.store.get(Column.META, [LAYOUT])
                assert layout == f"{FORMAT} {number}/{PARTITIONS}".encode()

    run(one())
    for file in (tmp_path / "shared").rglob("manifest.*"):
        file.unlink()
    run(other())
    holds(tmp_path / "second", world())


def test_a_topic_that_was_created_anew_is_not_taken_for_the_one_before(
    tenant: KafkaConfig, admin: KafkaAdminClient, tmp_path: Path, until: Callable[[Callable[[], bool]], None]
) -> None:
    """However many records it holds by then, and though nobody lets go of a partition meanwhile."""

    async def fills() -> None:
        async with Drive(tenant, tmp_path / "first", now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()
            created_anew(drive.names.engagements)
            drive.publish([follow("u1", "u9", NOW)])
            number = drive.stream.shards.route["u1"]
            fetch = await asyncio.to_thread(drive.fetch, drive.names.engagements, number, 0)
            with pytest.raises(
                StoreRefused, match="created anew"
            ):  # its consumer was set back to the beginning
                await drive.stream.act(number, fetch)
            drive.publish(2 * world())

    async def again() -> None:
        async with Drive(tenant, tmp_path / "first", now=NOW) as drive:
            with pytest.raises(
                StoreRefused, match=r"engagements was created anew: its id is .*, the state is of"
            ):
                await drive.own()

    def created_anew(topic: str) -> None:
        admin.delete_topics([topic])
        until(lambda: topic not in admin.list_topics())
        admin.create_topics([NewTopic(topic, PARTITIONS, 1)])

    run(fills())
    run(again())


def test_a_state_that_the_topic_does_not_reach_back_to_is_refused(
    tenant: KafkaConfig, admin: KafkaAdminClient, tmp_path: Path
) -> None:
    async def fills() -> None:
        async with Drive(tenant, tmp_path / "first", now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()

    async def late() -> None:
        async with Drive(tenant, tmp_path / "second", now=NOW) as drive:
            gone = TopicPartition(drive.names.engagements, 1)
            admin.delete_records({gone: 5})
            with pytest.raises(GapInLog, match=r"partition 1: the state ends at offset 0, .* begins at 5"):
                await drive.own()

    async def anyway() -> None:
        worker = WorkerConfig(accept_gap=True)
        async with Drive(tenant, tmp_path / "third", worker=worker, now=NOW) as drive:
            await drive.own()
            assert drive.stream.shards[1].partition.applied == 5

    run(fills())
    run(late())
    run(anyway())


def test_a_topic_that_lost_records_is_refused(
    tenant: KafkaConfig, create_topics: Callable[[KafkaConfig], None], tmp_path: Path
) -> None:
    async def fills() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()

    other = msgspec.structs.replace(tenant, prefix=f"again-{tenant.prefix}")

    async def again() -> None:
        async with Drive(other, tmp_path, now=NOW) as drive:
            with pytest.raises(StoreRefused, match="the topic has lost records"):
                await drive.own()

    run(fills())
    create_topics(other)
    run(again())


def test_another_partition_count_is_refused(tenant: KafkaConfig, tmp_path: Path) -> None:
    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own([0])
        shutil.move(tmp_path / "state" / "0", tmp_path / "state" / "1")
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            with pytest.raises(WrongLayout):
                await drive.own([1])

    run(body())


def test_account_control_reaches_the_engagements_and_nothing_else_does(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish([follow("u1", "u2")])
            deactivate = events.encode(Event("c1", "account_deactivate", "u2", NOW - 10))
            await drive.stream.control(0, 0, NOW // 1000, deactivate)
            await drive.stream.control(0, 1, NOW // 1000, events.encode(follow("u3", "u1")))
            await drive.stream.control(0, 2, NOW // 1000, b"{")
            await drive.settle()
            assert drive.stream.shards[ROUTE["u2"]].partition.profile("u2").inactive
            assert [(d.reason, d.topic) for d in drive.dead()] == [
                ("unknown_signal", drive.names.control),
                ("malformed", drive.names.control),
            ]
            last = {r.key: r.value for r in drive.everywhere(drive.vectors)}
            told = msgspec.msgpack.decode(last[b"u2"] or b"", type=wire.Vector)
            assert (told.vector, told.followers) == (b"", ["u1"])  # no candidate; paths lead through it

    run(body())


def test_a_partition_that_comes_back_is_read_from_its_own_store(tenant: KafkaConfig, tmp_path: Path) -> None:
    async def body() -> None:
        async with Drive(tenant, tmp_path / "a", now=NOW) as a, Drive(tenant, tmp_path / "b", now=NOW) as b:
            await a.own([0, 1, 2])
            a.publish(world()[:40])
            await a.settle()
            await a.stream.revoked()
            await a.own([0], 2)
            await b.own([1, 2], 2)
            a.publish(world()[40:])
            for _ in range(3):
                await a.settle()
                await b.settle()
            await b.stream.revoked()
            await b.own([], 3)
            await a.own([0, 1, 2], 3)
            await a.settle()
            assert wire.Closing(1) in b.listener.heard

    run(body())
    holds(tmp_path / "a", world())


def test_a_deleted_account_leaves_nothing_on_any_partition(tenant: KafkaConfig, tmp_path: Path) -> None:
    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()
            drive.publish([Event("d", "account_delete", "u3", NOW - 1)])
            await drive.settle()
            last = {r.key: r.value for r in drive.everywhere(drive.vectors)}
            assert last[b"u3"] is None
            assert last[b"u4"] is not None
            drive.publish([follow("u1", "u3", NOW - 5)])
            await drive.settle()
            assert [d.reason for d in drive.dead()] == ["deleted"]

    run(body())
    for partition in engine_of(tmp_path).here():
        for column in ("out", "in", "said", "heard", "rows"):
            assert not [
                key for key, _ in partition.store.scan(Column(column), b"") if b"u3" in key.split(b"\0")
            ]


def test_what_somebody_else_published_is_not_published_again_before_it_has_aged(
    tenant: KafkaConfig, admin: KafkaAdminClient, tmp_path: Path, until: Callable[[Callable[[], bool]], None]
) -> None:
    """Unless the vectors' topic is another one."""
    minute = 60_000_000
    decode = msgspec.msgpack.Decoder(wire.Vector).decode
    old, young = [follow("u1", "u2", NOW - 90 * minute)], [follow("u3", "u4")]

    async def published(now: int, *, given: list[Event] | None = None) -> list[str]:
        """Accounts of which a process publishes vectors that opens the stores and lets go of them."""
        async with Drive(tenant, tmp_path, now=now) as drive:
            before = {(r.partition, r.offset) for r in drive.everywhere(drive.vectors)}
            await drive.own()
            drive.publish(given or [])
            await drive.settle()
            await drive.stream.close()
            came = [r for r in drive.everywhere(drive.vectors) if (r.partition, r.offset) not in before]
        told = [(r.key.decode(), decode(r.value)) for r in came if r.key != wire.PROGRESS and r.value]
        return sorted(account for account, vector in told if vector.vector)

    async def body() -> None:
        assert await published(NOW, given=[*old, *young]) == ["u2", "u4"]
        assert await published(NOW) == []
        assert await published(NOW + 2 * minute) == ["u4"]
        assert await published(NOW + 2 * minute) == []
        assert await published(NOW + 60 * minute) == ["u2", "u4"]
        topic = vectors(tenant.prefix, MODEL.lineage)
        admin.delete_topics([topic])
        until(lambda: topic not in admin.list_topics())
        admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
        assert await published(NOW + 60 * minute) == ["u2", "u4"]
        assert await published(NOW + 60 * minute) == []

    run(body())


def test_a_topic_of_vectors_that_is_created_anew_is_filled_by_the_next_process(
    tenant: KafkaConfig, admin: KafkaAdminClient, tmp_path: Path, until: Callable[[Callable[[], bool]], None]
) -> None:
    """Though the process that saw it happen was assigned once more, and went on to publish."""
    topic = vectors(tenant.prefix, MODEL.lineage)

    async def again() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()
            first = drive.stream.outlets[0].identity
            admin.delete_topics([topic])
            until(lambda: topic not in admin.list_topics())
            admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
            await drive.own()
            assert drive.stream.outlets[0].identity == first
            await drive.stream.close()
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            assert drive.stream.outlets[0].identity not in ("", first)
            await drive.settle()
            assert {r.key.decode() for r in drive.everywhere(topic) if r.key[0]} == set(NAMES)

    run(again())


@pytest.mark.parametrize(("seconds", "rows", "waits"), [(0.0, 10, True), (HELD, 10, False), (0.0, 0, False)])
def test_who_takes_over_with_an_older_state_does_not_publish_it(
    seconds: float, rows: int, tenant: KafkaConfig, tmp_path: Path, *, waits: bool
) -> None:
    """Nor when it is told to end on its way; only after half a minute of catching up, or if much has changed."""
    worker = WorkerConfig(dirty_rows=rows)
    decode = msgspec.msgpack.Decoder(wire.Vector).decode

    def published(drive: Drive) -> dict[str, list[bytes]]:
        told: dict[str, list[bytes]] = {}
        for r in drive.everywhere(drive.vectors):
            if r.key != wire.PROGRESS and r.value is not None:
                told.setdefault(r.key.decode(), []).append(decode(r.value).vector)
        return told

    async def owned(folder: str, given: list[Event]) -> dict[str, list[bytes]]:
        async with Drive(tenant, tmp_path / folder, now=NOW) as drive:
            await drive.own()
            drive.publish(given)
            await drive.settle()
            await drive.stream.close()
            return published(drive)

    async def body() -> None:
        await owned("a", world()[:40])
        newest = await owned("b", world()[40:])
        async with Drive(tenant, tmp_path / "a", worker=worker, now=NOW) as a:
            await a.own()
            fetch = a.fetch(a.names.engagements, 0, a.stream.position(a.names.engagements, 0) or 0)
            assert (
                await a.stream.act(0, fetch._replace(ends=fetch.begins + 1, records=fetch.records[:1]))
                is None
            )
            a.seconds = seconds
            await a.stream.flush()
            await a.stream.close()
            assert (published(a) == newest) == waits
        last = await owned("a", [])
        assert {name: told[-1] for name, told in last.items()} == {n: told[-1] for n, told in newest.items()}

    run(body())


def test_vectors_are_those_of_the_model(tenant: KafkaConfig, tmp_path: Path) -> None:
    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish(world())
            await drive.settle()
            last = {r.key: r.value for r in drive.everywhere(drive.vectors)}
            vector = msgspec.msgpack.decode(last[b"u5"], type=wire.Vector)
            rows = drive.stream.reader.read(["u5"], drive.stream.tick * 60_000_000)
            assert vector.vector == MODEL.encode_producers(rows).vectors[0].tobytes()
            assert vector.followers == list(rows.followers[0])
            assert vector.generation == 1

    run(body())


def test_what_is_replayed_is_not_pushed_again(tenant: KafkaConfig, tmp_path: Path) -> None:
    def changed(drive: Drive) -> set[str]:
        told = [one for one in drive.listener.heard if isinstance(one, wire.Changed)]
        return {name for one in told for name in (*one.accounts, *one.urgent)}

    async def body() -> None:
        async with Drive(tenant, tmp_path / "a", now=NOW) as a:
            await a.own()
            a.publish([follow("u1", "u2"), follow("u3", "u4", signal="block")])
            await a.settle()
            assert changed(a) == {"u1", "u3", "u4"}
        async with Drive(tenant, tmp_path / "b", now=NOW) as b:
            await b.own()
            await b.settle()
            # The block's frame came again beside the old one, in one fetch: such a fetch is rather pushed for.
            assert changed(b) <= {"u4"}
            b.publish([follow("u5", "u2")])
            await b.settle()
            assert changed(b) - {"u4"} == {"u5"}

    run(body())


def test_vectors_of_a_group_that_counts_anew_are_no_zombie_s(tenant: KafkaConfig, tmp_path: Path) -> None:
    """The brokers forget a group that was away for long; its next generation is the first again."""

    async def body() -> None:
        for generation in (7, 1, 9):
            async with Drive(tenant, tmp_path, now=NOW) as drive:
                await drive.own(generation=generation)
                drive.publish([follow("u1", "u2", NOW - generation)])
                await drive.settle()
        decode = msgspec.msgpack.Decoder(wire.Vector).decode
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            records = drive.read(drive.vectors, ROUTE["u2"])
        told = [decode(record.value).generation for record in records if record.key == b"u2"]
        assert told == sorted(told)
        assert told[0] == 7
        assert 8 in told
        assert told[-1] == 9

    run(body())


@pytest.mark.parametrize("signal", ["retract", "account_delete"])
def test_every_destination_hears_of_a_batch_that_is_folded_in_parts(
    signal: str, tenant: KafkaConfig, tmp_path: Path
) -> None:
    """The parts before a retract or a deletion send frames that do not say everything below the batch's end yet."""
    actor = next(name for name in NAMES if ROUTE[name] == 0)
    targets = [next(name for name in NAMES if ROUTE[name] == number) for number in range(1, PARTITIONS)]
    batch = [follow(actor, target) for target in targets]
    if signal == "retract":
        batch.append(Event("r", "retract", actor, NOW - 10, retracts=batch[0].id))
    else:
        other = next(name for name in NAMES if ROUTE[name] == 0 and name != actor)
        batch.append(Event("d", "account_delete", other, NOW - 10))

    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own()
            drive.publish(batch)
            await drive.settle()
            heard = [drive.stream.shards[number].partition.heard[0] for number in range(PARTITIONS)]
            assert heard == [len(batch)] * PARTITIONS

    run(body())


def test_an_own_store_that_the_topic_left_behind_gives_way_to_a_checkpoint(
    tenant: KafkaConfig, admin: KafkaAdminClient, tmp_path: Path
) -> None:
    """A worker comes back after its partitions went on elsewhere for longer than the topic keeps."""
    worker = WorkerConfig(checkpoints=str(tmp_path / "shared"))

    async def first() -> None:
        async with Drive(tenant, tmp_path / "a", worker=WorkerConfig(), now=NOW) as a:
            await a.own()
            a.publish(world()[:30])
            await a.settle()

    async def meanwhile() -> None:
        async with Drive(tenant, tmp_path / "b", worker=worker, now=NOW, name="w2") as b:
            await b.own()
            b.publish(world()[30:])
            await b.settle()
            await b.stream.close()
            ends = {n: b.fetch(b.names.engagements, n, 0).ends for n in range(PARTITIONS)}
        admin.delete_records({TopicPartition(b.names.engagements, n): end for n, end in ends.items()})

    async def again() -> None:
        async with Drive(tenant, tmp_path / "a", worker=worker, now=NOW) as a:
            await a.own()
            await a.settle()

    run(first())
    run(meanwhile())
    run(again())
    holds(tmp_path / "a", world())


def test_progress_is_published_once_more_over_that_of_a_zombie(tenant: KafkaConfig, tmp_path: Path) -> None:
    """Of a compacted topic the last progress alone may be left, and the zombie's stands for nothing."""

    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own(generation=2)
            drive.publish([follow("u1", "u2")])
            await drive.settle()
            await drive.settle()  # the first flush does not say yet that every account has a vector
            number = ROUTE["u2"]
            zombie = msgspec.msgpack.encode(wire.Progress(1, 9, [9] * PARTITIONS))
            await (await drive.producer.send(drive.vectors, number, zombie, key=wire.PROGRESS))
            drive.stream.stale(wire.Stale(number, [], 2))
            await drive.settle()
            last = drive.read(drive.vectors, number)[-1]
        assert last.key == wire.PROGRESS
        assert msgspec.msgpack.decode(last.value, type=wire.Progress).generation == 2

    run(body())


def test_a_generation_below_the_topic_s_is_raised_above_it(tenant: KafkaConfig, tmp_path: Path) -> None:
    """The brokers forgot the group, and the store is too old to know: its vectors would be a zombie's for ever."""

    async def body() -> None:
        async with Drive(tenant, tmp_path, now=NOW) as drive:
            await drive.own(generation=2)
            drive.publish([follow("u1", "u2")])
            await drive.settle()
            drive.listener.heard.clear()
            drive.stream.stale(wire.Stale(ROUTE["u2"], ["u2"], 40))
            await drive.settle()
            (opened,) = [one for one in drive.listener.heard if isinstance(one, wire.Opened)]
            assert (opened.partition, opened.generation) == (ROUTE["u2"], 41)
            records = drive.read(drive.vectors, ROUTE["u2"])
        newest = {record.key: record.value for record in records}
        assert msgspec.msgpack.decode(newest[b"u2"], type=wire.Vector).generation == 41
        assert msgspec.msgpack.decode(newest[wire.PROGRESS], type=wire.Progress).generation == 41

    run(body())
