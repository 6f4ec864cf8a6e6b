"""Real workers on a real broker: the three clients end to end, coming, going, dying, handing over, saying no."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from kafka import KafkaProducer
from workers import PATIENCE, Worker, ends_of, holds, publish, running

from kithstream.models.lineage import day_zero_lineage
from kithstream.streams.clients import CandidateConsumer, EventPublisher, RetrievalClient
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.engine.routing import Route
from kithstream.streams.errors import InvalidEvent, NotYet, Unanswerable, Unavailable
from kithstream.streams.events import wire as events
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics, vectors
from kithstream.streams.kafka.topics import create, wanted
from kithstream.streams.kafka.wire import DeadLetter, Pushed

PARTITIONS = 4
ROUTE = Route(PARTITIONS)
_numbers = count(1)


@pytest.fixture
def town(broker: LocalKafka) -> KafkaConfig:
    """A tenant with every topic that workers need."""
    kafka = KafkaConfig(servers=broker.servers, prefix=f"w{next(_numbers)}.")
    create(
        kafka, wanted(Config(kafka=kafka, engine=EngineConfig(partitions=PARTITIONS)), day_zero_lineage(0))
    )
    return kafka


@pytest.fixture
def worker(town: KafkaConfig, tmp_path: Path) -> Iterator[Worker]:
    """One worker, ready."""
    with Worker(town, tmp_path / "one", PARTITIONS) as one:
        one.ready()
        yield one


def crowd(seed: int, size: int, now: int) -> list[Event]:
    """Random events of every kind of signal among a few accounts, some undone, some repeated."""
    rng = random.Random(seed)
    names = [f"u{number}" for number in range(60)]
    found: list[Event] = []
    for number in range(size):
        actor, target = rng.sample(names, 2)
        signal = rng.choice(
            ("follow",) * 6 + ("unfollow", "block", "unblock", "like", "unlike", "click", "reply")
        )
        time = now - rng.randrange(3 * 86_400_000_000)
        found.append(
            Event(f"{seed}-{number}", signal, actor, time, target=target, item=f"i{rng.randrange(9)}")
        )
    found += rng.sample(found, size // 20)
    return found


def settled(worker: Worker, kafka: KafkaConfig) -> None:
    """Wait until a worker that owns everything has folded and published all that the topic holds."""
    token = ",".join(
        f"{n}:{end}" for n, end in ends_of(kafka, topics(kafka.prefix).engagements, PARTITIONS).items()
    )
    worker.until(lambda: worker.get(f"/v1/candidates/nobody?after={token}")[0] == 200, f"for {token}")


def test_the_three_clients_end_to_end(town: KafkaConfig, worker: Worker) -> None:
    fans = [{"signal": "follow", "actor": fan, "target": "ada"} for fan in ("bob", "cyd", "dan")]
    with (
        EventPublisher(town) as publisher,
        RetrievalClient(town) as client,
        CandidateConsumer(town) as pushed,
    ):
        token = publisher.publish(fans)
        answer = client.ask("eve", 5, after=token, deadline=20.0)
        assert [c.account for c in answer.candidates] == ["ada"]
        http = worker.get(f"/v1/candidates/eve?k=5&after={token}")[1]
        (one,), (other,) = http["candidates"], answer.candidates
        # Each answer reads the clock, and what is counted fades between the two: equal but for that.
        assert (one["account"], one["score"]) == (other.account, pytest.approx(other.score, rel=1e-4))
        token = publisher.publish([{"signal": "follow", "actor": "ada", "target": "bob"}])
        reasons = {c.account: c.reasons for c in client.ask("bob", 5, after=token, deadline=20.0).candidates}
        assert "ada" not in reasons  # bob follows her
        assert [c.account for c in client.ask("cyd", after=token, deadline=20.0).candidates] == ["bob"]
        (bob,) = client.ask("dan", after=token, deadline=20.0).candidates
        assert list(bob.reasons) == ["followed by ada whom you follow"]
        seen: dict[str, Pushed] = {}
        while not {"ada", "bob"} <= set(seen):
            seen |= {one.account: one for one in pushed.poll(10.0) if isinstance(one, Pushed)}
        assert "ada" not in {c.account for c in seen["bob"].candidates}
        assert seen["ada"].valid_until > seen["ada"].as_of
        with pytest.raises(InvalidEvent):
            publisher.publish([{"signal": "follow", "actor": "a", "target": "a"}])
        token = publisher.publish([{"signal": "account_deactivate", "actor": "dan"}])
        with pytest.raises(Unanswerable):
            client.ask("dan", after=token, deadline=20.0)
        with pytest.raises(ValueError, match="k is 5000"):
            client.ask("eve", 5000)
        with pytest.raises((NotYet, Unavailable)):
            client.ask("eve", after="0:999999", deadline=0.3)


def test_a_block_covers_the_blocked_side_on_every_partition(town: KafkaConfig, worker: Worker) -> None:
    """At level `state`, at once, for pairs of accounts of all partitions, in both directions."""
    names = [f"p{number}" for number in range(16)]
    with EventPublisher(town) as publisher, RetrievalClient(town) as client:
        ring = [{"signal": "follow", "actor": a, "target": b} for a in ("x", "y") for b in names]
        token = publisher.publish(ring)
        client.ask(names[0], after=token, deadline=20.0)
        pairs = list(pairwise(names))
        assert {(ROUTE[a], ROUTE[b]) for a, b in pairs if ROUTE[a] != ROUTE[b]}
        for blocker, blocked in pairs:
            before = {c.account for c in client.ask(blocked, 20, deadline=20.0).candidates}
            token = publisher.publish([{"signal": "block", "actor": blocker, "target": blocked}])
            for one, other in ((blocked, blocker), (blocker, blocked)):
                answer = client.ask(one, 20, after=token, level="state", deadline=20.0)
                assert other not in {c.account for c in answer.candidates}
            assert blocker in before
            token = publisher.publish([{"signal": "unblock", "actor": blocker, "target": blocked}])
            answer = client.ask(blocked, 20, after=token, level="state", deadline=20.0)
            assert blocker in {c.account for c in answer.candidates}


def test_workers_come_and_go_under_load_and_any_of_them_answers(town: KafkaConfig, tmp_path: Path) -> None:
    now = wall_clock()
    published: list[Event] = []

    def load(seed: int) -> None:
        published.extend(more := crowd(seed, 400, now))
        publish(town, more, PARTITIONS)

    with Worker(town, tmp_path / "one", PARTITIONS) as one:
        one.ready()
        load(1)
        with Worker(town, tmp_path / "two", PARTITIONS) as two:
            load(2)
            two.until(lambda: owned(two) == 2 and owned(one) == 2, "for half of the partitions")
            one.ready()
            two.ready()
            load(3)
            names = {ROUTE[f"u{number}"]: f"u{number}" for number in range(60)}
            assert len(names) == PARTITIONS
            for name in names.values():
                for asked in (one, two):
                    asked.until(
                        lambda asked=asked, name=name: asked.get(f"/v1/candidates/{name}")[0] == 200,  # type: ignore[misc]
                        "for an answer, own or relayed",
                    )
            away = {asked: [n for n in names.values() if refuses(asked, n)] for asked in (one, two)}
            assert sorted(map(len, away.values())) == [2, 2]  # relayed once at most: each refuses the other's
            assert two.stop() < 10
        load(4)
        one.until(lambda: owned(one) == PARTITIONS, "for all partitions")
        one.ready()
        settled(one, town)
        assert one.stop() < 10
    holds([tmp_path / "one", tmp_path / "two"], published, PARTITIONS)


def owned(worker: Worker) -> int:
    """How many partitions a worker says it answers for."""
    raw = worker.get("/metrics")[1]
    lines = raw.decode().splitlines() if isinstance(raw, bytes) else []
    found = [line.split()[1] for line in lines if line.startswith("kithstream_worker_owned_partitions ")]
    return int(float(found[0])) if found else -1


def refuses(worker: Worker, name: str) -> bool:
    """True if a worker does not answer for an account when the question has been relayed already."""
    status, body = worker.get(f"/v1/candidates/{name}", {"kithstream-forwarded": "1"})
    assert status in (200, 503)
    return status == 503 and body["error"] == "unavailable"


def test_kill_9_of_either_process_loses_and_doubles_nothing(town: KafkaConfig, tmp_path: Path) -> None:
    now = wall_clock()
    published: list[Event] = []
    with Worker(town, tmp_path / "one", PARTITIONS) as one:
        one.ready()
        for seed in range(3):
            published += (more := crowd(seed, 500, now))
            publish(town, more, PARTITIONS)
            if seed == 1:
                one.until(lambda: one.retrieval > 0, "for the retrieval process")
                dead = one.retrieval
                os.kill(dead, signal.SIGKILL)
                one.until(
                    lambda dead=dead: one.get("/readyz")[0] == 200 and one.retrieval != dead, "to be back"
                )  # type: ignore[misc]
            else:
                one.kill()
                one.start()
        one.ready()
        settled(one, town)
        one.stop()
    holds([tmp_path / "one"], published, PARTITIONS)


def test_a_retrieval_process_does_not_outlive_its_worker(worker: Worker) -> None:
    """Not even one that cannot read that the channel is closed: what it answers from may be replaced at once."""
    paused = worker.retrieval
    os.kill(paused, signal.SIGSTOP)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    end = time.monotonic() + PATIENCE
    while running(paused):
        assert time.monotonic() < end
        time.sleep(0.01)  # between two looks; the machine has other work


def test_a_worker_with_an_empty_directory_takes_over_from_checkpoints(
    town: KafkaConfig, tmp_path: Path
) -> None:
    published = crowd(7, 600, wall_clock())
    shared = f"worker.checkpoints={tmp_path / 'shared'}"
    with Worker(town, tmp_path / "one", PARTITIONS, [shared]) as one:
        one.ready()
        publish(town, published, PARTITIONS)
        settled(one, town)
        one.stop()
    shutil.rmtree(tmp_path / "one")
    with Worker(town, tmp_path / "two", PARTITIONS, [shared]) as two:
        two.ready()
        assert two.log().count("restored from") == PARTITIONS
        published += (more := crowd(8, 100, wall_clock()))
        publish(town, more, PARTITIONS)
        settled(two, town)
        two.stop()
    holds([tmp_path / "two"], published, PARTITIONS)


def test_a_retrieval_process_that_is_killed_goes_on_from_its_snapshot(
    town: KafkaConfig, tmp_path: Path
) -> None:
    """It reads the rest of the topic; where the snapshot is damaged, all of it. The answers are the same."""
    published = crowd(11, 400, wall_clock())
    options = ["index.snapshot_seconds=0.2", "worker.push_rate=0"]
    with Worker(town, tmp_path / "one", PARTITIONS, options) as one:
        one.ready()
        publish(town, published, PARTITIONS)
        settled(one, town)
        folder = tmp_path / "one" / "index" / day_zero_lineage(0)

        def answers() -> list[set[str]]:
            """All who are candidates; their scores move with the time of day."""
            found = [one.get(f"/v1/candidates/u{number}?k=100")[1] for number in range(6)]
            return [{c["account"] for c in answer["candidates"]} for answer in found]

        def again() -> tuple[float, str]:
            """Kill it, wait for the next one; return how many records that one read, and what was said of it."""
            before, said = one.retrieval, len(one.log())
            os.kill(before, signal.SIGKILL)
            one.until(lambda: one.retrieval not in (0, before), "for the next one")
            one.ready()
            settled(one, town)
            return told(one, "kithstream_replica_read_records_total"), one.log()[said:]

        records = sum(ends_of(town, vectors(town.prefix, day_zero_lineage(0)), PARTITIONS).values())
        one.until(lambda: told(one, "kithstream_snapshots_saved_total") > 0, "for a snapshot")
        one.until(lambda: covered(folder) >= records, "for one that holds all of it")
        expected = answers()
        read, _ = again()
        assert read < records / 2
        assert answers() == expected
        for file in folder.glob("*/vectors.npy"):
            file.write_bytes(file.read_bytes()[:-1])
        read, said = again()
        assert read >= records
        assert "snapshot of the index is refused, all vectors are read: vectors.npy" in said
        assert told(one, "kithstream_snapshots_refused_total") == 1
        assert answers() == expected
        one.stop()


def covered(folder: Path) -> int:
    """How many records of the topic the newest snapshot stands for."""
    try:
        meta = json.loads((folder / (folder / "CURRENT").read_text() / "meta.json").read_text())
    except FileNotFoundError:  # another took its place meanwhile
        return 0
    return sum(json.loads(meta["metadata"]["positions"]).values())


def test_strays_and_poison_from_a_foreign_producer(town: KafkaConfig, worker: Worker, tmp_path: Path) -> None:
    names = topics(town.prefix)
    producer = KafkaProducer(bootstrap_servers=town.servers, acks="all")
    published = crowd(9, 200, wall_clock())
    for number, event in enumerate(published):
        producer.send(names.engagements, events.encode(event), partition=number % PARTITIONS)
        if number % 10 == 0:
            producer.send(names.engagements, b'{"signal":"no such"', partition=number % PARTITIONS)
            producer.send(names.edges, b"\xc1\xc1", partition=number % PARTITIONS)
    producer.close()
    settled(worker, town)
    settled(worker, town)  # the strays' own offsets
    moved = sum(ROUTE[event.actor] != number % PARTITIONS for number, event in enumerate(published))
    worker.until(lambda: told(worker, "kithstream_moved_records_total") == moved, "for the strays")
    settled(worker, town)
    for reason in ("malformed", "malformed_frame"):
        name = f'kithstream_dead_letters_total{{reason="{reason}"}}'
        worker.until(lambda name=name: told(worker, name) == 21, f"for {name}")  # type: ignore[misc]
    worker.stop()
    holds([tmp_path / "one"], published, PARTITIONS)
    letters = read_all(town, names.dead_letters)
    decode = msgspec.json.Decoder(DeadLetter).decode
    assert {decode(raw).topic for raw in letters} == {names.engagements, names.edges}


def told(worker: Worker, name: str) -> float:
    """A counter of /metrics; -1 where it is not told."""
    raw = worker.get("/metrics")[1]
    lines = raw.decode().splitlines() if isinstance(raw, bytes) else []
    found = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name} ")]
    return float(found[0]) if found else -1.0


def read_all(kafka: KafkaConfig, topic: str) -> list[bytes]:
    """The values of a whole topic."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=kafka.servers, auto_offset_reset="earliest")
    tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(tps)
    ends = consumer.end_offsets(tps)
    found: list[bytes] = []
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        found += [record.value for part in consumer.poll(1000).values() for record in part]
    consumer.close()
    return found


