"""Retrieval: the index alone, whole answers over HTTP, and request-reply over the stream; idle and under events."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from bench import recall
from bench.index import timed, writer
from bench.served import Served
from bench.server import Load, loaded
from bench.suite.freshness import filled
from bench.suite.given import MIX, Given, percentiles, windows
from bench.suite.index import DIM, Filled
from kithstream.index.score import Floats
from kithstream.streams.config import IndexSection

KS: Final = (20, 200, 1000)
EXCLUDED: Final = (0, 50, 500, 5000, 50_000)
RATES: Final = (1000, 5000)  # events a second
RUNS: Final = 5


class Asking:
    """Questions with whom they exclude, half of them among the best."""

    def __init__(self, held: Filled, count: int, excluded: int) -> None:
        self.vectors: Floats = held.sample(count)
        self.excluded: list[list[str]] = []
        assert held.oracle is not None
        for vector in self.vectors:
            near = held.oracle.query(vector, max(1, excluded)).ids[: excluded // 2]
            rest = held.rng.integers(0, len(held.names), excluded - len(near))
            self.excluded.append([*near, *(held.names[at] for at in rest.tolist())])

    def ask(self, held: Filled, k: int) -> list[float]:
        """Seconds of each question."""
        times = []
        for vector, some in zip(self.vectors, self.excluded, strict=True):
            (wall, _), _ = timed(lambda v=vector, some=some: held.index.query(v, k, exclude=some))
            times.append(wall)
        return times

    def recall(self, held: Filled, k: int) -> float:
        """Mean share of the exact answer."""
        assert held.oracle is not None
        shares = []
        for vector, some in zip(self.vectors, self.excluded, strict=True):
            found = held.index.query(vector, k, exclude=some).ids
            want = held.oracle.query(vector, k, exclude=some).ids
            shares.append(len(set(found) & set(want)) / max(len(want), 1))
        return float(np.mean(shares))


def warmed(accounts: int, seed: int) -> Filled:
    """An index of which as many rows are hot as stay so after a merge."""
    held = Filled(accounts, seed)
    hot = min(accounts // 5, held.index.config.hot_stays)
    held.move(held.rng.choice(accounts, hot, replace=False), far=False)
    assert held.oracle is not None
    held.oracle.upsert(held.names, held.vectors)
    return held


def core(given: Given) -> None:
    """The index alone, idle: k = 20, 200, 1000 with up to 50,000 exclusions, with recall; with --big at 1M vectors."""
    count = given.size(200, 20)
    for accounts in (10_000, 100_000)[: given.size(2, 1)] + (1_000_000,) * given.big:
        held = warmed(accounts, given.seed)
        for k in KS:
            for excluded in EXCLUDED[: given.size(5, 3)]:
                if excluded > accounts // 2:
                    continue
                asking = Asking(held, count, excluded)
                rows = [percentiles(asking.ask(held, k), "us", (50, 99)) for _ in range(RUNS)]
                bar = {100_000: "core_idle", 1_000_000: "core_million"}.get(accounts, "")
                given.record(
                    "query, idle",
                    {**windows(rows), f"recall_at_{k}": asking.recall(held, k)},
                    sizes={"vectors": accounts, "k": k, "excluded": excluded, "dim": DIM},
                    bar=bar if (k, excluded) == (200, 0) else "",
                )


def core_loaded(given: Given) -> None:
    """The index alone beside 1,000 and 5,000 small-drift upserts a second, in pairs with idle windows."""
    count = given.size(500, 20)
    for accounts in (10_000, 100_000)[: given.size(2, 1)] + (1_000_000,) * given.big:
        held = warmed(accounts, given.seed)
        for rate in RATES:
            for k in KS:
                asking = Asking(held, count, 0)
                rows, reached = [], []
                for run in range(RUNS):
                    idle = percentiles(asking.ask(held, k), "us", (50, 99))
                    with _merging(held, rate, given.seed + run) as (written, seconds):
                        under = percentiles(asking.ask(held, k), "us", (50, 99))
                        reached.append(written[0] / seconds())
                    rows.append(
                        {
                            **under,
                            "p50_times_idle": under["p50_us"] / idle["p50_us"],
                            "p99_times_idle": under["p99_us"] / idle["p99_us"],
                        }
                    )
                assert held.oracle is not None
                held.oracle.upsert(held.names, held.vectors)
                given.record(
                    "query, beside upserts",
                    {
                        **windows(rows),
                        "rows_per_second": reached,
                        f"recall_at_{k}_after": asking.recall(held, k),
                    },
                    sizes={"vectors": accounts, "k": k, "rate": rate, "dim": DIM},
                    bar="core_loaded" if (accounts, k, rate) == (100_000, 200, 5000) else "",
                )


@contextmanager
def _merging(held: Filled, rate: int, seed: int) -> Iterator[tuple[list[int], Any]]:
    """Upserts and the background merger, which is stopped afterwards; what was written, and since when."""
    with writer(held.index, held.names, held.vectors, rate, seed) as written:
        began = time.perf_counter()
        yield written, lambda: time.perf_counter() - began


def http(given: Given) -> None:
    """Whole answers over HTTP, 300 a second of an open loop: k, follows kept out, idle and beside events."""
    with _served(given) as (served, accounts, hubs):
        usual = Load(
            rate=0.0, probes=0.0, queries=300.0, seconds=given.size(10, 2), accounts=accounts, seed=given.seed
        )
        cases = [(f"k = {k}", msgspec.structs.replace(usual, k=k), k, 0, 0) for k in KS]
        cases += [
            (f"{degree} follows kept out", msgspec.structs.replace(usual, asker=name), 20, degree, 0)
            for degree, name in hubs.items()
        ]
        cases += [
            (
                f"beside {rate} events/s",
                msgspec.structs.replace(usual, rate=rate, batch=max(10, rate // 100)),
                20,
                0,
                rate,
            )
            for rate in RATES
        ]
        for what, load, k, excluded, rate in cases:
            rows, odd = [], 0
            for _ in range(given.size(RUNS, 1)):
                told = loaded(served.port, load)["query"]
                odd += told.pop("odd")
                rows.append(told)
            given.record(
                f"HTTP at 300/s, {what}",
                {**windows(rows), "odd": odd},
                sizes={"accounts": accounts, "k": k, "excluded": excluded, "rate": rate},
                bar="http_300" if (k, excluded, rate) == (20, 0, 0) else "",
            )


def http_most(given: Given) -> None:
    """HTTP answers a second of a server on one core; eight connections of another process on the other core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("there is one core; the load would share it with the server")
    with _served(given) as (served, accounts, _):
        for task in Path(f"/proc/{served.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cores[0]})
        for k in KS:
            load = Load(closed=8, seconds=given.size(10, 2), accounts=accounts, k=k, seed=given.seed)
            rows, odd = [], 0
            for _ in range(given.size(RUNS, 1)):
                told = loaded(served.port, load, core=cores[1])
                odd += told.pop("odd")
                rows.append(told)
            given.record(
                "HTTP, one core, 8 connections",
                {**windows(rows), "odd": odd},
                sizes={"accounts": accounts, "k": k},
                bar="http_most" if k == 20 else "",
            )


def stream(given: Given) -> None:
    """Request-reply over a real Kafka, 100 questions a second of an open loop, idle and beside events."""
    from bench.kafka_latency import latency

    cases = [(0, k) for k in KS] + [(rate, 20) for rate in RATES]
    for rate, k in cases[: given.size(len(cases), 1)]:
        rows, failed = [], 0
        for _ in range(given.size(RUNS, 1)):
            seconds = float(given.size(20, 4))
            told = latency(float(rate), seconds, 1, 4, given.seed, ("request_reply",), asks=100.0, k=k)
            failed += told["request_reply"].pop("failed")
            rows.append({f"{name}_ms": value for name, value in told["request_reply"].items() if name != "n"})
        given.record(
            "request-reply over the stream at 100/s",
            {**windows(rows), "failed": failed},
            sizes={"accounts": 20_000, "k": k, "rate": rate},
            mix=MIX if rate else "",
            bar="stream_100" if (rate, k) == (0, 20) else "",
        )


def recall_own(given: Given) -> None:
    """Recall on the tower's own vectors: a simulated world, --big: 1M accounts; Higgs where HIGGS=FILE is set."""
    for accounts, events in [(given.size(100_000, 2000), given.size(300_000, 10_000))] + [
        (1_000_000, 3_000_000)
    ] * given.big:
        # Its own index is asked nothing: graphs would be built for nobody.
        scanned = IndexSection(exact_rows=10**9, background=False)
        with filled(accounts, events, given.seed, scanned) as (live, clock, _):
            index, model = live.chain.index, live.chain.model
            names = index.ids()
            asking = held_out(names, given.size(300, 30), given.seed)
            queries = np.concatenate(
                [model.encode_consumers(live.chain.inspect(name, clock.now)).vectors for name in asking]
            )
            vectors = np.stack([index.vector(name) for name in names])
            ticks = np.array([index.sequence(name) for name in names])
            bound = model.norm_bound
        bar = "recall_own_million" if accounts == 1_000_000 else ""
        _own(given, "simulated world", (vectors, ticks, queries, bound), bar)
    if file := os.environ.get("HIGGS"):
        asked = argparse.Namespace(
            file=Path(file), format="higgs", seed=given.seed, queries=given.size(300, 30)
        )
        _own(given, "Higgs", recall.replayed(asked), "recall_own")


def held_out(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Who asks."""
    return [names[at] for at in np.random.default_rng(seed).permutation(len(names))[:count].tolist()]


def _own(given: Given, what: str, found: tuple[Any, Any, Any, float], bar: str) -> None:
    vectors, ticks, queries, bound = found
    efs = (None, IndexSection().ef, 2 * IndexSection().ef)  # as a server has it, and the graph alone
    for ef, told in zip(efs, recall.measure(vectors, ticks, queries, bound, efs), strict=True):
        p50, p99 = told["live_ms"]  # type: ignore[misc]
        exact, _ = told["exact_ms"]  # type: ignore[misc]
        given.record(
            f"tower's own vectors, {what}" + (", the graph alone" if ef else ""),
            {
                "recall_at_200": float(str(told["recall_at_200"])),
                "recall_at_20": float(str(told["recall_at_20"])),
                "p50_us": p50 * 1000,
                "p99_us": p99 * 1000,
                "exact_p50_us": exact * 1000,
            },
            sizes={"vectors": len(vectors), "k": 200} | ({"ef": ef} if ef else {"plan": str(told["plan"])}),
            bar="" if ef else bar,
            note="With HIGGS=FILE in the environment." if what == "Higgs" else "",
        )


@contextmanager
def _served(given: Given) -> Iterator[tuple[Served, int, dict[int, str]]]:
    """`kithstream serve` over a world, how many accounts it has, and accounts that follow so many others."""
    accounts, events = given.size(100_000, 2000), given.size(200_000, 5000)
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        degrees = [degree for degree in EXCLUDED[1:] if degree < accounts]
        words = [folder, accounts, events, given.seed, *degrees]
        # A process of its own, so that this one stays small and RocksDB's lock is let go of.
        subprocess.run([sys.executable, "-m", "bench.suite.world", *map(str, words)], check=True)
        with Served(path=Path(folder) / "town") as served:
            yield served, accounts, {degree: f"hub{degree}" for degree in degrees}
