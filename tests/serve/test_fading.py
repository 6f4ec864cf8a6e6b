"""What an account does not see again for a while, or sees further down."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig, RankingConfig
from kithstream.streams.events.signals import BY_NAME
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.answers import Question
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.fading import returning, tiredness

START = 1_790_000_000_000_000
DAY = 86_400_000_000
CONFIG = Config(
    engine=EngineConfig(partitions=3),
    model=ModelConfig(learn=False),
    index=IndexSection(background=False),
    ranking=RankingConfig(ranker=False),  # what is taken off is taken off the towers' scores
)
NOT_INTERESTED = BY_NAME["not_interested"]


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def live(tmp_path: Path, clock: Clock) -> Iterator[Embedded]:
    with Embedded(tmp_path, CONFIG, clock=clock) as opened:
        yield opened


def event(name: str, signal: str, actor: str, target: str, time: int, item: str = "") -> Event:
    return Event(name, signal, actor, time, target=target, item=item)


def crowd(live: Embedded, *targets: str, time: int = START) -> None:
    """Equal followers for each target, so that they are candidates with like scores."""
    followers = ("x", "y", "z")
    live.publish([event(f"{a}>{t}", "follow", a, t, time) for t in targets for a in followers])
    live.catch_up()


def towers(live: Embedded, account: str) -> dict[str, float]:
    """What the towers alone say of everybody."""
    vector = live.chain.model.encode_consumers(live.chain.inspect(account, live.as_of)).vectors[0]
    hits = live.chain.index.query(vector, 100, exclude={account})
    return dict(zip(hits.ids, hits.scores.tolist(), strict=True))


def scores(live: Embedded, account: str, k: int = 20) -> dict[str, float]:
    live.catch_up()
    return {c.account: c.score for c in live.candidates(account, k).candidates}


def test_one_not_interested_in_is_hidden_for_two_weeks_and_comes_back_slowly(
    live: Embedded, clock: Clock
) -> None:
    crowd(live, "bob", "cyd")
    live.publish([event("n", "not_interested", "ann", "bob", START)])
    found = []
    for days in (0, 13.99, 14, 84, 154, 200):
        clock.now = START + int(days * DAY)
        answer, plain = scores(live, "ann"), towers(live, "ann")
        assert answer["cyd"] == plain["cyd"]
        found.append(answer["bob"] - plain["bob"] if "bob" in answer else None)
    assert found[:2] == [None, None]
    assert found[2:] == pytest.approx([log(0.2), log(0.6), 0, 0], abs=1e-9)
    assert returning(NOT_INTERESTED, 14 * DAY - 1) is None


def test_taking_it_back_shows_the_account_again_at_once(live: Embedded) -> None:
    crowd(live, "bob", "cyd")
    token = live.publish([event("n", "not_interested", "ann", "bob", START)])
    assert [c.account for c in live.candidates("ann", 5, after=token).candidates] == ["cyd"]
    token = live.publish([event("m", "undo_not_interested", "ann", "bob", START + 1)])
    assert {c.account for c in live.candidates("ann", 5, after=token).candidates} == {"bob", "cyd"}


def test_what_was_shown_and_ignored_sinks_and_recovers(live: Embedded, clock: Clock) -> None:
    crowd(live, "bob", "cyd")
    first, second = list(scores(live, "ann"))
    before = scores(live, "ann")
    assert before == towers(live, "ann")
    shown = [event(f"s{n}", "impression", "ann", first, START + n, "slate") for n in range(1, 4)]
    clock.now = START + 10
    live.publish(shown)
    after = scores(live, "ann")
    assert list(after) == [second, first]
    plain = towers(live, "ann")
    assert after[second] == plain[second]
    assert after[first] == pytest.approx(plain[first] - 3 * CONFIG.ranking.fatigue, abs=1e-3)
    live.publish([Event(f"r{n}", "retract", "ann", clock.now, retracts=e.id) for n, e in enumerate(shown)])
    assert scores(live, "ann") == before


def test_an_answered_impression_tires_nobody(live: Embedded, clock: Clock) -> None:
    crowd(live, "bob", "cyd")
    clock.now = START + 10
    live.publish([event("s", "impression", "ann", "bob", START + 1, "slate")])
    tired = scores(live, "ann")["bob"]
    live.publish([event("l", "like", "ann", "bob", START + 2, "post")])
    assert scores(live, "ann")["bob"] > tired + CONFIG.ranking.fatigue / 2


@pytest.mark.parametrize("followed", [True, False])
def test_one_unfollowed_is_not_recommended_again_unless_it_is_set_so(
    tmp_path: Path, clock: Clock, followed: bool
) -> None:
    """An unfollow of somebody whose follow was never told counts as well."""
    config = msgspec.structs.replace(CONFIG, ranking=RankingConfig(used_to_follow=False))
    with (
        Embedded(tmp_path / "a", CONFIG, clock=clock) as strict,
        Embedded(tmp_path / "b", config, clock=clock) as open_,
    ):
        for live in (strict, open_):
            crowd(live, "bob", "cyd")
            assert set(scores(live, "ann")) == {"bob", "cyd"}
            if followed:
                live.publish([event("f", "follow", "ann", "bob", START)])
                assert set(scores(live, "ann")) == {"cyd"}
            clock.now = START + 5
            live.publish([event("u", "unfollow", "ann", "bob", START + 1)])
        assert set(scores(strict, "ann")) == {"cyd"}
        assert set(scores(open_, "ann")) == {"bob", "cyd"}
        strict.publish([Event("r", "retract", "ann", START + 2, retracts="u")])
        assert ("bob" in scores(strict, "ann")) is not followed
        if followed:  # both taken back: as if it had never been
            strict.publish([Event("s", "retract", "ann", START + 3, retracts="f")])
            assert set(scores(strict, "ann")) == {"bob", "cyd"}


def test_contacts_come_first_and_say_so_while_there_is_consent(live: Embedded, clock: Clock) -> None:
    crowd(live, "bob", "cyd", "dan")
    clock.now = START + 10
    live.publish([event("a", "address_book", "ann", "dan", START + 1)])
    before = live.answer(Question("ann", 5))
    assert "in your contacts" not in [reason for c in before.candidates for reason in c.reasons]
    token = live.publish([Event("p", "profile", "ann", START + 2, contacts=True)])
    first, *others = live.candidates("ann", 5, after=token).candidates
    assert first.account == "dan"
    assert "in your contacts" in first.reasons
    assert first.score == towers(live, "ann")["dan"] + CONFIG.ranking.contact
    assert all("in your contacts" not in c.reasons for c in others)
    assert not any("contacts" in reason for c in live.candidates("dan", 5).candidates for reason in c.reasons)
    token = live.publish([Event("q", "profile", "ann", START + 3, contacts=False)])
    after = live.candidates("ann", 5, after=token).candidates
    assert [(c.account, c.reasons) for c in after] == [(c.account, c.reasons) for c in before.candidates]


@settings(max_examples=20)
@given(
    st.dictionaries(st.sampled_from("bcdefgh"), st.integers(0, 12), max_size=7),
    st.integers(1, 8),
)
def test_lowering_some_gives_the_same_answer_as_lowering_all_scores_and_sorting(
    tmp_path_factory: pytest.TempPathFactory, impressions: dict[str, int], k: int
) -> None:
    clock = Clock()
    with Embedded(tmp_path_factory.mktemp("live"), CONFIG, clock=clock) as live:
        crowd(live, *"bcdefgh")
        clock.now = START + 100
        live.publish(
            [
                event(f"{t}{n}", "impression", "ann", t, START + n, "slate")
                for t, times in impressions.items()
                for n in range(times)
            ]
        )
        live.catch_up()
        tired = tiredness(
            [(START + n, t) for t, times in impressions.items() for n in range(times)], (), clock.now
        )
        want = sorted(
            (-(score - CONFIG.ranking.fatigue * tired.get(name, 0.0)), name)
            for name, score in towers(live, "ann").items()
        )[:k]
        got = live.candidates("ann", k).candidates
        assert [c.account for c in got] == [name for _, name in want]
        assert [c.score for c in got] == pytest.approx([-score for score, _ in want], rel=1e-12)