def test_a_slow_consumer_of_pushes_holds_up_nobody_and_gets_what_is_fresh(
    town: KafkaConfig, worker: Worker
) -> None:
    with EventPublisher(town) as publisher, RetrievalClient(town) as client:
        with CandidateConsumer(town, group="slow") as slow:
            publisher.publish([{"signal": "follow", "actor": "bob", "target": "ada"}])
            first = next(iter(slow))
            assert first.account == "bob"
        for number in range(200):
            publisher.publish([{"signal": "follow", "actor": f"f{number}", "target": "ada"}])
        token = publisher.publish([{"signal": "follow", "actor": "zoe", "target": "bob"}])
        assert client.ask("nobody", after=token, deadline=20.0).candidates
        late = CandidateConsumer(town, group="slow")
        with late:
            got: set[str] = set()
            while "zoe" not in got:
                got |= {one.account for one in late.poll(10.0)}
        assert late.dropped.stale == 0


def test_topics_that_do_not_fit_are_named_before_anything_is_done(broker: LocalKafka, tmp_path: Path) -> None:
    kafka = KafkaConfig(servers=broker.servers, prefix="none.")
    with Worker(kafka, tmp_path / "one", PARTITIONS) as one, pytest.raises(AssertionError) as told_by:
        one.ready()
    assert "ended with 2" in str(told_by.value)
    assert "none.engagements" in str(told_by.value)
    assert "kithstream topics create" in str(told_by.value)


