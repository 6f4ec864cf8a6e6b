"""Events a second through Kafka until nothing is behind, CPU seconds, and what a kill -9 does to the counts.

All read the same events from a topic of one broker, in turns, each from a topic of its own with the same contents.
A run: the process folds a first part, so that it is known to be up; then everything else is published at once, and
the clock runs until its last record is folded on both sides. CPU seconds are the process's alone (of kithstream: its
stream process and its retrieval process). kithstream folds more, encodes, and has every vector in its index by then.

After the rounds each gets one kill -9 in the middle, is started again in its directory, and the counts that its
changelogs hold are compared with the records of the topic.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaConsumer, TopicPartition

from bench import results
from bench.kafka import answered, cluster, compared, cpu_of, ends_of, everything, simulated, started
from bench.peers import progress
from bench.peers.environment import PYTHON, environment, python
from bench.peers.fold import RECORDS, errors, expected
from bench.peers.table import OURS, number
from bench.peers.table import compared as table
from kithstream.models.lineage import day_zero_lineage
from kithstream.streams.clients import EventPublisher
from kithstream.streams.config import Config, EngineConfig, KafkaConfig
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.topics import create, wanted

SESSION = 6.0  # seconds of the group's sessions, the same for all
QUIET = 20.0  # seconds without a record after which who was killed has caught up: four commits of Quix
# With transactions: one left open by who was killed hides from readers what comes after it until it times out, a
# minute by librdkafka's setting, unless its successor has the same id.
QUIET_EXACTLY_ONCE = 90.0
ACCOUNTS, PARTITIONS = 20_000, 4
FIRST = 2000  # events that show that a process is up
COLUMNS = {
    "events_per_second": "events/s",
    "events_per_cpu_second": "events per CPU s",
    "cpu_s": "CPU s",
    "stream_cpu_s": "of it stream",
    "records": "records of the kill",
    "counted_twice": "counted twice",
    "lost": "lost",
    "kill_to_caught_up_s": "kill to caught up s",
}
RATIOS = ("events_per_second", "events_per_cpu_second")
Events = Sequence[bytes]


class Peer(NamedTuple):
    """One application that folds the topic."""

    module: str
    of_peers: bool
    exactly_once: bool
    does: str


PEERS = {
    "faust": Peer("faust_app", False, False, "2 Tables of decayed counters; at least once"),
    "faust exactly once": Peer("faust_app", False, True, "the same, processing_guarantee=exactly_once"),
    "quix": Peer("quix_app", True, False, "2 states of decayed counters; at least once"),
    "quix exactly once": Peer("quix_app", True, True, "the same, exactly-once"),
}
NAMES = (OURS, *PEERS)
OURS_DOES = (
    "exact undo, no duplicates, both ledgers, rows, lists, sketches, tower, live index; effectively once"
)


class Behind(Exception):
    """A process did not fold everything in time; the message says how far it came."""


def versions() -> dict[str, str]:
    """The version of each."""
    script = "from importlib.metadata import version; print(version('quixstreams'))"
    quix = subprocess.run([PYTHON, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    faust = version("faust-streaming")
    return {OURS: version("kithstream"), **{name: quix if "quix" in name else faust for name in PEERS}}


class Folding:
    """A peer's process over one topic."""

    def __init__(self, name: str, kafka: KafkaConfig, folder: Path) -> None:
        self._peer, self._kafka, self._folder = PEERS[name], kafka, folder
        self._name = kafka.prefix.rstrip(".")
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        given = {
            "servers": self._kafka.servers,
            "topic": topics(self._kafka.prefix).engagements,
            "name": self._name,
            "partitions": PARTITIONS,
            "session": SESSION,
            "folder": self._folder,
        }
        words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
        if self._peer.exactly_once:
            words.append("--exactly-once")
        (self._folder / "progress").unlink(missing_ok=True)
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [python(self._peer.of_peers), "-m", f"bench.peers.{self._peer.module}", *words],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=environment(),
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def told(self) -> progress.Told:
        return progress.read(self._folder / "progress")

    def alive(self) -> None:
        """Raise Behind with the end of its log if it has ended."""
        assert self._process is not None
        if (status := self._process.poll()) is not None:
            said = (self._folder / "log").read_text(errors="replace").strip().splitlines()
            raise Behind(f"ended with {status}: {' / '.join(said[-4:])}")

    def until(self, wanted: dict[str, int], patience: float) -> None:
        """Wait until so many records are folded on each side."""
        end = time.monotonic() + patience
        while any(self.told().folded.get(side, 0) < count for side, count in wanted.items()):
            self.alive()
            if time.monotonic() > end:
                raise Behind(f"{self.told().folded} of {wanted} after {patience:g} s")
            time.sleep(0.02)  # between two looks at a file

    def until_quiet(self, ends: dict[int, int], patience: float) -> float:
        """Wait until the topic is read to its end and nothing more comes; return when the last came."""
        topic = topics(self._kafka.prefix).engagements
        end = time.monotonic() + patience
        quiet = QUIET_EXACTLY_ONCE if self._peer.exactly_once else QUIET
        last, since = self.told(), time.monotonic()
        while True:
            self.alive()
            now = self.told()
            if now != last:
                last, since = now, time.monotonic()
            read = all(last.next.get(f"{topic}:{number}", 0) >= at for number, at in ends.items() if at)
            if read and time.monotonic() > since + quiet:
                return since
            if time.monotonic() > end:
                raise Behind(f"{last.next} of {ends} after {patience:g} s")
            time.sleep(0.1)  # between two looks at a file

    def kill(self) -> None:
        assert self._process is not None
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it; one that does not end when it is asked is killed."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def folding(name: str, kafka: KafkaConfig, folder: Path) -> Iterator[Folding]:
    """A started process, ended at the end."""
    process = Folding(name, kafka, folder)
    process.start()
    try:
        yield process
    finally:
        process.close()


