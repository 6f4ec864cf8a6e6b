"""Who is asked: the whole chain, its towers alone, and the live yardsticks; and what each answered.

An asker takes (asking account, k, accounts to score, time) and returns the best k, best first, and the scores, NaN for
an account that it would not show. Accounts are numbers of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.errors import Unanswerable
from kithstream.streams.evaluating.plan import Plan
from kithstream.streams.events.record import Record
from kithstream.streams.replay import Progress, Replayed, choose_half_lives, interleave
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.ranking import Ranker
from kithstream.streams.yardsticks import DecayedPopularity, HandRule, TwoHop, Yardstick

WHOLE, TOWERS = "kithstream", "towers alone"
DEPTH: Final = 1000  # places that a yardstick tells apart; all accounts behind them share one score
NOBODY: Final = -1

Asker = Callable[[int, int, Sequence[int], int], tuple[list[int], list[float]]]


class Answers(NamedTuple):
    """What one asker answered to a plan."""

    lists: NDArray[np.int64]  # (follows, k) the best first, NOBODY where fewer came
    followed: NDArray[np.float64]  # (follows,) the score of the followed account
    others: NDArray[np.float64]  # (follows, others) of the accounts beside it, NaN where fewer were drawn
    shown: Sequence[NDArray[np.float64]]  # by slate, the scores of what it showed

    @classmethod
    def empty(cls, plan: Plan, k: int) -> Answers:
        """Return answers to be filled in."""
        follows = len(plan.follows)
        width = max(len(one.others) for one in plan.follows)
        return cls(
            np.full((follows, k), NOBODY),
            np.full(follows, np.nan),
            np.full((follows, width), np.nan),
            [np.full(len(slate.shown), np.nan) for slate in plan.slates],
        )

    def ask_follow(self, number: int, plan: Plan, asker: Asker) -> None:
        """Ask for one of the follows."""
        one = plan.follows[number]
        best, scores = asker(one.asker, self.lists.shape[1], (one.target, *one.others), one.time)
        self.lists[number, : len(best)] = best
        self.followed[number] = scores[0]
        self.others[number, : len(one.others)] = scores[1:]

    def ask_slate(self, number: int, plan: Plan, asker: Asker) -> None:
        """Ask for the scores of one of the slates."""
        one = plan.slates[number]
        self.shown[number][:] = asker(one.asker, 0, one.shown, one.time)[1]


def whole(live: Embedded, plan: Plan) -> Asker:
    """Return the product's own way from question to answer, with everything that the settings add to the towers."""

    def best(account: str, k: int, allow: Sequence[str] | None) -> Iterable[tuple[str, float]]:
        answer = live.candidates(account, k, allow=allow, reasons=0)
        return ((one.account, one.score) for one in answer.candidates)

    return _named(plan, best)


def towers(live: Embedded, plan: Plan) -> Asker:
    """Return the index's own order by the towers' scores; who may be shown is as in the whole."""
    chain = live.chain
    ranker = Ranker(
        live.engine, chain.vectors.reader, chain.exclusions, chain.model, chain.index, live.config.ranking
    )

    def best(account: str, k: int, allow: Sequence[str] | None) -> Iterable[tuple[str, float]]:
        with chain.reading():
            asking = ranker.read(account, live.as_of)
        hits = chain.index.query(asking.vector, k, exclude=asking.exclude, allow=allow)
        return zip(hits.ids, hits.scores.tolist(), strict=True)

    return _named(plan, best)


def _named(
    plan: Plan, best: Callable[[str, int, Sequence[str] | None], Iterable[tuple[str, float]]]
) -> Asker:
    names, numbers = plan.accounts, {name: number for number, name in enumerate(plan.accounts)}

    def ask(asker: int, k: int, scored: Sequence[int], time: int) -> tuple[list[int], list[float]]:
        account = names[asker]
        try:
            answer = [numbers[name] for name, _ in best(account, k, None)] if k else []
            found = dict(best(account, len(scored), [names[one] for one in scored])) if scored else {}
        except Unanswerable:
            return [], [np.nan] * len(scored)
        return answer, [found.get(names[one], np.nan) for one in scored]

    return ask


def ruled(rule: Yardstick) -> Asker:
    """Return a yardstick's way: its scores are places, from the best down."""

    def ask(asker: int, k: int, scored: Sequence[int], time: int) -> tuple[list[int], list[float]]:
        best = rule.candidates(asker, max(k, DEPTH), time)
        places = {account: place for place, account in enumerate(best)}
        return best[:k], [-float(places.get(one, len(best))) for one in scored]

    return ask


def ask_all(
    live: Embedded,
    clock: StreamClock,
    events: Iterable[Record],
    plan: Plan,
    k: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Mapping[str, Answers], Mapping[str, str], Replayed]:
    """Run the stream through the chain once and ask on the way; the yardsticks go over it in a process beside.

    Returns the answers by asker, the settings that the yardsticks' grid chose, and what went through the chain.
    """
    askers = {WHOLE: whole(live, plan), TOWERS: towers(live, plan)}
    answers = {name: Answers.empty(plan, k) for name in askers}
    follows = {one.event: number for number, one in enumerate(plan.follows)}
    slates = {one.event: number for number, one in enumerate(plan.slates)}

    def ask(event: int) -> None:
        if (number := follows.get(event)) is not None:
            clock.advance(plan.follows[number].time)
            for name, asker in askers.items():
                answers[name].ask_follow(number, plan, asker)
        if (number := slates.get(event)) is not None:
            clock.advance(plan.slates[number].time)
            for name, asker in askers.items():
                answers[name].ask_slate(number, plan, asker)

    def reach(done: int, _: int) -> None:
        if progress is not None:
            progress(done, plan.events)

    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        rules = beside.submit(ask_yardsticks, plan, k, seed)
        replayed = interleave(live, clock, events, follows.keys() | slates.keys(), ask, reach)
        chosen, others = rules.result()
    return answers | others, chosen, replayed


def ask_yardsticks(plan: Plan, k: int, seed: int) -> tuple[dict[str, str], dict[str, Answers]]:
    """Choose the yardsticks' half-lives on rows 64 to 80 %, and ask each the whole plan."""
    chosen = choose_half_lives(plan.pairs, seed)
    rules: dict[str, Yardstick] = {
        "decayed popularity": DecayedPopularity(chosen.popularity),
        "two-hop": TwoHop(),
        "hand rule": HandRule(*chosen.hand_rule),
    }
    names = {name.replace("_", " "): setting for name, setting in chosen.names.items()}
    return names, {name: _asked(rule, plan, k) for name, rule in rules.items()}


def _asked(rule: Yardstick, plan: Plan, k: int) -> Answers:
    answers, asker = Answers.empty(plan, k), ruled(rule)
    stops = [(one.row, answers.ask_follow, number) for number, one in enumerate(plan.follows)]
    stops += [(one.row, answers.ask_slate, number) for number, one in enumerate(plan.slates)]
    stops.sort(key=lambda stop: stop[0])

    def ask(at: int) -> None:
        _, question, number = stops[at]
        question(number, plan, asker)

    prequential.interleave(rule, plan.pairs, [row for row, *_ in stops], ask)
    return answers
