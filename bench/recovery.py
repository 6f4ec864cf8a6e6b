"""Time from kill to ready, on its own disk and on an empty one, embedded and on Kafka, by hand.

    python -m bench.recovery embedded --accounts 100000 --edges 5000000
    python -m bench.recovery kafka --accounts 100000 --edges 5000000
    python -m bench.recovery --accounts 2000 --edges 20000

Embedded: a graph is loaded in bulk (as `kithstream load` does), `--rested` hours pass, a snapshot, a checkpoint and a
backup are made, `--tail` follows are published and folded behind them, and the process is killed with -9. Then a new
process is timed from its start to an answer that includes everything published: from the snapshot (`own_disk`), with
every account encoded (`own_disk_encoded`), from the checkpoint in place of the stores and the log
(`checkpoint_and_log`, the copying included), and from the backup on an empty disk (`empty_disk`, checked).

Kafka: the graph is loaded in bulk where a worker keeps its partitions; the worker publishes every vector and is
stopped so that it leaves checkpoints, `--tail` follows are published and folded, and the worker is killed with -9: on
its own disk (`own_disk`), and with its directory removed (`empty_disk`: checkpoints, log, the topic of vectors read
whole); then its retrieval process alone, with and without a snapshot. Ready is /readyz and an answer whose token holds
everything published; the group waits for the dead member's session (6 s) first.

Each way is timed `--times` times; all of them are told. Broker, worker and load share the machine's cores. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from kafka import KafkaProducer

from bench.kafka import FULL, Worker, answered, cluster, everything, told
from bench.load import write_graph
from bench.machine import machine, say
from kithstream.models.lineage import day_zero_lineage
from kithstream.streams import backup
from kithstream.streams.config import Config, EngineConfig, KafkaConfig, StoreConfig
from kithstream.streams.engine.engine import Engine
from kithstream.streams.engine.routing import Route
from kithstream.streams.events import wire
from kithstream.streams.events.stamp import wall_clock
from kithstream.streams.events.wire import Event
from kithstream.streams.kafka.names import topics
from kithstream.streams.kafka.worker import shared_salt
from kithstream.streams.load import load
from kithstream.streams.serve.embedded import Embedded, restore
from kithstream.streams.sources import graph
from kithstream.streams.state.store import RocksStore

PARTITIONS: Final = 3
HOUR: Final = 3_600_000_000  # microseconds
PATIENCE: Final = 3600.0  # seconds
BATCH: Final = 1000  # events published at a time


def follows(accounts: int, count: int, seed: int, now: int) -> Iterator[Event]:
    """Random follows of the last day; whom they follow goes by a power law."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, accounts + 1) ** -0.8
    targets = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(count))
    times = now - rng.integers(0, 86_400_000_000, count)
    for number, (source, target, at) in enumerate(
        zip(rng.integers(0, accounts, count).tolist(), targets.tolist(), times.tolist(), strict=True)
    ):
        if source != target:
            name = f"{seed}-{number}"
            yield Event(name, "follow", f"account{source:07d}", at, target=f"account{target:07d}")