def sides(events: Events) -> dict[str, int]:
    """How many records each side of a peer's fold sees."""
    return {"did": len(events), "met": sum(b'"target"' in event for event in events)}


def tenant(kafka: KafkaConfig, prefix: str) -> KafkaConfig:
    """Topics of their own on the same broker."""
    own = msgspec.structs.replace(kafka, prefix=prefix)
    config = Config(kafka=own, engine=EngineConfig(partitions=PARTITIONS))
    create(own, wanted(config, day_zero_lineage(0)))
    return own


def send(publisher: EventPublisher, events: Events) -> None:
    """Publish everything as fast as the brokers take it."""
    source = iter(events)
    while call := list(islice(source, 500)):
        publisher.send(call)
    publisher.flush()


def peer_run(name: str, kafka: KafkaConfig, folder: Path, events: Events, patience: float) -> dict[str, Any]:
    """One run without a fault."""
    first = events[:FIRST]
    with (
        folding(name, kafka, folder) as process,
        EventPublisher(kafka, linger=0.005) as publisher,
    ):
        send(publisher, first)
        process.until(sides(first), patience)
        began, cpu = time.perf_counter(), cpu_of(process.pid)
        send(publisher, events[FIRST:])
        process.until(sides(events), patience)
        spent = cpu_of(process.pid) - cpu
        return told(len(events) - FIRST, time.perf_counter() - began, spent, spent)


def own_run(kafka: KafkaConfig, folder: Path, events: Events, patience: float) -> dict[str, Any]:
    """The same of a kithstream worker; everything is visible at its end."""
    with ExitStack() as stack:
        (worker,) = started(stack, kafka, folder, PARTITIONS, 1)
        publisher = stack.enter_context(EventPublisher(kafka, linger=0.005))

        send(publisher, events[:FIRST])
        answered(worker, everything(kafka, PARTITIONS), patience)
        began = time.perf_counter()
        before = cpu_of(worker.pid), cpu_of(worker.retrieval)
        send(publisher, events[FIRST:])
        answered(worker, everything(kafka, PARTITIONS), patience)
        seconds = time.perf_counter() - began
        stream = cpu_of(worker.pid) - before[0]
        found = told(len(events) - FIRST, seconds, stream + cpu_of(worker.retrieval) - before[1], stream)
        worker.stop()
        return found


def told(events: int, seconds: float, cpu: float, stream: float) -> dict[str, Any]:
    """The figures of a run."""
    return {
        "events_per_second": round(events / seconds, 1),
        "events_per_cpu_second": round(events / cpu, 1),
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu, 2),
        "stream_cpu_s": round(stream, 2),
    }