def test_a_password_reaches_every_client_and_no_log(guarded: LocalKafka, tmp_path: Path) -> None:
    """SASL for the topics, the worker's two processes and the three clients."""
    kafka = KafkaConfig(
        servers=guarded.servers,
        prefix="secret.",
        security="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        username="ann",
        password="right horse",
    )
    create(
        kafka, wanted(Config(kafka=kafka, engine=EngineConfig(partitions=PARTITIONS)), day_zero_lineage(0))
    )
    options = ["kafka.security=SASL_PLAINTEXT", "kafka.sasl_mechanism=PLAIN", "kafka.username=ann"]
    password = {"KITHSTREAM_KAFKA__PASSWORD": "right horse"}
    with Worker(kafka, tmp_path / "one", PARTITIONS, options, secrets=password) as one:
        one.ready()
        with (
            EventPublisher(kafka) as publisher,
            RetrievalClient(kafka) as client,
            CandidateConsumer(kafka) as lists,
        ):
            token = publisher.publish([{"signal": "follow", "actor": "bob", "target": "ada"}])
            (ada,) = client.ask("eve", after=token, deadline=20.0).candidates
            assert ada.account == "ada"
            assert next(iter(lists)).account == "bob"
            for pid in (one.pid, one.retrieval):
                assert b"horse" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        one.stop()
        assert "horse" not in one.log()


def test_workers_read_a_version_of_communities_and_then_another(town: KafkaConfig, tmp_path: Path) -> None:
    """Filled beside events, exact in every row; of the first version nothing is left."""
    names = [f"u{number}" for number in range(60)]
    norms = np.array([4.0, 3.0, 5.0], np.float32)
    one, other = ({name: (at + by) % 3 for at, name in enumerate(names[:40])} for by in (0, 1))
    versions = {}
    for number, known in enumerate((one, other)):
        made = KnownFor.of_accounts(known, norms)
        made.save(tmp_path / f"{number}.safetensors")
        versions[made.version] = made
    given = crowd(5, 400, wall_clock())
    for number, version in enumerate(versions):
        option = f"engine.communities={tmp_path / f'{number}.safetensors'}"
        with Worker(town, tmp_path / "one", PARTITIONS, [option]) as worker:
            worker.ready()
            publish(town, given[200:] if number else given[:200], PARTITIONS)
            settled(worker, town)
            line = f"reads communities {version}"
            worker.until(lambda worker=worker, line=line: worker.log().count(line) >= PARTITIONS, line)  # type: ignore[misc]
            settled(worker, town)
            worker.stop()
    holds([tmp_path / "one"], given, PARTITIONS, other, versions)
