"""What each group of features is worth: recall@20 and NDCG@20 with the group off, in pairs with the full model.

    python -m bench.ablation btc higgs --data FOLDER --limit 40000
    python -m bench.ablation simulator --accounts 800 --events 30000
    python -m bench.ablation speed --accounts 800 --events 10000

A group is off when its fields of `Rows` are blank, in training and in serving alike. The streams run through
the light state of `quality_lab` and know of follows alone; the simulator's events, all signals, run through the
embedded runtime in the order of their publishing, and its questions through its answers. Both are prequential: a
sampled first follow of the last fifth is asked for just before it is told. Day zero and trained online.

One JSON object a line: means with bootstrap intervals of 95 %, and `change`: the same of the paired difference
to the full model of the same seed. `speed` is of producers encoded from the simulator's rows by one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bench import quality_lab
from bench.machine import machine
from kithstream.models.evaluate import bootstrap, ndcg_at, recall_at
from kithstream.models.features import IN, Rows, blank
from kithstream.models.lineage import DIM
from kithstream.models.model import Model
from kithstream.models.train import OnlineTrainer, TrainerConfig
from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config
from kithstream.streams.events.record import Record
from kithstream.streams.serve.embedded import ALL, Embedded
from kithstream.streams.simulate import SimulationConfig, simulate

K: Final = 20
ENGAGE, NEGATIVE = 1, 2  # groups of `Rows.counts`
BATCH: Final = 64  # events between two rounds of the runtime

# Optional fields of `Rows` that go off together.
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "families": ("families",),
    "engaged": ("engaged", "engaged_families", "engaged_ages"),
    "avoided": ("avoided", "avoided_families", "avoided_ages", "avoided_communities"),
    "audience-languages": ("audience_languages", "audience_shares"),
    "sketches": ("audience", "following"),
    "communities": (
        "known_for",
        "interests",
        "interest_weights",
        "communities",
        "community_weights",
        "avoided_communities",
    ),
}
GROUPS: Final = (
    *FIELDS,
    "languages",
    "engage-counts",
    "negative-counts",
    "neighbours",
    "reciprocity",
    "optional",
)
OF_FOLLOWS: Final = ("families", "sketches", "neighbours", "reciprocity")  # what a stream of follows fills


def blanked(rows: Rows, group: str) -> Rows:
    """Return rows in which nothing is known of a group; raises ValueError for one that is none of `GROUPS`."""
    n = len(rows.accounts)
    nothing = blank(n)
    if group in FIELDS:
        return rows._replace(**{name: nothing[name] for name in FIELDS[group]})
    match group:
        case "optional":
            return rows._replace(**nothing)
        case "languages":
            names = (*FIELDS["audience-languages"], "countries")
            return rows._replace(languages=np.zeros(n, np.int32), **{name: nothing[name] for name in names})
        case "engage-counts":
            counts = rows.counts.copy()
            counts[:, :, ENGAGE] = 0.0
            # That there was one makes a candidate, and the same accounts are to be candidates.
            counts[:, IN, ENGAGE, -1] = np.minimum(rows.counts[:, IN, ENGAGE, -1], 1.0)
            return rows._replace(counts=counts)
        case "negative-counts":
            counts = rows.counts.copy()
            counts[:, :, NEGATIVE] = 0.0
            return rows._replace(counts=counts)
        case "neighbours":
            nobody: list[list[str]] = [[] for _ in range(n)]
            return rows._replace(
                followers=nobody,
                follower_ages=np.full_like(rows.follower_ages, np.inf),
                followees=nobody,
                followee_ages=np.full_like(rows.followee_ages, np.inf),
            )
        case "reciprocity":
            return rows._replace(
                unreciprocated=[[] for _ in range(n)],
                unreciprocated_ages=np.full_like(rows.unreciprocated_ages, np.inf),
            )
    raise ValueError(f"group is {group!r}, one of {', '.join(GROUPS)} is due")


class Arm(NamedTuple):
    """One pass: what is off (nothing: the full model), and whether it learns."""

    off: str | None
    learn: bool
    seed: int


Run = Callable[[Arm], NDArray[np.int64]]  # ranks of the targets, -1 where not found


def compare(
    stream: str, run: Run, groups: Sequence[str], learns: Sequence[bool], seeds: Sequence[int]
) -> None:
    """Run the full model and each group off, with equal seeds and questions, and print what each reached."""
    for learn in learns:
        for seed in seeds:
            full: NDArray[np.int64] | None = None
            for off in (None, *groups):
                began = time.perf_counter()
                ranks = run(Arm(off, learn, seed))
                if full is None:
                    full = ranks
                line = {
                    "stream": stream,
                    "model": "trained" if learn else "day-zero",
                    "off": off,
                    "seed": seed,
                    "queries": len(ranks),
                    **measures(ranks),
                    **({"change": measures(ranks, full)} if off is not None else {}),
                    "seconds": round(time.perf_counter() - began, 1),
                }
                print(json.dumps(line), flush=True)


def measures(ranks: NDArray[np.int64], full: NDArray[np.int64] | None = None) -> dict[str, list[float]]:
    """Return recall and NDCG at 20 as (mean, low, high), or their paired differences to the full model."""
    found = {}
    for name, measure in (("recall@20", recall_at), ("ndcg@20", ndcg_at)):
        values = measure(ranks, K) - (measure(full, K) if full is not None else 0.0)
        found[name] = [round(x, 4) for x in bootstrap(values, np.random.default_rng(0))]
    return found


# -- streams of follows ------------------------------------------------------------------------------------------


def lab(stream: quality_lab.Stream, dim: int, queries: int) -> Run:
    """Return the run of an arm over a stream of follows."""
    tests = quality_lab.test_events(stream, 0.8, 1.0, queries)
    end = len(stream.source)

    def run(arm: Arm) -> NDArray[np.int64]:
        model = Model.day_zero(seed=arm.seed, dim=dim)
        rng = np.random.Generator(np.random.PCG64(arm.seed))
        trainer = OnlineTrainer(model, TrainerConfig(), rng)

        class Held(quality_lab.State):
            def rows(self, accounts: NDArray[np.int64], now: int) -> Rows:
                rows = super().rows(accounts, now)
                return rows if arm.off is None else blanked(rows, arm.off)

        until = end if arm.learn else 0
        return quality_lab.replay(stream, tests, end, model, trainer, until, 2.0, Held).ranks

    return run


# -- the simulator -----------------------------------------------------------------------------------------------


def simulated(accounts: int, count: int, seed: int) -> list[Record]:
    """Return the first events of a simulated world."""
    config = SimulationConfig(seed=seed, accounts=accounts)
    return list(chain.from_iterable(simulate(config, count)))


def opened(folder: Path, arm: Arm, clock: StreamClock) -> Embedded:
    """Open a runtime whose rows lack what an arm has off."""
    config = Config()
    config = msgspec.structs.replace(
        config, model=msgspec.structs.replace(config.model, learn=arm.learn, seed=arm.seed)
    )
    live = Embedded(folder, config, clock=clock)
    reader, off = live.chain.vectors.reader, arm.off  # one reader serves vectors, questions and examples
    read = reader.read
    if off is not None:
        vars(reader)["read"] = lambda *given, **named: blanked(read(*given, **named), off)
    return live


def feed(live: Embedded, clock: StreamClock, events: Sequence[Record]) -> None:
    """Publish events and fold them; the clock follows."""
    if events:
        clock.advance(max(event["time"] for event in events))
        live.publish(events)
        live.pump(aged=ALL)


def world(events: Sequence[Record], queries: int) -> Run:
    """Return the run of an arm over a simulated stream, through the embedded runtime."""
    pairs = prequential.first_pairs(events)
    tests = set(prequential.choose_tests(pairs, 0, queries).tolist())

    def run(arm: Arm) -> NDArray[np.int64]:
        clock, ranks = StreamClock(), []
        with (
            tempfile.TemporaryDirectory(prefix="kithstream-ablation-") as folder,
            opened(Path(folder), arm, clock) as live,
        ):
            for waiting, asked in _turns(events, tests):
                feed(live, clock, waiting)
                if asked is not None:
                    clock.advance(asked["time"])
                    ranks.append(_rank(live, asked["actor"], asked["target"]))
        return np.array(ranks, np.int64)

    return run


def _turns(events: Sequence[Record], tests: set[int]) -> Iterator[tuple[list[Record], Record | None]]:
    """Yield what is to be told, and then the follow that is to be asked for before it is told itself."""
    met: set[tuple[str, str]] = set()
    waiting: list[Record] = []
    row = 0
    for event in events:
        asked = None
        if event["signal"] == "follow" and event["actor"] != event["target"]:
            pair = event["actor"], event["target"]
            if pair not in met:
                met.add(pair)
                asked = event if row in tests else None
                row += 1
        if asked is not None or len(waiting) >= BATCH:
            yield waiting, asked
            waiting = []
        waiting.append(event)
    yield waiting, None


def _rank(live: Embedded, source: str, target: str) -> int:
    names = [candidate.account for candidate in live.candidates(source, K, reasons=0).candidates]
    return names.index(target) if target in names else -1


def speed(events: Sequence[Record], seed: int) -> None:
    """Print how many producers a second are encoded from the rows of a simulated world."""
    clock = StreamClock()
    with (
        tempfile.TemporaryDirectory(prefix="kithstream-ablation-") as folder,
        opened(Path(folder), Arm(None, False, seed), clock) as live,
    ):
        for first in range(0, len(events), 1024):
            feed(live, clock, events[first : first + 1024])
        everyone = sorted({event["actor"] for event in events})
        model, reader = live.chain.model, live.chain.vectors.reader
        for size in (8, 64, 1024):
            some = everyone[:size]
            rows = reader.read(some, clock())
            best = {
                "encode": _best(partial(model.encode_producers, rows)),
                "read": _best(partial(reader.read, some, clock())),
            }
            line = {
                "producers": len(some),
                **{f"{name}_us": round(1e6 * seconds / len(some), 2) for name, seconds in best.items()},
                "encoded_per_second": round(len(some) / best["encode"]),
                "dim": model.dim,
            }
            print(json.dumps(line), flush=True)


def _best(call: Callable[[], object], times: int = 50) -> float:
    """The least seconds of processor time of one call; others may share the machine."""
    spent = []
    for _ in range(times):
        began = time.thread_time()
        call()
        spent.append(time.thread_time() - began)
    return min(spent)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="+", choices=[*sorted(quality_lab.FILES), "simulator", "speed"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, help="first pairs read of a stream; all by default")
    parser.add_argument("--accounts", type=int, default=800, help="of the simulated world")
    parser.add_argument("--events", type=int, default=30_000, help="of the simulated world")
    parser.add_argument("--queries", type=int, default=3000)
    parser.add_argument(
        "--groups", nargs="*", choices=GROUPS, help="to be off; all that a stream fills by default"
    )
    parser.add_argument(
        "--models", nargs="+", choices=["day-zero", "trained"], default=["day-zero", "trained"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dim", type=int, default=DIM, help="of the streams' vectors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    learns = [name == "trained" for name in options.models]
    print(json.dumps({"machine": machine(), "arguments": _told(vars(options))}), flush=True)
    for name in options.what:
        groups = options.groups
        if name in quality_lab.FILES:
            stream = quality_lab.read(name, options.data, options.limit)
            run = lab(stream, options.dim, options.queries)
            cut = f" (first {options.limit} pairs)" if options.limit else ""
            compare(name + cut, run, OF_FOLLOWS if groups is None else groups, learns, options.seeds)
            continue
        events = simulated(options.accounts, options.events, options.seeds[0])
        if name == "speed":
            speed(events, options.seeds[0])
            continue
        size = f"simulator ({options.accounts} accounts, {len(events)} events)"
        compare(
            size, world(events, options.queries), GROUPS if groups is None else groups, learns, options.seeds
        )


def _told(options: dict[str, object]) -> dict[str, object]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


if __name__ == "__main__":
    main()
