from __future__ import annotations

import numpy as np
import pytest

from kithstream.streams import prequential
from kithstream.streams.events.record import Record
from kithstream.streams.prequential import MISSED, Pairs
from kithstream.streams.yardsticks import DecayedPopularity, TwoHop


def event(number: int, signal: str, actor: str, target: str) -> Record:
    return Record(id=f"e{number}", signal=signal, actor=actor, target=target, time=number)


def some_pairs(count: int = 400, accounts: int = 30, seed: int = 0) -> Pairs:
    draw = np.random.default_rng(seed)
    events = [
        event(number, "follow", f"a{draw.integers(accounts)}", f"a{draw.integers(accounts)}")
        for number in range(count)
    ]
    return prequential.first_pairs(events)


class Spy:
    """Writes down what it is told and asked."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []

    def observe(self, source: int, target: int, time: int) -> None:
        self.log.append(("told", source, time))

    def candidates(self, source: int, k: int, now: int) -> list[int]:
        self.log.append(("asked", source, now))
        return list(range(k))


def test_first_pairs_keeps_the_first_follow_of_a_pair() -> None:
    events = [
        event(1, "follow", "x", "y"),
        event(2, "like", "y", "z"),
        event(3, "follow", "x", "x"),
        event(4, "follow", "x", "y"),
        event(5, "follow", "y", "x"),
    ]
    pairs = prequential.first_pairs(events)
    assert pairs.accounts == ["x", "y"]
    assert list(zip(*pairs[:4], strict=True)) == [(0, 1, 1, 0), (1, 0, 5, 4)]


def test_tests_are_late_pairs_of_accounts_seen_before() -> None:
    pairs = some_pairs(accounts=150)
    start = int(len(pairs.source) * 0.8)
    sources, targets = set(pairs.source[:start]), set(pairs.target[:start])
    eligible = [
        row
        for row in range(start, len(pairs.source))
        if pairs.source[row] in sources and pairs.target[row] in targets
    ]
    assert 0 < len(eligible) < len(pairs.source) - start
    expected = np.sort(np.random.default_rng(0).choice(eligible, min(20, len(eligible)), replace=False))
    assert prequential.choose_tests(pairs, limit=20).tolist() == expected.tolist()
    assert prequential.choose_tests(pairs).tolist() == eligible


def test_a_test_is_asked_before_it_is_told() -> None:
    pairs = some_pairs(60)
    tests = np.array([10, 11, 40])
    spy = Spy()
    prequential.replay(spy, pairs, tests)
    asked = [number for number, entry in enumerate(spy.log) if entry[0] == "asked"]
    assert [spy.log[number][2] for number in asked] == pairs.time[tests].tolist()
    assert [spy.log[number + 1] for number in asked[:2]] == [
        ("told", source, time)
        for source, time in zip(pairs.source[tests[:2]].tolist(), pairs.time[tests[:2]].tolist(), strict=True)
    ]
    assert asked[2] == len(spy.log) - 1 == 40 + 2  # nobody is asked after the last


def test_several_stops_at_one_row_and_at_the_end() -> None:
    pairs, spy = some_pairs(20), Spy()
    seen: list[tuple[int, int]] = []
    stops = [0, 3, 3, len(pairs.source)]
    prequential.interleave(spy, pairs, stops, lambda number: seen.append((number, len(spy.log))))
    assert seen == list(enumerate(stops))


def test_replay_returns_positions() -> None:
    pairs = some_pairs(60, accounts=40)
    tests = np.arange(30, 45)
    expected = [target if target < 20 else MISSED for target in pairs.target[tests].tolist()]
    assert prequential.replay(Spy(), pairs, tests).tolist() == expected


def test_recall_and_gain() -> None:
    positions = np.array([0, 1, 19, 20, MISSED])
    assert prequential.recalled(positions).tolist() == [1, 1, 1, 0, 0]
    assert prequential.gained(positions) == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(21), 0, 0])
    assert prequential.recalled(positions, k=1).tolist() == [1, 0, 0, 0, 0]


def test_the_interval_holds_the_mean_and_is_a_function_of_the_seed() -> None:
    values = np.random.default_rng(1).random(500)
    first = prequential.estimate(values, seed=3)
    assert first == prequential.estimate(values, seed=3)
    assert first != prequential.estimate(values, seed=4)
    assert first.low < first.mean < first.high
    # 95 % of a mean of 500 uniform numbers: 2 * 1.96 * sqrt(1 / 12 / 500); a bootstrap is within a tenth
    assert first.high - first.low == pytest.approx(2 * 1.96 * np.sqrt(1 / 12 / 500), rel=0.1)
    with pytest.raises(ValueError, match="empty"):
        prequential.estimate(values[:0])


def test_settings_are_chosen_without_the_last_fifth() -> None:
    pairs = some_pairs()
    rules = {"hour": lambda: DecayedPopularity(3600.0), "two_hop": TwoHop}
    choice = prequential.choose(rules, pairs)
    other = pairs.target.copy()
    other[prequential.border(pairs) :] = 0
    assert prequential.choose(rules, pairs._replace(target=other)) == choice
    assert choice.name == max(choice.recalls, key=lambda name: choice.recalls[name])
    assert set(choice.recalls) == set(rules)


def test_measure_counts_its_queries() -> None:
    pairs = some_pairs()
    outcome = prequential.measure(DecayedPopularity(3600.0), pairs, limit=25)
    assert outcome.queries == 25
    assert 0 <= outcome.ndcg.mean <= outcome.recall.mean <= 1
