"""The real chain, asked on the way through a simulated stream."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection, RankingConfig
from kithstream.streams.evaluating.asking import TOWERS, WHOLE, Answers, ask_all
from kithstream.streams.evaluating.measures import ALL, rows
from kithstream.streams.evaluating.plan import Plan, Sampling, plan
from kithstream.streams.evaluating.report import Served, from_json, to_json
from kithstream.streams.evaluation import evaluate
from kithstream.streams.events.record import Record
from kithstream.streams.replay import choose_half_lives
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.simulate import simulate
from kithstream.streams.world import MIX, SimulationConfig
from kithstream.streams.yardsticks import DecayedPopularity, HandRule, TwoHop

SAMPLING = Sampling(tests=30, others=8, ks=(1, 20, 50))
K = 50
ADDED = RankingConfig()


class Pass(NamedTuple):
    plan: Plan
    answers: dict[str, Answers]
    learned: int


@pytest.fixture(scope="module")
def events() -> list[Record]:
    """Half a day of 120 accounts, with more slates than usual."""
    mix = MIX | {"impression": 0.1, "follow": 0.3}
    world = SimulationConfig(accounts=120, seed=3, mix=mix, batch=256)
    return list(chain.from_iterable(simulate(world, 2200)))


def passed(events: Sequence[Record], path: Path, ranking: RankingConfig = ADDED) -> Pass:
    clock = StreamClock()
    config = Config(engine=EngineConfig(partitions=1), index=IndexSection(background=False), ranking=ranking)
    planned = plan(events, SAMPLING)
    with Embedded(path, config, clock=clock) as live:
        answers, _, replayed = ask_all(live, clock, events, planned, K, 0)
    return Pass(planned, dict(answers), replayed.learned)


@pytest.fixture(scope="module")
def done(events: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Pass:
    return passed(events, tmp_path_factory.mktemp("live"))


def test_nobody_is_answered_whom_the_account_follows_and_the_asked_follow_is_not_told(
    events: list[Record], done: Pass
) -> None:
    names = done.plan.accounts
    for method in (WHOLE, TOWERS):
        hits = 0
        for one, listed in zip(done.plan.follows, done.answers[method].lists, strict=True):
            followed = {
                e["target"]
                for e in events[: one.event]
                if (e["actor"], e["signal"]) == (names[one.asker], "follow")
            }
            shown = {names[account] for account in listed if account >= 0}
            assert shown
            assert not shown & (followed | {names[one.asker]})
            hits += one.target in listed
        assert hits > len(done.plan.follows) / 4  # had the follow been told, none could be found


def test_scores_order_accounts_as_lists_do(done: Pass) -> None:
    compared = 0
    for method, answers in done.answers.items():
        if method == WHOLE:
            continue  # it may score an account by who stands beside it
        for number, one in enumerate(done.plan.follows):
            places = {account: place for place, account in enumerate(answers.lists[number].tolist())}
            scored = [(one.target, answers.followed[number])]
            scored += list(zip(one.others, answers.others[number], strict=False))
            listed = [(places[account], score) for account, score in scored if account in places]
            listed.sort()
            scores = [score for _, score in listed]
            assert not np.isnan(scores).any()
            assert scores == sorted(scores, reverse=True), (method, number)
            compared += len(scores)
    assert compared > 150


def test_the_yardsticks_stand_where_the_protocol_puts_them(done: Pass) -> None:
    chosen = choose_half_lives(done.plan.pairs, 0)
    tests = np.array([one.row for one in done.plan.follows])
    rules = {
        "decayed popularity": DecayedPopularity(chosen.popularity),
        "two-hop": TwoHop(),
        "hand rule": HandRule(*chosen.hand_rule),
    }
    for name, rule in rules.items():
        expected = prequential.replay(rule, done.plan.pairs, tests, K)
        hit = done.answers[name].lists == np.array([[one.target] for one in done.plan.follows])
        assert np.where(hit.any(1), hit.argmax(1), -1).tolist() == expected.tolist()


def test_towers_alone_are_what_is_left_without_the_rest(
    events: list[Record], done: Pass, tmp_path: Path
) -> None:
    """With all that is added set to nothing, the whole and the towers answer alike; and asking moves nothing."""
    bare = passed(events, tmp_path, RankingConfig(contact=0.0, fatigue=0.0))
    assert bare.learned == done.learned > 0
    towers, whole = bare.answers[TOWERS], bare.answers[WHOLE]
    # An account that was not of interest comes back slowly, which the settings do not turn off.
    same = (towers.lists == whole.lists).all(1)
    assert same.mean() > 0.8
    assert np.array_equal(towers.lists, done.answers[TOWERS].lists)
    assert not np.array_equal(done.answers[WHOLE].lists, done.answers[TOWERS].lists)


def test_an_evaluation_is_a_function_of_stream_and_seed(
    events: list[Record], done: Pass, tmp_path: Path
) -> None:
    clock = StreamClock()
    config = Config(engine=EngineConfig(partitions=1), index=IndexSection(background=False))
    with Embedded(tmp_path, config, clock=clock) as live:
        report = evaluate(live, clock, events, SAMPLING, stream="world")
    assert list(report.rows) == rows(done.plan, done.answers, SAMPLING.ks, 0)
    assert report.events == len(events)
    assert report.tests == 30
    assert report.slates > 0
    assert from_json(to_json(report)).rows[0].recall == report.rows[0].recall
    served = [row for row in report.rows if row.part == ALL and isinstance(row.measured, Served)]
    assert (
        len(served) == 5
    )  # the stream holds impressions of both kinds, so every method has both kinds of metrics
