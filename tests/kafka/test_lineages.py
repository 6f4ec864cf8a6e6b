"""Another lineage takes the place of the one that is served, under questions, on a real broker, and back again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest
from workers import Worker, ends_of, publish

from kithstream.models.lineage import day_zero_lineage
from kithstream.models.model import Model
from kithstream.models.tower import TowerConfig
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.errors import StoreRefused
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.registry import CURRENT, Current, Published, Registry
from kithstream.streams.kafka.topics import create, wanted

PARTITIONS = 3
LINEAGE = day_zero_lineage(0)
DIM = 120  # another architecture: a vector of one lineage cannot be multiplied with one of the other
NAMES = [f"u{number}" for number in range(60)]
_numbers = count(1)


@pytest.fixture
def town(broker: LocalKafka) -> KafkaConfig:
    kafka = KafkaConfig(servers=broker.servers, prefix=f"m{next(_numbers)}.")
    create(kafka, wanted(Config(kafka=kafka, engine=EngineConfig(partitions=PARTITIONS)), LINEAGE))
    return kafka


@pytest.fixture
def workers(town: KafkaConfig, tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    options = ("worker.former_seconds=1", "worker.push_rate=0")
    with (
        Worker(town, tmp_path / "one", PARTITIONS, options) as one,
        Worker(town, tmp_path / "two", PARTITIONS, options) as two,
    ):
        one.ready()
        two.ready()
        yield one, two


class Asking:
    """Asks both workers about everybody, again and again, and keeps what was answered."""

    def __init__(self, workers: tuple[Worker, Worker]) -> None:
        self.answers: list[list[tuple[int, Any]]] = [[], []]
        self._workers = workers
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(2)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        for name in NAMES * 1000:
            if self._stopping.is_set():
                return
            # Only its own accounts: what is forwarded is the other's.
            own = {"kithstream-forwarded": "1"}
            status, body = self._workers[number].get(f"/v1/candidates/{name}?k=5", own)
            if status != 503:
                self.answers[number].append((status, body))

    def models(self, number: int) -> list[str]:
        """The lineages of a worker's answers, one for each change."""
        return [lineage for lineage, _ in groupby(body["model"] for _, body in self.answers[number])]


def kithstream(town: KafkaConfig, *arguments: str) -> dict[str, Any]:
    """Run a command as an operator would."""
    given = [
        f"kafka.servers={town.servers}",
        f"kafka.prefix={town.prefix}",
        f"engine.partitions={PARTITIONS}",
    ]
    options = [part for option in given for part in ("-o", option)]
    command = [sys.executable, "-m", "kithstream", "models", *arguments, *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def serve(workers: tuple[Worker, Worker], lineage: str) -> None:
    """Wait until both workers answer by a lineage."""
    for worker in workers:
        worker.until(
            lambda worker=worker: any(  # type: ignore[misc]
                body["model"] == lineage
                for status, body in (
                    worker.get(f"/v1/candidates/{name}", {"kithstream-forwarded": "1"}) for name in NAMES[:12]
                )
                if status == 200
            ),
            f"for lineage {lineage}",
        )


def test_a_lineage_takes_over_under_questions_and_back_again(
    town: KafkaConfig, workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    now = wall_clock()
    pairs = [(a, b) for at, a in enumerate(NAMES) for b in (NAMES[at - 1], NAMES[(at * 7 + 3) % 60])]
    publish(
        town,
        [Event(f"{a}{b}", "follow", a, now, target=b) for a, b in pairs if a != b],
        PARTITIONS,
    )
    token = ",".join(
        f"{n}:{e}" for n, e in ends_of(town, topics(town.prefix).engagements, PARTITIONS).items()
    )
    workers[0].until(lambda: workers[0].get(f"/v1/candidates/u1?after={token}")[0] == 200, "for the follows")
    path = tmp_path / "other.safetensors"
    Model.day_zero(5, dim=DIM, lineage="0b0b").save(path)
    with Asking(workers) as asking:
        told = kithstream(town, "publish", str(path))
        assert told["former"] == LINEAGE
        other = told["lineage"]
        serve(workers, other)
        # What is published is learned of by whoever comes later, and serves what is said.
        publish(town, [Event("late", "block", "u1", wall_clock(), target="u2")], PARTITIONS)
        status, body = workers[0].post("/v1/events", [{"signal": "follow", "actor": "u3", "target": "new"}])
        status, body = workers[0].get(f"/v1/candidates/u9?k=60&after={body['token']}&level=vectors")
        assert (status, body["model"]) == (200, other)
        assert "new" in {candidate["account"] for candidate in body["candidates"]}
        end = time.monotonic() + 60
        while not kithstream(town, "list")["current"]["settled"]:
            assert time.monotonic() < end, "the former lineage is not let go"
        assert kithstream(town, "rollback")["lineage"] == LINEAGE
        serve(workers, LINEAGE)
        status, body = workers[1].get("/v1/candidates/u9?k=60")
        assert "new" in {candidate["account"] for candidate in body["candidates"]}
    for number in range(2):
        assert {status for status, _ in asking.answers[number]} <= {200}
        assert asking.models(number) == [LINEAGE, other, LINEAGE]
    shown = kithstream(town, "list")
    assert (shown["serving"], [one["lineage"] for one in shown["published"]]) == (LINEAGE, [other])
    for worker in workers:
        assert "ERROR kithstream" not in worker.log()


def test_the_registry_is_what_its_topic_says() -> None:
    known = Registry("base")
    assert (known.serving, known.needed) == ("base", ["base"])
    told = Published("aa", "schema", TowerConfig(), 0, 7, 12, 0)
    encode = msgspec.json.encode
    assert not known.feed([(b"aa", encode(told)), (b"bb", b"junk"), (None, b"")])
    assert (known.published, known.unusable) == ({"aa": told}, 1)
    assert known.feed([(CURRENT, encode(Current("aa", "base", 0)))])
    assert (known.serving, known.needed) == ("aa", ["aa", "base"])
    known.feed([(CURRENT, encode(Current("aa", "base", 0, settled=True)))])
    assert known.needed == ["aa"]


def test_what_cannot_be_served_is_refused(town: KafkaConfig, tmp_path: Path) -> None:
    from kithstream.streams.kafka import registry

    config = Config(kafka=town, engine=EngineConfig(partitions=PARTITIONS))
    with pytest.raises(StoreRefused, match="nothing to go back to"):
        registry.point(config, "", wall_clock)
    with pytest.raises(StoreRefused, match="expected one of"):
        registry.point(config, "ffff", wall_clock)
    path = tmp_path / "model"
    Model.day_zero(3).save(path)
    current = registry.publish(config, path, wall_clock)
    with pytest.raises(StoreRefused, match="is the one that is served"):
        registry.publish(config, path, wall_clock)
    assert registry.look(config).serving == current.lineage
