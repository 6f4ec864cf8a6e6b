"""What faults strike: a broker, workers with directories of their own, shared checkpoints, a crowd and an asker."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from asker import Asker
from crowd import Crowd
from workers import PATIENCE, Worker, fetch

from kithstream.models.lineage import day_zero_lineage
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.kafka.local import LocalKafka
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.topics import create, wanted

PARTITIONS: Final = 3
LINEAGE: Final = day_zero_lineage(0)
SALT: Final = "pepper"
SESSION: Final = 4.0  # seconds
BROKER: Final = {"group.min.session.timeout.ms": "1000"}  # so that zombies need not wait long
HANGS: Final = 3.0  # seconds after which a request to a worker is given up
STEPPING: Final = Path(__file__).with_name("stepping")
OPTIONS: Final = (
    f"worker.session_seconds={SESSION:g}",
    f"worker.salt={SALT}",
    "worker.checkpoint_seconds=2",
    "worker.checkpoints_kept=4",
    "worker.push_rate=0",
    "worker.drain_seconds=30",
    "engine.job_edges=200",
    "store.write_buffer_bytes=131072",  # so that stores are many files soon
)


class Clock:
    """The time of day that workers see: the machine's and a step."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        self.environment = {
            "STEPPED_CLOCK": str(path),
            "PYTHONPATH": os.pathsep.join([str(STEPPING), os.environ.get("PYTHONPATH", "")]),
        }
        with open(path, "r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 8)

    def step(self, microseconds: int) -> None:
        """Be this much ahead of the machine's clock from now on."""
        self._mapped[:8] = struct.pack("<q", microseconds)


class Town:
    """Workers on a broker, under load and questions. `deeds` counts what was done to them, `ended` who gave up."""

    def __init__(self, folder: Path, broker: LocalKafka, prefix: str, seed: int, rate: float = 60.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.broker = broker
        self.kafka = KafkaConfig(servers=broker.servers, prefix=prefix)
        self.names = topics(prefix)
        self.checkpoints = folder / "checkpoints"
        self.deeds: Counter[str] = Counter()
        self.ended: list[str] = []  # the last words of workers that ended by themselves
        self.clock = Clock(folder / "clock")
        self.workers: dict[str, Worker] = {}
        self.folders: list[Path] = []
        self.crowd = Crowd(self.kafka, seed, rate, self._post)
        self.asker = Asker(self.crowd, seed + 1, lambda: list(self.workers), self._get)

    def __enter__(self) -> Self:
        config = Config(kafka=self.kafka, engine=EngineConfig(partitions=PARTITIONS))
        create(self.kafka, wanted(config, LINEAGE))
        for name in ("one", "two"):
            self.join(name)
        for worker in self.workers.values():
            worker.ready()
        self.crowd.__enter__()
        self.asker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for one in (self.asker, self.crowd):
                with contextlib.suppress(*[] if kind is None else [Exception]):  # the first error is told
                    one.stop()
        finally:
            for worker in self.workers.values():
                worker.__exit__(kind, error, trace)

    def join(self, name: str) -> Worker:
        """Start a worker, with what its directory holds from before."""
        worker = self.workers.get(name)
        if worker is None:
            worker = Worker(
                self.kafka,
                self.folder / name,
                PARTITIONS,
                [*OPTIONS, f"worker.checkpoints={self.checkpoints}"],
                secrets={**self.clock.environment, "OMP_NUM_THREADS": "1"},
            )
            if worker.folder not in self.folders:
                self.folders.append(worker.folder)
        worker.start()
        self.workers[name] = worker
        return worker

    def kill(self, name: str) -> None:
        """kill -9 of a stream process, paused or not; none if it has ended by itself."""
        worker = self.workers[name]
        if worker.alive:
            os.kill(worker.pid, signal.SIGKILL)
            self.deeds["kills"] += 1
        worker.wait()

    def leave(self, name: str) -> None:
        """SIGTERM; the worker hands over and is gone."""
        self.workers.pop(name).stop()

    def mend(self) -> int:
        """Start those again that have ended by themselves, as whatever looks after processes would; how many."""
        dead = [name for name, worker in self.workers.items() if not worker.alive]
        for name in dead:
            self.ended.append(f"{name}: {self.workers[name].log().strip().splitlines()[-1]}")
            self.join(name)
        return len(dead)

    def until(self, holds: Callable[[], bool], what: str, patience: float = 2 * PATIENCE) -> None:
        """Ask again until it holds, while workers that end are started again."""
        end = time.monotonic() + patience
        while not holds():
            self.mend()
            assert time.monotonic() < end, f"waited {patience:g} s {what}: {self.last_words()}"
            time.sleep(0.05)  # between two looks; the machine has other work

    def ready(self) -> None:
        """Wait until every worker says that it is ready."""
        self.until(
            lambda: all(worker.get("/readyz")[0] == 200 for worker in self.workers.values()), "to be ready"
        )

    def owned(self) -> dict[str, int]:
        """How many partitions each worker says it answers for; -1 of one that does not say."""
        return {
            name: int(self.told(name, "kithstream_worker_owned_partitions")) for name in list(self.workers)
        }

    def told(self, name: str, figure: str) -> float:
        """A figure of a worker's /metrics; -1 where it is not told."""
        raw = self._get(name, "/metrics")[1]
        lines = raw.decode().splitlines() if isinstance(raw, bytes) else []
        found = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{figure} ")]
        return float(found[0]) if found else -1.0

    def wipe(self, number: int) -> None:
        """Take away what workers, none of which runs, hold of a partition."""
        for folder in self.folders:
            shutil.rmtree(folder / "state" / str(number), ignore_errors=True)

    def last_words(self) -> str:
        """The ends of the workers' logs."""
        return "\n".join(f"{name}: {worker.log()[-1500:]}" for name, worker in self.workers.items())

    def _get(self, name: str, path: str) -> tuple[int, Any]:
        return self._fetch(name, path)

    def _post(self, rng: random.Random, body: object) -> tuple[int, Any]:
        names = list(self.workers)
        return self._fetch(rng.choice(names), "/v1/events", json.dumps(body).encode()) if names else (0, None)

    def _fetch(self, name: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        worker = self.workers.get(name)
        if worker is None:
            return 0, None
        headers = {} if body is None else {"content-type": "application/json"}
        return fetch(urllib.request.Request(worker.url + path, body, headers), HANGS)
