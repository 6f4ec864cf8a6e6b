"""Accounts at the extremes: with very many followers, followees, blocks; answers stay right, and jobs go in steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec
import pytest
from bench.extremes import NOW, STAR, blocker, celebrity, deletion, follower, language, opened, others
from promises import agree

from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig
from kithstream.streams.errors import Unanswerable
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.embedded import Embedded

FOLLOWERS, FOLLOWING, BLOCKED = (
    4_000,
    2_500,
    2_500,
)  # enough for many steps; `bench.extremes` has the full sizes
STEP = 250  # edges of one step of background work
CONFIG = Config(
    engine=EngineConfig(partitions=2, job_edges=STEP),
    model=ModelConfig(learn=False),
    index=IndexSection(background=False),
)


def steps(live: Embedded) -> int:
    """Fold what is published, then count the rounds in which something was left to do."""
    live.pump()
    count = 0
    while any(partition.working for partition in live.engine.partitions):
        live.pump()
        count += 1
        assert count < 1000, "background work does not end"
    return count


def told(path: Path, events: Iterator[Event]) -> tuple[Embedded, list[Event]]:
    """A runtime that was told a case."""
    live = opened(path, CONFIG)
    published = list(chain(others(), events))
    live.publish(published)
    live.catch_up()
    return live, published


def named(live: Embedded, account: str, **question: object) -> list[str]:
    """Who is answered."""
    return [c.account for c in live.candidates(account, 1000, **question).candidates]  # type: ignore[arg-type]


def test_a_celebrity_is_answered_but_to_its_followers(tmp_path: Path) -> None:
    live, published = told(tmp_path, celebrity(FOLLOWERS))
    with live:
        agree(live.engine, published)
        assert STAR in named(live, "c5")
        for fan in (0, FOLLOWERS // 2, FOLLOWERS - 1):
            assert STAR not in named(live, f"fan{fan}")
        unfollow = Event("u", "unfollow", "fan7", NOW - 1, target=STAR)
        live.publish([unfollow])
        live.catch_up()
        agree(live.engine, [*published, unfollow])
        live.publish([deletion()])
        assert steps(live) >= FOLLOWERS // STEP // 2
        assert STAR not in named(live, "c5")
        with pytest.raises(Unanswerable):
            live.candidates(STAR)


def test_one_who_follows_very_many_is_asked_for_others_and_its_follows_are_sent_again_in_steps(
    tmp_path: Path,
) -> None:
    live, published = told(tmp_path, follower(FOLLOWING))
    with live:
        agree(live.engine, published)
        answer = named(live, STAR)
        assert len(answer) == 1000
        assert not any(name.startswith("idol") for name in answer)
        live.publish([language("de")])
        assert steps(live) >= FOLLOWING // STEP // 2
        agree(live.engine, [*published, language("de")])
        answer = named(live, "c5", allow=[f"idol{n}" for n in range(100)])
        assert len(answer) == 100


def test_whom_one_blocked_is_nobody_to_it_and_it_is_nobody_to_them(tmp_path: Path) -> None:
    live, published = told(tmp_path, blocker(BLOCKED))
    with live:
        agree(live.engine, published)
        fan = Event("fan", "follow", "c9", NOW - 3, target=STAR)  # so that it is a candidate at all
        live.publish([fan])
        live.catch_up()
        answer = named(live, STAR)
        assert answer
        assert not any(name.startswith("foe") for name in answer)
        foes = [f"foe{n}" for n in range(0, BLOCKED, BLOCKED // 100)]
        assert named(live, STAR, allow=foes) == []
        assert STAR in named(live, "c5")
        for foe in foes[::10]:
            assert STAR not in named(live, foe)
        freed = msgspec.structs.replace(
            next(e for e in published if e.id == "b0"), id="x", signal="unblock", time=NOW - 2
        )
        live.publish([freed])
        live.catch_up()
        assert named(live, STAR, allow=["foe0", "foe50"]) == ["foe0"]
