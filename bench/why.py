"""What an explanation costs, by hand: `python -m bench.why --accounts 100000`.

A simulated world fills the runtime. Then each of `--queries` accounts, drawn among those with the most public deeds
(`--busy`) and among all, is asked for three things: its candidates with short reasons, the same with `explain=full`
(5 candidates, 64 deeds at most), and why it is shown the first of them. Wall time and CPU time of this process.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: as a server has it

import numpy as np
import torch

from bench.machine import machine
from bench.serving import percentiles
from kithstream.__main__ import ready
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, ModelConfig
from kithstream.streams.errors import Unanswerable
from kithstream.streams.serve.answers import Candidate
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import SimulationConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=600_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ready()
    torch.set_num_threads(1)
    config = Config(model=ModelConfig(learn=False))
    clock = StreamClock()
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder), config, clock=clock) as live:
        done: dict[str, int] = {}
        for batch in simulate(SimulationConfig(seed=given.seed, accounts=given.accounts), given.events):
            clock.advance(max(event["time"] for event in batch))
            live.publish(batch)
            live.catch_up()
            for event in batch:
                done[event["actor"]] = done.get(event["actor"], 0) + 1
        live.chain.index.merge()
        rng = np.random.default_rng(given.seed)
        most = sorted(done, key=lambda name: (-done[name], name))
        some = [str(name) for name in rng.permutation(sorted(done))]
        result = {
            "bench": "why",
            "machine": machine(),
            "accounts": given.accounts,
            "events": given.events,
            "seed": given.seed,
            "indexed": len(live.chain.index),
            "busy": measure(live, most, given.queries),
            "any": measure(live, some, given.queries),
        }
    print(json.dumps(result))


def measure(live: Embedded, names: list[str], count: int) -> dict[str, object]:
    """Time of whole answers for the first `count` accounts that can be asked for and are shown somebody."""
    asked: list[tuple[str, Candidate]] = []
    for name in names:
        try:
            candidates = live.candidates(name, 20).candidates
        except Unanswerable:
            continue
        if candidates:
            asked.append((name, candidates[0]))
        if len(asked) == count:
            break
    considered = [live.why(name, first.account).considered for name, first in asked]
    groups = [len(live.why(name, first.account, most=64).because) for name, first in asked]
    return {
        "asked": len(asked),
        "deeds": quartiles(considered),
        "reasons": quartiles(groups),
        "short": timed(asked, lambda name, _: live.candidates(name, 20)),
        "full": timed(asked, lambda name, _: live.candidates(name, 20, explain="full")),
        "why": timed(asked, lambda name, first: live.why(name, first)),
    }


def timed(
    asked: list[tuple[str, Candidate]], ask: Callable[[str, str], object]
) -> dict[str, dict[str, float]]:
    """Milliseconds of each question, by the wall and by the CPU."""
    wall, cpu = [], []
    for name, first in asked:
        began, busy = time.perf_counter(), time.process_time()
        ask(name, first.account)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
    return {"wall_ms": percentiles(wall), "cpu_ms": percentiles(cpu)}


def quartiles(counts: list[int]) -> list[int]:
    """Least, median and greatest."""
    return [int(value) for value in np.percentile(counts, [0, 50, 100])]


if __name__ == "__main__":
    main()