def prepare(folder: Path, graph: Path, accounts: int, tail: int, rested: float) -> None:
    """What is killed: a runtime with a snapshot, and follows that were folded behind it."""
    back = int(rested * HOUR)
    live = Embedded(folder / "town", _config(), clock=lambda: wall_clock() - back)
    live.load(graph)
    back = 0
    live.pump(aged=accounts)
    live.save()
    live.checkpoint(folder / "checkpoint")
    live.backup(folder / "backup")
    events = list(follows(accounts, tail, 1, wall_clock()))
    for first in range(0, len(events), BATCH):
        live.publish(events[first : first + BATCH])
        live.pump()
    live.catch_up()
    print(json.dumps({"accounts": len(live.chain.index)}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def revive(folder: Path, seconds: float) -> None:
    """What comes back: print how, once an answer holds everything that was published; then die as the other did."""
    with ExitStack() as stack:
        live = stack.enter_context(Embedded(folder, _config(seconds)))
        live.candidates("nobody", 20, after=live.end)
        print(json.dumps(live.recovery._asdict()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def _config(seconds: float = 300.0) -> Any:
    from kithstream.streams import config

    return config.load(
        environment={}, options=[f"index.snapshot_seconds={seconds}", "index.background=false"]
    )


def child(*words: object) -> dict[str, Any]:
    """Run a part of this in a process that kills itself; return what it printed."""
    command = [sys.executable, "-m", "bench.recovery", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def embedded(given: argparse.Namespace) -> dict[str, object]:
    """Time the runtime in one process."""
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as name:
        folder = Path(name)
        write_graph(folder / "graph.parquet", given.edges, given.accounts, 0)
        result: dict[str, object] = child(
            "prepare", folder, folder / "graph.parquet", given.accounts, given.tail, given.rested
        )

        def timed(way: str, before: Callable[[Path], None], seconds: float = 300.0) -> None:
            runs: list[dict[str, float]] = []
            for _ in range(given.times):
                place = folder / "again"
                shutil.rmtree(place, ignore_errors=True)
                if way != "empty_disk":
                    shutil.copytree(folder / "town", place)  # what the kill left
                began = time.perf_counter()
                before(place)
                restored = time.perf_counter() - began
                recovery = child("revive", place, seconds)
                took = time.perf_counter() - began
                runs.append(
                    {
                        "ready_seconds": round(took, 2),
                        "copying_seconds": round(restored, 2),
                        "index_seconds": round(recovery["seconds"], 2),
                        "changed": recovery["changed"],
                        "encoded": recovery["encoded"],
                        "from_snapshot": bool(recovery["snapshot"]),
                    }
                )
            result[way] = runs

        timed("own_disk", lambda _: None)
        timed("own_disk_encoded", lambda _: None, 0.0)
        timed("checkpoint_and_log", lambda place: restore(folder / "checkpoint", place))
        timed("empty_disk", lambda place: bool(backup.restore(folder / "backup", place)) and None)
        result["backup_bytes"] = sum(f.stat().st_size for f in (folder / "backup").rglob("*") if f.is_file())
    return result


def fill(config: KafkaConfig, folder: Path, accounts: int, edges: int) -> None:
    """Load a graph in bulk into the stores of a worker that has not been started yet."""
    write_graph(folder / "graph.parquet", edges, accounts, 0)
    stores = [RocksStore(folder / "worker" / "state" / str(n), StoreConfig()) for n in range(PARTITIONS)]
    salt = shared_salt(Config().worker.salt, config)
    engine = Engine(stores, EngineConfig(partitions=PARTITIONS), salt=salt)
    load(engine, graph.read_columns(folder / "graph.parquet"), now=wall_clock())
    engine.close()


def publish(servers: str, topic: str, events: Iterator[Event]) -> None:
    """Publish events to their partitions, in bounded memory."""
    route = Route(PARTITIONS)
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=20)
    for number, event in enumerate(events):
        producer.send(topic, wire.encode(event), key=event.actor.encode(), partition=route[event.actor])
        if number % 50_000 == 49_999:
            producer.flush()
    producer.flush()
    producer.close()


def kafka(given: argparse.Namespace) -> dict[str, object]:
    """Time a worker on a Kafka of this machine."""
    result: dict[str, object] = {}
    with ExitStack() as stack:
        config = cluster(stack, PARTITIONS)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
        topic = topics(config.prefix).engagements
        options = [
            *FULL,
            f"worker.checkpoints={folder / 'shared'}",
            "index.snapshot_seconds=5",
            "worker.push_rate=0",
        ]
        fill(config, folder, given.accounts, given.edges)
        say("loaded")
        worker = stack.enter_context(Worker(config, folder / "worker", PARTITIONS, options))
        snapshots = folder / "worker" / "index" / day_zero_lineage(0)

        def ready() -> None:
            worker.until(lambda: worker.get("/readyz")[0] == 200, "to be ready", PATIENCE)
            answered(worker, everything(config, PARTITIONS), PATIENCE)

        def snapshot() -> None:
            saved = told(worker, "kithstream_snapshots_saved_total")
            worker.until(
                lambda: told(worker, "kithstream_snapshots_saved_total") > saved, "for one", PATIENCE
            )

        def timed(way: str, kill: Callable[[], None]) -> None:
            runs = []
            say(way)
            for _ in range(given.times):
                began = time.perf_counter()
                kill()
                ready()
                runs.append(
                    {
                        "ready_seconds": round(time.perf_counter() - began, 2),
                        "vectors_read": told(worker, "kithstream_replica_read_records_total"),
                    }
                )
            result[way] = runs
            say(f"{way}: {runs}")

        def all_of_it() -> None:
            worker.kill()
            worker.start()

        def with_its_disk() -> None:
            worker.kill()
            shutil.rmtree(folder / "worker")
            worker.start()

        def retrieval() -> None:
            before = worker.retrieval
            os.kill(before, signal.SIGKILL)
            worker.until(lambda: worker.retrieval not in (0, before), "for the next one", PATIENCE)

        def without_snapshot() -> None:
            shutil.rmtree(snapshots, ignore_errors=True)
            retrieval()

        ready()
        say("every vector is published")
        worker.stop()
        worker.start()
        ready()
        publish(config.servers, topic, follows(given.accounts, given.tail, 1, wall_clock()))
        ready()
        snapshot()
        timed("own_disk", all_of_it)
        timed("retrieval_process", retrieval)
        timed("retrieval_process_without_snapshot", without_snapshot)
        timed("empty_disk", with_its_disk)
        result["accounts"] = given.accounts
    return result


def main() -> None:
    """Measure what is asked for."""
    if sys.argv[1:2] == ["prepare"]:
        folder, graph, accounts, tail, rested = sys.argv[2:]
        prepare(Path(folder), Path(graph), int(accounts), int(tail), float(rested))
    if sys.argv[1:2] == ["revive"]:
        revive(Path(sys.argv[2]), float(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", nargs="*", choices=["embedded", "kafka"], default=["embedded", "kafka"])
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--edges", type=int, default=200_000)
    parser.add_argument("--tail", type=int, default=1000, help="follows behind the snapshot")
    parser.add_argument("--rested", type=float, default=24.0, help="hours between the load and the snapshot")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    parts = {"embedded": embedded, "kafka": kafka}
    result: dict[str, object] = {"machine": machine(), "edges": given.edges, "tail": given.tail}
    result["rested_hours"] = given.rested
    for what in given.what:
        result[what] = parts[what](given)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
