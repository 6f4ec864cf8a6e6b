"""Real workers as processes, and what their stores hold against what the log means."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from promises import agree

from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import EngineConfig, KafkaConfig, StoreConfig
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.partition import APPLIED, EDGES
from kithstream.streams.engine.routing import Route
from kithstream.streams.events import wire as events
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka.local import free_port
from kithstream.streams.kafka.names import topics
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.store import RocksStore

PATIENCE = 120.0  # seconds in which what must come about comes about, also where much else runs
SMALL = StoreConfig(cache_bytes=1 << 20, write_buffer_bytes=1 << 20)


def running(pid: int) -> bool:
    """True while a process runs or is paused; one that nobody has waited for yet does not run any more."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class Worker:
    """One `kithstream worker`, in a directory of its own."""

    def __init__(
        self,
        kafka: KafkaConfig,
        folder: Path,
        partitions: int,
        options: Sequence[str] = (),
        *,
        port: int = 0,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {**os.environ, **(secrets or {})}
        self._kafka = kafka
        self._partitions = partitions
        self._options = [
            f"kafka.servers={kafka.servers}",
            f"kafka.prefix={kafka.prefix}",
            f"engine.partitions={partitions}",
            f"worker.data={folder}",
            "worker.session_seconds=6",
            "store.cache_bytes=1048576",
            "store.write_buffer_bytes=1048576",
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the process; it is ready when `ready` says so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        given = [part for option in self._options for part in ("-o", option)]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kithstream", "worker", "--port", str(self.port), *given],
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        """Process id of the stream process."""
        assert self._process is not None
        return self._process.pid

    @property
    def retrieval(self) -> int:
        """Process id of the retrieval process, 0 while there is none."""
        for listed in Path(f"/proc/{self.pid}/task").glob("*/children"):
            for pid in listed.read_text().split():
                with contextlib.suppress(OSError):
                    if b"retrieval" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return int(pid)
        return 0

    def log(self) -> str:
        """What the worker has said."""
        return (self.folder / "log").read_text(errors="replace")

    def ready(self) -> None:
        """Wait until the worker says that it is ready."""
        self.until(lambda: self.get("/readyz")[0] == 200, "to be ready")

    @property
    def alive(self) -> bool:
        """True while the stream process runs."""
        return self._process is not None and self._process.poll() is None

    def wait(self) -> None:
        """Wait until the stream process has ended."""
        assert self._process is not None
        self._process.wait(PATIENCE)

    def until(self, holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Ask again until it holds; fails with the end of the log when the worker ends or time runs out."""
        end = time.monotonic() + patience
        while not holds():
            assert self._process is not None
            status = self._process.poll()
            assert status is None, f"the worker ended with {status}: {self.log()[-2000:]}"
            time.sleep(0.02)  # between two looks; the machine has other work
            assert time.monotonic() < end, f"waited {patience:g} s {what}: {self.log()[-2000:]}"

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Return status and decoded body; status 0 while nobody listens."""
        return fetch(urllib.request.Request(self.url + path, headers=headers or {}))

    def post(self, path: str, body: object) -> tuple[int, Any]:
        """Post JSON; return status and decoded body."""
        raw = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return fetch(urllib.request.Request(self.url + path, raw, headers))

    def kill(self) -> None:
        """kill -9 of the stream process; its retrieval process ends by itself."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)

    def stop(self) -> float:
        """SIGTERM; return the seconds that it took. The exit status must be 0."""
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(PATIENCE)
        assert status == 0, f"exit status {status}: {self.log()[-2000:]}"
        return time.monotonic() - began

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)


def fetch(request: urllib.request.Request, patience: float = PATIENCE) -> tuple[int, Any]:
    """Return status and decoded body of a request; status 0 where nobody listens or answers in time."""
    try:
        status, raw = _read(request, patience)
    except (OSError, HTTPException):  # HTTPException: it died in the middle of its answer
        return 0, None
    try:
        return status, json.loads(raw)
    except ValueError:
        return status, raw


def _read(request: urllib.request.Request, patience: float) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=patience) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as problem:
        with problem:
            return problem.code, problem.read()


def publish(kafka: KafkaConfig, given: Iterable[Event], partitions: int) -> dict[int, int]:
    """Publish events to their partitions; return the offset after the last of each."""
    route, topic = Route(partitions), topics(kafka.prefix).engagements
    producer = KafkaProducer(bootstrap_servers=kafka.servers, acks="all", linger_ms=5)
    sent = [
        producer.send(topic, events.encode(e), key=e.actor.encode(), partition=route[e.actor]) for e in given
    ]
    ends: dict[int, int] = {}
    for future in sent:
        told = future.get(PATIENCE)
        ends[told.partition] = max(ends.get(told.partition, 0), told.offset + 1)
    producer.close()
    return ends


def ends_of(kafka: KafkaConfig, topic: str, partitions: int) -> dict[int, int]:
    """Return where a topic's partitions end."""
    consumer = KafkaConsumer(bootstrap_servers=kafka.servers)
    found = consumer.end_offsets([TopicPartition(topic, number) for number in range(partitions)])
    consumer.close()
    return {tp.partition: end for tp, end in found.items()}


def newest_stores(folders: Sequence[Path], partitions: int) -> list[Path]:
    """Return of each partition the store that has come furthest, of workers that have ended."""

    def reached(path: Path) -> tuple[int, int]:
        store = RocksStore(path, SMALL)
        applied, edges = store.get(Column.META, [APPLIED, EDGES])
        store.close()
        return int.from_bytes(applied or b"", "big"), int.from_bytes(edges or b"", "big")

    return [
        max((f / "state" / str(n) for f in folders if (f / "state" / str(n)).exists()), key=reached)
        for n in range(partitions)
    ]


def holds(
    folders: Sequence[Path],
    published: Iterable[Event],
    partitions: int,
    known: Mapping[str, int] | None = None,
    versions: Mapping[str, KnownFor] | None = None,
) -> None:
    """Assert that the newest stores of ended workers hold exactly what the published events mean.

    `known` is what accounts are known for by the version of communities that is read, `versions` those at hand.
    """
    stores = [RocksStore(path, SMALL) for path in newest_stores(folders, partitions)]
    engine = Engine(stores, EngineConfig(partitions=partitions), salt=b"salt" * 4, versions=versions)
    try:
        agree(engine, published, known)
    finally:
        engine.close()
