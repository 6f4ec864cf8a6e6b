"""A trainer beside workers on a real broker: what it learns is served, and is a function of the log."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from workers import PATIENCE, Worker, publish

from kithstream.models.lineage import day_zero_lineage
from kithstream.models.model import Model
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams.config import Config, EngineConfig, KafkaConfig, ModelConfig, RankingConfig
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka import registry
from kithstream.streams.kafka.local import LocalKafka, free_port
from kithstream.streams.kafka.names import steps, topics
from kithstream.streams.kafka.steps import Follower
from kithstream.streams.kafka.topics import create, wanted
from kithstream.streams.learning import Learner

PARTITIONS = 3
LINEAGE = day_zero_lineage(0)
_numbers = count(1)


@pytest.fixture
def town(broker: LocalKafka) -> KafkaConfig:
    kafka = KafkaConfig(servers=broker.servers, prefix=f"l{next(_numbers)}.")
    create(kafka, wanted(Config(kafka=kafka, engine=EngineConfig(partitions=PARTITIONS)), LINEAGE))
    return kafka


class Trainer:
    """One `kithstream trainer`, in a directory of its own."""

    def __init__(self, kafka: KafkaConfig, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._options = [
            f"kafka.servers={kafka.servers}",
            f"kafka.prefix={kafka.prefix}",
            f"engine.partitions={PARTITIONS}",
            f"trainer.data={folder}",
            "trainer.publish_seconds=0.1",
            "trainer.checkpoint_seconds=0.5",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{LINEAGE}.safetensors"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        given = [part for option in self._options for part in ("-o", option)]
        command = [sys.executable, "-m", "kithstream", "trainer", "--port", str(self.port), *given]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def gauge(self, name: str) -> float:
        """What the trainer says of itself; -1 while it does not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE) as reply:
                text = reply.read().decode()
        except OSError:
            return -1.0
        return float(text.split(f"\nkithstream_trainer_{name} ")[1].split("\n")[0])

    def until(self, name: str, least: float) -> None:
        """Wait until a gauge has reached something."""
        end = time.monotonic() + PATIENCE
        while self.gauge(name) < least:
            assert self._process is not None
            said = (self.folder / "log").read_text()[-2000:]
            assert self._process.poll() is None, said
            assert time.monotonic() < end, f"{name} is {self.gauge(name)}, expected {least}: {said}"
            time.sleep(0.05)  # between two looks; the machine has other work

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE) == 0, (self.folder / "log").read_text()[-2000:]

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE)


@pytest.fixture
def trainer(town: KafkaConfig, tmp_path: Path) -> Iterator[Trainer]:
    one = Trainer(town, tmp_path / "trainer")
    yield one
    one.end()


def follows(seed: int, size: int) -> list[Event]:
    rng, now = random.Random(seed), wall_clock()
    names = [f"u{number}" for number in range(40)]
    pairs = [rng.sample(names, 2) for _ in range(size)]
    return [Event(f"{seed}-{n}", "follow", a, now, target=b) for n, (a, b) in enumerate(pairs)]


