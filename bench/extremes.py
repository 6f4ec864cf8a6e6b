"""Accounts at the extremes, by hand: `python -m bench.extremes --followers 1000000 --following 100000`.

In one embedded runtime each: a celebrity whom everybody follows, an account that follows very many, one that blocks
very many (`--blocked`); then what sends all their edges again (another language) and what takes all away (a deletion).
Prints one JSON object: events a second, the longest round, questions for the account and for another one, memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from bench.machine import machine, resident
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.embedded import Embedded

NOW = 1_790_600_000_000_000
STAR = "star"
SPREAD = 6 * 86_400_000_000  # microseconds over which the events lie
CROWD = 2000  # other accounts who follow each other, so that there are candidates
BATCH = 2000
ASKED = 30


def others() -> Iterator[Event]:
    """Follows among other accounts."""
    for number in range(CROWD):
        for step in (1, 7, 61):
            target = f"c{(number + step) % CROWD}"
            yield Event(f"c{number}-{step}", "follow", f"c{number}", NOW - SPREAD + number, target=target)


def celebrity(count: int) -> Iterator[Event]:
    """Everybody follows one."""
    return (
        Event(f"f{n}", "follow", f"fan{n}", NOW - SPREAD + n * SPREAD // count, target=STAR)
        for n in range(count)
    )


def follower(count: int) -> Iterator[Event]:
    """One follows everybody."""
    return (
        Event(f"f{n}", "follow", STAR, NOW - SPREAD + n * SPREAD // count, target=f"idol{n}")
        for n in range(count)
    )


def blocker(count: int) -> Iterator[Event]:
    """One blocks everybody; those who are blocked are candidates, since somebody follows them."""
    for n in range(count):
        time_ = NOW - SPREAD + n * SPREAD // count
        yield Event(f"l{n}", "follow", f"c{n % CROWD}", time_, target=f"foe{n}")
        yield Event(f"b{n}", "block", STAR, time_, target=f"foe{n}")


def language(name: str) -> Event:
    """What makes an account's follows carry something else."""
    return Event(f"language-{name}", "profile", STAR, NOW - 2, language=name)


def deletion() -> Event:
    """What takes every edge of the account away."""
    return Event("gone", "account_delete", STAR, NOW - 1)


def opened(path: Path, config: Config | None = None) -> Embedded:
    """A runtime that folds when it is told to."""
    section = Config(model=ModelConfig(learn=False), index=IndexSection(background=False))
    return Embedded(path, config or section, clock=lambda: NOW)


def rounds(live: Embedded) -> tuple[int, float]:
    """Fold until nothing is left to do; return how many rounds it took, and the longest in seconds."""
    count, longest = 0, 0.0
    while True:
        began = time.perf_counter()
        pumped = live.pump(BATCH)
        longest = max(longest, time.perf_counter() - began)
        count += 1
        working = any(partition.working for partition in live.engine.partitions)
        if not pumped.records and not working:
            return count, longest


def asked(ask: Callable[[], object]) -> dict[str, float]:
    """Ask some times; milliseconds."""
    spent = []
    for _ in range(ASKED):
        began = time.perf_counter()
        ask()
        spent.append((time.perf_counter() - began) * 1000)
    return {"median_ms": round(sorted(spent)[ASKED // 2], 1), "worst_ms": round(max(spent), 1)}


def measure(name: str, events: Iterator[Event], count: int) -> dict[str, object]:
    """Publish a case, ask, change what the account carries, delete it."""
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder, opened(Path(folder)) as live:
        live.publish(others())
        rounds(live)
        before, began, longest, sent = resident() >> 20, time.perf_counter(), 0.0, 0
        while batch := list(islice(events, BATCH)):
            live.publish(batch)
            sent += len(batch)
            longest = max(longest, rounds(live)[1])
        seconds = time.perf_counter() - began
        told: dict[str, object] = {
            "edges": count,
            "events_per_s": round(sent / seconds),
            "longest_round_ms": round(longest * 1000, 1),
            "for_the_account": asked(lambda: live.candidates(STAR, 100)),
            "for_another": asked(lambda: live.candidates("c5", 100)),
            "memory_mib": {"before": before, "after": resident() >> 20},
        }
        for what, event in (("language", language("de")), ("deletion", deletion())):
            began = time.perf_counter()
            live.publish([event])
            turns, longest = rounds(live)
            told[what] = {
                "rounds": turns,
                "longest_round_ms": round(longest * 1000, 1),
                "seconds": round(time.perf_counter() - began, 2),
            }
            print(f"{name}: {what} done", file=sys.stderr)
        return told


def main() -> None:
    """Measure the cases that have a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--followers", type=int, default=1_000_000)
    parser.add_argument("--following", type=int, default=100_000)
    parser.add_argument("--blocked", type=int, default=50_000)
    given = parser.parse_args()
    cases = (
        ("celebrity", celebrity, given.followers),
        ("follower", follower, given.following),
        ("blocker", blocker, given.blocked),
    )
    found = {name: measure(name, make(count), count) for name, make, count in cases if count}
    print(json.dumps({**found, "job_edges": EngineConfig().job_edges, "machine": machine()}, indent=1))


if __name__ == "__main__":
    main()
