"""What one of everything costs: the unit costs of `bench.scale`, each with the command that measured it, by hand.

    python -m bench.scale_units --to docs/scale.json
    python -m bench.scale_units --only exchange --only vectors
    python -m bench.scale_units --quick

Parts that other benches measure are run as those benches, in processes of their own; what is missing is measured
here. A part that is measured again replaces its figures in the file and leaves the others.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from bench import results
from bench.machine import machine
from bench.scale_simulate import exchange, fit, touches

UNITS: Final = Path(__file__).parents[1] / "docs" / "scale.json"
PARTITIONS: Final = (4, 16, 64, 256)
BATCHES: Final = (10, 50, 500)
WINDOWS: Final = (10, 100, 1000, 4000)  # events within which touched accounts are counted


class Unit(msgspec.Struct, frozen=True):
    """One part's figures; units are in the names."""

    figures: dict[str, float]
    command: str
    machine: str
    date: str
    commit: str


def read(path: Path = UNITS) -> dict[str, Unit]:
    """Return the parts of a file, by name."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Unit])


def gathered(given: argparse.Namespace) -> dict[str, float]:
    """How many accounts an event touches, and the power law that they follow."""
    accounts, events = (1000, 6000) if given.quick else (10_000, 40_000)
    seen = list(touches(accounts, events, given.seed))
    found = fit(seen, accounts, WINDOWS)
    return {
        "accounts": accounts,
        "events": events,
        "touched_per_event": round(sum(map(len, seen)) / len(seen), 3),
        "exponent": found.exponent,
        "worst_error": round(found.worst, 4),
    }


def exchanged(given: argparse.Namespace) -> dict[str, float]:
    """Frames and bytes an event that partitions send each other."""
    found: dict[str, float] = {}
    for partitions in PARTITIONS[:2] if given.quick else PARTITIONS:
        for batch in BATCHES:
            batches = max(20, 2000 // batch) if partitions < 256 else 20
            one = exchange(partitions, batch, given.seed, batches=batches)
            at = f"{partitions}_partitions_{batch}_events"
            found[f"frames_{at}"] = round(one.frames, 4)
            found[f"bytes_{at}"] = round(one.bytes, 1)
    return found


def framed(given: argparse.Namespace) -> dict[str, float]:
    """CPU of a frame that only tells how far its sender has come: made, and heard in fetches of 64 with RocksDB."""
    from kithstream.streams.config import EngineConfig, StoreConfig
    from kithstream.streams.engine.engine import Engine
    from kithstream.streams.state.store import RocksStore

    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        stores = [RocksStore(Path(folder) / str(n), StoreConfig()) for n in range(2)]
        engine = Engine(stores, EngineConfig(partitions=2), salt=bytes(16))
        sender, receiver = engine._shards
        now = 1_790_000_000_000_000  # numbers as long as those of a worker that has run for a while
        sender.partition.advance(now)
        sender.partition.appended, sender.partition.applied = now, 10**9
        spent: list[float] = []
        size = 0
        for number in range(40 if given.quick else 200):
            sender.partition.applied += 64
            began = time.process_time()
            raw = [sender.told() for _ in range(64)]
            receiver.hear(raw, number + 1)
            spent.append((time.process_time() - began) / 64)
            size = len(raw[0])
        engine.close()
    return {"frame_us": round(float(np.median(spent)) * 1e6, 2), "frame_bytes": size}


def vectors(given: argparse.Namespace) -> dict[str, float]:
    """Encoding into records and applying them, as stream and retrieval process do; in a process of its own."""
    accounts = 2000 if given.quick else 20_000
    held = 5000 if given.quick else 100_000
    return child("vectors", accounts, held, given.seed)


def encoded_and_applied(accounts: int, held: int, seed: int) -> dict[str, float]:
    """Encode a world's accounts to records; apply records of so many accounts to a retrieval process's state."""
    from bench.limits_tower import folded
    from bench.memory import resident as trimmed
    from kithstream.index.config import IndexConfig
    from kithstream.index.live import LiveIndex
    from kithstream.models.model import Model
    from kithstream.streams.config import EngineConfig, ModelConfig
    from kithstream.streams.engine.shard import Shards
    from kithstream.streams.kafka import wire
    from kithstream.streams.kafka.outlet import Outlet
    from kithstream.streams.kafka.steps import Follower
    from kithstream.streams.kafka.tail import Tail
    from kithstream.streams.serve.facts import Facts

    engine, _, now = folded(accounts, 12 * accounts, seed)
    shards = Shards(3, EngineConfig(row_cache=accounts))
    shards.update({shard.partition.number: shard for shard in engine._shards})
    model = Model.day_zero(seed)
    outlet = Outlet(
        model,
        Follower(model),
        shards,
        ModelConfig(learn=False),
        "",
        dict.fromkeys(range(3), 1),
        lambda: now,
        pairs=True,
    )
    touched = sorted(chain.from_iterable(partition.accounts() for partition in engine.partitions))
    outlet.vectors.advance(now)
    spent: list[float] = []
    records: list[tuple[int, bytes, bytes]] = []
    for first in range(0, len(touched), 500):
        part = touched[first : first + 500]
        outlet.vectors.touch(part)
        began = time.process_time()
        outlet.encode(0)
        out, _ = outlet.take()
        spent.append((time.process_time() - began) / len(part))
        records += [(n, key, value) for n, pairs in out.items() for key, value in pairs if value is not None]
    decode, pack = msgspec.msgpack.Decoder(wire.Vector).decode, msgspec.msgpack.Encoder().encode
    whole = [record for record in records if decode(record[2]).vector]

    # Further accounts are copies under other names whose vectors are moved a little: the state grows as it would.
    rng = np.random.default_rng(seed)

    def copy(number: int, scale: float) -> tuple[int, bytes, bytes]:
        place, _, value = whole[number % len(whole)]
        vector = decode(value)
        moved = np.frombuffer(vector.vector, "<f4")
        moved = moved * (1 + scale * rng.normal(size=len(moved)).astype(np.float32))
        vector.vector = moved.astype("<f4").tobytes()
        return place, b"copy-%09d" % number, pack(vector)

    before = trimmed()
    # As an index of millions: answered by graphs; docs/scale.md says what of that does not hold for larger ones.
    graphs = IndexConfig(
        dim=model.dim,
        bound=model.norm_bound,
        exact_rows=1000,
        coded_from=0,
        rows_per_fetch=30,
        recall_wanted=0.0,
        rebuild_process=False,
    )
    index = LiveIndex(graphs)
    tail = Tail(index, 3, Facts())
    for first in range(0, held, 5000):
        tail.feed([copy(number, 0.05) for number in range(first, min(first + 5000, held))])
    index.merge()
    grown = trimmed() - before
    changed = rng.integers(0, held, 20_000 if held > 20_000 else held)
    fetches = [
        [copy(int(number), 0.02) for number in changed[first : first + 500]]
        for first in range(0, len(changed), 500)
    ]
    applying = []
    for fetch in fetches:
        began = time.process_time()
        tail.feed(fetch)
        applying.append(time.process_time() - began)
    began = time.process_time()
    index.merge()
    merging = time.process_time() - began
    asked = rng.integers(0, held, 300)
    query = [np.frombuffer(decode(copy(int(number), 0.5)[2]).vector, "<f4") for number in asked]
    asking: dict[int, float] = {}
    for k in (20, 200):
        took = []
        for vector in query:
            began = time.thread_time()
            index.query(vector, k)
            took.append(time.thread_time() - began)
        asking[k] = float(np.median(took)) * 1e6
    index.close()
    return {
        "accounts": accounts,
        "indexed": held,
        "encode_us": round(float(np.median(spent)) * 1e6, 1),
        "record_bytes": round(float(np.mean([len(key) + len(value) for _, key, value in whole])), 1),
        "candidate_share": round(len(whole) / len(touched), 3),
        "apply_us": round(float(np.median(applying)) / 500 * 1e6, 1),
        "merge_us": round(merging / len(changed) * 1e6, 1),
        "account_bytes": round(grown / held),
        "query_20_us": round(asking[20], 1),
        "query_200_us": round(asking[200], 1),
    }


def folding(given: argparse.Namespace) -> dict[str, float]:
    """CPU of an event, both ledgers and rows."""
    size = (
        ("--accounts", 5000, "--events", 40_000)
        if given.quick
        else ("--accounts", 100_000, "--events", 300_000)
    )
    found = bench("bench.fold", *size, "--seed", given.seed)
    return {"fold_us": round(1e6 / found["events_per_cpu_second"], 1)}


def stored(given: argparse.Namespace) -> dict[str, float]:
    """Bytes of the stores: an event in the horizon, an edge on both sides with ids of 36 characters."""
    size = (2000, 4000, 1000, 2000) if given.quick else (20_000, 60_000, 20_000, 50_000)
    names = ("--accounts", "--warm", "--events", "--edges")
    words = list(chain.from_iterable(zip(names, size, strict=True)))
    found = bench("bench.signals", *words, "--only", "mix", "--seed", given.seed)
    by_column = found["costs"]["mix"]["by_column"]
    follow = found["edges_by_id"]["long"]["follow"]
    return {
        "horizon_bytes_per_event": round(by_column["said"] + by_column["heard"], 1),
        "edge_bytes": round(follow["out"] + follow["in"], 1),
        "edge_bytes_short_ids": round(
            sum(found["edges_by_id"]["short"]["follow"][side] for side in ("out", "in")), 1
        ),
    }


def rows(given: argparse.Namespace) -> dict[str, float]:
    """Bytes of the rows of an account, and of an event's record."""
    from bench.limits_fold import recorded
    from kithstream.streams.config import EngineConfig, StoreConfig
    from kithstream.streams.engine.engine import Engine
    from kithstream.streams.state.protocol import Column
    from kithstream.streams.state.store import RocksStore

    accounts, events = (2000, 20_000) if given.quick else (5000, 200_000)
    logs = recorded(accounts, events, given.seed)
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        stores = [RocksStore(Path(folder) / str(n), StoreConfig()) for n in range(len(logs))]
        engine = Engine(stores, EngineConfig(partitions=len(logs)), salt=bytes(16))
        for number, log in enumerate(logs):
            for first in range(0, len(log), 2000):
                engine.apply(number, log[first : first + 2000], first)
        engine.settle()
        size = 0
        for store in stores:
            store.compact()
            size += int(store._columns[Column.ROWS].property_int_value("rocksdb.live-sst-files-size") or 0)
        known = sum(len(partition.accounts()) for partition in engine.partitions)
        engine.close()
    raw = [len(record.raw) for log in logs for record in log]
    return {
        "accounts": accounts,
        "events_per_account": round(events / known, 1),
        "row_bytes": round(size / known, 1),
        "event_bytes": round(float(np.mean(raw)), 1),
    }


