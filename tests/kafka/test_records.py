"""The same examples from a topic of a real broker as from a file, and from the checkpoints of workers."""

from __future__ import annotations

import shutil
import time
from functools import cache
from itertools import accumulate
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from tests.examples.passing import CONFIG
from tests.examples.passing import events as simulated

from kithstream.models.ids import IdVectors
from kithstream.streams.cli import cli
from kithstream.streams.communities.carried import REVISION
from kithstream.streams.config import Config, KafkaConfig
from kithstream.streams.engine.actors import Record as Logged
from kithstream.streams.engine.partition import Partition
from kithstream.streams.engine.routing import Route
from kithstream.streams.engine.shard import Shard
from kithstream.streams.errors import GapInLog, StoreRefused
from kithstream.streams.events.record import Record
from kithstream.streams.examples import folder
from kithstream.streams.examples.batches import ExampleBatch, join
from kithstream.streams.examples.capture import Capture, Polled
from kithstream.streams.examples.passes import make
from kithstream.streams.examples.sources import FileSource
from kithstream.streams.examples.standing import standing, store_at
from kithstream.streams.kafka import names
from kithstream.streams.kafka.checkpoints import Checkpoints
from kithstream.streams.kafka.records import TopicSource
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore

COUNT = 700
P = 3
replace = msgspec.structs.replace
encode = msgspec.json.Encoder().encode


@cache
def events() -> list[Record]:
    """Simulated ones that end in the present: a broker deletes what is older than a topic's retention."""
    some = simulated(COUNT)
    by = int(time.time() * 1e6) - max(one["time"] for one in some)
    return [{**one, "time": one["time"] + by} for one in some]


