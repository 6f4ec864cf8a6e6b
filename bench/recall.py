"""Recall of the live index on the tower's own vectors, by hand: `python -m bench.recall FILE --format higgs`.

Replays a stream through the chain, learning online, and takes the vectors that stand in the index at its end with
those of accounts that asked lately. The live index gets them in the order of their ticks, so that the accounts that
changed last are hot; its answers are compared with the exact scan.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bench.machine import machine
from kithstream.index.config import IndexConfig
from kithstream.index.exact import ExactIndex
from kithstream.index.live import LiveIndex
from kithstream.index.protocol import Hits, Queryable
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.replay import feed
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.sources import bitcoin, higgs, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--format", choices=("higgs", "bitcoin", "pairs"), default="higgs")
    parser.add_argument("--ef", type=int, nargs="*", default=[256, 400, 1000])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--vectors", type=Path, help="keep the vectors here, or take them from here")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.vectors is not None and given.vectors.exists():
        kept = np.load(given.vectors, allow_pickle=False)
        vectors, ticks, queries, bound = kept["vectors"], kept["ticks"], kept["queries"], float(kept["bound"])
    else:
        vectors, ticks, queries, bound = replayed(given)
        if given.vectors is not None:
            np.savez(given.vectors, vectors=vectors, ticks=ticks, queries=queries, bound=bound)
    print(json.dumps({"bench": "recall", "machine": machine(), "rows": len(vectors), "seed": given.seed}))
    for told in measure(vectors, ticks, queries, bound, (None, *given.ef)):
        print(json.dumps(told), flush=True)


def replayed(given: argparse.Namespace) -> tuple[NDArray, NDArray, NDArray, float]:
    """Vectors (n, dim), their ticks (n,), vectors of askers (q, dim), and the lineage's bound."""
    clock = StreamClock()
    config = Config(
        engine=EngineConfig(partitions=1, batch_events=64, row_cache=400_000),
        model=ModelConfig(seed=given.seed),
        index=IndexSection(exact_rows=10**9, background=False),
    )
    read = {"higgs": higgs.read, "bitcoin": bitcoin.read, "pairs": pairs.read}[given.format]
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder), config, clock=clock) as live:
        newest: dict[str, None] = {}
        feed(live, clock, read(given.file, repeats=False))
        for event in read(given.file, repeats=False):
            newest.pop(event["actor"], None)
            newest[event["actor"]] = None
        index = live.chain.index
        names = index.ids()
        vectors = np.stack([index.vector(name) for name in names])
        ticks = np.array([index.sequence(name) for name in names])
        rng = np.random.default_rng(given.seed)
        asking = rng.permutation(list(newest)[-10 * given.queries :])[: given.queries]
        queries = np.concatenate(
            [live.chain.model.encode_consumers(live.chain.inspect(str(a), clock.now)).vectors for a in asking]
        )
        return vectors, ticks, queries, live.chain.model.norm_bound


def measure(
    vectors: NDArray, ticks: NDArray, queries: NDArray, bound: float, efs: Sequence[int | None]
) -> Iterator[dict[str, object]]:
    """Recall and latency at breadths of search, and of an index as a server has it, which may scan (None).

    All breadths ask one graph, no more broadly than they say.
    """
    served = IndexConfig(dim=vectors.shape[1], bound=bound, rebuild_process=False)
    # The graph must answer.
    alone = msgspec.structs.replace(served, exact_rows=1000, rows_per_fetch=0, recall_wanted=0.0)
    exact = ExactIndex(served.dim)
    exact.upsert([f"{n}" for n in range(len(vectors))], vectors)
    wanted, exact_ms = _answers(exact, queries)
    graph: tuple[LiveIndex, float] | None = None
    for ef in efs:
        if ef is None:
            live, built = _indexed(served, vectors, ticks)
        else:
            live, built = graph = graph or _indexed(alone, vectors, ticks)
            live.config = msgspec.structs.replace(alone, ef=ef)
        answers, live_ms = _answers(live, queries)
        shares = {
            k: [len(set(a.ids[:k]) & set(b.ids[:k])) / k for a, b in zip(answers, wanted, strict=True)]
            for k in (200, 20)
        }
        stats = live.stats()
        yield {
            "ef": ef,
            **{f"recall_at_{k}": round(float(np.mean(values)), 4) for k, values in shares.items()},
            "live_ms": live_ms,
            "exact_ms": exact_ms,
            "build_seconds": round(built, 1),
            "plan": answers[-1].plan,
            "hot": stats.hot,
            "cold": stats.cold,
        }


def _indexed(config: IndexConfig, vectors: NDArray, ticks: NDArray) -> tuple[LiveIndex, float]:
    """An index of these rows, those that changed last hot, and the seconds that it took."""
    live = LiveIndex(config)
    began = time.perf_counter()
    order = np.argsort(ticks, kind="stable")
    cold = max(len(order) - config.hot_stays, 0)
    for part in (order[:cold], order[cold:]):
        live.upsert([f"{n}" for n in part], vectors[part])
        if not live.stats().cold:
            live.merge()  # builds the graph of those that changed longest ago; the rest stay hot
    return live, time.perf_counter() - began


def _answers(index: Queryable, queries: NDArray) -> tuple[list[Hits], list[float]]:
    """The best 200 for each query, and the milliseconds that an answer took: median and 99th percentile."""
    answers, took = [], []
    for query in queries:
        began = time.perf_counter()
        answers.append(index.query(query, 200))
        took.append(time.perf_counter() - began)
    return answers, [round(float(x) * 1e3, 3) for x in np.percentile(took, [50, 99])]


if __name__ == "__main__":
    main()
