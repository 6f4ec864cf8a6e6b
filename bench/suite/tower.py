"""The towers: producers encoded a second, and what the user tower takes for one; rows read beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from bench.suite.freshness import filled
from bench.suite.given import MIX, Given, percentiles, windows

RUNS: Final = 5
BATCHES: Final = (1, 64, 512, 4096)


def encode(given: Given) -> None:
    """Producers encoded a second from their stores, rows included and left out, by how many at once."""
    accounts, events = given.size(100_000, 2000), given.size(200_000, 10_000)
    with filled(accounts, events, given.seed) as (live, _, _):
        vectors, model = live.chain.vectors, live.chain.model
        names = live.chain.index.ids()
        for batch in BATCHES[: given.size(4, 2)]:
            count = min(len(names), given.size(20_000, 500), 50 * batch)
            parts = [names[first : first + batch] for first in range(0, count, batch)]
            whole, tower = [], []
            for _ in range(RUNS):
                vectors.reader.forget(names)
                spent = _cpu(lambda parts=parts: [vectors.encode(part) for part in parts])
                whole.append(count / spent)
                rows = [vectors.reader.read(part, live.as_of) for part in parts]
                spent = _cpu(lambda rows=rows: [model.encode_producers(one) for one in rows])
                tower.append(count / spent)
            given.record(
                "producers, from their stores into the index",
                {"producers_per_cpu_second": whole, "tower_alone_per_cpu_second": tower},
                sizes={"accounts": accounts, "batch": batch, "dim": model.dim},
                mix=MIX,
            )


def user(given: Given) -> None:
    """The user tower for one account, rows read before, and with the reading of its rows."""
    accounts, events = given.size(100_000, 2000), given.size(200_000, 10_000)
    with filled(accounts, events, given.seed) as (live, _, _):
        chain, as_of = live.chain, live.as_of
        names = chain.index.ids()[: given.size(1000, 100)]
        rows = []
        for _ in range(RUNS):
            alone, whole = [], []
            for name in names:
                began = time.perf_counter()
                read = chain.inspect(name, as_of)
                between = time.perf_counter()
                chain.model.encode_consumers(read)
                ended = time.perf_counter()
                alone.append(ended - between)
                whole.append(ended - began)
            with_rows = percentiles(whole, "us", (50, 99))
            rows.append(
                {**percentiles(alone, "us", (50, 99)), **{f"with_rows_{k}": v for k, v in with_rows.items()}}
            )
        given.record("user tower, one account", windows(rows), sizes={"accounts": accounts}, mix=MIX)


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
