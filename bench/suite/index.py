"""The live index: upsert to visible, merging, churn and what it does to recall, rebuild, snapshot, memory."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.index import corpus, timed
from bench.machine import resident
from bench.suite.given import Given, percentiles, windows
from kithstream.index import snapshot
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


def upsert(given: Given) -> None:
    """Upsert of one row to its being found, into the hot tier, beside the background merger; and rows merged a second."""
    accounts = given.size(100_000, 3000)
    held = Filled(accounts, given.seed, oracle=False)
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
    rates = []
    for _ in range(RUNS):
        held.move(held.rng.permutation(accounts)[: min(held.index.config.hot_stays + 2000, accounts)], True)
        hot = held.index.stats().hot
        (wall, _), merged = timed(lambda hot=hot: held.index.merge(hot))
        if merged.cooled and not merged.rebuilt:
            rates.append(merged.cooled / wall)
    if rates:
        given.record("merge of rows that moved far", {"rows_per_second": rates}, sizes={"vectors": accounts})
