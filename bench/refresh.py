"""What it costs when something changes that an account's follows carry, and whom it delays, by hand.

    python -m bench.refresh
    python -m bench.refresh --accounts 20000 --warm 40000 --degree 10 --degree 1000

An account with so many follows tells another language; its follows are sent again in the background, at most
`engine.job_edges` a partition and step. CPU milliseconds of a refresh (median of `--times`), split into the sender's
part and the targets', microseconds an edge, and the bytes of the frames. Then rounds of `--batch` events of everybody
(full mix) are folded as the embedded runtime folds them, one step of background work each: how much longer the
longest round is while jobs of the largest degree run than without, by the wall's clock and in CPU. Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.machine import machine
from bench.signals import PARTITIONS, Bench, Event
from kithstream.streams.simulate import simulate


class Refresh(NamedTuple):
    """What one change took."""

    sender_ms: float  # CPU
    targets_ms: float  # CPU
    bytes: int  # of frames
    steps: int


def hub(bench: Bench, name: str, degree: int) -> None:
    """Let an account follow others."""
    numbers = bench.rng.permutation(bench.config.accounts).tolist()
    targets = [f"u{number}" for number in islice(filter(bench.stays, numbers), degree)]
    if len(targets) < degree:
        raise ValueError(f"degree is {degree}, there are {len(targets)} accounts to follow")
    bench.fold(tell(bench, [name], "en"), bench.given.batch)
    bench.fold(bench.events("follow", [(name, target) for target in targets]), bench.given.batch)


def tell(bench: Bench, names: Sequence[str], language: str) -> list[Event]:
    """Return profiles in a language."""
    made = bench.events("profile", [(name, "") for name in names], language=language)
    for event in made:
        del event["target"]
    return made


def refresh(bench: Bench, name: str, language: str) -> Refresh:
    """Change an account's language and do what follows from it, alone."""
    engine = bench.engine
    bench.put(tell(bench, [name], language))
    engine.exchange()
    sender = targets = 0.0
    size = steps = 0
    while True:
        began = time.process_time()
        worked = engine.work()
        between = time.process_time()
        sender += between - began
        if not worked:
            break
        size += sum(len(frame.raw) for frame in engine.waiting())
        between = time.process_time()
        engine.exchange()
        targets += time.process_time() - between
        steps += 1
    return Refresh(sender * 1000, targets * 1000, size, steps)


def rounds(
    bench: Bench, calls: Sequence[Sequence[Event]], changes: Sequence[Event]
) -> dict[str, NDArray[np.float64]]:
    """Fold rounds of events, the changes before the first; return the milliseconds of each by clock."""
    spent: dict[str, list[float]] = {"wall": [], "cpu": []}
    if changes:
        bench.put(changes)
        bench.engine.exchange()
    for call in calls:
        parts = bench.parts(call)
        wall, cpu = time.perf_counter(), time.process_time()
        bench.apply(parts)
        bench.engine.exchange()
        if bench.engine.work():
            bench.engine.exchange()
        spent["wall"].append((time.perf_counter() - wall) * 1000)
        spent["cpu"].append((time.process_time() - cpu) * 1000)
    return {name: np.array(values) for name, values in spent.items()}


def told(alone: NDArray[np.float64], beside: NDArray[np.float64]) -> dict[str, object]:
    """Return how long rounds take alone and beside jobs, and by how much the longest of these is delayed."""
    usual = float(np.median(alone))
    return {
        "alone": {"median": round(usual, 1), "max": round(float(alone.max()), 1)},
        "beside_jobs": {"first": beside[:8].round(1).tolist(), "max": round(float(beside.max()), 1)},
        "longest_delay": round(float(beside.max()) - usual, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--warm", type=int, default=200_000, help="Events that fill the state.")
    parser.add_argument(
        "--degree", type=int, action="append", help="Repeatable; by default 10, 1000 and 10000."
    )
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=3, help="At the same time, while rounds are folded.")
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    degrees = given.degree or [10, 1000, 10_000]
    by_degree = {}
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        bench = Bench(Path(folder), given)
        stream = chain.from_iterable(simulate(bench.config))
        bench.fold(list(islice(stream, given.warm)), given.batch)
        for degree in degrees:
            hub(bench, f"hub{degree}", degree)
            done = [refresh(bench, f"hub{degree}", ("pt", "en")[turn % 2]) for turn in range(given.times)]
            sender, targets = (float(np.median([one[at] for one in done])) for at in (0, 1))
            by_degree[degree] = {
                "ms": round(sender + targets, 2),
                "sender_ms": round(sender, 2),
                "targets_ms": round(targets, 2),
                "us_per_edge": round((sender + targets) / degree * 1000, 1),
                "frame_bytes": done[-1].bytes,
                "bytes_per_edge": round(done[-1].bytes / degree, 1),
                "steps": done[-1].steps,
            }
        names = [f"busy{number}" for number in range(given.jobs)]
        for name in names:
            hub(bench, name, max(degrees))
        calls = [list(islice(stream, given.batch)) for _ in range(2 * given.rounds)]
        alone = rounds(bench, calls[: given.rounds], [])
        beside = rounds(bench, calls[given.rounds :], tell(bench, names, "ja"))
        bench.close()
    settings = {key: value for key, value in vars(given).items() if key != "degree"}
    print(
        json.dumps(
            {
                "bench": "refresh",
                "machine": machine(),
                "partitions": PARTITIONS,
                **settings,
                "job_edges": bench.engine.config.job_edges,
                "by_degree": by_degree,
                "round_ms": {clock: told(alone[clock], beside[clock]) for clock in alone},
            }
        )
    )


if __name__ == "__main__":
    main()
