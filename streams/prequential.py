"""The evaluation protocol: a test is asked before its own event is told (prequential: test, then learn).

A stream is cut to its first pairs: one row for the first follow of each source and target. The last fifth of
them holds the tests: at most `limit` rows, sampled, whose source was a source and whose target was a target
in the first four fifths. Each is one query: twenty accounts for the source at that time, from everything told
before; it is won if the target is among them. Settings are chosen by the same protocol inside the first four
fifths, so that no test has a say in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kithstream.streams.events.record import Record
from kithstream.streams.yardsticks import Yardstick

K: Final = 20  # accounts asked for
SHARE: Final = 0.8  # of the pairs come before the tests
MISSED: Final = -1  # the position of a target that was not among the answers


class Pairs(NamedTuple):
    """First pairs in the order of the stream; accounts are numbered as they come."""

    source: NDArray[np.int64]  # (n,)
    target: NDArray[np.int64]  # (n,)
    time: NDArray[np.int64]  # (n,) microseconds since the epoch
    event: NDArray[np.int64]  # (n,) number of the event in the stream, from 0
    accounts: list[str]  # name of each number

    def head(self, count: int) -> Pairs:
        """Returns the first `count` pairs."""
        return Pairs(
            self.source[:count], self.target[:count], self.time[:count], self.event[:count], self.accounts
        )


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Outcome(NamedTuple):
    """What a rule reached on a set of queries."""

    recall: Estimate  # of 20
    ndcg: Estimate  # at 20
    queries: int


class Choice(NamedTuple):
    """The setting that did best on the validation slice, and what each reached there."""

    name: str
    recalls: dict[str, float]


def first_pairs(events: Iterable[Record]) -> Pairs:
    """Returns the first follow of each source and target, without self-follows; other signals are skipped."""
    numbers: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    rows: list[tuple[int, int, int, int]] = []
    for number, event in enumerate(events):
        if event["signal"] != "follow" or event["actor"] == event["target"]:
            continue
        pair = (
            numbers.setdefault(event["actor"], len(numbers)),
            numbers.setdefault(event["target"], len(numbers)),
        )
        if pair not in seen:
            seen.add(pair)
            rows.append((*pair, event["time"], number))
    source, target, time, at = np.array(rows, np.int64).reshape(-1, 4).T.copy()
    return Pairs(source, target, time, at, list(numbers))


def border(pairs: Pairs) -> int:
    """Returns the number of pairs that come before the tests."""
    return int(len(pairs.source) * SHARE)


def choose_tests(pairs: Pairs, seed: int = 0, limit: int = 3000) -> NDArray[np.int64]:
    """Returns the rows to ask, ascending: at most `limit` of the last fifth with both ends seen before."""
    start = border(pairs)
    known_source = np.zeros(len(pairs.accounts), bool)
    known_target = np.zeros(len(pairs.accounts), bool)
    known_source[pairs.source[:start]] = True
    known_target[pairs.target[:start]] = True
    eligible = start + np.flatnonzero(known_source[pairs.source[start:]] & known_target[pairs.target[start:]])
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(eligible, min(limit, len(eligible)), replace=False))


def replay(rule: Yardstick, pairs: Pairs, tests: NDArray[np.int64], k: int = K) -> NDArray[np.int64]:
    """Returns the position of each test's target among the `k` answers, from 0, or `MISSED`.

    Tells the rule every pair up to the last test, and asks each test before telling it.
    """
    positions = np.full(len(tests), MISSED)
    rows = tests.tolist()

    def ask(number: int) -> None:
        row = rows[number]
        answer = rule.candidates(int(pairs.source[row]), k, int(pairs.time[row]))
        target = int(pairs.target[row])
        if target in answer:
            positions[number] = answer.index(target)

    interleave(rule, pairs, rows, ask)
    return positions


def interleave(rule: Yardstick, pairs: Pairs, stops: Sequence[int], ask: Callable[[int], None]) -> None:
    """Tells the rule the pairs in their order, and calls `ask(n)` when those before row `stops[n]` are told.

    Stops ascend; several may be at one row, and the end (the number of pairs) is one too.
    """
    told = 0
    columns = [column.tolist() for column in (pairs.source, pairs.target, pairs.time)]
    for number, stop in enumerate(stops):
        for source, target, time in zip(*(column[told:stop] for column in columns), strict=True):
            rule.observe(source, target, time)
        told = stop
        ask(number)


def choose(rules: Mapping[str, Callable[[], Yardstick]], pairs: Pairs, seed: int = 0) -> Choice:
    """Tries each rule on the validation slice (rows 64 to 80 %) and names the one of highest recall.

    Among equals the first given is named.
    """
    known = pairs.head(border(pairs))
    tests = choose_tests(known, seed)
    recalls = {
        name: float(recalled(replay(make(), known, tests)).mean()) if len(tests) else 0.0
        for name, make in rules.items()
    }
    return Choice(max(recalls, key=recalls.__getitem__), recalls)


def recalled(positions: NDArray[np.int64], k: int = K) -> NDArray[np.float64]:
    """Returns 1 for each target among the first `k`, 0 for the others.

    >>> recalled(np.array([0, 19, 20, -1])).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    return ((positions >= 0) & (positions < k)).astype(np.float64)


def gained(positions: NDArray[np.int64], k: int = K) -> NDArray[np.float64]:
    """Returns the discounted gain of each target, 1 / log2(position + 2), 0 beyond `k`.

    One target a query, so the ideal gain is 1 and this is the NDCG.

    >>> gained(np.array([0, 2, -1])).tolist()
    [1.0, 0.5, 0.0]
    """
    discounts = 1 / np.log2(np.maximum(positions, 0) + 2.0)
    return discounts * recalled(positions, k)


def estimate(values: NDArray[np.float64], seed: int = 0, draws: int = 1000) -> Estimate:
    """Returns the mean and its percentile bootstrap interval of 95 %."""
    if not len(values):
        raise ValueError("values is empty, a mean needs at least one")
    generator = np.random.default_rng(seed)
    means = np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(draws)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def measure(rule: Yardstick, pairs: Pairs, seed: int = 0, limit: int = 3000) -> Outcome:
    """Replays the stream through the rule and returns what it reached on the tests."""
    positions = replay(rule, pairs, choose_tests(pairs, seed, limit))
    return Outcome(estimate(recalled(positions), seed), estimate(gained(positions), seed), len(positions))
