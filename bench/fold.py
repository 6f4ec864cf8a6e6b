"""Events folded per CPU second, by hand: `python -m bench.fold --accounts 100000 --events 600000`.

A CPU second is the whole process's: decoding, both ledgers, rows, RocksDB with its log on and its threads. The
simulated world (full signal mix, duplicates, late events, undos) is made before the clock starts. The first part
of the events fills the state; the rest is measured, in parts, of which the median is told.

`--communities N` makes a world of so many and reads a version of them: the more popular half of the accounts, each
known for its main one; `--unread` makes the same world and reads none. Background work (follows that are sent again)
is measured with the rest, one step in each partition after every round.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from bench.load import world_follows
from bench.machine import machine
from kithstream.streams.communities.known import KnownFor
from kithstream.streams.config import EngineConfig, StoreConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.load import load
from kithstream.streams.simulate import simulate
from kithstream.streams.state.store import RocksStore
from kithstream.streams.world import SimulationConfig, World


def arguments() -> argparse.ArgumentParser:
    """What is measured, with its defaults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=600_000)
    parser.add_argument("--warm", type=float, default=0.5, help="share of the events that fills the state")
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--edges", type=int, default=0, help="follows that are there before, loaded in bulk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--communities", type=int, default=0, help="of the world, and of the version that is read"
    )
    parser.add_argument("--unread", action="store_true", help="the world of --communities, without a version")
    return parser


def main() -> None:
    print(json.dumps(measure(arguments().parse_args())))


def measure(given: argparse.Namespace) -> dict[str, object]:
    """Fold the events of a simulated world; return events per CPU second of five parts, and what was given."""
    world = SimulationConfig(seed=given.seed, accounts=given.accounts)
    if given.communities:
        world = msgspec.structs.replace(world, communities=given.communities)
    config = EngineConfig(partitions=given.partitions, batch_events=given.batch)
    with tempfile.TemporaryDirectory() as folder:
        stores = [RocksStore(Path(folder) / str(n), StoreConfig()) for n in range(given.partitions)]
        engine = Engine(stores, config, salt=bytes(16))
        if given.communities and not given.unread:
            engine.adopt(truth(world))
        if given.edges:
            load(engine, world_follows(World.build(world), given.edges, given.seed), now=world.start)
        logs = records_of(engine, world, given.events)
        gc.collect()
        gc.freeze()  # the load generator's records are no part of what is measured
        rounds = max(len(log) for log in logs) // given.batch + 1
        warm = int(rounds * given.warm)
        fold(engine, logs, 0, warm, given.batch)
        rates, walls = [], []
        step = max((rounds - warm) // 5, 1)
        for first in range(warm, rounds, step):
            cpu, wall = time.process_time(), time.perf_counter()
            count = fold(engine, logs, first, min(first + step, rounds), given.batch)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if count > given.batch:
                rates.append(count / cpu)
                walls.append(count / wall)
        left = sum(len(partition.jobs) for partition in engine.partitions)
        engine.settle()
        engine.close()
    return {
        "bench": "fold",
        "machine": machine(),
        "accounts": given.accounts,
        "events": given.events,
        "edges": given.edges,
        "batch": given.batch,
        "partitions": given.partitions,
        "seed": given.seed,
        "communities": 0 if given.unread else given.communities,
        "accounts_left_to_send_again": left,
        "events_per_cpu_second": round(statistics.median(rates)),
        "parts": [round(rate) for rate in rates],
        "events_per_second": round(statistics.median(walls)),
    }


def records_of(engine: Engine, world: SimulationConfig, events: int) -> list[list[Record]]:
    """Return the log of each partition that a world's events would have left."""
    logs: list[list[Record]] = [[] for _ in engine.partitions]
    encode = msgspec.json.Encoder().encode
    for batch in simulate(world, events):
        for event in batch:
            # Published events carry the time at which they were appended; late ones are late by their own time.
            logs[engine.route[event["actor"]]].append(Record(event["time"], encode(event)))
    for log in logs:
        newest = 0
        for at, record in enumerate(log):
            newest = max(newest, record.appended)
            log[at] = Record(newest, record.raw)
    return logs


def fold(engine: Engine, logs: list[list[Record]], first: int, last: int, batch: int) -> int:
    """Fold rounds of one batch a partition; return the number of events."""
    count = 0
    for place in range(first * batch, last * batch, batch):
        for number, log in enumerate(logs):
            records = log[place : place + batch]
            if records:
                count += len(records)
                engine.apply(number, records, place)
        engine.exchange()
        if engine.work():
            engine.exchange()
    return count


def truth(config: SimulationConfig) -> KnownFor:
    """Return a version of communities: the more popular half of a world's accounts, each known for its main one."""
    world = World.build(config)
    popular = world.by_popularity[: config.accounts // 2]
    known = {world.name(at): int(world.member[at, 0]) for at in popular.tolist()}
    return KnownFor.of_accounts(known, np.ones(config.communities, np.float32))


if __name__ == "__main__":
    main()