def peer_killed(
    name: str, kafka: KafkaConfig, folder: Path, events: Events, patience: float
) -> dict[str, Any]:
    """kill -9 when a third is folded, a start in the same directory, and the counts at the end."""
    with (
        folding(name, kafka, folder) as process,
        EventPublisher(kafka, linger=0.005) as publisher,
    ):
        send(publisher, events[:FIRST])
        process.until(sides(events[:FIRST]), patience)
        send(publisher, events[FIRST:])
        process.until({"did": len(events) // 3}, patience)
        process.kill()
        at = time.monotonic()
        process.start()
        ends = ends_of(kafka, topics(kafka.prefix).engagements, PARTITIONS)
        caught_up = process.until_quiet(ends, patience) - at
    did, met = expected(map(msgspec.json.decode, events))
    found = counts(kafka)
    twice, lost = zip(errors(did, found["did"]), errors(met, found["met"]), strict=True)
    return {
        "counted_twice": sum(twice),
        "lost": sum(lost),
        "records": did.total() + met.total(),
        "kill_to_caught_up_s": round(caught_up, 1),
    }


def own_killed(kafka: KafkaConfig, folder: Path, events: Events, patience: float) -> dict[str, Any]:
    """The same of a kithstream worker; its stores are compared with a fold of the topic in this process."""
    with ExitStack() as stack:
        (worker,) = started(stack, kafka, folder, PARTITIONS, 1)
        publisher = stack.enter_context(EventPublisher(kafka, linger=0.005))
        send(publisher, events[: len(events) // 3])
        third = everything(kafka, PARTITIONS)
        send(publisher, events[len(events) // 3 :])
        answered(worker, f"{third}&level=state", patience)
        worker.kill()
        at = time.monotonic()
        worker.start()
        answered(worker, everything(kafka, PARTITIONS), patience)
        caught_up = time.monotonic() - at
        worker.stop()
        equal, _ = compared(kafka, [folder / "worker-0"], PARTITIONS, folder)
    if not equal:
        raise Behind("the stores differ from a fold of the topic")
    did, met = expected(map(msgspec.json.decode, events))
    records = did.total() + met.total()
    return {"counted_twice": 0, "lost": 0, "records": records, "kill_to_caught_up_s": round(caught_up, 1)}


def counts(kafka: KafkaConfig) -> dict[str, Counter[str]]:
    """How many records each account has on each side, by the newest committed records of the changelogs."""
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    own = kafka.prefix.rstrip(".")
    found = {"did": Counter[str](), "met": Counter[str]()}
    for topic in consumer.topics():
        if "changelog" not in topic or own not in topic:
            continue
        side = "met" if "repartition" in topic or "-met-" in topic else "did"
        tps = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(tps)
        ends = consumer.end_offsets(tps)
        while any(consumer.position(tp) < end for tp, end in ends.items()):
            for records in consumer.poll(1000, max_records=5000).values():
                for record in records:
                    state = json.loads(record.value) if record.value else None
                    if isinstance(state, list):  # beside them Quix has marks of its own
                        found[side][account(record.key)] = int(state[RECORDS])
    consumer.close()
    return found


def account(key: bytes) -> str:
    """The account of a changelog's key: Faust's is its name, in JSON or plain, Quix's is name|"state"."""
    return key.partition(b"|")[0].strip(b'"').decode()


def measure(
    names: Sequence[str],
    count: int,
    killed: int,
    rounds: int,
    seed: int,
    patience: float,
    say: Callable[[object], None],
) -> dict[str, list[dict[str, Any]]]:
    """The rounds, then the kills; a peer that does not come to an end in time is said and left out from there."""
    events = [msgspec.json.encode(event) for event in islice(simulated(seed), count)]
    found: dict[str, list[dict[str, Any]]] = {}
    known = versions()
    out: set[str] = set()
    with ExitStack() as stack:
        shared = cluster(stack, PARTITIONS)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-peers-")))

        def one(name: str, turn: str, kill: bool) -> None:
            if name in out:
                return
            label = f"{name.replace(' ', '-')}-{turn}"
            kafka = tenant(shared, f"{label}.")
            folder, part = scratch / label, events[:killed] if kill else events
            try:
                if name == OURS:
                    run = (own_killed if kill else own_run)(kafka, folder, part, patience)
                else:
                    run = (peer_killed if kill else peer_run)(name, kafka, folder, part, patience)
            except (Behind, AssertionError) as why:
                say(f"{label}: {why}")
                out.add(name)
                return
            say(f"{label}: {run}")
            found.setdefault(name, []).append({**run, "version": known[name]})

        for turn in range(rounds):
            for name in names:
                one(name, str(turn), False)
        if killed:
            out.clear()
            for name in names:
                one(name, "killed", True)
    return found


def show(rounds: dict[str, list[dict[str, Any]]]) -> str:
    """The table."""
    told = {
        name: (rounds[name][0]["version"], OURS_DOES if name == OURS else PEERS[name].does) for name in rounds
    }
    return table(rounds, told, COLUMNS, RATIOS)


def append(
    rounds: dict[str, list[dict[str, Any]]], count: int, seed: int, command: str, path: Path | None
) -> None:
    """A line in the results for each."""
    for name, found in rounds.items():
        keys = dict.fromkeys(key for one in found for key in one if number(one[key]))
        figures = {key: [one[key] for one in found if key in one] for key in keys}
        if name == OURS and "faust" in rounds:
            figures["times_plain_faust"] = [
                ours["events_per_second"] / theirs["events_per_second"]
                for ours, theirs in zip(found, rounds["faust"], strict=False)
                if "events_per_second" in ours and "events_per_second" in theirs
            ]
        figures = {key: values for key, values in figures.items() if values}
        results.append(
            bench="peers",
            stage="ingest",
            what="Kafka to state until nothing is behind, and after one kill -9",
            kind="ours" if name == OURS else "peer",
            by=name if name == OURS else f"{name} {found[0]['version']}",
            figures=figures,
            command=command,
            sizes={"accounts": ACCOUNTS, "events": count, "partitions": PARTITIONS},
            mix="full mix of a simulated world",
            seed=seed,
            bar="kafka" if "events_per_second" in figures else "",
            note=OURS_DOES if name == OURS else PEERS[name].does,
            path=path,
        )
