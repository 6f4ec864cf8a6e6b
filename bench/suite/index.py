"""The live index: upsert to visible, merging, churn and what it does to recall, rebuild, snapshot, memory."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.index import corpus, timed
from bench.machine import resident
from bench.suite.given import Given, percentiles, windows
from kithstream.index.config import IndexConfig
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.score import Floats

DIM: Final = 144  # of the towers
K: Final = 200
RUNS: Final = 5
DRIFT: Final = 0.05  # relative length of a small move


class Filled:
    """A live index over a clustered corpus, merged, with the exact index of the same rows."""

    def __init__(self, accounts: int, seed: int, oracle: bool = True, **settings: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.sample = corpus(self.rng, accounts, DIM)
        self.vectors = self.sample(accounts)  # (n, DIM) float32
        self.names = [f"account-{number}" for number in range(accounts)]
        self.index = LiveIndex(IndexConfig(dim=DIM, capacity=accounts, **settings))
        for first in range(0, accounts, 1000):
            self.index.upsert(self.names[first : first + 1000], self.vectors[first : first + 1000])
        self.index.merge()
        self.oracle = ExactIndex(DIM, accounts) if oracle else None
        if self.oracle is not None:
            self.oracle.upsert(self.names, self.vectors)

    def move(self, at: np.ndarray, far: bool) -> None:
        """Give rows other vectors: others of the corpus, or ones a little aside."""
        if far:
            self.vectors[at] = self.sample(len(at))
        else:
            noise = self.rng.normal(size=(len(at), DIM)) / DIM**0.5
            lengths = np.linalg.norm(self.vectors[at], axis=1, keepdims=True)
            self.vectors[at] += (noise * DRIFT * lengths).astype(np.float32)
        for first in range(0, len(at), 64):
            part = at[first : first + 64]
            self.index.upsert([self.names[row] for row in part], self.vectors[part])

    def recall(self, queries: Floats, k: int = K) -> float:
        """Mean share of the exact k that the live index finds, with all rows as they are."""
        assert self.oracle is not None
        self.oracle.upsert(self.names, self.vectors)
        shares = [
            len(set(self.index.query(query, k).ids) & set(self.oracle.query(query, k).ids)) / k
            for query in queries
        ]
        return float(np.mean(shares))


GRAPH: Final[dict[str, Any]] = {"exact_rows": 1000}  # what lets corpora of these sizes have a graph
# And has it answer, where a scan would be as quick, nearly everything.
ALONE: Final[dict[str, Any]] = GRAPH | {"rows_per_fetch": 0, "recall_wanted": 0.0, "hot_capacity": 2000}


def upsert(given: Given) -> None:
    """Upsert of one row until it is visible, beside the background merger; and rows merged a second."""
    accounts = given.size(100_000, 3000)
    held = Filled(accounts, given.seed, oracle=False, **GRAPH)
    alone: list[dict[str, float]] = []
    with held.index:
        for _ in range(RUNS):
            times, missing = [], 0
            for at in held.rng.choice(accounts, given.size(4000, 400), replace=False).tolist():
                name, row = [held.names[at]], held.vectors[at : at + 1] * np.float32(1.01)
                (wall, _), _ = timed(lambda name=name, row=row: held.index.upsert(name, row))
                times.append(wall)
                missing += not np.array_equal(held.index.vector(name[0]), row[0])
            if missing:
                raise RuntimeError(f"{missing} of {len(times)} upserts were not visible on return")
            alone.append(percentiles(times, "us"))
    given.record(
        "upsert of 1, visible on return, beside the merger",
        windows(alone),
        sizes={"vectors": accounts, "dim": DIM},
        bar="upsert",
    )
    held.index.merge(held.index.stats().hot)
    rates, count = [], accounts // 50
    for _ in range(RUNS):
        held.move(held.rng.choice(accounts, count, replace=False), far=True)
        (wall, _), merged = timed(lambda: held.index.merge(count))
        if merged.rebuilt or merged.written != count:
            raise RuntimeError(f"{count} rows were to be merged: {merged}")
        rates.append(count / wall)
    given.record(
        "merge of rows that moved far",
        {"rows_per_second": rates},
        sizes={"vectors": accounts, "rows": count, "dim": DIM},
    )


def churn(given: Given) -> None:
    """Every vector moves once, three, ten times, a little or far: recall after each, and once rebuilt."""
    asked = given.size(300, 30)
    cases: list[tuple[str, int, dict[str, Any]]] = [
        ("as served", given.size(100_000, 3000), {}),
        ("by the graph", given.size(10_000, 3000), ALONE),
    ]
    for (how, accounts, settings), move in product(cases, ("small", "far")):
        held = Filled(accounts, given.seed, **settings)
        sizes = {"vectors": accounts, "move": move, "dim": DIM}
        before = held.recall(held.sample(asked))
        given.record(f"{how}, before", {"recall_at_200": before}, sizes=sizes | {"churned": 0})
        done, took = 0, 0.0
        with held.index:
            for times in (1, 3, 10):
                began = time.perf_counter()
                while done < times * accounts:
                    part = min(4096, times * accounts - done)
                    held.move(held.rng.choice(accounts, min(part, accounts), replace=False), move == "far")
                    done += part
                took += time.perf_counter() - began
                figures = {"recall_at_200": held.recall(held.sample(asked)), "rows_per_second": done / took}
                figures["rebuilds"] = held.index.stats().rebuilds
                if times == 10:
                    held.index.rebuild()
                    figures["recall_at_200_rebuilt"] = held.recall(held.sample(asked))
                given.record(
                    f"{how}, {move} moves",
                    figures,
                    sizes=sizes | {"churned": times},
                    bar="churn" if (how, times, move) == ("by the graph", 10, "far") else "",
                )


def graphs(given: Given) -> None:
    """Rebuild, snapshot and restore; bytes a vector steady, and at most while another graph takes over."""
    accounts = given.size(100_000, 25_000)
    before = resident()
    held = Filled(accounts, given.seed, oracle=False, **GRAPH)
    rebuilds, peaks, saves, restores, sizes = [], [], [], [], []
    gc.collect()
    own = held.vectors.nbytes + sum(map(len, held.names))  # the bench's
    steady = (resident() - before - own) / accounts
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as name:
        for run in range(given.size(RUNS, 1)):
            with _peak() as peak:
                (wall, _), _ = timed(held.index.rebuild)
            rebuilds.append(wall)
            peaks.append((peak[0] - before - own) / accounts)
            folder = Path(name) / str(run)
            (wall, _), _ = timed(lambda folder=folder: held.index.save(folder, {}))
            saves.append(wall)
            sizes.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / accounts)
            (wall, _), (again, _) = timed(lambda folder=folder: LiveIndex.restore(folder, held.index.config))
            restores.append(wall)
            if len(again) != accounts:
                raise RuntimeError(f"{len(again)} of {accounts} vectors came back")
            del again
    given.record(
        "another graph, a snapshot, a restore",
        {
            "rebuild_seconds": rebuilds,
            "snapshot_seconds": saves,
            "restore_seconds": restores,
            "snapshot_bytes_per_vector": sizes,
            "told_bytes_per_vector": held.index.stats().bytes / accounts,
            "resident_bytes_per_vector": steady,
            "most_bytes_per_vector_during_swap": peaks,
        },
        sizes={"vectors": accounts, "dim": DIM},
        note="The most during a swap counts the process that builds as well.",
    )


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most resident bytes of this process and its children, looked at 100 times a second."""
    most, stop = [0], threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            pids = [
                pid for at in Path("/proc/self/task").glob("*/children") for pid in at.read_text().split()
            ]
            with suppress(OSError):  # a child ended meanwhile
                most[0] = max(most[0], resident("self", *pids))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()
