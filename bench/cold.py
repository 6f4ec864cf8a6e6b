"""Cold start on the simulator, by hand: what newcomers are shown after 0, 1, 3 and 10 signals, and who shows them.

    python -m bench.cold
    python -m bench.cold --accounts 2000 --events 30000 --newcomers 60 --producers 10

Some accounts of a simulated world are left out of its stream. After the rest was folded they come: each tells its
language, then does signals (follows and likes in turn) and would follow others next, all drawn from the world's truth
(`World.affinities`) among the accounts that it would meet. After so many signals it is asked for: recall and NDCG
at 20 of its next `--next` true follows, the mean true affinity of the twenty, and how many speak its language; -1
signals is an account that nobody has heard of. Beside it popularity (number of followers) in all and in the
newcomer's language, accounts drawn blindly, and the highest affinity that any twenty accounts have.

`first_follow`: how many of the newcomers see another list after their first follow (the followed account left out of
both), and in how many places; the same for newcomers beside them, to whom nothing happened: where the model learns
from the follow, their lists move too.

Then new producers: an account is followed by some that like it, and others that like it as much are asked: its rank
after its first, third and tenth follower, beside its rank for accounts drawn blindly, and the milliseconds from
publishing the follow to an answer that includes it.

`day zero` is the model without training, `trained` one that learned from the stream as it was folded. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bench.machine import machine
from kithstream.__main__ import ready
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, ModelConfig
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import LANGUAGE_CODES, SimulationConfig, World

K: Final = 20
LEVELS: Final = (-1, 0, 1, 3, 10)  # signals; -1 has not even told its language
FOLLOWERS: Final = (1, 3, 10)
DEEP: Final = 1000  # the largest k
LIKING: Final = 5  # accounts asked for each producer
Ints = NDArray[np.int64]


class Judge:
    """The world's truth about lists of accounts."""

    def __init__(self, world: World, at: int, present: Sequence[int], degrees: NDArray[np.int64]) -> None:
        self.world = world
        self.at = at
        self.present = np.array(present)
        self.by_degree = self.present[np.argsort(-degrees, kind="stable")]

    def true_follows(self, draw: np.random.Generator, account: int, size: int) -> list[int]:
        """Return whom an account would follow one after the other, of those that it would meet."""
        here = set(self.present.tolist())
        found: dict[int, None] = {}
        for _ in range(200):
            peers = self.world.peers(draw, np.full(64, account))
            met = np.concatenate([peers, self.world.strangers(draw, (16,))])
            met = draw.permutation(met)
            liked = met[draw.random(len(met)) < self.affinities(account, met)]
            found.update((other, None) for other in liked.tolist() if other in here and other != account)
            if len(found) >= size:
                break
        return list(found)[:size]

    def affinities(self, account: int, others: Ints) -> NDArray[np.float64]:
        """Return the probability that an account takes to each of the others."""
        return self.world.affinities(np.full(len(others), account), others, np.full(len(others), self.at))

    def marks(
        self, account: int, shown: Sequence[int], wanted: Sequence[int]
    ) -> tuple[float, float, float, float]:
        """Return recall, NDCG, mean affinity and share of the own language of a list."""
        hits = np.isin(np.array(shown, np.int64), np.array(wanted, np.int64))
        discounts = 1 / np.log2(np.arange(K) + 2)
        gain = float(hits @ discounts[: len(hits)]) / float(discounts[: len(wanted)].sum())
        if not shown:
            return 0.0, 0.0, 0.0, 0.0
        numbers = np.array(shown)
        same = self.world.language_of[numbers] == self.world.language_of[account]
        recall = float(hits.sum()) / len(wanted)
        return recall, gain, float(self.affinities(account, numbers).mean()), float(same.mean())

    def lists(self, draw: np.random.Generator) -> dict[str, Callable[[int, set[int]], list[int]]]:
        """Return the rules that answers are compared with: of an account and whom to leave out."""

        def first(ordered: Ints, leave: set[int]) -> list[int]:
            return [one for one in ordered[: K + len(leave)].tolist() if one not in leave][:K]

        def in_language(account: int, leave: set[int]) -> list[int]:
            spoken = self.world.language_of[self.by_degree] == self.world.language_of[account]
            return first(self.by_degree[spoken], leave)

        def best(account: int, leave: set[int]) -> list[int]:
            return first(self.present[np.argsort(-self.affinities(account, self.present))], leave)

        return {
            "popularity": lambda account, leave: first(self.by_degree, leave),
            "popularity in the language": in_language,
            "blind": lambda account, leave: first(draw.permutation(self.present), leave),
            "highest affinity": best,
        }