def contents(kafka: KafkaConfig, topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
    """Everything that a topic of one partition holds: offset, key, value."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.servers)
    tp = TopicPartition(topic, 0)
    consumer.assign([tp])
    consumer.seek_to_beginning(tp)
    end, found = consumer.end_offsets([tp])[tp], []
    while consumer.position(tp) < end:
        found += [(r.offset, r.key, r.value) for part in consumer.poll(500).values() for r in part]
    consumer.close()
    return found


def learner() -> Learner:
    model = Model.day_zero(0)
    trainer = OnlineTrainer(model, TrainerConfig(), np.random.Generator(np.random.PCG64(0)))
    section = ModelConfig()
    return Learner(
        trainer,
        PARTITIONS,
        example_batch=section.example_batch,
        idle_days=section.idle_days,
        ranking=RankingConfig(),
    )


def same(one: Model, other: Model) -> None:
    """Weights and the vectors of everyone that either knows, in every bit."""
    names = sorted({name for model in (one, other) for name in model.ids.names if name is not None})
    for name, weights in one.tower.named_parameters():
        np.testing.assert_array_equal(
            weights.detach().numpy(), dict(other.tower.named_parameters())[name].detach().numpy(), name
        )
    here, there = one.ids.rows_of(names), other.ids.rows_of(names)
    np.testing.assert_array_equal(one.ids.target[here], other.ids.target[there])
    np.testing.assert_array_equal(one.ids.source[here], other.ids.source[there])


def test_what_is_learned_is_served_and_is_a_function_of_the_log(
    town: KafkaConfig, trainer: Trainer, tmp_path: Path
) -> None:
    trainer.start()
    with Worker(town, tmp_path / "one", PARTITIONS, ["ranking.train_most=1000"]) as worker:
        worker.ready()
        publish(town, follows(0, 200), PARTITIONS)  # nobody is a candidate yet: no example
        worker.until(lambda: len(worker.get("/v1/candidates/u1?k=50")[1]["candidates"]) > 20, "for them")
        publish(town, follows(1, 300), PARTITIONS)
        trainer.until("examples", 50)

        def step() -> int:
            status, body = worker.get("/v1/candidates/u1?k=5")
            return int(body["step"]) if status == 200 else -1

        worker.until(lambda: step() > 0, "for a learned step")
        trainer.kill()
        publish(town, follows(2, 300), PARTITIONS)
        KafkaProducer(bootstrap_servers=town.servers).send(
            topics(town.prefix).training, b"no example", partition=0
        ).get(PATIENCE)
        trainer.start()
        trainer.until("unusable_records", 1)
        worker.until(lambda: trainer.gauge("behind_records") == 0, "for the log's end")
        worker.until(lambda: step() == trainer.gauge("step"), "for the newest step")
        letters = contents(town, topics(town.prefix).dead_letters)
        assert b"malformed_example" in b"".join(value or b"" for _, _, value in letters)
        worker.stop()  # it encodes what has aged, and tells the log
    trainer.until("step", 1)
    trainer.stop()

    log = [(offset, value or b"") for offset, _, value in contents(town, topics(town.prefix).training)]
    again = learner()
    for offset, value in log:
        again.take(offset, value)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == trainer.checkpoint.read_bytes()
    assert again.model.ranker.examples > 20
    follower = Follower(Model.day_zero(0))
    follower.feed((key, value) for _, key, value in contents(town, steps(town.prefix, LINEAGE)))
    follower.apply()
    assert (follower.step, follower.unusable) == (again.model.step, 0)
    same(follower._model, again.model)


def crowd() -> tuple[list[Event], list[Event]]:
    """Ten stars that sixty follow and 120 others that one does; then accounts follow the others alone.

    Each follows those of one of twenty tastes: too few of each for the towers to learn, and two-step paths tell. `half`
    follows half of one taste.
    """
    rng, now = random.Random(0), wall_clock()
    stars, others = [f"s{n}" for n in range(10)], [f"t{n}" for n in range(120)]
    pairs = [(f"w{n}", star) for n in range(60) for star in stars]
    pairs += [(f"v{n}", other) for n, other in enumerate(others)]
    later = [(f"u{n}", other) for n in range(160) for other in others[n % 20 :: 20]]
    rng.shuffle(later)
    later += [("half", other) for other in others[:60:20]]
    return tuple(  # type: ignore[return-value]  # two
        [Event(f"{a}>{b}", "follow", a, now, target=b) for a, b in some] for some in (pairs, later)
    )


def test_answers_come_from_the_whole_once_its_ranker_has_learned(
    town: KafkaConfig, trainer: Trainer, tmp_path: Path
) -> None:
    trainer.start()
    first, later = crowd()
    with Worker(
        town, tmp_path / "one", PARTITIONS, ["ranking.train_share=1.0", "ranking.train_most=100000"]
    ) as worker:
        worker.ready()
        publish(town, first, PARTITIONS)
        worker.until(lambda: len(worker.get("/v1/candidates/u1?k=200")[1]["candidates"]) == 130, "for them")
        for at in range(
            0, len(later), 50
        ):  # each on what those before have made, however slow the machine is
            ends = publish(town, later[at : at + 50], PARTITIONS)
            token = ",".join(f"{number}:{end}" for number, end in ends.items())
            worker.until(
                lambda token=token: worker.get(f"/v1/candidates/nobody?after={token}")[0] == 200,  # type: ignore[misc]
                f"for {token}",
            )

        def sources(account: str) -> set[str]:
            status, body = worker.get(f"/v1/candidates/{account}?k=20&explain=full")
            assert status == 200
            assert body["step"] >= 0
            return {source for candidate in body["candidates"] for source in candidate.get("sources", ())}

        worker.until(lambda: "two_hop" in sources("half"), "for an answer of the whole")
        worker.until(lambda: trainer.gauge("behind_records") == 0, "for the log's end")
        newest = trainer.gauge("step")
        worker.until(lambda: worker.get("/v1/candidates/half?k=20")[1]["step"] >= newest, "for all of it")
        answer = worker.get("/v1/candidates/half?k=20")[1]
        assert answer["step"] > 0
        assert not [one["account"] for one in answer["candidates"] if one["account"].startswith("s")]
    trainer.stop()
    learned = Learner.load(
        trainer.checkpoint,
        PARTITIONS,
        TrainerConfig(),
        example_batch=64,
        idle_days=365,
        ranking=RankingConfig(),
    )
    assert learned.model.ranker.ready


def test_one_directory_is_one_trainers(town: KafkaConfig, trainer: Trainer) -> None:
    trainer.start()
    trainer.until("step", 0)
    second = Trainer(town, trainer.folder)
    second.start()
    assert second._process is not None
    assert second._process.wait(PATIENCE) == 2
    assert "is another trainer's" in (trainer.folder / "log").read_text()


def test_the_trainer_goes_on_with_the_lineage_that_is_to_be_served(
    town: KafkaConfig, trainer: Trainer, tmp_path: Path
) -> None:
    config = Config(kafka=town, engine=EngineConfig(partitions=PARTITIONS))
    trainer.start()
    trainer.until("step", 0)
    Model.day_zero(4).save(tmp_path / "other")
    current = registry.publish(config, tmp_path / "other", wall_clock)
    path = trainer.folder / f"{current.lineage}.safetensors"
    with Worker(town, tmp_path / "one", PARTITIONS) as worker:
        worker.ready()
        for seed in range(2):
            publish(town, follows(seed, 200), PARTITIONS)
            worker.until(lambda: len(worker.get("/v1/candidates/u1?k=50")[1]["candidates"]) > 20, "for them")
        worker.until(lambda: worker.get("/v1/candidates/u1")[1]["model"] == current.lineage, "for the other")
        worker.until(lambda: trainer.gauge("examples") > 0, "for examples")
        worker.until(lambda: worker.get("/v1/candidates/u1")[1]["step"] > 0, "for a learned step")
    trainer.stop()
    assert trainer.checkpoint.exists()  # of the lineage before
    assert Learner.load(path, PARTITIONS, TrainerConfig(), example_batch=64, idle_days=365).model.step > 0
    registry.point(config, "", wall_clock)
    path.unlink()
    registry.point(config, current.lineage, wall_clock)
    trainer.start()
    assert trainer._process is not None
    assert trainer._process.wait(PATIENCE) == 2
    assert "was trained before" in (trainer.folder / "log").read_text()
