"""What the index could cost at least: one product of matrix and query for a scan, hnswlib in place for the rest.

The vectors are `bench.index`'s: clustered, of unequal norms. hnswlib gets the coordinate appended that makes the
nearest the largest dot product, one bound for all, the same links and breadths, and writes in place, so that nobody
may search meanwhile. It answers labels and distances; names, exclusions and rescoring are ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from itertools import cycle
from typing import Any

import hnswlib
import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.distance import Distance, pairs
from bench.index import K, corpus
from kithstream.index.codes import products
from kithstream.index.config import IndexConfig
from kithstream.index.exact import ExactIndex
from kithstream.index.graph import appended
from kithstream.index.live import LiveIndex
from kithstream.index.score import Floats, norms

DIM = 144
BREADTHS = (
    200,
    300,
    400,
    600,
    800,
    1200,
    1600,
    3200,
)  # ef of hnswlib alone; the first that finds enough is taken
ENOUGH = 0.99  # recall at k = 200


def microseconds(work: Callable[[], object], times: int, block: int = 1) -> float:
    """Return the median time of a call, by the thread's own clock: others share the cores.

    That clock costs a microsecond itself: what takes about as long is timed in blocks of calls.
    """
    spent = []
    for _ in range(0, times, block):
        began = time.thread_time_ns()
        for _ in range(block):
            work()
        spent.append((time.thread_time_ns() - began) / block)
    return float(np.median(spent)) / 1000


class Plain:
    """hnswlib alone over vectors (n, dim) with labels 0 to n - 1."""

    def __init__(self, vectors: Floats, config: IndexConfig, room: int = 0) -> None:
        self.bound = float(norms(vectors).max()) * 1.05
        self.index: Any = hnswlib.Index(space="l2", dim=vectors.shape[1] + 1)
        self.index.init_index(
            max_elements=len(vectors) + room,
            M=config.links,
            ef_construction=config.ef_construction,
            random_seed=config.seed,
        )
        self.index.set_num_threads(1)
        self.ef = BREADTHS[0]

    def add(self, vectors: Floats, labels: Any) -> None:
        """Place vectors, or move them."""
        self.index.add_items(appended(vectors, self.bound), labels, num_threads=1)

    def query(self, vector: Floats, k: int) -> Any:
        """Return the labels of the nearest."""
        self.index.set_ef(self.ef)
        return self.index.knn_query(np.append(vector, np.float32(0)), k=k, num_threads=1)[0][0]


def measure(given: argparse.Namespace) -> list[Distance]:
    """Return scans, queries, building and upserts beside their limits."""
    rng = np.random.default_rng(given.seed)
    found = [_scan(rng, rows, given.runs) for rows in given.rows]
    found += [_coded(rng, rows, given.runs) for rows in given.coded_rows]
    return [*found, *_graph(rng, min(given.graph_rows, max(given.rows)), given)]


def _scan(rng: np.random.Generator, rows: int, runs: int) -> Distance:
    """A whole exact query beside the one product of matrix and vector that it cannot do without."""
    sample = corpus(rng, rows, DIM)
    vectors = sample(rows)
    exact = ExactIndex(DIM, rows)
    fill(exact, (vectors[start : start + 10_000] for start in range(0, rows, 10_000)))
    queries = cycle(sample(64))
    return _beside_product(
        f"exact scan, k = {K}",
        lambda: exact.query(next(queries), K),
        lambda: vectors @ next(queries),
        f"numpy {np.__version__}",
        "the product of matrix and query alone",
        vectors,
        min(max(20, 2_000_000 // rows), 200),
        runs,
    )


def _coded(rng: np.random.Generator, rows: int, runs: int) -> Distance:
    """A query of the live index as it is planned, beside the one product of codes and query of its scan."""
    sample = corpus(rng, rows, DIM)
    live = LiveIndex(IndexConfig(dim=DIM, capacity=rows, rebuild_process=False))
    fill(live, (sample(min(10_000, rows - start)) for start in range(0, rows, 10_000)))
    queries = cycle(sample(64))
    codes = rng.integers(-127, 127, (rows, DIM), np.int8, endpoint=True)
    code, out = codes[0].copy(), np.zeros(rows, np.int32)
    plans: set[str] = set()
    found = _beside_product(
        f"query of the live index by scan, k = {K}",
        lambda: plans.add(live.query(next(queries), K).plan),
        lambda: products(codes, code, out),
        f"torch {version('torch')}",
        "the product of codes and query alone, 8 bits a dimension",
        codes,
        min(max(20, 20_000_000 // rows), 200),
        runs,
    )
    bar = {100_000: "core_idle", 1_000_000: "core_million"}.get(rows, "")
    return msgspec.structs.replace(found, bar=bar, note=f"plans: {', '.join(sorted(plans))}")


def fill(index: LiveIndex | ExactIndex, parts: Iterable[Floats]) -> None:
    """Upsert account-0, account-1 and so on."""
    held = 0
    for part in parts:
        index.upsert([f"account-{held + at}" for at in range(len(part))], part)
        held += len(part)


def _beside_product(
    what: str,
    query: Callable[[], object],
    product: Callable[[], object],
    by: str,
    limit: str,
    matrix: NDArray[Any],
    times: int,
    runs: int,
) -> Distance:
    """A scan beside the product of the matrix that it reads, by `microseconds`."""
    ours, limits = pairs(lambda _: microseconds(query, times), lambda _: microseconds(product, times), runs)
    nanoseconds = 1000 * float(np.median(limits))
    return Distance(
        "index",
        "retrieval",
        what,
        by,
        limit,
        "p50_us",
        "cost",
        ours,
        limits,
        {"rows": len(matrix), "dim": DIM},
        limit_beside={
            "gflop_per_second": round(2 * matrix.size / nanoseconds, 1),
            "gb_per_second": round(matrix.nbytes / nanoseconds, 1),
        },
    )


def _graph(rng: np.random.Generator, rows: int, given: argparse.Namespace) -> list[Distance]:
    sample = corpus(rng, rows, DIM)
    vectors = sample(rows)
    config = IndexConfig(
        dim=DIM,
        capacity=rows,
        exact_rows=100,
        rows_per_fetch=0,
        recall_wanted=0.0,
        cool_to=0.0,
        rebuild_process=False,
    )
    names = [f"account-{number}" for number in range(rows)]
    by, sizes = f"hnswlib {version('hnswlib')}", {"rows": rows, "dim": DIM}
    live, plain, exact = LiveIndex(config), Plain(vectors, config), ExactIndex(DIM, rows)
    fill(live, (vectors[start : start + 1000] for start in range(0, rows, 1000)))
    exact.upsert(names, vectors)
    live.merge()
    for start in range(0, rows, 256):
        plain.add(vectors[start : start + 256], np.arange(start, min(start + 256, rows)))

    if live.stats().hot:
        raise AssertionError(f"{live.stats().hot} rows are hot, a graph alone is to answer")
    asked = sample(200)
    want = [set(exact.query(vector, K).ids) for vector in asked]
    hits = [live.query(vector, K) for vector in asked]
    recall = float(np.mean([len(set(h.ids) & w) / K for h, w in zip(hits, want, strict=True)]))
    plain_recall = 0.0
    for plain.ef in BREADTHS:
        theirs = [{names[at] for at in plain.query(vector, K)} for vector in asked]
        plain_recall = float(np.mean([len(t & w) / K for t, w in zip(theirs, want, strict=True)]))
        if plain_recall >= ENOUGH:
            break
    queries = cycle(asked)
    ours, limit = pairs(
        lambda _: microseconds(lambda: live.query(next(queries), K), 200),
        lambda _: microseconds(lambda: plain.query(next(queries), K), 200),
        given.runs,
    )
    query = Distance(
        "index",
        "retrieval",
        f"query by graph, k = {K}, nothing hot or excluded",
        by,
        f"knn_query of k = {K} at ef {plain.ef}, the first tried that finds {ENOUGH:g} or the widest",
        "p50_us",
        "cost",
        ours,
        limit,
        sizes,
        beside={"recall_at_200": round(recall, 4)},
        limit_beside={"recall_at_200": round(plain_recall, 4)},
        bar="core_idle",
        note=f"plans: {', '.join(sorted({h.plan for h in hits}))}",
    )
    return [query, *_writes(rng, sample, live, plain, names, given.runs, by, sizes), _build(sample, given)]


def _writes(
    rng: np.random.Generator,
    sample: Callable[[int], Floats],
    live: LiveIndex,
    plain: Plain,
    names: list[str],
    runs: int,
    by: str,
    sizes: dict[str, Any],
) -> list[Distance]:
    """One upsert, visible when it returns: beside a copy of the row, and beside a move within the graph."""
    table = np.zeros((len(names), DIM), np.float32)
    slots = {name: at for at, name in enumerate(names)}
    fresh = cycle(sample(512))
    warm = cycle(rng.permutation(len(names))[:8000].tolist())

    def ours(_: int) -> float:
        def upsert() -> None:
            live.upsert([names[next(warm)]], next(fresh)[None, :])

        return microseconds(upsert, 1000, 20)

    def copied(_: int) -> float:
        def copy() -> None:
            table[slots[names[next(warm)]]] = next(fresh)

        return microseconds(copy, 2000, 100)

    def moved(_: int) -> float:
        return microseconds(lambda: plain.add(next(fresh)[None, :], [next(warm)]), 200, 5)

    def distance(who: str, limit: str, measured: Callable[[int], float], bar: str) -> Distance:
        mine, theirs = pairs(ours, measured, runs)
        what = f"upsert of one, visible on return ({limit})"
        return Distance("index", "index", what, who, limit, "p50_us", "cost", mine, theirs, sizes, bar=bar)

    return [
        distance(f"numpy {np.__version__}", "a row copied to its slot, by a dict of names", copied, "upsert"),
        distance(by, "add_items of the moved row in place, nobody searching", moved, ""),
    ]


def _build(sample: Callable[[int], Floats], given: argparse.Namespace) -> Distance:
    """Rows merged into a graph that is not there yet."""
    rows = min(given.build_rows, given.graph_rows)
    config = IndexConfig(
        dim=DIM, capacity=rows, exact_rows=100, recall_wanted=0.0, bands=1, cool_to=0.0, rebuild_process=False
    )
    vectors = sample(rows)

    def ours(_: int) -> float:
        index = LiveIndex(config)
        fill(index, (vectors[start : start + 1000] for start in range(0, rows, 1000)))
        began = time.process_time()
        index.merge()
        spent = time.process_time() - began
        if index.stats().cold != rows:
            raise AssertionError(f"{index.stats().cold} of {rows} rows are cold")
        return rows / spent

    def limit(_: int) -> float:
        plain = Plain(vectors, config)
        began = time.process_time()
        for start in range(0, rows, 256):
            plain.add(vectors[start : start + 256], np.arange(start, min(start + 256, rows)))
        return rows / (time.process_time() - began)

    mine, theirs = pairs(ours, limit, given.runs)
    return Distance(
        "index",
        "index",
        "rows that cool into a new pair of graphs",
        f"hnswlib {version('hnswlib')}",
        "add_items into one graph, one thread",
        "rows_per_cpu_second",
        "rate",
        mine,
        theirs,
        {"rows": rows, "dim": DIM},
        note="ours builds the graph and copies it: a pair",
    )