class Town:
    """A runtime that has folded a world's stream without its newcomers."""

    def __init__(self, folder: Path, given: argparse.Namespace, *, learn: bool) -> None:
        self.given = given
        self.config = SimulationConfig(seed=given.seed, accounts=given.accounts)
        self.world = World.build(self.config)
        self.draw = np.random.default_rng((given.seed, 11))
        self.clock = StreamClock()
        config = Config(model=ModelConfig(learn=learn, seed=given.seed))
        self.live = Embedded(folder, config, clock=self.clock)
        fresh = self.draw.permutation(given.accounts)[: given.newcomers + given.producers].tolist()
        self.newcomers, self.producers = fresh[: given.newcomers], fresh[given.newcomers :]
        self._number = count()
        self._fold({f"u{number}" for number in fresh})
        present = [n for n in range(given.accounts) if f"u{n}" in self.live.chain.index]
        degrees = np.array([int(self.live.chain.inspect(f"u{n}", self.now).degrees[0, 0]) for n in present])
        self.judge = Judge(self.world, self.now, present, degrees)

    @property
    def now(self) -> int:
        return self.clock()

    def _fold(self, left_out: set[str]) -> None:
        for batch in simulate(self.config, self.given.events):
            kept = [e for e in batch if e["actor"] not in left_out and e.get("target", "") not in left_out]
            self.clock.advance(max(event["time"] for event in batch))
            self.live.publish(kept)
            self.live.catch_up()

    def tell(self, signal: str, actor: int, target: int | None = None, **fields: object) -> str:
        """Publish an event a millisecond later; return its token."""
        self.clock.advance(self.now + 1000)
        event = {"id": f"cold{next(self._number)}", "signal": signal, "actor": f"u{actor}", **fields}
        if target is not None:
            event |= {"target": f"u{target}", "item": f"u{target}.cold"}
        return self.live.publish([event])

    def introduce(self, account: int) -> None:
        """Let an account tell its language."""
        self.tell("profile", account, language=LANGUAGE_CODES[int(self.world.language_of[account])])

    def shown(self, account: int, k: int = K) -> list[int]:
        """Return whom an answer holds, from everything published."""
        answer = self.live.candidates(f"u{account}", k, after=self.live.end, reasons=0)
        return [int(candidate.account[1:]) for candidate in answer.candidates]


def means(rows: Sequence[tuple[float, float, float, float]]) -> dict[str, float]:
    """Return the means of marks by name."""
    names = ("recall", "ndcg", "affinity", "language")
    return {name: round(float(value), 4) for name, value in zip(names, np.array(rows).mean(0), strict=True)}


def newcomers(town: Town) -> Iterator[tuple[str, object]]:
    """Yield what newcomers are shown at each level, by rule, and what their first follow does."""
    judge, draw, most = town.judge, town.draw, max(LEVELS)
    plans = {n: judge.true_follows(draw, n, most + town.given.next) for n in town.newcomers}
    plans = {n: plan for n, plan in plans.items() if len(plan) == most + town.given.next}
    yield "newcomers", len(plans)
    waiting = dict(zip(plans, [*list(plans)[1:], next(iter(plans))], strict=True))
    done = dict.fromkeys(plans, -1)
    replaced: dict[str, list[int]] = {"own": [], "beside": []}
    marks: dict[str, dict[str, object]] = {}
    for level in LEVELS:
        for n in plans:
            if level >= 0 and done[n] < 0:
                town.introduce(n)
                done[n] = 0
        if level == 1:
            for n, plan in plans.items():
                before, beside = town.shown(n), town.shown(waiting[n])
                town.tell("follow", n, plan[0])
                done[n] = 1
                replaced["own"].append(moved(before, town.shown(n), plan[0]))
                replaced["beside"].append(moved(beside, town.shown(waiting[n]), plan[0]))
        for n, plan in plans.items():
            while done[n] < level:
                town.tell("follow" if done[n] % 2 == 0 else "like", n, plan[done[n]])
                done[n] += 1
        rows: dict[str, list[tuple[float, float, float, float]]] = {}
        rules = judge.lists(draw)
        for n, plan in plans.items():
            wanted = plan[most:]
            leave = {n, *plan[: max(level, 0)]}
            rows.setdefault("model", []).append(judge.marks(n, town.shown(n), wanted))
            for name, rule in rules.items():
                rows.setdefault(name, []).append(judge.marks(n, rule(n, leave), wanted))
        marks[str(level)] = {name: means(values) for name, values in rows.items()}
    yield "by_signals", marks
    yield (
        "first_follow",
        {
            name: {
                "changed": round(float(np.mean([one > 0 for one in found])), 3),
                "places_of_20": round(float(np.mean(found)), 2),
            }
            for name, found in replaced.items()
        },
    )


