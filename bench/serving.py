"""Freshness and query latency in one process, by hand: `python -m bench.serving --accounts 100000`.

A simulated world fills the runtime. Then, idle: questions for random accounts at k = 20 and 200, with recall@k
against the exact scan of the same vectors. Then, under load: events at `--rate` a second in an open loop, each
batch timed from when it was due to when it is visible in answers, with questions beside.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.machine import machine
from kithstream.__main__ import ready
from kithstream.index.exact import ExactIndex
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection
from kithstream.streams.pace import run
from kithstream.streams.serve import tokens
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import SimulationConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=600_000, help="that fill the state")
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--exact-rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ready()
    torch.set_num_threads(1)
    config = Config(engine=EngineConfig(), index=IndexSection(exact_rows=given.exact_rows))
    clock = StreamClock()
    paced = int(given.rate * given.seconds)
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder), config, clock=clock) as live:
        rest = []
        filled = 0
        for batch in simulate(
            SimulationConfig(seed=given.seed, accounts=given.accounts), given.events + paced
        ):
            room = given.events - filled
            if room > 0:
                part = batch[:room]
                clock.advance(max(event["time"] for event in part))
                live.publish(part)
                live.catch_up()
                filled += len(part)
            rest += batch[max(room, 0) :]
        index = live.chain.index
        index.merge()
        rng = np.random.default_rng(given.seed)
        asking = [str(name) for name in rng.permutation(sorted(live.engine.route))[: given.queries]]
        idle = {k: ask(live, clock, asking, k) for k in (20, 200)}
        live.start()
        token = tokens.write({n: p.applied for n, p in enumerate(live.engine.partitions)})
        loaded = run(live, clock, rest, asking, rate=given.rate, heard=lambda *_: None, published=token)
        result = {
            "bench": "serving",
            "machine": machine(),
            "accounts": given.accounts,
            "events": given.events,
            "seed": given.seed,
            "indexed": len(index),
            "index": index.stats()._asdict(),
            "idle": idle,
            "rate": given.rate,
            "freshness_ms": percentiles(loaded.freshness),
            "query_ms_under_load": percentiles(loaded.queries),
        }
    print(json.dumps(result))


def ask(live: Embedded, clock: StreamClock, asking: list[str], k: int) -> dict[str, object]:
    """Latency of whole answers, and of the index alone; recall of the index against an exact scan."""
    index, chain = live.chain.index, live.chain
    exact = ExactIndex(chain.model.dim)
    names = index.ids()
    exact.upsert(names, np.stack([index.vector(name) for name in names]))
    whole, alone, recalls, plans = [], [], [], set()
    for account in asking:
        began = time.perf_counter()
        answer = live.candidates(account, k)
        whole.append(time.perf_counter() - began)
        vector = chain.model.encode_consumers(chain.inspect(account, clock.now)).vectors[0]
        exclude = chain.exclusions.of(account)
        began = time.perf_counter()
        found = index.query(vector, k, exclude=exclude)
        alone.append(time.perf_counter() - began)
        want = exact.query(vector, k, exclude=exclude)
        recalls.append(len(set(found.ids) & set(want.ids)) / max(len(want.ids), 1))
        plans.add(answer.plan)
    return {
        "answer_ms": percentiles(whole),
        "index_ms": percentiles(alone),
        "recall": round(float(np.mean(recalls)), 4),
        "plans": sorted(plans),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


if __name__ == "__main__":
    main()
