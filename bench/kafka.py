"""Workers on a real Kafka of this machine, by hand: events a second, freshness, request-reply, and faults.

    python -m bench.kafka throughput --file FILE --format higgs --workers 2
    python -m bench.kafka throughput --simulate 200000
    python -m bench.kafka latency --rate 1000 --seconds 20
    python -m bench.kafka faults --rebalances 30 --kills 20

Broker, workers, publisher and asker share the machine's cores. Prints one JSON object; times in milliseconds.
`throughput` compares the stores at the end with those of the two stages run in this process over the same log.
`faults` compares them with the batch oracle of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "kafka")]

from workers import PATIENCE, Worker, ends_of, holds, newest_stores, publish  # noqa: E402

from bench.machine import machine  # noqa: E402
from bench.state import differing, digest  # noqa: E402
from kithstream.models.lineage import day_zero_lineage  # noqa: E402
from kithstream.streams.clients import EventPublisher  # noqa: E402
from kithstream.streams.config import Config, EngineConfig, KafkaConfig, StoreConfig  # noqa: E402
from kithstream.streams.engine.engine import Engine, Record  # noqa: E402
from kithstream.streams.events.stamp import wall_clock  # noqa: E402
from kithstream.streams.events.wire import Event  # noqa: E402
from kithstream.streams.kafka.local import LocalKafka  # noqa: E402
from kithstream.streams.kafka.names import topics  # noqa: E402
from kithstream.streams.kafka.topics import create, wanted  # noqa: E402
from kithstream.streams.kafka.worker import shared_salt  # noqa: E402
from kithstream.streams.serve import tokens  # noqa: E402
from kithstream.streams.simulate import SimulationConfig, simulate  # noqa: E402
from kithstream.streams.sources import bitcoin, higgs, pairs  # noqa: E402
from kithstream.streams.state.protocol import Column  # noqa: E402
from kithstream.streams.state.store import RocksStore  # noqa: E402

READERS = {"higgs": higgs.read, "bitcoin": bitcoin.read, "pairs": pairs.read}
FULL = [
    "store.cache_bytes=67108864",
    "store.write_buffer_bytes=33554432",
]  # the defaults, not the tests' small ones


PATIENT = ["serve.deadline_ms=10000"]  # late answers are measured, not refused

BROKER: list[int] = []
DELETION = b'"account_delete"'
SHOWN = 10  # keys whose values differ


def cluster(stack: ExitStack, partitions: int, prefix: str = "") -> KafkaConfig:
    """Start a broker and make the topics."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
    broker = stack.enter_context(LocalKafka(folder / "kafka", heap_mib=1024))
    BROKER[:] = [broker.pid]
    kafka = KafkaConfig(servers=broker.servers, prefix=prefix)
    create(
        kafka, wanted(Config(kafka=kafka, engine=EngineConfig(partitions=partitions)), day_zero_lineage(0))
    )
    return kafka


def started(
    stack: ExitStack,
    kafka: KafkaConfig,
    folder: Path,
    partitions: int,
    count: int,
    options: Sequence[str] = (),
) -> list[Worker]:
    """Start workers and wait until all are ready and share the partitions."""
    workers = [
        stack.enter_context(Worker(kafka, folder / f"worker-{number}", partitions, [*FULL, *options]))
        for number in range(count)
    ]
    for worker in workers:
        worker.until(lambda worker=worker: owned(worker) == partitions // count, "for its partitions")  # type: ignore[misc]
        worker.ready()
    return workers


def owned(worker: Worker) -> int:
    """How many partitions a worker answers for; -1 while it does not say."""
    return int(told(worker, "kithstream_worker_owned_partitions"))


def everything(kafka: KafkaConfig, partitions: int) -> str:
    """Return the token of everything that is published."""
    return tokens.write(ends_of(kafka, topics(kafka.prefix).engagements, partitions))


def answered(worker: Worker, after: str, patience: float = PATIENCE) -> None:
    """Wait until a worker answers for a token."""
    worker.until(
        lambda: worker.get(f"/v1/candidates/nobody?after={after}")[0] == 200,
        f"to answer for {after}",
        patience=patience,
    )


def told(worker: Worker, name: str) -> float:
    """A figure of /metrics; -1 where it is not told."""
    raw = worker.get("/metrics")[1]
    lines = raw.decode().splitlines() if isinstance(raw, bytes) else []
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), -1.0)


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(events: Iterable[bytes], workers: int, partitions: int) -> dict[str, Any]:
    """Publish everything at once; return how long until every worker has folded it and its vectors are visible."""
    with ExitStack() as stack:
        kafka = cluster(stack, partitions)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
        running = started(stack, kafka, folder, partitions, workers)
        before = [(cpu_of(worker.pid), cpu_of(worker.retrieval)) for worker in running]
        published = 0
        publisher = stack.enter_context(EventPublisher(kafka, linger=0.005))
        began, own = time.perf_counter(), time.process_time()
        source = iter(events)
        while call := list(islice(source, 500)):
            publisher.send(call)
            published += len(call)
            last = msgspec.json.decode(call[-1])["time"]
        publisher.flush()
        publishing, own = time.perf_counter() - began, time.process_time() - own
        token = everything(kafka, partitions)
        for worker in running:  # an answer that includes everything: folded, encoded, in the index
            answered(worker, token, 1800.0)
        seconds = time.perf_counter() - began
        spent = [
            {"stream_cpu_s": cpu_of(w.pid) - a, "retrieval_cpu_s": cpu_of(w.retrieval) - b}
            for w, (a, b) in zip(running, before, strict=True)
        ]
        for name in (
            "kithstream_resending_accounts",
            "kithstream_outbox_frames",
        ):  # what goes on in the background
            time.sleep(1.0)  # the stream process tells its figures twice a second
            for worker in running:
                worker.until(lambda worker=worker, name=name: told(worker, name) == 0, f"for {name}")  # type: ignore[misc]
        settle(publisher, running, time=last)
        behind = [told(worker, "kithstream_assigned_behind_records") for worker in running]
        vectors = sum(told(worker, "kithstream_vectors_published_total") for worker in running)
        for worker in running:
            worker.stop()
        folders = [folder / f"worker-{number}" for number in range(workers)]
        equal, columns = compared(kafka, folders, partitions, folder)
    return {
        "events": published,
        "events_per_second": round(published / seconds),
        "seconds": round(seconds, 1),
        "published_per_second": round(published / publishing),
        "publisher_cpu_s": round(own, 1),
        "workers": [{key: round(value, 1) for key, value in one.items()} for one in spent],
        "vectors_published": int(vectors),
        "behind_at_the_end": behind,
        "state_equals_embedded": equal,
        "columns": columns,
    }


