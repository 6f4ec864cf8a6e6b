"""What churn and bots move, beside what as many honest accounts move, by hand.

    python -m bench.resistance
    python -m bench.resistance --accounts 2000 --events 20000 --repeats 200

A simulated world is folded; then, each time from the same state, something is done to an account of middling
popularity, and read: what its features say others did to it (`Rows.counts`, and `Rows.families` where it is filled
in) and its rank for `--askers` accounts before and after. It is ranked among bystanders, up to 999 accounts that do
nothing meanwhile: whoever acts would come up by that itself. The attacks:

- churn: one actor follows and unfollows it so many times.
- likes: one actor likes so many items of it. clicks, replies: one actor, so many times.
- bots: 1, 10 and 100 accounts that were not there before do the same between them.
- honest: as many accounts as there were repeats, each once, that are there already and follow others. `honest churn`
  follow and unfollow, each once.

Then one actor, within a day, does something to each of `--targets` accounts of an empty state: what a target gains
is a sum, so what it had before makes no difference. `follows`, `likes` and `blocks` of all of them; `churn` follows
and unfollows each, and `churn in rounds` a tenth of them ten times. Each is told with the bound on what an actor
moves in a day (`Signal.reach`) and without: `moved` is how many targets have any of it in their counters, `total`
what all their counters have gained, `median` and `largest` those of the targets, `standing` how many edges stand at
targets, `us` the CPU microseconds of an event with all that is sent again.

`ratio` is the attack's move over the honest one's of the same signal and number of events: 1 is no resistance at all,
1 over the number of events is all that one account can honestly move. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.machine import machine
from kithstream.__main__ import ready
from kithstream.models.features import GROUPS, HALF_LIVES, IN, Rows
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.engine.partition import ROW_IN
from kithstream.streams.engine.slots import Limits
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.state import counters
from kithstream.streams.state.ledger import since
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column
from kithstream.streams.world import SECOND, SimulationConfig

DEEP: Final = 1000  # the largest k: the victim and the bystanders
DAY: Final = HALF_LIVES.index(86_400.0)
EVER: Final = len(HALF_LIVES) - 1
BOTS: Final = (1, 10, 100)
BATCH: Final = 2000  # events
ITEMS: Final = ("like", "repost", "bookmark")
Event = dict[str, object]


class Seen(NamedTuple):
    """What is read of the account that something is done to."""

    counts: NDArray[np.float64]  # (groups, half-lives): in-signals
    families: NDArray[np.float64]  # (families, half-lives): in-signals
    followers: int
    ranks: NDArray[np.int64]  # (askers,) from 1; one more than the largest k beyond it


class Stage:
    """A runtime that is the same at the beginning of every attack."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.given = given
        self.config = SimulationConfig(seed=given.seed, accounts=given.accounts)
        self.now = self.config.start
        self._before = folder / "before"
        self._folder = folder / "attacked"
        self._config = Config(
            model=ModelConfig(learn=False, seed=given.seed, path=given.model),
            index=IndexSection(exact_rows=1_000_000),
        )
        self._number = count()
        others = self._prepare()
        rng = np.random.default_rng((given.seed, 5))
        drawn = [f"u{number}" for number in rng.permutation(others).tolist()]
        self.askers, drawn = drawn[: given.askers], drawn[given.askers :]
        self.honest, drawn = drawn[: given.repeats], drawn[given.repeats :]
        self.ranked = [self.victim, *drawn[: DEEP - 1]]
        if len(self.ranked) < DEEP // 2:
            raise ValueError(f"repeats is {given.repeats}, which leaves {len(self.ranked) - 1} bystanders")

    def _prepare(self) -> list[int]:
        clock = StreamClock()
        with Embedded(self._before, self._config, clock=clock) as live:
            for batch in simulate(self.config, self.given.events):
                clock.advance(max(event["time"] for event in batch))
                live.publish(batch)
                live.catch_up()
            self.now = clock()
            known = [n for n in range(self.given.accounts) if f"u{n}" in live.chain.index]
            inspect = live.chain.inspect
            degrees = [int(inspect(f"u{n}", self.now).degrees[0, 0]) for n in known]
        order = np.argsort(-np.array(degrees), kind="stable")
        victim = known[order[len(order) // 4]]
        self.victim = f"u{victim}"
        return [n for n in known if n != victim]

    def attack(self, events: Sequence[Event]) -> tuple[Seen, Seen]:
        """Do something to a fresh copy; return what is seen before and after, at the same time."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._before, self._folder)
        clock = StreamClock(self.now + 600 * SECOND)  # of day, so that all attacks end at one time
        with Embedded(self._folder, self._config, clock=clock) as live:
            before = self.look(live)
            live.publish(events)
            live.catch_up()
            return before, self.look(live)

    def look(self, live: Embedded) -> Seen:
        """Read the victim's features and its rank for every asker."""
        rows: Rows = live.chain.inspect(self.victim, live.as_of)
        families = getattr(rows, "families", np.zeros((1, 2, 1, 1)))
        ranks = []
        for asker in self.askers:
            answer = live.candidates(asker, DEEP, allow=self.ranked, reasons=0)
            names = [candidate.account for candidate in answer.candidates]
            ranks.append(names.index(self.victim) + 1 if self.victim in names else DEEP + 1)
        return Seen(
            rows.counts[0, IN].astype(np.float64),
            families[0, IN].astype(np.float64),
            int(rows.degrees[0, 0]),
            np.array(ranks),
        )

    def events(self, signals: Sequence[str], actors: Sequence[str], size: int) -> list[Event]:
        """Return so many events on the victim within ten minutes, by the actors and signals in turn."""
        made: list[Event] = []
        for place in range(size):
            signal = signals[place // len(actors) % len(signals)]
            event: Event = {
                "id": f"attack{next(self._number)}",
                "signal": signal,
                "actor": actors[place % len(actors)],
                "target": self.victim,
                "time": self.now + SECOND + place * 500 * SECOND // size,
            }
            if signal in ITEMS:
                event["item"] = f"item{place}"
            made.append(event)
        return made


def attacks(stage: Stage) -> Iterator[tuple[str, str, list[Event]]]:
    """Yield attacks: name, name of the honest events that they are compared with, events."""
    size = stage.given.repeats
    honest = stage.honest
    for signal in ("follow", "like", "reply", "click", "report"):
        yield f"honest {signal}", f"honest {signal}", stage.events([signal], honest, size)
    churn = stage.events(["follow", "unfollow"], honest, 2 * size)
    yield "honest churn", "honest churn", churn
    yield "churn", "honest churn", stage.events(["follow", "unfollow"], ["bot0"], 2 * size)
    yield (
        "churn, and a follow that stays",
        "honest follow",
        stage.events(["follow", "unfollow"], ["bot0"], 2 * size - 1),
    )
    for signal in ("like", "reply", "click"):
        yield f"one account's {signal}s", f"honest {signal}", stage.events([signal], ["bot0"], size)
    for bots in BOTS:
        names = [f"bot{number}" for number in range(bots)]
        yield f"likes of {bots} bots", "honest like", stage.events(["like"], names, size)
        yield f"follows of {bots} bots", "honest follow", stage.events(["follow"], names, bots)
        yield f"reports of {bots} bots", "honest report", stage.events(["report"], names, bots)


def wide(targets: int) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yield what one actor does to many: name, (signal, target) in turn."""
    for signal in ("follow", "like", "block"):
        yield f"{signal}s", [(signal, target) for target in range(targets)]
    churn = ("follow", "unfollow")
    yield "churn", [(signal, target) for target in range(targets) for signal in churn]
    few = range(targets // 10)
    yield "churn in rounds", [(s, target) for _ in range(10) for target in few for s in churn]


def moved(deeds: Sequence[tuple[str, int]], targets: int, reach: int | None) -> dict[str, float]:
    """Return what deeds of one actor within a day move, all targets together and each."""
    engine = Engine([MemoryStore()], EngineConfig(), salt=bytes(16), limits=Limits(reach=reach))
    start = SimulationConfig().start // 86_400_000_000 * 86_400_000_000
    step = 86_000_000_000 // len(deeds)
    log = []
    for place, (signal, target) in enumerate(deeds):
        event = {
            "id": f"a{place}",
            "signal": signal,
            "actor": "bot0",
            "target": f"u{target}",
            "time": start + place * step,
        }
        if signal in ITEMS:
            event["item"] = f"item{target}"
        log.append(Record(start + place * step, msgspec.json.encode(event)))
    begun = time.process_time()
    for first in range(0, len(log), BATCH):
        engine.apply(0, log[first : first + BATCH], first)
        engine.exchange()
        engine.work()
    engine.settle()
    spent = time.process_time() - begun
    store = engine.at(0).store
    rows = store.get(Column.ROWS, [ROW_IN + f"u{target}".encode() for target in range(targets)])
    gained = counters.decayed([row or b"" for row in rows], np.zeros(targets, np.int64), ()).totals.sum(
        axis=1
    )
    return {
        "moved": int((gained > 0).sum()),
        "total": int(gained.sum()),
        "median": float(np.median(gained)),
        "largest": int(gained.max()),
        "standing": sum(since(value) >= 0 for _, value in store.scan(Column.IN, b"")),
        "us": round(1e6 * spent / len(log), 1),
    }


def told(before: Seen, after: Seen) -> dict[str, object]:
    """Return what an attack has moved."""
    moved = after.counts - before.counts
    families = after.families - before.families
    largest = {
        str(at): round(float(move), 2) for at, move in enumerate(np.abs(families).max(1)) if move > 1e-6
    }
    return {
        "followers": after.followers - before.followers,
        **{f"{group}_day": round(float(moved[at, DAY]), 2) for at, group in enumerate(GROUPS)},
        **{f"{group}_ever": round(float(moved[at, EVER]), 2) for at, group in enumerate(GROUPS)},
        "families": largest,
        "mean_rank": [round(float(seen.ranks.mean()), 1) for seen in (before, after)],
        "median_rank": [float(np.median(seen.ranks)) for seen in (before, after)],
    }


def strength(before: Seen, after: Seen) -> dict[str, float]:
    """Return how far an attack has moved the counts, the families and the mean rank; places upwards are positive."""
    return {
        "counts": float(np.abs(after.counts - before.counts)[:, DAY].max()),
        "families": float(np.abs(after.families - before.families).max()),
        "rank": float(before.ranks.mean() - after.ranks.mean()),
    }


def main() -> None:
    """Run every attack and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=3000)
    parser.add_argument("--events", type=int, default=60_000, help="Of the world before the attacks.")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--targets", type=int, default=20_000, help="of the one actor that acts on many")
    parser.add_argument("--askers", type=int, default=200)
    parser.add_argument("--model", default="", help="A checkpoint; without it the day-zero model.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ready()
    found: dict[str, dict[str, object]] = {}
    moves: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
        stage = Stage(Path(folder), given)
        for name, honest, events in attacks(stage):
            before, after = stage.attack(events)
            moves[name] = strength(before, after)
            ratios = {
                what: round(move / moves[honest][what], 4) if moves[honest][what] else None
                for what, move in moves[name].items()
            }
            found[name] = {"events": len(events), **told(before, after), "ratio": ratios}
        victim = stage.victim
    many = {
        name: {
            "events": len(deeds),
            "bounded": moved(deeds, given.targets, None),
            "unbounded": moved(deeds, given.targets, 0),
        }
        for name, deeds in wide(given.targets)
    }
    print(
        json.dumps(
            {
                "bench": "resistance",
                "machine": machine(),
                **vars(given),
                "victim": victim,
                "attacks": found,
                "one_on_many": many,
            }
        )
    )


if __name__ == "__main__":
    main()
