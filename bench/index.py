"""The live index by hand: how soon an upsert is visible, how long a query takes, and what it finds.

    python -m bench.index --sizes 10000,100000 --dim 128 --seed 1 --json

No speed without its recall: beside every query time stand recall@200 and recall@20 against the exact scan.
Vectors are clustered with unequal norms (lognormal, sigma 0.3) and synthetic: measure your own as well.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: one thread, as a worker serves

import argparse
import json
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kithstream.index.config import IndexConfig
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.score import Floats

K = 200


def corpus(rng: np.random.Generator, count: int, dim: int) -> Callable[[int], Floats]:
    """A sampler of vectors (n, dim) around `count` / 200 centres in a 24-dimensional space."""
    centres = rng.normal(size=(max(20, count // 200), 24))
    lift = rng.normal(size=(24, dim)) / 24**0.5

    def sample(rows: int) -> Floats:
        inner = centres[rng.integers(0, len(centres), rows)] + 0.6 * rng.normal(size=(rows, 24))
        outer = np.tanh(inner @ lift)
        outer /= np.linalg.norm(outer, axis=1, keepdims=True)
        return np.asarray(outer * rng.lognormal(0, 0.3, (rows, 1)), np.float32)

    return sample


Spent = tuple[float, float]  # seconds by the clock, and of this thread's processor time


def microseconds(times: list[Spent]) -> dict[str, float]:
    """Percentiles of both: beside other work the clock measures the scheduler as well."""
    wall, cpu = zip(*times, strict=True)
    return {
        f"p{share}_{kind}us": round(float(np.percentile(values, share)) * 1e6, 1)
        for kind, values in (("", wall), ("cpu_", cpu))
        for share in (50, 99)
    }


def timed(work: Callable[[], Any]) -> tuple[Spent, Any]:
    start, cpu = time.perf_counter(), time.thread_time()
    result = work()
    return (time.perf_counter() - start, time.thread_time() - cpu), result


def queries(
    index: LiveIndex,
    oracle: ExactIndex,
    vectors: Floats,
    excluded: int,
    rng: np.random.Generator,
    names: list[str],
) -> dict[str, Any]:
    """Times, and recall against an oracle that holds the same rows."""
    times, plans, recall, recall20, shorts = [], set(), [], [], 0
    for vector in vectors:
        near = oracle.query(vector, max(1, 2 * excluded)).ids
        some = rng.permutation(near)[: excluded // 2].tolist()
        some += [names[at] for at in rng.integers(0, len(names), excluded - len(some))]
        spent, hits = timed(lambda vector=vector, some=some: index.query(vector, K, exclude=some))
        want = oracle.query(vector, K, exclude=some)
        times.append(spent)
        plans.add(hits.plan)
        shorts += hits.short is not None
        recall.append(len(set(hits.ids) & set(want.ids)) / K)
        recall20.append(len(set(hits.ids[:20]) & set(want.ids[:20])) / 20)
    return {
        **microseconds(times),
        "recall@200": round(float(np.mean(recall)), 4),
        "recall@20": round(float(np.mean(recall20)), 4),
        "plans": sorted(plans),
        "short": shorts,
    }


@contextmanager
def writer(index: LiveIndex, names: list[str], vectors: Floats, rate: int, seed: int) -> Iterator[list[int]]:
    """A thread that moves 16 rows at a time, at most `rate` rows a second, beside the background merger."""
    rng, stop, written = np.random.default_rng(seed), threading.Event(), [0]

    def write() -> None:
        start = time.perf_counter()
        while not stop.wait(max(0.0, start + written[0] / rate - time.perf_counter())):
            at = rng.choice(len(names), 16, replace=False)
            noise = rng.normal(size=(16, vectors.shape[1])) * 0.05 / vectors.shape[1] ** 0.5
            vectors[at] *= (1 + noise).astype(np.float32)
            index.upsert([names[row] for row in at], vectors[at])
            written[0] += 16

    thread = threading.Thread(target=write)
    with index:
        thread.start()
        try:
            yield written
        finally:
            stop.set()
            thread.join()


def measure(
    count: int, dim: int, seed: int, asked: int, rate: int, say: Callable[[str, Any], None]
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sample = corpus(rng, count, dim)
    vectors, names = sample(count), [f"account-{number}" for number in range(count)]
    index, oracle = LiveIndex(IndexConfig(dim=dim, capacity=count)), ExactIndex(dim, count)
    found: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        found[name] = value
        say(name, value)

    def load() -> None:
        for start in range(0, count, 1000):
            index.upsert(names[start : start + 1000], vectors[start : start + 1000])

    note("load_seconds", round(timed(load)[0][0], 2))
    spent, merged = timed(index.merge)
    note("build", {"seconds": round(spent[0], 2), **merged._asdict()})
    oracle.upsert(names, vectors)
    note("cold, no exclusions", queries(index, oracle, sample(asked), 0, rng, names))

    warm = rng.permutation(count)[: min(count // 5, 16_000)]
    for start in range(0, len(warm), 64):
        part = warm[start : start + 64]
        index.upsert([names[at] for at in part], vectors[part])
    times, misses = [], 0
    for at in warm[:4000]:
        name, row = [names[at]], vectors[at : at + 1] * np.float32(1.01)
        spent, _ = timed(lambda name=name, row=row: index.upsert(name, row))
        times.append(spent)
        misses += not np.array_equal(index.vector(name[0]), row[0])
        vectors[at] = row[0]
    note("upsert of 1, visible on return", {**microseconds(times), "not visible": misses})
    times = []
    for start in range(0, 64 * 200, 64):
        part = warm[np.arange(start, start + 64) % len(warm)]
        spent, _ = timed(lambda part=part: index.upsert([names[at] for at in part], vectors[part]))
        times.append(spent)
    note("upsert of 64", microseconds(times))
    oracle.upsert(names, vectors)
    for excluded in (0, 50, 500):
        note(
            f"{index.stats().hot} hot, {excluded} excluded",
            queries(index, oracle, sample(asked), excluded, rng, names),
        )
    times = [timed(lambda vector=vector: oracle.query(vector, K))[0] for vector in sample(min(asked, 100))]
    note("exact scan", microseconds(times))

    probes, times, plans = sample(3 * asked), [], set()
    start = time.perf_counter()
    with writer(index, names, vectors, rate, seed) as written:
        for vector in probes:
            spent, hits = timed(lambda vector=vector: index.query(vector, K))
            times.append(spent)
            plans.add(hits.plan)
        seconds = time.perf_counter() - start
    oracle.upsert(names, vectors)
    note(
        f"beside a writer, asked for {rate} rows a second",
        {**microseconds(times), "rows_per_second": round(written[0] / seconds), "plans": sorted(plans)},
    )
    note("after it", queries(index, oracle, sample(asked), 0, rng, names))

    moved = rng.permutation(count)[: count // 10]
    vectors[moved] = sample(len(moved))

    def churn() -> None:
        for start in range(0, len(moved), 64):
            part = moved[start : start + 64]
            index.upsert([names[at] for at in part], vectors[part])
        index.merge(1 << 20)

    note("churn: a tenth moves far and cools", {"seconds": round(timed(churn)[0][0], 2)})
    oracle.upsert(names, vectors)
    note("after it, nothing hot", queries(index, oracle, sample(asked), 0, rng, names))
    stats = index.stats()
    note("stats", stats._asdict())
    note("bytes_per_account", round(stats.bytes / count))
    checked = index.check(20, rng)
    note("check", checked._asdict())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10000,100000", help="accounts, separated by commas")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rate", type=int, default=1000, help="rows a second of the writer beside queries")
    parser.add_argument("--json", action="store_true", help="one JSON line per size on stdout")
    arguments = parser.parse_args()
    sys.setswitchinterval(5e-4)  # as the serving process sets it
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    print(machine, file=sys.stderr)

    def say(name: str, value: Any) -> None:
        print(f"  {name}: {value}", file=sys.stderr, flush=True)

    for size in map(int, arguments.sizes.split(",")):
        setting = {"accounts": size, "dim": arguments.dim, "k": K, "seed": arguments.seed}
        print(setting, file=sys.stderr)
        found = measure(size, arguments.dim, arguments.seed, arguments.queries, arguments.rate, say)
        if arguments.json:
            print(json.dumps({**machine, **setting, **found}))


if __name__ == "__main__":
    main()
