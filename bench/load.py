"""The bulk load by hand: `python bench/load.py [--edges N] [--accounts M] [--partitions P] [--seed S]`.

A graph whose followees follow a power law goes from Parquet into RocksDB stores; prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from kithstream.streams.config import EngineConfig, StoreConfig
from kithstream.streams.engine.engine import Engine
from kithstream.streams.load import CHUNK, Progress, load
from kithstream.streams.sources import graph
from kithstream.streams.state.store import RocksStore
from kithstream.streams.world import World

NOW = 1_790_000_000_000_000
YEAR = 365 * 86_400_000_000


def write_graph(path: Path, edges: int, accounts: int, seed: int) -> None:
    """Write edges in random order: who is followed by a power law, times over three years."""
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = np.arange(1, accounts + 1) ** -0.8
    edge_ends = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(edges))
    names = pa.array([f"account{number:07d}" for number in rng.permutation(accounts).tolist()])
    table = pa.table(
        {
            "source": names.take(rng.integers(0, accounts, edges)),
            "target": names.take(edge_ends),
            "time": rng.integers(NOW - 3 * YEAR, NOW, edges),
        }
    )
    pa.parquet.write_table(table, path)


def world_follows(world: World, edges: int, seed: int) -> Iterator[graph.Columns]:
    """Follows among a simulated world's accounts over the three years before it starts; some of them twice."""
    rng = np.random.default_rng((seed, 11))
    names = pa.array([world.name(number) for number in range(world.config.accounts)], pa.large_string())
    start = world.config.start
    for first in range(0, edges, CHUNK):
        count = min(CHUNK, edges - first)
        actors = world.actors(rng, np.full(count, start))
        targets = world.peers(rng, actors)
        same = actors == targets
        targets[same] = (targets[same] + 1) % world.config.accounts
        times = rng.integers(start - 3 * YEAR, start, count)
        yield graph.Columns(first, names.take(pa.array(actors)), names.take(pa.array(targets)), times)


def used() -> float:
    """CPU seconds of all threads of this process."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def arguments() -> argparse.ArgumentParser:
    """What is measured, with its defaults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--edges", type=int, default=2_000_000)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=CHUNK)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Make a graph, load it, measure."""
    print(json.dumps(measure(arguments().parse_args())))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Load a graph; return what it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_graph(folder / "graph.parquet", options.edges, options.accounts, options.seed)
        stores = [RocksStore(folder / "state" / str(p), StoreConfig()) for p in range(options.partitions)]
        engine = Engine(stores, EngineConfig(), salt=b"0" * 16)
        began, spent = time.perf_counter(), used()
        stages: dict[str, float] = {}

        def on_progress(progress: Progress) -> None:
            stages[progress.stage] = round(time.perf_counter() - began, 2)
            print(progress, stages[progress.stage], file=sys.stderr)

        batches = graph.read_columns(folder / "graph.parquet")
        done = load(engine, batches, now=NOW, chunk=options.chunk, on_progress=on_progress)
        wall, spent = time.perf_counter() - began, used() - spent
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for store in stores:
            store.compact()
        engine.close()
        return {
            "edges": done.edges,
            "accounts": options.accounts,
            "partitions": options.partitions,
            "chunk": options.chunk,
            "seed": options.seed,
            "changed": done.changed,
            "seconds": round(wall, 2),
            "edges_per_s": round(done.edges / wall),
            "cpu_us_per_edge": round(spent / done.edges * 1e6, 2),
            "ledgers_until_s": stages["edges"],
            "peak_rss_mb": round(peak),
            "bytes_per_edge": round(size(folder / "state") / done.changed, 1),
            "cores": os.cpu_count() or 0,
            "load_average": round(os.getloadavg()[0], 1),
        }


if __name__ == "__main__":
    main()
