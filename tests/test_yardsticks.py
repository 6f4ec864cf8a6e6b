from __future__ import annotations

import heapq
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kithstream.streams.yardsticks import (
    KEPT,
    DecayedPopularity,
    HandRule,
    Ranking,
    TwoHop,
    Yardstick,
    highest,
)

SECOND = 1_000_000
Edge = tuple[int, int, int]


@st.composite
def streams(draw: st.DrawFn) -> list[Edge]:
    """New follows among a few accounts, in the order of their times."""
    pairs = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), unique=True, max_size=40))
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    gaps = draw(st.lists(st.integers(0, 5000 * SECOND), min_size=len(pairs), max_size=len(pairs)))
    return [(*pair, int(time)) for pair, time in zip(pairs, np.cumsum(gaps), strict=True)]


half_lives = st.sampled_from([60.0, 3600.0, 86400.0, math.inf])


def told(rule: Yardstick, edges: list[Edge]) -> Yardstick:
    for edge in edges:
        rule.observe(*edge)
    return rule


def decayed(times: list[int], now: int, half_life: float) -> float:
    """The decayed count, by the definition."""
    return sum(2 ** (-(now - time) / SECOND / half_life) for time in times)


def agrees(answer: list[int], warmth: dict[int, float], allowed: set[int], k: int) -> bool:
    """Whether the answer is a best k; equal warmths may change places by rounding, so 1e-9 is granted."""
    best = sorted((warmth[account] for account in allowed), reverse=True)[:k]
    given = [warmth[account] for account in answer]
    return (
        len(set(answer)) == len(answer)
        and set(answer) <= allowed
        and np.allclose(given, best, rtol=1e-9, atol=0)
        if len(given) == len(best)
        else False
    )


@given(streams(), st.integers(0, 7), st.integers(1, 5), half_lives)
def test_decayed_popularity_is_the_definition(
    edges: list[Edge], source: int, k: int, half_life: float
) -> None:
    now = (edges[-1][2] if edges else 0) + 1000 * SECOND
    answer = told(DecayedPopularity(half_life), edges).candidates(source, k, now)
    times = defaultdict(list)
    for _, target, time in edges:
        times[target].append(time)
    warmth = {target: decayed(its, now, half_life) for target, its in times.items()}
    allowed = set(times) - {source} - {target for actor, target, _ in edges if actor == source}
    assert agrees(answer, warmth, allowed, k)


@given(streams(), st.integers(0, 7), st.integers(1, 5))
def test_two_hop_is_the_definition(edges: list[Edge], source: int, k: int) -> None:
    out, into = defaultdict(list), defaultdict(list)
    for actor, target, _ in edges:
        out[actor].append(target)
        into[target].append(actor)
    scores: dict[int, float] = defaultdict(float)
    for x in out[source][-30:]:
        for y in into[x][-50:]:
            if y != source:
                for z in out[y][-20:]:
                    scores[z] += 1 / (1 + len(out[y])) ** 0.5
    excluded = {source, *out[source]}
    ranked = heapq.nlargest(k + len(excluded), scores.items(), key=lambda item: item[1])
    expected = [account for account, _ in ranked if account not in excluded][:k]
    assert told(TwoHop(), edges).candidates(source, k, 0) == expected


@given(streams(), st.integers(0, 7), st.integers(1, 6), half_lives, half_lives)
def test_hand_rule_is_the_definition(
    edges: list[Edge], source: int, k: int, pop_half_life: float, activity_half_life: float
) -> None:
    now = (edges[-1][2] if edges else 0) + 1000 * SECOND
    answer = told(HandRule(pop_half_life, activity_half_life), edges).candidates(source, k, now)
    followed = {target for actor, target, _ in edges if actor == source}
    backs = [actor for actor, target, _ in reversed(edges) if target == source and actor not in followed]
    assert answer[: len(backs)] == backs[:k]
    into, out = defaultdict(list), defaultdict(list)
    for actor, target, time in edges:
        into[target].append(time)
        out[actor].append(time)
    warmth = {
        account: max(
            decayed(into[account], now, pop_half_life), decayed(out[account], now, activity_half_life)
        )
        for account in {*into, *out}
    }
    allowed = set(warmth) - {source} - followed - set(backs)
    assert agrees(answer[len(backs) :], warmth, allowed, max(0, k - len(backs)))


def test_two_hop_reads_only_the_newest() -> None:
    rule = TwoHop()
    rule.observe(0, 1, 0)
    rule.observe(2, 1, 0)
    for target in range(100, 125):
        rule.observe(2, target, 0)
    assert rule.candidates(0, 50, 0) == list(range(105, 125))


@pytest.mark.parametrize("half_life", [600.0, 86400.0, math.inf])
def test_ranking_is_exact_beyond_what_it_keeps_at_hand(half_life: float) -> None:
    draw = np.random.default_rng(0)
    ranking = Ranking(half_life)
    for step, account in enumerate((9000 * draw.random(20_000) ** 2).astype(int).tolist(), 1):
        ranking.add(account, step * SECOND)
        if step % 500 == 0:
            counted = np.flatnonzero(ranking.keys > -math.inf)
            for k in (1, 20, KEPT, KEPT + 1, 5000):
                assert ranking.top(k).tolist() == highest(counted, ranking.keys[counted], k).tolist()


def test_counts_do_not_underflow() -> None:
    rule = DecayedPopularity(600.0)
    for target in (5, 6, 6, 7):
        rule.observe(target + 10, target, target * SECOND)
    ten_years = 315_360_000 * SECOND
    assert rule.candidates(0, 3, ten_years) == [6, 7, 5]
    assert 2.0 ** (-ten_years / SECOND / 600) == 0


def test_without_half_life_counts_are_counts() -> None:
    ranking = Ranking(math.inf)
    for _ in range(1000):
        ranking.add(3, 5 * SECOND)
    # a thousand logarithms, each rounded to 1e-15
    assert 2 ** ranking.keys[3] == pytest.approx(1000, rel=1e-11)


def test_equal_scores_stand_in_the_order_of_their_numbers() -> None:
    assert highest(np.array([9, 2, 4, 1]), np.array([1.0, 1.0, 3.0, 1.0]), 3).tolist() == [4, 1, 2]


@pytest.mark.parametrize("half_life", [0.0, -1.0, math.nan])
def test_a_half_life_is_positive(half_life: float) -> None:
    with pytest.raises(ValueError, match="half_life is"):
        Ranking(half_life)


@settings(max_examples=30)
@given(streams(), st.integers(0, 7))
def test_followed_and_self_are_never_answered(edges: list[Edge], source: int) -> None:
    followed = {target for actor, target, _ in edges if actor == source}
    for rule in (DecayedPopularity(60.0), TwoHop(), HandRule(60.0, 3600.0)):
        answer = told(rule, edges).candidates(source, 20, 10**12)
        assert not {source, *followed} & set(answer)