def compared(
    kafka: KafkaConfig, folders: Sequence[Path], partitions: int, scratch: Path
) -> tuple[bool, dict[str, int]]:
    """Fold the topic's records in this process, and compare the stores."""
    from kafka import KafkaConsumer, TopicPartition

    stores = [RocksStore(scratch / "embedded" / str(number), StoreConfig()) for number in range(partitions)]
    salt = shared_salt(Config().worker.salt, kafka)  # address books are held as hashes with it
    engine = Engine(stores, EngineConfig(partitions=partitions), salt=salt)
    topic = topics(kafka.prefix).engagements
    consumer = KafkaConsumer(bootstrap_servers=kafka.servers, auto_offset_reset="earliest")
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(tps)
    ends = consumer.end_offsets(tps)
    deleted: set[str] = set()
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        for tp, records in consumer.poll(1000, max_records=2000).items():
            batch = [Record(record.timestamp * 1000, record.value) for record in records]
            engine.apply(tp.partition, batch, records[0].offset)
            found = (msgspec.json.decode(record.value) for record in records if DELETION in record.value)
            deleted.update(event["actor"] for event in found)
        engine.exchange()
    engine.settle()
    consumer.close()
    watermark = engine.watermark
    columns: Counter[str] = Counter()
    equal = True
    for number, (mine, path) in enumerate(zip(stores, newest_stores(folders, partitions), strict=True)):
        theirs = RocksStore(path, StoreConfig())
        here, there = (digest(store, watermark, deleted) for store in (mine, theirs))
        for name in here:
            columns[name] += here[name][0]
            if here[name] == there[name]:
                continue
            equal = False
            print(f"partition {number}, {name}: {here[name]} here, {there[name]} there", file=sys.stderr)
            others = differing(mine, theirs, Column(name), watermark, deleted)
            for key, ours, other in islice(others, SHOWN):
                print(f"  {key!r}: {ours!r} here, {other!r} there", file=sys.stderr)
        theirs.close()
    engine.close()
    return equal, dict(columns)


def busy(workers: Sequence[Worker]) -> dict[str, float]:
    """CPU seconds so far, by who spent them."""
    return {
        "stream": sum(cpu_of(worker.pid) for worker in workers),
        "retrieval": sum(cpu_of(worker.retrieval) for worker in workers),
        "load_and_askers": time.process_time(),
        "broker": sum(cpu_of(pid) for pid in BROKER),
    }


def simulated(seed: int) -> Iterator[Any]:
    """Events of a simulated world, every kind of signal, for ever."""
    return chain.from_iterable(simulate(SimulationConfig(accounts=20_000, seed=seed)))


def settle(publisher: EventPublisher, workers: Sequence[Worker], **stamps: int) -> None:
    """Wait until everything published is visible on all workers, and one event more."""
    token = publisher.publish([{"signal": "follow", "actor": "nobody", "target": "somebody", **stamps}])
    for worker in workers:
        answered(worker, token, 600.0)