def brokered(given: argparse.Namespace) -> dict[str, float]:
    """CPU of a small record through aiokafka: sent as the stream process sends frames, and fetched; no broker's."""
    import asyncio

    from bench.limits_kafka import sent_and_fetched
    from kithstream.streams.kafka.local import LocalKafka

    with (
        tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder,
        LocalKafka(Path(folder)) as broker,
    ):
        return asyncio.run(sent_and_fetched(broker.servers, 2000 if given.quick else 40_000, 64))


PARTS: Final[dict[str, Callable[[argparse.Namespace], dict[str, float]]]] = {
    "fold": folding,
    "touches": gathered,
    "exchange": exchanged,
    "frame": framed,
    "record": brokered,
    "vectors": vectors,
    "store": stored,
    "rows": rows,
}


def bench(name: str, *words: object) -> Any:
    """Run a bench that prints one JSON object; return it."""
    done = subprocess.run(
        [sys.executable, "-m", name, *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(part: str, *words: int) -> dict[str, float]:
    """Measure a part in a process of its own, whose memory is nobody else's."""
    found: dict[str, float] = bench("bench.scale_units", "--child", part, *words)
    return found


def main() -> None:
    """Measure parts; print them, or put them into a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="Repeatable; by default all.")
    parser.add_argument("--quick", action="store_true", help="Small sizes: to see that it works.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, help="The file whose figures are replaced.")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # a topic that is new has no leader for a moment
    if given.child:
        print(json.dumps(encoded_and_applied(*map(int, given.child[1:]))))
        return
    found = read(given.to) if given.to and given.to.exists() else {}
    for name in given.only or PARTS:
        command = f"python -m bench.scale_units --only {name}{' --quick' if given.quick else ''}"
        figures = PARTS[name](given)
        today = datetime.now(UTC).date().isoformat()
        found[name] = Unit(figures, command, machine(), today, results.commit())
        print(name, json.dumps(figures), file=sys.stderr, flush=True)
        if given.to:
            given.to.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    if not given.to:
        print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