@cache
def appended() -> list[int]:
    """When each was appended, milliseconds: a broker's own times never go back."""
    return list(accumulate((one["time"] // 1000 for one in events()), max))


def published(config: KafkaConfig, first: int = 0, last: int = COUNT) -> None:
    """Publish events with their own times as timestamps, in order, a stray among them."""
    producer = KafkaProducer(bootstrap_servers=config.servers)
    topic, route = names.topics(config.prefix).engagements, Route(P)
    for place, one in enumerate(events()[first:last], first):
        number = route[one["actor"]]
        if place == 100:  # in another partition first, and then brought to its own
            producer.send(topic, encode(one), partition=(number + 1) % P, timestamp_ms=appended()[place])
        producer.send(topic, encode(one), partition=number, timestamp_ms=appended()[place])
    producer.flush()
    producer.close()


def of(tenant: KafkaConfig) -> Config:
    return replace(CONFIG, kafka=tenant, worker=replace(CONFIG.worker, salt="salt"))


def rows_of(path: Path) -> list[tuple[object, ...]]:
    ids = IdVectors(0, 0, 0, 0.0)
    found: ExampleBatch = join(list(folder.examples(path, ids)))
    columns = [
        [ids.name(row) for row in found.consumers.rows.tolist()],
        [ids.name(row) for row in found.producers.rows.tolist()],
        [tuple(row) for row in found.consumers.psi.tolist()],
    ]
    return sorted(zip(found.kinds, found.signals, found.times.tolist(), *columns, strict=True))


def test_a_topic_is_read_up_to_its_end_and_gone_on_with(tenant: KafkaConfig, tmp_path: Path) -> None:
    config = of(tenant)
    published(tenant, 0, 400)
    made = make(TopicSource(config), tmp_path / "a", config)
    assert (made.events, made.strays) == (401, 1)
    published(tenant, 400)
    again = make(TopicSource(config), tmp_path / "a", config)
    assert again.events == COUNT + 1
    assert sum(folder.load(tmp_path / "a").positions.values()) == COUNT + 1
    whole = make(TopicSource(config), tmp_path / "b", config)
    assert whole.positive == again.positive > 50
    assert rows_of(tmp_path / "b") == rows_of_other_polls(tmp_path, config)


def rows_of_other_polls(tmp_path: Path, config: Config) -> list[tuple[object, ...]]:
    """The rows of a pass over the topic that was broken off and went on."""

    class Broken(Exception):
        pass

    def heard(count: int) -> None:
        if count >= 500:
            raise Broken

    small = replace(config, examples=replace(config.examples, part_rows=100))
    with pytest.raises(Broken):
        make(TopicSource(small), tmp_path / "c", small, heard)
    assert 0 < folder.load(tmp_path / "c").events < 500
    make(TopicSource(small), tmp_path / "c", small)
    return rows_of(tmp_path / "c")


def test_the_command_reads_a_topic(tenant: KafkaConfig, tmp_path: Path) -> None:
    published(tenant, 0, 150)
    options = ("-o", f"kafka.prefix={tenant.prefix}", "-o", "engine.batch_events=50", "--json")
    words = ["examples", "--servers", tenant.servers, "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert msgspec.json.decode(result.stdout)["events"] == 151
    result = CliRunner().invoke(cli, [*words, "--checkpoint", str(tmp_path)])
    assert result.exit_code == 2
    assert "made with source" in result.stderr


def test_checkpoints_that_reach_to_different_offsets_give_the_examples_behind_them(
    tenant: KafkaConfig, tmp_path: Path
) -> None:
    """What a partition had not heard at its checkpoint is told by the topic of frames; the future is left out."""
    config = of(tenant)
    published(tenant)
    make(TopicSource(config), tmp_path / "whole", config)
    ends = worked(config, TopicSource(config).salt, tmp_path, ahead=False)
    assert len(set(ends.values())) > 1
    make(TopicSource(config, tmp_path / "checkpoints"), tmp_path / "behind", config)
    manifest = folder.load(tmp_path / "behind")
    assert manifest.positions == folder.load(tmp_path / "whole").positions
    ids, others = IdVectors(0, 0, 0, 0.0), IdVectors(0, 0, 0, 0.0)
    behind = pairs(join(list(folder.examples(tmp_path / "behind", ids))), ids, ends)
    assert behind == pairs(join(list(folder.examples(tmp_path / "whole", others))), others, ends)
    assert len(behind) > 30
    assert ledgers(tmp_path / "behind") == ledgers(tmp_path / "whole")
    # What is encoded before the first event knows all that lies before the checkpoints, and nothing behind them.
    stores = [MemoryStore() for _ in range(P)]
    exact = Capture(stores, config, salt=TopicSource(config).salt, versions={})
    logs = logged()
    exact.fold([Polled(n, at, record) for n, end in ends.items() for at, record in enumerate(logs[n][:end])])
    (encoded,) = exact.begin(exact.engine.watermark).candidates
    first = next(folder.rounds(tmp_path / "behind", manifest.parts[0], exact.ids)).candidates
    assert first is not None
    assert first.producers.rows.tolist() == encoded.producers.rows.tolist()
    for name, array in encoded.producers._asdict().items():
        np.testing.assert_array_equal(getattr(first.producers, name), array, err_msg=name)


def test_what_a_checkpoint_knows_of_the_future_is_in_no_example(tenant: KafkaConfig, tmp_path: Path) -> None:
    config = replace(of(tenant), engine=replace(CONFIG.engine, batch_events=20))
    published(tenant)
    source = TopicSource(config, tmp_path / "checkpoints")
    ends = worked(config, source.salt, tmp_path, ahead=True)
    made = make(source, tmp_path / "out", config)
    assert made.warming > 0
    assert made.positive > 30
    ids = IdVectors(0, 0, 0, 0.0)
    found = join(list(folder.examples(tmp_path / "out", ids)))
    known = dict.fromkeys(range(P), 0)
    for number in range(P):
        copy = RocksStore(source._checkpoints.of(number)[0].path, CONFIG.store)
        heard = Partition(copy, number, P, config.engine, salt=source.salt).heard
        known = {n: max(at, heard.get(n, 0)) for n, at in known.items()}
        copy.close()
    assert any(known[number] > ends[number] for number in range(P))
    for number in range(P):
        offsets = found.offsets[found.partitions == number]
        assert offsets.min() >= known[number]


STATE = 14  # bytes of an edge's epoch and stamp


def ledgers(path: Path) -> list[list[tuple[bytes, bytes]]]:
    """What the stores hold in the end of edges, but for the places of revisions.

    A deletion that is heard moves them to what is applied by then, which is another thing of each run.
    """

    def content(key: bytes, value: bytes) -> tuple[bytes, bytes]:
        return key, value[:STATE] + value[STATE + REVISION :]

    found = []
    last = folder.load(path).round
    for number in range(P):
        store = RocksStore(store_at(standing(path, last), number), CONFIG.store)
        found += [list(store.scan(column, b"")) for column in (Column.OUT, Column.SAID, Column.HEARD)]
        found.append([content(key, value) for key, value in store.scan(Column.IN, b"")])
        store.close()
    return found


def pairs(found: ExampleBatch, ids: IdVectors, ends: dict[int, int]) -> set[tuple[object, ...]]:
    """The positives behind these offsets."""
    return {
        (partition, offset, ids.name(consumer), ids.name(target))
        for kind, partition, offset, consumer, target in zip(
            found.kinds,
            found.partitions.tolist(),
            found.offsets.tolist(),
            found.consumers.rows.tolist(),
            found.producers.rows.tolist(),
            strict=True,
        )
        if kind == "positive" and offset >= ends[partition]
    }


def logged() -> dict[int, list[Logged]]:
    """The topic's records by partition."""
    route = Route(P)
    logs: dict[int, list[Logged]] = {number: [] for number in range(P)}
    for at, one in zip(appended(), events(), strict=True):
        logs[route[one["actor"]]].append(Logged(at * 1000, encode(one)))
    stray = events()[100]
    place = (route[stray["actor"]] + 1) % P
    before = sum(1 for one in events()[:100] if route[one["actor"]] == place)
    logs[place].insert(before, Logged(appended()[100] * 1000, b"{}"))  # as good as the stray that lies there
    return logs


def worked(config: Config, salt: bytes, tmp_path: Path, *, ahead: bool) -> dict[int, int]:
    """What workers do: fold, send frames over their topic, leave checkpoints, each partition at its own time.

    Frames are heard a turn late; those from behind a checkpoint only if `ahead`.
    """
    topic = names.topics(config.kafka.prefix)
    producer = KafkaProducer(bootstrap_servers=config.kafka.servers)
    logs, route = logged(), Route(P)
    shards = {
        number: Shard(
            Partition(
                RocksStore(tmp_path / "stores" / str(number), config.store),
                number,
                P,
                config.engine,
                salt=salt,
            ),
            route,
        )
        for number in range(P)
    }
    kept, ends = Checkpoints(tmp_path / "checkpoints", 1), dict[int, int]()
    late: dict[int, list[tuple[bool, bytes]]] = {number: [] for number in range(P)}
    for turn in range(8):
        for number, shard in shards.items():
            size = 20 + 7 * number
            records = logs[number][turn * size : (turn + 1) * size]
            first = turn * size
            shard.act(shard.decode(records, range(first, first + len(records))), first + len(records))
            for frame in shard.waiting():
                producer.send(topic.edges, frame.raw, partition=frame.destination).get(10)
                late[frame.destination].append((number in ends, frame.raw))
                shard.acknowledge(frame)
            shard.partition.forget_acknowledged()
            if turn == 3 + number:
                kept.save(shard.partition, "w")
                ends[number] = shard.partition.applied
        for number, shard in shards.items():
            for future, raw in late[number]:
                if ahead or not future:
                    shard.hear([raw], shard.partition.edges + 1)
            late[number].clear()
    for shard in shards.values():
        shard.partition.store.close()
    producer.close()
    return ends


def test_a_topic_that_begins_later_and_missing_checkpoints_are_told(
    tenant: KafkaConfig, admin: KafkaAdminClient, tmp_path: Path
) -> None:
    config = of(tenant)
    published(tenant, 0, 200)
    with pytest.raises(StoreRefused, match="has no checkpoint of partition 0"):
        make(TopicSource(config, tmp_path), tmp_path / "out", config)
    shutil.rmtree(tmp_path / "out")
    admin.delete_records({TopicPartition(names.topics(tenant.prefix).engagements, 1): 5})
    with pytest.raises(GapInLog, match="begins at offset 5, 0 is expected"):
        make(TopicSource(config), tmp_path / "out", config)


def test_a_file_and_a_topic_agree(tenant: KafkaConfig, tmp_path: Path) -> None:
    """But for the order of events of one millisecond, which polls do not see here."""
    config = replace(of(tenant), engine=replace(CONFIG.engine, batch_events=COUNT))
    producer = KafkaProducer(bootstrap_servers=tenant.servers)
    topic, route = names.topics(tenant.prefix).engagements, Route(P)
    for place, one in enumerate(events()):
        producer.send(topic, encode(one), partition=route[one["actor"]], timestamp_ms=appended()[place])
    producer.flush()
    producer.close()
    make(TopicSource(config), tmp_path / "topic", config)
    make(FileSource("simulated", P, events), tmp_path / "file", config)
    assert rows_of(tmp_path / "topic") == rows_of(tmp_path / "file")