def moved(before: Sequence[int], after: Sequence[int], left_out: int) -> int:
    """Return how many places of a list hold another account than before, one account left out of both."""
    pairs = zip(*([one for one in shown if one != left_out] for shown in (before, after)), strict=False)
    return sum(one != other for one, other in pairs)


def producers(town: Town) -> dict[str, object]:
    """Return how soon and how high new producers come up for accounts that like them, by number of followers."""
    judge, draw = town.judge, town.draw
    ranks: dict[int, list[int]] = {level: [] for level in FOLLOWERS}
    blind: dict[int, list[int]] = {level: [] for level in FOLLOWERS}
    spent: list[float] = []
    for producer in town.producers:
        town.introduce(producer)
        others = draw.permutation(judge.present)
        affinity = town.world.affinities(
            others, np.full(len(others), producer), np.full(len(others), judge.at)
        )
        liking = others[np.argsort(-affinity)]
        askers, followers = liking[:LIKING], liking[LIKING : LIKING + max(FOLLOWERS)]
        strangers = draw.choice(liking[LIKING + max(FOLLOWERS) :], LIKING, replace=False)
        for number, follower in enumerate(draw.permutation(followers).tolist(), 1):
            began = time.perf_counter()
            town.tell("follow", follower, producer)
            town.shown(int(askers[0]))
            spent.append((time.perf_counter() - began) * 1000)
            if number in FOLLOWERS:
                for found, asking in ((ranks, askers), (blind, strangers)):
                    for asker in asking.tolist():
                        shown = town.shown(asker, DEEP)
                        found[number].append(shown.index(producer) + 1 if producer in shown else DEEP + 1)
    of = len(judge.present)
    return {
        "producers": len(town.producers),
        "candidates": of,
        "publish_to_answer_ms": {f"p{p}": round(float(np.percentile(spent, p)), 1) for p in (50, 99)},
        "rank_for_similar_taste": {level: ranked(found) for level, found in ranks.items()},
        "rank_for_blindly_drawn": {level: ranked(found) for level, found in blind.items()},
    }


def ranked(found: Sequence[int]) -> dict[str, float]:
    """Return the median rank (1001 stands for beyond 1000) and how many are among the first 20 and 100."""
    array = np.array(found)
    shares = {f"in_first_{top}": round(float((array <= top).mean()), 3) for top in (20, 100)}
    return {"median": float(np.median(array)), **shares}


def main() -> None:
    """Measure with each model and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=5000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--newcomers", type=int, default=200)
    parser.add_argument("--producers", type=int, default=30)
    parser.add_argument("--next", type=int, default=10, help="True follows that are looked for.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ready()
    torch.set_num_threads(1)
    models: dict[str, dict[str, object]] = {}
    for name, learn in (("day zero", False), ("trained", True)):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="kithstream-bench-") as folder:
            town = Town(Path(folder), given, learn=learn)
            told: dict[str, object] = dict(newcomers(town))
            told["new_producers"] = producers(town)
            told["steps"] = town.live.chain.model.step
            town.live.close()
        models[name] = {**told, "seconds": round(time.perf_counter() - began, 1)}
    print(
        msgspec.json.encode({"bench": "cold", "machine": machine(), **vars(given), "models": models}).decode()
    )


if __name__ == "__main__":
    main()
