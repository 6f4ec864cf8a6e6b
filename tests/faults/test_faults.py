"""Everything that can break breaks under load and questions, and what is left is what the log means."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from crowd import Crowd
from kafka import KafkaAdminClient
from nemesis import (
    ClockSteps,
    ComeAndGo,
    DamagedCheckpoints,
    Fault,
    FullDisk,
    KillBroker,
    KillRetrieval,
    KillStream,
    OlderCheckpoints,
    Repeats,
    Zombie,
)
from oracle import Published, states
from siege import Outcome, siege
from town import LINEAGE, PARTITIONS
from workers import PATIENCE, Worker

from kithstream.streams.clients import EventPublisher
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.errors import Undelivered
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.topics import create, wanted


def holds(broker: LocalKafka, folder: Path, seed: int, faults: Sequence[Fault]) -> Outcome:
    """Assert that faults changed nothing, and that something could have gone wrong."""
    outcome = siege(broker, folder / "town", "town.", seed, faults)
    assert outcome.divergences == []
    assert not outcome.void
    assert sum(outcome.faults.values()) == len(faults)
    return outcome


def test_workers_that_die_come_go_and_wake_up_as_zombies(mortal: LocalKafka, tmp_path: Path) -> None:
    faults = [KillStream(), KillRetrieval(), ComeAndGo(), Zombie(), KillStream()]
    outcome = holds(mortal, tmp_path, 1, faults)
    assert outcome.deeds == {"kills": 3, "rebalances": 2, "zombies": 1}
    assert outcome.ended == []  # nobody gave up


def test_a_broker_that_dies_a_full_disk_and_a_clock_that_steps(mortal: LocalKafka, tmp_path: Path) -> None:
    outcome = holds(mortal, tmp_path, 2, [KillBroker(), FullDisk(), ClockSteps(), Repeats()])
    assert outcome.deeds["broker restarts"] == outcome.deeds["full disks"] == 1
    assert outcome.deeds["gave up on a full disk"] == 1  # and did not hang


def test_checkpoints_that_are_damaged_or_old(mortal: LocalKafka, tmp_path: Path) -> None:
    outcome = holds(mortal, tmp_path, 3, [DamagedCheckpoints(), OlderCheckpoints()])
    assert outcome.deeds["corruptions"] == PARTITIONS
    logs = "".join(path.read_text(errors="replace") for path in (tmp_path / "town").glob("*/log"))
    assert "restored from" in logs


def test_a_topic_created_anew_ends_the_workers_until_all_begins_anew(
    mortal: LocalKafka, tmp_path: Path
) -> None:
    """Their state is of another log: refused while they run and when they start, whatever the new one holds."""
    kafka = KafkaConfig(servers=mortal.servers, prefix="anew.")
    table = wanted(Config(kafka=kafka, engine=EngineConfig(partitions=PARTITIONS)), LINEAGE)
    create(kafka, table)
    given = Crowd.simulated(4)
    log = topics(kafka.prefix).engagements

    def publish(count: int) -> str:
        with EventPublisher(kafka) as publisher:
            return publisher.publish(list(islice(given, count)))

    def settle(after: str) -> None:
        path = f"/v1/candidates/nobody?after={after}"
        one.until(lambda: one.get(path)[0] == 200, f"for {after}")

    with Worker(kafka, tmp_path / "one", PARTITIONS, ["worker.push_rate=0"]) as one:
        one.ready()
        settle(publish(600))
        delete(kafka, [log])
        create(kafka, table)
        publish(30)
        one.wait()  # at the next assignment, without the topic or with the new one, or at the new one's first records
        assert "engagements" in one.log().strip().splitlines()[-1]
        publish(900)  # more than there were
        (tmp_path / "one" / "log").unlink()
        one.start()
        one.wait()
        assert f"{log} was created anew" in one.log()
        delete(kafka, [topic.name for topic in table])
        shutil.rmtree(tmp_path / "one")
        create(kafka, table)
        after = publish(300)
        one.start()
        one.ready()
        settle(after)
        one.stop()
    assert states([tmp_path / "one"], Published(kafka, PARTITIONS)) == []


def test_a_publisher_goes_on_after_its_broker_was_killed_twice(mortal: LocalKafka) -> None:
    """kafka-python's producer may never send again then: it is another one that goes on."""
    kafka = KafkaConfig(servers=mortal.servers, prefix="twice.")
    create(kafka, wanted(Config(kafka=kafka, engine=EngineConfig(partitions=PARTITIONS)), LINEAGE))
    given = Crowd.simulated(5)
    came = threading.Semaphore(0)  # released for every call that was confirmed
    stopping = threading.Event()

    def publish() -> None:
        with EventPublisher(kafka, delivery=8.0, connecting=PATIENCE) as publisher:
            while not stopping.is_set():
                with suppress(Undelivered):
                    publisher.publish(list(islice(given, 20)))
                    came.release()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        for _ in range(2):
            for _ in range(20):
                assert came.acquire(timeout=PATIENCE), "nothing can be published any more"
            for _ in range(2):
                mortal.kill()
                mortal.start()
            while came.acquire(blocking=False):  # of before
                pass
        assert came.acquire(timeout=PATIENCE), "nothing can be published any more"
    finally:
        stopping.set()
        thread.join(PATIENCE)


def delete(kafka: KafkaConfig, names: Sequence[str]) -> None:
    """Delete topics; return once the broker names none of them."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.servers)
    admin.delete_topics(list(names))
    end = time.monotonic() + PATIENCE
    while set(admin.list_topics()) & set(names):
        assert time.monotonic() < end, f"{names} are there still"
    admin.close()
