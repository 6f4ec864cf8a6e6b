"""Rounds of faults for as long as one likes, and a table of what was struck, how often, and what came of it.

    make soak                                (35 minutes, seed 0)
    make soak SECONDS=600 SEED=7
    PYTHONPATH=.:tests:tests/kafka:tests/faults python -m soak --seed 3 --only zombie,broker --rounds 1

Each round is a town of its own on one broker: topics, workers, checkpoints. Its faults, their order, moments and
victims come from the seed and the round's number; a round is over when everything that workers hold, have published
and have answered has been compared with the log. Exits with 1 after any divergence, and keeps that round's files.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from bench.machine import machine
from nemesis import (
    ClockSteps,
    ComeAndGo,
    DamagedCheckpoints,
    Fault,
    FullDisk,
    KillBroker,
    KillRetrieval,
    KillStream,
    OlderCheckpoints,
    Repeats,
    Zombie,
)
from siege import Outcome, siege
from town import BROKER

from kithstream.streams.kafka.local import JARS, LocalKafka

# Ten rounds of these do what the bars ask for.
ROUND: Final[Sequence[Fault]] = (
    *[KillStream()] * 4,
    *[KillRetrieval()] * 3,
    *[KillBroker()] * 2,
    *[ComeAndGo()] * 2,
    Zombie(),
    Repeats(),
    FullDisk(),
    ClockSteps(),
    DamagedCheckpoints(),
    OlderCheckpoints(),
)
BARS: Final = {
    "kills": 100,
    "broker restarts": 20,
    "rebalances": 30,
    "zombies": 10,
    "corruptions": 20,
    "older-checkpoint restores": 10,
}


def soak(given: argparse.Namespace) -> list[Outcome]:
    """Run rounds until the time is up; those that diverge leave their files."""
    wanted = [word.strip().lower() for word in given.only.split(",") if word.strip()]
    faults = [f for f in ROUND if not wanted or any(word in type(f).__name__.lower() for word in wanted)]
    if not faults:
        raise SystemExit(f"no fault of this round is named by {given.only!r}")
    outcomes: list[Outcome] = []
    until = time.monotonic() + given.seconds
    folder = Path(given.keep or tempfile.mkdtemp(prefix="kithstream-soak-"))
    with LocalKafka(folder / "kafka", jars=JARS, properties=BROKER) as broker:
        while (not given.rounds or len(outcomes) < given.rounds) and time.monotonic() < until:
            number = len(outcomes)
            seed = given.seed * 1000 + number
            order = random.Random(seed).sample(faults, len(faults))
            try:
                outcome = siege(broker, folder / str(number), f"r{number}.", seed, order)
            except Exception as error:  # a town that stalls is a divergence, and other rounds go on
                outcome = broken_off(seed, f"{type(error).__name__}: {error}")
                traceback.print_exc()
            outcomes.append(outcome)
            for told in outcome.divergences:
                print(f"seed {seed} DIVERGED {told[:4000]}", file=sys.stderr, flush=True)
            print(
                f"round {number}, seed {seed}: {sum(outcome.faults.values())} faults, {outcome.events} events, "
                f"{outcome.answers} answers, {len(outcome.divergences)} divergences, {len(outcome.ended)} gave up, "
                f"{outcome.phases}",
                file=sys.stderr,
                flush=True,
            )
            if not outcome.divergences and not given.keep:
                shutil.rmtree(folder / str(number), ignore_errors=True)
    if not given.keep and not any(outcome.divergences for outcome in outcomes):
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def broken_off(seed: int, why: str) -> Outcome:
    """A round that did not come to its end; what was struck in it is not counted."""
    return Outcome(
        seed=seed,
        faults={},
        deeds={},
        ended=[],
        seconds={},
        phases={},
        events=0,
        answers=0,
        refused=0,
        kept_out=0,
        shown=0,
        divergences=[f"broken off: {why}"],
    )


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What all rounds did and found."""
    times: Counter[str] = Counter()
    deeds: Counter[str] = Counter()
    seconds: dict[str, list[float]] = {}
    for outcome in outcomes:
        times.update(outcome.faults)
        deeds.update(outcome.deeds)
        for name, took in outcome.seconds.items():
            seconds.setdefault(name, []).extend(took)
    return {
        "rounds": len(outcomes),
        "faults": {
            name: {"times": count, "seconds": sorted(seconds.get(name, []))}
            for name, count in sorted(times.items())
        },
        "deeds": dict(sorted(deeds.items())),
        "missing": {name: bar for name, bar in BARS.items() if deeds[name] < bar},
        "events": sum(outcome.events for outcome in outcomes),
        "answers": sum(outcome.answers for outcome in outcomes),
        "refused": sum(outcome.refused for outcome in outcomes),
        "kept_out": sum(outcome.kept_out for outcome in outcomes),
        "shown": sum(outcome.shown for outcome in outcomes),
        "void": sum(outcome.void for outcome in outcomes),
        "gave_up": [line for outcome in outcomes for line in outcome.ended],
        "divergences": [
            f"seed {outcome.seed}: {told}" for outcome in outcomes for told in outcome.divergences
        ],
    }


def table(found: dict[str, Any], seed: int) -> str:
    """The summary for people."""
    lines = [f"{'fault':<48} {'times':>5} {'median s':>9} {'most s':>7}"]
    for name, told in found["faults"].items():
        took = told["seconds"]
        median, most = (f"{took[len(took) // 2]:.1f}", f"{took[-1]:.1f}") if took else ("", "")
        lines.append(f"{name:<48} {told['times']:>5} {median:>9} {most:>7}")
    lines.append("")
    lines += [f"{name:<48} {count:>5}" for name, count in found["deeds"].items()]
    lines.append(
        f"\nseed {seed}, {found['rounds']} rounds: {found['events']} events, {found['answers']} answers "
        f"({found['kept_out']} kept a pair apart, {found['shown']} showed one), {found['refused']} refused, "
        f"{len(found['gave_up'])} workers gave up and were started again, {len(found['divergences'])} divergences"
    )
    lines += [f"  DIVERGED  {told[:2000]}" for told in found["divergences"]]
    return "\n".join(lines)


def main() -> None:
    """Run rounds, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2100.0, help="no round begins later (%(default)g)")
    parser.add_argument("--rounds", type=int, default=0, help="at most; 0 is as many as fit into the time")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument(
        "--only", default="", help="parts of names of faults, comma-separated: KillBroker,zombie"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("var/soak.json"), help="written at the end (%(default)s)"
    )
    parser.add_argument("--keep", default="", help="directory in which everything stays")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no worker outlives this
    began = time.monotonic()
    outcomes = soak(given)
    found = summary(outcomes)
    told = {
        "bench": "soak",
        "machine": machine(),
        "seed": given.seed,
        "took": round(time.monotonic() - began),
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    rounds = [msgspec.to_builtins(outcome) for outcome in outcomes]
    given.json.write_text(json.dumps({**told, **found, "each": rounds}, indent=1))
    print(table(found, given.seed))
    raise SystemExit(1 if found["divergences"] or found["void"] else 0)


if __name__ == "__main__":
    main()