def mean(workers: Sequence[Worker], name: str) -> float:
    """The mean of a histogram of /metrics over all workers, milliseconds."""
    total = sum(max(told(worker, f"kithstream_{name}_seconds_sum"), 0.0) for worker in workers)
    count = sum(max(told(worker, f"kithstream_{name}_seconds_count"), 0.0) for worker in workers)
    return round(total / count * 1000, 2) if count else -1.0


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """What is told of times in seconds, in milliseconds."""
    array = np.array(values) * 1000
    if not len(array):
        return {"n": 0}
    told = {f"p{p}": round(float(np.percentile(array, p)), 1) for p in (50, 95, 99)}
    return {"n": len(array), **told, "max": round(float(array.max()), 1)}


def faults(rebalances: int, kills: int, partitions: int, seed: int) -> dict[str, object]:
    """Publish random events while workers join, leave and die; compare what is left with the batch oracle."""
    rng = random.Random(seed)
    turns = ["join and leave"] * (rebalances // 2) + ["kill"] * kills
    rng.shuffle(turns)
    published: list[Event] = []
    now = wall_clock()
    back: list[float] = []
    with ExitStack() as stack:
        kafka = cluster(stack, partitions)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kithstream-bench-")))
        stays = stack.enter_context(Worker(kafka, folder / "stays", partitions))
        comes = Worker(kafka, folder / "comes", partitions)
        stays.ready()
        began = time.perf_counter()
        for number, turn in enumerate(turns):
            published += (more := crowd(seed * 1000 + number, 600, now))
            sending = threading.Thread(target=publish, args=(kafka, more, partitions))
            sending.start()
            if turn == "kill":
                if rng.random() < 0.5:
                    stays.kill()
                else:
                    retrieval = stays.retrieval
                    os.kill(retrieval or stays.pid, 9)
                    if retrieval:
                        stays.until(lambda dead=retrieval: stays.retrieval not in (0, dead), "to be back")  # type: ignore[misc]
                    else:
                        stays.wait()
                if not stays.alive:
                    stays.start()
                at = time.perf_counter()
                stays.ready()
                back.append(time.perf_counter() - at)
            else:
                with comes:
                    comes.until(lambda: owned(comes) > 0, "for partitions")
                    if rng.random() < 0.5:
                        comes.ready()
                    comes.kill() if rng.random() < 0.3 else comes.stop()
                stays.until(lambda: owned(stays) == partitions, "for all partitions")
            sending.join()
            print(f"{number + 1} of {len(turns)}: {turn}", file=sys.stderr)
        stays.ready()
        answered(stays, everything(kafka, partitions))
        stays.stop()
        seconds = time.perf_counter() - began
        try:
            holds([folder / "stays", folder / "comes"], published, partitions)
            divergences = 0
        except AssertionError as difference:
            print(f"the state differs: {difference}", file=sys.stderr)
            divergences = 1
    return {
        "rebalances": rebalances,
        "kills": kills,
        "events": len(published),
        "divergences": divergences,
        "kill_to_ready_s": {"median": round(float(np.median(back)), 1), "max": round(max(back), 1)},
        "seconds": round(seconds, 1),
    }


def crowd(seed: int, size: int, now: int) -> list[Event]:
    """Random events of many signals among a few accounts, some undone, some repeated."""
    rng = random.Random(seed)
    found: list[Event] = []
    for number in range(size):
        actor, target = rng.sample(range(80), 2)
        signal = rng.choice(
            ("follow",) * 6 + ("unfollow", "block", "unblock", "like", "unlike", "click", "reply")
        )
        time = now - rng.randrange(3 * 86_400_000_000)
        item = f"i{rng.randrange(9)}"
        found.append(Event(f"{seed}-{number}", signal, f"u{actor}", time, target=f"u{target}", item=item))
    return found + rng.sample(found, size // 20)


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("throughput", "latency", "faults"))
    parser.add_argument("--file", help="Of events; without it a world is simulated.")
    parser.add_argument("--format", choices=tuple(READERS), default="higgs")
    parser.add_argument("--simulate", type=int, default=200_000, help="How many simulated events.")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", action="append", help="One of the figures of `latency`; repeatable.")
    parser.add_argument(
        "--asks", type=float, default=20.0, help="Questions a second of `latency`, of each kind."
    )
    parser.add_argument("--k", type=int, default=20, help="Candidates of these questions.")
    parser.add_argument("--rebalances", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    match given.what:
        case "throughput":
            source = (
                READERS[given.format](given.file)
                if given.file
                else islice(simulated(given.seed), given.simulate)
            )
            result = throughput(map(msgspec.json.encode, source), given.workers, given.partitions)
        case "latency":
            from bench.kafka_latency import latency

            result = latency(
                given.rate,
                given.seconds,
                given.workers,
                given.partitions,
                given.seed,
                given.only or (),
                asks=given.asks,
                k=given.k,
            )
        case _:
            result = faults(given.rebalances, given.kills, given.partitions, given.seed)
    print(
        json.dumps(
            {"what": given.what, "partitions": given.partitions, **result, "machine": machine()}, indent=1
        )
    )


if __name__ == "__main__":
    main()
