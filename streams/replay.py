"""A file of events through the whole chain, and what it would have answered on the way.

The evaluation is prequential: a sample of the last follows is asked for just before each is applied, by the
product's own path from log to answer. The live yardsticks go over the same pairs and the same questions in the
same way, in a process of their own beside it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.record import Record
from kithstream.streams.prequential import MISSED, K, Outcome, Pairs
from kithstream.streams.serve.embedded import ALL, Embedded
from kithstream.streams.yardsticks import GRID, DecayedPopularity, HandRule, TwoHop, Yardstick

BATCH: Final = 64  # events between two rounds of the chain: what a step of training takes
OWN: Final = "kithstream"

Progress = Callable[[int, int], None]  # events done, events in all (0: unknown)


class Replayed(NamedTuple):
    """What went through."""

    events: int
    refused: int  # dead letters
    learned: int  # follows trained on
    seconds: float


class Evaluated(NamedTuple):
    """What every method reached, in one pass."""

    methods: Mapping[str, Outcome]
    chosen: Mapping[str, str]  # the setting that the grid chose, by yardstick
    positions: Mapping[str, NDArray[np.int64]]  # per query, for paired comparisons
    replayed: Replayed
    queries: int
    query_seconds: NDArray[np.float64]  # (queries,) of the chain
    accounts: int
    peak_bytes: int


def feed(
    live: Embedded, clock: StreamClock, events: Iterable[Record], progress: Progress | None = None
) -> Replayed:
    """Publish events in their order and fold them, in batches; the clock follows them."""
    done = refused = learned = 0
    started = time.perf_counter()
    for batch in _batches(events, live.config.engine.batch_events):
        published = _publish(live, clock, batch)
        done, refused, learned = done + published[0], refused + published[1], learned + published[2]
        if progress is not None:
            progress(done, 0)
    return Replayed(done, refused, learned, time.perf_counter() - started)


def evaluate(
    live: Embedded,
    clock: StreamClock,
    events: Iterable[Record],
    *,
    seed: int = 0,
    limit: int | None = 3000,
    freeze_at: float | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Replay events and ask for the last fifth of first pairs; None as limit asks for all of them.

    The first two passes over `events` read the pairs and choose the yardsticks' half-lives on the first 80 %.
    """
    pairs = prequential.first_pairs(events)
    tests = prequential.choose_tests(pairs, seed, limit or len(pairs.source))
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        rules = beside.submit(yardsticks, pairs, tests, seed)
        own = _prequential(live, clock, events, pairs, tests, freeze_at, progress)
        chosen, others = rules.result()
    positions = {OWN: own.positions, **others}
    outcomes = {
        name: Outcome(
            prequential.estimate(prequential.recalled(found), seed),
            prequential.estimate(prequential.gained(found), seed),
            len(found),
        )
        for name, found in positions.items()
    }
    return Evaluated(
        outcomes,
        chosen,
        positions,
        own.replayed,
        len(tests),
        own.query_seconds,
        len(pairs.accounts),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


class _Own(NamedTuple):
    """What the chain itself did in an evaluation."""

    positions: NDArray[np.int64]
    query_seconds: NDArray[np.float64]
    replayed: Replayed


def _prequential(
    live: Embedded,
    clock: StreamClock,
    events: Iterable[Record],
    pairs: Pairs,
    tests: NDArray[np.int64],
    freeze_at: float | None,
    progress: Progress | None,
) -> _Own:
    positions, took = np.full(len(tests), MISSED), np.zeros(len(tests))
    at = pairs.event.tolist()
    wanted = {at[row]: number for number, row in enumerate(tests.tolist())}
    total = len(at)
    border = total if freeze_at is None else int(total * freeze_at)
    frozen = at[border] if border < total else None

    def ask(event: int) -> None:
        if event == frozen:
            live.chain.trainer = None
        if (number := wanted.get(event)) is not None:
            row = int(tests[number])
            clock.advance(int(pairs.time[row]))
            source, target = pairs.accounts[pairs.source[row]], pairs.accounts[pairs.target[row]]
            positions[number], took[number] = _asked(live, source, target)

    stops = wanted.keys() if frozen is None else {*wanted, frozen}
    return _Own(positions, took, interleave(live, clock, events, stops, ask, progress))


def interleave(
    live: Embedded,
    clock: StreamClock,
    events: Iterable[Record],
    stops: Collection[int],
    ask: Callable[[int], None],
    progress: Progress | None = None,
) -> Replayed:
    """Fold events in their order, and call `ask(n)` when those before the n-th are folded, for each n of `stops`.

    The clock stands at the newest event that was folded. Its seconds are without those of `ask`.
    """
    done = refused = learned = 0
    seconds = 0.0
    waiting: list[Record] = []

    def fold() -> None:
        nonlocal done, refused, learned, seconds
        began = time.perf_counter()
        published = _publish(live, clock, waiting)
        waiting.clear()
        done, refused, learned = done + published[0], refused + published[1], learned + published[2]
        seconds += time.perf_counter() - began

    for number, event in enumerate(events):
        if number in stops:
            fold()
            ask(number)
        waiting.append(event)
        if len(waiting) >= BATCH:
            fold()
        if progress is not None and number % 256 == 0:
            progress(number, 0)
    fold()
    return Replayed(done, refused, learned, seconds)


def yardsticks(
    pairs: Pairs, tests: NDArray[np.int64], seed: int
) -> tuple[dict[str, str], dict[str, NDArray[np.int64]]]:
    """Return the settings that the grid chose, and each yardstick's positions of the tests' targets."""
    chosen = choose_half_lives(pairs, seed)
    rules: dict[str, Yardstick] = {
        "decayed_popularity": DecayedPopularity(chosen.popularity),
        "two_hop": TwoHop(),
        "hand_rule": HandRule(*chosen.hand_rule),
        # The two fixed settings under which decayed popularity is commonly quoted.
        "decayed_popularity_3h": DecayedPopularity(10800.0),
        "decayed_popularity_30d": DecayedPopularity(2592000.0),
    }
    return dict(chosen.names), {name: prequential.replay(rule, pairs, tests) for name, rule in rules.items()}


def report(result: Evaluated) -> dict[str, object]:
    """Return an evaluation as values of JSON; intervals are of 95 %, by bootstrap."""
    took = np.percentile(result.query_seconds, [50, 99]) * 1e3 if result.queries else (0.0, 0.0)
    return {
        "methods": {
            name: {
                "recall_at_20": round(outcome.recall.mean, 4),
                "recall_at_20_interval": [round(outcome.recall.low, 4), round(outcome.recall.high, 4)],
                "ndcg_at_20": round(outcome.ndcg.mean, 4),
                "ndcg_at_20_interval": [round(outcome.ndcg.low, 4), round(outcome.ndcg.high, 4)],
            }
            for name, outcome in result.methods.items()
        },
        "chosen": dict(result.chosen),
        "queries": result.queries,
        "accounts": result.accounts,
        "events": result.replayed.events,
        "refused": result.replayed.refused,
        "learned": result.replayed.learned,
        "events_per_second": round(result.replayed.events / max(result.replayed.seconds, 1e-9), 1),
        "seconds": round(result.replayed.seconds, 2),
        "query_ms": {"p50": round(float(took[0]), 3), "p99": round(float(took[1]), 3)},
        "peak_memory_bytes": result.peak_bytes,
    }


class HalfLives(NamedTuple):
    """Half-lives in seconds, chosen on the validation slice."""

    popularity: float
    hand_rule: tuple[float, float]
    names: Mapping[str, str]


def choose_half_lives(pairs: Pairs, seed: int = 0) -> HalfLives:
    """Choose the yardsticks' half-lives on rows 64 to 80 %, as everything tuned here is."""
    popularity = {f"{h:g} s": partial(DecayedPopularity, h) for h in GRID}
    hand = {f"{a:g} s, {b:g} s": (a, b) for a in GRID for b in GRID}
    best = prequential.choose(popularity, pairs, seed)
    best_hand = prequential.choose({name: partial(HandRule, *h) for name, h in hand.items()}, pairs, seed)
    return HalfLives(
        GRID[list(popularity).index(best.name)],
        hand[best_hand.name],
        {"decayed_popularity": best.name, "hand_rule": best_hand.name},
    )


def _asked(live: Embedded, source: str, target: str) -> tuple[int, float]:
    """The position of the target in the chain's answer, and the seconds it took."""
    began = time.perf_counter()
    try:
        answer = live.candidates(source, K, reasons=0)
    except Unanswerable:
        return MISSED, time.perf_counter() - began
    took = time.perf_counter() - began
    names = [candidate.account for candidate in answer.candidates]
    return names.index(target) if target in names else MISSED, took


def _publish(live: Embedded, clock: StreamClock, batch: list[Record]) -> tuple[int, int, int]:
    """Events, dead letters and learned follows of one published and folded batch."""
    if not batch:
        return 0, 0, 0
    clock.now = max(clock.now, max(event["time"] for event in batch))
    live.publish(batch)
    pumped = live.pump(aged=ALL)
    return len(batch), len(pumped.dead), pumped.learned


def _batches(events: Iterable[Record], size: int) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for event in events:
        batch.append(event)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
