"""What freshness is worth: recall@20 when everything that answers is as it was some time ago.

    python -m bench.freshness_value bitcoin college --data FOLDER --svg docs/freshness.svg
    python -m bench.freshness_value simulator --accounts 1000 --events 40000
    python -m bench.freshness_value higgs --data FOLDER --events 60000 --tests 1000

The protocol is that of `kithstream evaluate`: a sampled first follow of the last fifth. Each is asked for by every
delay: with delay d, a follow at time t is answered as the chain would have answered at t - d, from what had been
published by then: vectors, index, the asking account's own rows, model weights, and the clock. Answering changes no
state, so one pass of one runtime asks each question at its moment t - d, which is exact; with d = 0 it is asked just
before its own event is told. Time follows the order of publishing; where events come late, t is the newest time so far.

An answer names nobody whom the account followed before t: the exclusions are fresh, although everything else is stale.
`stale_exclusions` is the same without that: a list spends places on those whom the account follows already. Delays
are paired: the same follows, and intervals of the difference to d = 0. One JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.machine import machine
from kithstream.models.evaluate import Interval, bootstrap, ndcg_at, recall_at
from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, load
from kithstream.streams.errors import Unanswerable
from kithstream.streams.evaluating.chart import lines
from kithstream.streams.events.record import Record
from kithstream.streams.prequential import Pairs
from kithstream.streams.progress import Progress
from kithstream.streams.replay import interleave
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import SimulationConfig, simulate
from kithstream.streams.sources import bitcoin, higgs, pairs

K: Final = 20
SECOND: Final = 1_000_000  # microseconds
DELAYS: Final = {"0 s": 0, "10 s": 10, "1 min": 60, "10 min": 600, "1 h": 3600, "1 day": 86_400}  # seconds
FILES: Final = {
    "bitcoin": ("soc-sign-bitcoinotc.csv.gz", bitcoin.read),
    "college": ("CollegeMsg.txt.gz", pairs.read),
    "higgs": ("higgs-activity_time.txt.gz", higgs.read),
}
TITLES: Final = {
    "bitcoin": "Bitcoin OTC",
    "college": "CollegeMsg",
    "higgs": "Higgs",
    "simulator": "simulator",
}


class Asked(NamedTuple):
    """One follow, asked with one delay."""

    test: int
    delay: int  # place among the delays
    as_of: int  # microseconds


class Found(NamedTuple):
    """Places of the followed accounts, -1 beyond the list; (tests, delays)."""

    fresh: NDArray[np.int64]  # without those whom the account followed before the follow
    stale: NDArray[np.int64]  # without those whom it followed before the state


def moments(
    events: Iterable[Record], known: Pairs, tests: NDArray[np.int64], delays: Sequence[int]
) -> Mapping[int, list[Asked]]:
    """Return what to ask before each event by its number: everything older than t - d is told, and nothing newer."""
    newest = np.maximum.accumulate(np.array([event["time"] for event in events], np.int64))
    found: dict[int, list[Asked]] = defaultdict(list)
    for test, event in enumerate(known.event[tests].tolist()):
        now = int(newest[event])
        for place, delay in enumerate(delays):
            as_of = now - delay * SECOND
            at = event if delay == 0 else min(event, int(np.searchsorted(newest, as_of, side="right")))
            found[at].append(Asked(test, place, as_of))
    return found


def followed_by(known: Pairs, tests: NDArray[np.int64]) -> list[set[str]]:
    """Return whom the asking account of each test had followed before it."""
    wanted = set(known.source[tests].tolist())
    so_far: dict[int, set[str]] = defaultdict(set)
    rows = {int(row): test for test, row in enumerate(tests)}
    found: list[set[str]] = [set() for _ in tests]
    for row, (source, target) in enumerate(zip(known.source.tolist(), known.target.tolist(), strict=True)):
        if row in rows:
            found[rows[row]] = set(so_far[source])
        if source in wanted:
            so_far[source].add(known.accounts[target])
    return found


def ask_stale(
    live: Embedded,
    clock: StreamClock,
    events: Sequence[Record],
    tests: NDArray[np.int64],
    known: Pairs,
    delays: Sequence[int],
    progress: Progress | None = None,
) -> Found:
    """Run the stream through a fresh runtime once and return where the follows stood, by delay."""
    asked = moments(events, known, tests, delays)
    followed = followed_by(known, tests)
    found = Found(*(np.full((len(tests), len(delays)), -1) for _ in range(2)))

    def ask(event: int) -> None:
        for one in sorted(asked[event], key=lambda one: one.as_of):
            clock.advance(one.as_of)
            row = int(tests[one.test])
            source, target = known.accounts[known.source[row]], known.accounts[known.target[row]]
            try:
                answer = live.candidates(source, min(1000, K + len(followed[one.test])), reasons=0)
            except Unanswerable:
                continue
            names = [candidate.account for candidate in answer.candidates]
            kept = [name for name in names if name not in followed[one.test]]
            for places, listed in ((found.fresh, kept), (found.stale, names)):
                places[one.test, one.delay] = listed.index(target) if target in listed[:K] else -1

    interleave(
        live, clock, events, asked.keys(), ask, (lambda done, _: progress.reach(done)) if progress else None
    )
    return found


def told(stream: str, found: Found, delays: Mapping[str, int], seed: int) -> list[dict[str, object]]:
    """Return a line of results for each delay."""
    rows = []
    for place, (name, delay) in enumerate(delays.items()):
        row: dict[str, object] = {"stream": stream, "stale_by": name, "seconds": delay}
        recall = recall_at(found.fresh[:, place], K)
        row["recall@20"] = _rounded(bootstrap(recall, np.random.default_rng(seed)))
        row["ndcg@20"] = _rounded(bootstrap(ndcg_at(found.fresh[:, place], K), np.random.default_rng(seed)))
        change = recall - recall_at(found.fresh[:, 0], K)
        row["change"] = _rounded(bootstrap(change, np.random.default_rng(seed)))
        stale = recall_at(found.stale[:, place], K)
        row["stale_exclusions"] = _rounded(bootstrap(stale, np.random.default_rng(seed)))
        rows.append(row)
    return rows


def _rounded(interval: Interval) -> list[float]:
    return [round(value, 4) for value in interval]


def events_of(stream: str, given: argparse.Namespace, *, repeats: bool = False) -> list[Record]:
    """Read a stream's first events, all of them if `given.events` is 0; the simulator's are a function of the seed."""
    if stream == "simulator":
        world = SimulationConfig(accounts=given.accounts, seed=given.seed)
        return list(chain.from_iterable(simulate(world, given.events or 40_000)))
    file, read = FILES[stream]
    return list(islice(read(given.data / file, repeats=repeats), given.events or None))


def _config() -> Config:
    exact = ("index.exact_rows=1000000000", "index.background=false", "engine.row_cache=400000")
    return load(None, environment={}, options=(*exact, "engine.partitions=1"))


def run(stream: str, given: argparse.Namespace) -> list[dict[str, object]]:
    """Measure one stream."""
    events = events_of(stream, given)
    known = prequential.first_pairs(events)
    tests = prequential.choose_tests(known, given.seed, given.tests)
    clock = StreamClock()
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="kithstream-freshness-") as folder,
        Embedded(Path(folder), _config(), clock=clock) as live,
        Progress(stream, len(events)) as progress,
    ):
        found = ask_stale(live, clock, events, tests, known, tuple(DELAYS.values()), progress)
    rows = told(stream, found, DELAYS, given.seed)
    about = {"events": len(events), "pairs": len(known.source), "tests": len(tests), "seed": given.seed}
    about |= {"cut": stream in FILES and given.events > 0}
    about |= {"wall_seconds": round(time.perf_counter() - began)}
    return [{**row, **about} for row in rows]


def drawn(rows: Iterable[Mapping[str, object]]) -> str:
    """Return the figures of several streams as one SVG."""
    series: dict[str, list[Interval | None]] = defaultdict(lambda: [None] * len(DELAYS))
    for row in rows:
        value = row["recall@20"]
        assert isinstance(value, list)
        first = f", first {row['events']}" if row.get("cut") else ""
        series[TITLES[str(row["stream"])] + first][list(DELAYS).index(str(row["stale_by"]))] = Interval(
            *value
        )
    return lines("recall@20 when everything is stale", list(DELAYS), series, "stale by")


def main() -> None:
    """Measure the streams that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("streams", nargs="*", choices=[*TITLES, []], help="none: draw --from alone")
    parser.add_argument("--data", type=Path, help="folder of the public streams")
    parser.add_argument(
        "--events", type=int, default=0, help="of each stream; 0 is all, 40,000 of the simulator"
    )
    parser.add_argument("--accounts", type=int, default=1000, help="of the simulator")
    parser.add_argument("--tests", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="earlier", type=Path, help="lines of earlier runs, drawn as well")
    parser.add_argument("--svg", type=Path, help="where to draw")
    given = parser.parse_args()
    if set(given.streams) & set(FILES) and given.data is None:
        parser.error("--data is needed for the public streams")
    print(json.dumps({"bench": "freshness_value", "machine": machine(), "seed": given.seed}), flush=True)
    rows: list[dict[str, object]] = []
    if given.earlier is not None:
        parsed = (json.loads(line) for line in given.earlier.read_text().splitlines())
        rows += [row for row in parsed if "stale_by" in row]
    for stream in given.streams:
        for row in run(stream, given):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if given.svg is not None:
        given.svg.write_text(drawn(rows) + "\n")


if __name__ == "__main__":
    main()
