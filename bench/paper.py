"""The IRS 2020 paper on dataset bias, reproduced: experiments E1 to E11 of docs/paper.md, by hand.

    python -m bench.paper --out docs/paper
    python -m bench.paper --out docs/paper --data FOLDER --movies FOLDER
    python -m bench.paper --quick --out /tmp/paper
    python -m bench.paper --read --out docs/paper

Writes results.json and the pictures into the folder, and the tables into the page beside it that has its name.
`--data` holds the public streams of bench/yardsticks.py, for E4 to E6; `--movies` MovieLens 100k's `ml-100k.inter`
(user, movie, in the first two columns, one line of heading), for E1. `--parts` keeps what each part came to: a run
that was broken off goes on from there. `--read` measures nothing and writes tables and pictures from results.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from bench import paper_pictures, paper_report
from bench.machine import machine
from bench.paper_claims import MOST_SEEDS, Results
from bench.paper_measure import Row
from bench.paper_sampling import LOSSES, TUNING, Budget, Choice, Chosen, losses, ratios, samplings, tune
from bench.paper_streams import in_stream
from bench.paper_tau import Tau, in_movies, in_world
from bench.paper_tuning import Online, old_rankers, tuning
from bench.paper_world import WorldConfig, build
from bench.yardsticks import STREAMS

QUICK = (
    WorldConfig(users=200, accounts=120, follows=10, served=15),
    Budget(served_epochs=3, served_size=64, follow_epochs=3, follow_size=128, most_epochs=5),
)


class Part(msgspec.Struct, frozen=True):
    """What a part of the run came to."""

    chosen: list[Chosen] = []
    rows: list[Row] = []
    taus: list[Tau] = []
    online: list[Online] = []
    cpu_seconds: float | None = None


class Job(NamedTuple):
    """A part of the run: its name, and what makes it."""

    name: str
    make: Callable[[], Part]


def settings(config: WorldConfig, budget: Budget, loss: str) -> Part:
    """One loss's setting, for E3 and what follows it."""
    return Part(chosen=[tune(build(TUNING, config), TUNING, loss, budget)])


def pairs(config: WorldConfig, budget: Budget, choice: Choice, seed: int) -> Part:
    """E1 to E3."""
    world = build(seed, config)
    rows = [*ratios(world, seed, choice, budget), *losses(world, seed, choice, budget)]
    return Part(rows=rows, taus=list(in_world(world, seed)))


def pools(config: WorldConfig, budget: Budget, seed: int) -> Part:
    """E4 to E6."""
    return Part(rows=list(samplings(build(seed, config), seed, budget)))


def tunings(config: WorldConfig, budget: Budget, choice: Choice, seed: int) -> Part:
    """E7 to E9, and E7 behind a stronger old ranker."""
    strong = msgspec.structs.replace(config, ranker=4.0, roughness=0.2, spoken=24.0)
    found = tuning(build(seed, config), seed, choice, budget)
    return Part(
        rows=[*found.rows, *old_rankers(build(seed, strong), seed, choice, budget)], online=found.online
    )


def movies(folder: Path, seed: int) -> Part:
    """E1 on MovieLens."""
    return Part(taus=list(in_movies(folder, seed)))


def streamed(stream: str, folder: Path, budget: Budget, seed: int) -> Part:
    """E4 to E6 on a stream."""
    return Part(rows=list(in_stream(stream, folder, seed, budget)))


def timed(make: Callable[[], Part]) -> Part:
    """A part, and what it cost."""
    began = time.process_time()
    return msgspec.structs.replace(make(), cpu_seconds=time.process_time() - began)


def run(jobs: list[Job], workers: int, parts: Path) -> Iterator[Part]:
    """What jobs came to, in their order; kept in a folder, and read from there if it is in it."""
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = {
            job.name: pool.submit(timed, job.make)
            for job in jobs
            if not (parts / f"{job.name}.json").exists()
        }
        for job in jobs:
            file = parts / f"{job.name}.json"
            if job.name in waiting:
                file.write_bytes(msgspec.json.encode(waiting[job.name].result()))
                print(f"{job.name} done", file=sys.stderr, flush=True)
            yield msgspec.json.decode(file.read_bytes(), type=Part)


def measured(given: argparse.Namespace, parts: Path) -> Results:
    """Everything, measured."""
    config, budget = QUICK if given.quick else (WorldConfig(), Budget())
    chosen = [
        Job(f"tune-{place}", partial(settings, config, budget, loss)) for place, loss in enumerate(LOSSES)
    ]
    found = list(run(chosen, given.workers, parts))
    choice = {one.loss: one for part in found for one in part.chosen}
    seeds = range(given.seeds)
    jobs = [
        job
        for seed in seeds
        for job in (
            Job(f"pairs-{seed}", partial(pairs, config, budget, choice, seed)),
            Job(f"pools-{seed}", partial(pools, config, budget, seed)),
            Job(f"tunings-{seed}", partial(tunings, config, budget, choice, seed)),
        )
    ]
    if given.movies:
        jobs += [Job(f"movies-{seed}", partial(movies, given.movies, seed)) for seed in seeds]
    if given.data:
        jobs += [
            Job(f"{stream}-{seed}", partial(streamed, stream, given.data, budget, seed))
            for stream in STREAMS
            for seed in seeds
        ]
    found += run(jobs, given.workers, parts)
    costs = [part.cpu_seconds for part in found if part.cpu_seconds is not None]
    options = "".join(f" --{name} FOLDER" for name in ("data", "movies") if getattr(given, name))
    return Results(
        f"python -m bench.paper --out docs/paper{' --quick' if given.quick else ''}{options}",
        machine(),
        given.seeds,
        sum(costs) if len(costs) == len(found) else None,
        choice,
        [row for part in found for row in part.rows],
        [tau for part in found for tau in part.taus],
        [one for part in found for one in part.online],
    )


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="small worlds, short training: a try, no result")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, MOST_SEEDS + 1))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--movies", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", type=Path)
    parser.add_argument("--read", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.json"
    if not given.read:
        with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
            parts = given.parts or Path(folder)
            parts.mkdir(parents=True, exist_ok=True)
            results = measured(given, parts)
        file.write_bytes(msgspec.json.encode(_rounded(results)))
    results = msgspec.json.decode(file.read_bytes(), type=Results)
    paper_pictures.draw(results, given.out)
    paper_report.write(given.out.with_suffix(".md"), paper_report.tables(results))


def _rounded(results: Results) -> object:
    """With four digits behind the point; NaN is null."""

    def rounded(value: object) -> object:
        match value:
            case float():
                return round(value, 4)
            case dict():
                return {key: rounded(one) for key, one in value.items()}
            case list():
                return [rounded(one) for one in value]
        return value

    return rounded(msgspec.to_builtins(results))


if __name__ == "__main__":
    main()
