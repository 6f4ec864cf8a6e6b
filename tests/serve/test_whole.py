"""Nominators and the one learned score: what they may show, and that it is a function of state and model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, structs
from promises import expected, held
from soup import ACCOUNTS, DAY, START, soup

from kithstream.models.ages import TICK
from kithstream.models.model import Model
from kithstream.models.ranker import DENSE, Weights
from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig, RankingConfig
from kithstream.streams.engine.actors import Record
from kithstream.streams.engine.engine import Engine
from kithstream.streams.events import wire
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.facts import FOLLOWEES
from kithstream.streams.serve.lessons import SECONDS, Lessons
from kithstream.streams.serve.nominators import FOLLOWERS, Around
from kithstream.streams.serve.tops import NEVER, Top
from kithstream.streams.serve.whole import Whole, about
from kithstream.streams.state import profiles
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.reader import Reader

SLOW = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
LEARNING = Config(
    index=IndexSection(background=False), ranking=RankingConfig(train_share=1.0, train_most=1000)
)


class Clock:
    def __init__(self) -> None:
        self.now = START + 7 * DAY

    def __call__(self) -> int:
        return self.now


def model(path: Path, weights: Callable[[Model], Weights]) -> ModelConfig:
    """A model that does not learn, whose ranker ranks by these weights."""
    made = Model.day_zero(seed=0)
    made.ranker.weights = weights(made)
    made.ranker.examples, made.ranker.gain = 10_000, 0.01
    made.save(path / "given.safetensors")
    return ModelConfig(path=str(path / "given.safetensors"), learn=False)


def anything(made: Model) -> Weights:
    rng = np.random.default_rng(3)
    return Weights(*(rng.normal(size=w.shape) for w in made.ranker.weights))


def least_followed(made: Model) -> Weights:
    dense = np.zeros(len(DENSE))
    dense[DENSE.index("followers")] = -100.0
    return Weights(dense, made.ranker.weights.tables)


@pytest.fixture(scope="module")
def given_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return model(tmp_path_factory.mktemp("model"), anything)


def whole(given: ModelConfig, **ranking: object) -> Config:
    section = RankingConfig(**ranking)  # type: ignore[arg-type]  # named fields
    return Config(model=given, index=IndexSection(background=False), ranking=section)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[Config], Embedded]]:
    live: list[Embedded] = []

    def one_more(config: Config) -> Embedded:
        live.append(Embedded(tmp_path / str(len(live)), config, clock=Clock()))
        return live[-1]

    yield one_more
    for left in live:
        left.close()


def follow(actor: str, target: str, time: int = START + 6 * DAY) -> Event:
    return Event(f"{actor}>{target}", "follow", actor, time, target=target)


def told(live: Embedded, *events: Event) -> Embedded:
    live.publish(events)
    live.catch_up()
    return live


def names(live: Embedded, account: str, k: int = 10) -> list[str]:
    return [c.account for c in live.candidates(account, k).candidates]


class Everyone:
    """Nominates all it ever heard of, forbidden or not."""

    def nominate(self, around: Around, k: int) -> Sequence[str]:
        return (*ACCOUNTS, "nobody")


def the_whole(live: Embedded) -> Whole:
    assert live.chain.whole is not None
    return live.chain.whole


@SLOW
@given(soup())
def test_whoever_nominates_no_answer_holds_a_forbidden_account(
    tmp_path_factory: pytest.TempPathFactory, given_model: ModelConfig, events: list[Event]
) -> None:
    config = whole(given_model, considered=1)
    with Embedded(tmp_path_factory.mktemp("live"), config, clock=Clock()) as live:
        the_whole(live).nominators["popular"] = Everyone()
        for count in range(0, len(events), 6):
            token = live.publish(events[count : count + 6])
            edges = expected(events[: count + 6], START + 7 * DAY).edges
            for account in ACCOUNTS[:3]:
                forbidden = {account, "eve"}
                for actor, family, target, _ in edges:
                    if actor == account and family in ("follow", "block", "mute", "report"):
                        forbidden.add(target)
                    if target == account and family in ("block", "mute", "report"):
                        forbidden.add(actor)
                answer = live.candidates(account, after=token, exclude=["eve"])
                shown = {c.account for c in answer.candidates}
                assert not forbidden & shown
                listed = live.chain.index
                assert all(name in listed for name in shown)
                allowed = {c.account for c in live.candidates(account, allow=["bob", "cyd"]).candidates}
                assert allowed <= {"bob", "cyd"} - (forbidden - {"eve"})
                code = profiles.code("en")
                for c in live.candidates(account, languages=["en"]).candidates:
                    assert live.chain.inspect(c.account, live.as_of).languages[0] == code


@SLOW
@given(soup(), st.randoms(use_true_random=False))
def test_the_whole_is_a_function_of_state_and_model(
    tmp_path_factory: pytest.TempPathFactory,
    given_model: ModelConfig,
    events: list[Event],
    rng: random.Random,
) -> None:
    """However events were batched, undone and aged, answers are those of one batch at the end."""
    config, clock = whole(given_model, considered=2, nominated=2), Clock()
    with (
        Embedded(tmp_path_factory.mktemp("live"), config, clock=clock) as live,
        Embedded(tmp_path_factory.mktemp("batch"), config, clock=clock) as batch,
    ):
        for first in range(0, len(events), 5):
            live.publish(events[first : first + 5])
            live.pump(rng.randrange(1, 4))
            clock.now += rng.choice((0, TICK, 3 * TICK))
        live.catch_up()
        told(batch, *events)
        for one in (live, batch):
            one.chain.rebuild(clock.now)
        for account in (*ACCOUNTS, "new"):
            assert live.candidates(account).candidates == batch.candidates(account).candidates


@SLOW
@given(soup())
def test_two_hop_counts_are_those_of_the_present_lists(
    tmp_path_factory: pytest.TempPathFactory, given_model: ModelConfig, events: list[Event]
) -> None:
    with Embedded(tmp_path_factory.mktemp("live"), whole(given_model), clock=Clock()) as live:
        for first in range(0, len(events), 9):
            told(live, *events[first : first + 9])
        state, facts = held(live.engine), the_whole(live).facts
        everyone = sorted({*state.followees, *state.followers, *ACCOUNTS})
        for account in ACCOUNTS:
            followees = state.followees.get(account, [])
            co, theirs = dict.fromkeys(everyone, 0.0), dict.fromkeys(everyone, 0.0)
            for x in followees:
                for y in state.followers.get(x, []):
                    of_y = state.followees.get(y, [])
                    for z in of_y[:FOLLOWEES]:
                        co[z] += 1 / (1 + len(of_y)) ** 0.5
                for z in state.followees.get(x, [])[:FOLLOWEES]:
                    theirs[z] += 1
            with facts.lock:
                numbers, from_here = facts.numbers_of(everyone), facts.numbers_of(followees)
                found = facts.gained(facts.co_followed(from_here), numbers)
                by_them = facts.gained(facts.followed_by(from_here), numbers)
                common = facts.common_followers(from_here, numbers)
            np.testing.assert_allclose(found, [co[z] for z in everyone], rtol=1e-12)
            assert by_them.tolist() == [theirs[z] for z in everyone]
            both = [len({*state.followers.get(z, [])} & {*followees}) for z in everyone]
            assert common.tolist() == both


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([NEVER, *range(6)])), max_size=200),
    st.integers(1, 9),
)
def test_the_best_are_those_of_a_sort_whatever_falls(puts: list[tuple[int, float]], k: int) -> None:
    keys: dict[str, float] = {}
    top = Top(3, lambda: list(keys.items()))
    for number, (account, key) in enumerate(puts):
        keys[f"a{account}"] = key
        top.put(f"a{account}", key)
        if number % 3 == 0:
            order = sorted(
                (name for name in keys if keys[name] > NEVER), key=lambda name: (-keys[name], name)
            )
            assert top.best(k) == order[: min(k, 3)]
            hidden = set(order[::2])
            assert top.best(k, hidden) == [name for name in order[:3] if name not in hidden][:k]


CROWD = [follow(a, b) for a in ACCOUNTS for b in ACCOUNTS[:3] if a != b]


def test_an_untrained_ranker_leaves_the_answers_of_the_towers_as_they_are(
    opened: Callable[[Config], Embedded],
) -> None:
    alone = structs.replace(LEARNING, ranking=structs.replace(LEARNING.ranking, ranker=False))
    towers, both = (told(opened(config), *CROWD) for config in (alone, LEARNING))
    assert towers.chain.whole is None
    assert the_whole(both).facts.numbers_of(["ann"])[0] > 0
    for account in ACCOUNTS:
        for k in (1, 3, 10):
            assert towers.candidates(account, k).candidates == both.candidates(account, k).candidates


def test_the_ranker_learns_beside_the_towers_and_takes_no_part_in_them(
    opened: Callable[[Config], Embedded],
) -> None:
    alone = structs.replace(LEARNING, ranking=structs.replace(LEARNING.ranking, ranker=False))
    runs = [opened(config) for config in (alone, LEARNING, LEARNING)]
    for day in range(5):
        more = [
            follow(f"u{n}", a, START + 6 * DAY + day) for n in range(4 * day, 4 * day + 4) for a in ACCOUNTS
        ]
        for live in runs:
            told(live, *more, *[follow(e.target, e.actor, e.time + 9) for e in more[::3]])
    models = [live.chain.model for live in runs]
    arrays = [made.arrays() for made in models]
    assert models[0].ranker.examples == 0
    assert models[1].ranker.examples > 20
    for name, array in arrays[1].items():
        np.testing.assert_array_equal(array, arrays[2][name], err_msg=name)
        if not name.startswith("ranker."):
            np.testing.assert_array_equal(array, arrays[0][name], err_msg=name)


class Far:
    """Nominates one account."""

    def nominate(self, around: Around, k: int) -> Sequence[str]:
        return ["far"]


def test_whoever_is_nominated_is_ranked_however_far_down_the_index_it_is(
    opened: Callable[[Config], Embedded], tmp_path: Path
) -> None:
    config = whole(model(tmp_path, least_followed), considered=1, nominators=())
    live = told(opened(config), *(follow(f"x{n}", f"y{m}") for n in range(6) for m in range(6)))
    told(live, follow("x0", "far", START), follow("ann", "x0"))
    assert names(live, "ann", 1) != ["far"]
    the_whole(live).nominators["popular"] = Far()
    assert names(live, "ann", 1) == ["far"]


def town(live: Embedded) -> Embedded:
    """Nine accounts: the higher the number the more followers; every other one speaks German, two are unwanted."""
    languages = (
        Event(f"l{n}", "profile", f"p{n}", START, language="de" if n % 2 else "en") for n in range(9)
    )
    follows = (follow(f"f{m}", f"p{n}") for n in range(9) for m in range(n + 1))
    return told(
        live,
        *languages,
        *follows,
        *(Event(f"new{tag}", "profile", f"new-{tag}", START, language=tag) for tag in ("de", "en")),
        Event("b1", "block", "p7", START, target="new-de"),
        Event("b2", "block", "new-de", START, target="p5"),
    )


def test_an_account_of_which_nothing_is_known_is_shown_the_most_followed_of_its_language(
    opened: Callable[[Config], Embedded], given_model: ModelConfig
) -> None:
    live = town(opened(whole(given_model)))
    # Whatever was learned: the ranker's weights are drawn blindly.
    assert names(live, "new-en", 7) == ["p8", "p6", "p4", "p2", "p0", "p7", "p5"]
    assert names(live, "new-de", 4) == ["p3", "p1", "p8", "p6"]
    assert names(live, "nobody", 3) == ["p8", "p7", "p6"]
    answer = live.candidates("new-en", 3, languages=["de"], explain="full").candidates
    assert [c.account for c in answer] == ["p7", "p5", "p3"]
    assert all("popular" in c.sources for c in answer)  # type: ignore[operator]  # asked for
    assert names(live, "new-en", 9)[-1] == "p1"
    assert live.candidates("new-de", 9).short == "7 of 9: no more are allowed"
    # Half as many follow p8 as p6 once half a week has gone by and more follow p6; what is fresh counts.
    told(live, *(follow(f"g{m}", "p6", START + 7 * DAY) for m in range(4)))
    assert names(live, "new-en", 2) == ["p6", "p8"]


def test_what_is_ignored_sinks_also_for_an_account_of_which_nothing_is_known(
    opened: Callable[[Config], Embedded], given_model: ModelConfig
) -> None:
    live = town(opened(whole(given_model)))
    fully = {c.account: c.score for c in live.candidates("new-en", 9).candidates}
    shown = [
        Event(f"i{n}", "impression", "new-en", START + 7 * DAY - n, target="p8", item=f"i{n}")
        for n in range(2)
    ]
    told(live, *shown, Event("n", "not_interested", "new-en", START + 7 * DAY, target="p6"))
    assert "p6" not in names(live, "new-en", 9)
    tired = {c.account: c.score for c in live.candidates("new-en", 9).candidates}["p8"]
    assert tired == pytest.approx(fully["p8"] - 0.6, abs=0.01)


def test_the_first_signal_of_an_account_ends_that(
    opened: Callable[[Config], Embedded], given_model: ModelConfig
) -> None:
    live = town(opened(whole(given_model, used_to_follow=False)))
    before = names(live, "new-en", 9)
    told(live, follow("new-en", "p3", START + 7 * DAY))
    assert names(live, "new-en", 9) != [name for name in before if name != "p3"]
    told(live, Event("r", "retract", "new-en", START + 7 * DAY, retracts="new-en>p3"))
    assert names(live, "new-en", 9) == before


def test_a_full_answer_tells_who_named_a_candidate(
    opened: Callable[[Config], Embedded], given_model: ModelConfig
) -> None:
    live = told(opened(whole(given_model)), *CROWD, follow("new", "dan"), follow("bob", "new"))
    named = {c.account: c.sources for c in live.candidates("new", explain="full").candidates}
    assert named["bob"] == ["towers", "popular", "two_hop", "reciprocal"]
    assert {c.sources for c in live.candidates("new").candidates} == {UNSET}


def test_the_popular_are_kept_by_language_and_leave_with_their_followers(
    opened: Callable[[Config], Embedded], given_model: ModelConfig
) -> None:
    live = told(
        opened(whole(given_model)),
        *(Event(f"p{a}", "profile", a, START, language=tag) for a, tag in (("bob", "de"), ("cyd", "en"))),
        *CROWD,
    )
    facts = the_whole(live).facts
    assert [top.best(5) for top in facts.most(profiles.code("de"))] == [["bob"]] * 3
    assert facts.popular[0].best(1) == ["ann"]  # all three were followed by six; the least name comes first
    told(
        live, *(Event(f"u{a}", "unfollow", a, START + 7 * DAY, target="bob") for a in ACCOUNTS if a != "bob")
    )
    assert [top.best(5) for top in facts.most(profiles.code("de"))] == [[]] * 3


def test_a_deleted_account_is_named_no_more(
    opened: Callable[[Config], Embedded], given_model: ModelConfig
) -> None:
    live = told(opened(whole(given_model)), *CROWD)
    told(live, Event("d", "account_delete", "bob", START + 7 * DAY))
    facts = the_whole(live).facts
    assert facts.numbers_of(["bob"]).tolist() == [0]
    assert "bob" not in facts.names
    assert all("bob" not in top.best(9) for top in facts.popular)
    assert "bob" not in names(live, "gus")


def test_the_ranker_learns_from_a_share_of_follows_by_their_ids() -> None:
    config = RankingConfig(train_share=0.2)
    follows = [(f"e{n}", n * 1_000_000) for n in range(5000)]
    chosen = [Lessons(config, seed).among(follows) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert 900 < len(chosen[0]) < 1100


@given(st.lists(st.integers(0, 5_000_000), max_size=120), st.integers(1, 6), st.integers(1, 50))
def test_of_a_second_few_teach_however_they_are_batched(times: list[int], most: int, size: int) -> None:
    config = RankingConfig(train_share=0.7, train_most=most)
    follows = [(f"e{n}", time) for n, time in enumerate(times)]
    whole, parts = Lessons(config, 0).among(follows), Lessons(config, 0)
    batched = [
        first + at
        for first in range(0, len(times), size)
        for at in parts.among(follows[first : first + size])
    ]
    assert batched == whole
    free = Lessons(RankingConfig(train_share=0.7, train_most=1000), 0).among(follows)
    for second in range(6):
        here = [at for at in free if times[at] // 1_000_000 == second]
        assert [at for at in whole if at in here] == here[:most]


def test_seconds_that_are_long_gone_are_not_counted_for_ever() -> None:
    """An event from far ahead takes nothing from those of now."""
    lessons = Lessons(RankingConfig(train_share=1.0, train_most=1), 0)
    assert lessons.among([("ahead", 10**12)]) == [0]
    assert lessons.among([(f"e{n}", n * 1_000_000) for n in range(1000)]) == list(range(1000))
    assert len(lessons._chosen) <= SECONDS


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 999), st.booleans(), st.booleans()), min_size=40, max_size=90),
    st.booleans(),
)
def test_everybody_who_waits_to_be_followed_back_is_told_of(
    followers: list[tuple[int, bool, bool]], many: bool
) -> None:
    """Beyond the newest followers, the newest of those alone, if the account has not too many followers."""
    events = []
    for number, (minute, followed_back, gone) in enumerate(followers):
        other, at = f"f{number:03d}", START + minute * 60_000_000
        events.append(Event(f"a{number}", "follow", other, at, target="ann"))
        if followed_back:
            events.append(Event(f"b{number}", "follow", "ann", at + 1, target=other))
        if gone:
            events.append(Event(f"c{number}", "unfollow", other, at + 2, target="ann"))
    engine = Engine([MemoryStore()], EngineConfig(partitions=1), salt=bytes(16))
    assert not engine.apply(0, [Record(START + 30 * DAY, wire.encode(e)) for e in events], 0).dead
    engine.settle()
    left = sorted(
        (-(START + minute * 60_000_000), f"f{number:03d}", back)
        for number, (minute, back, gone) in enumerate(followers)
        if not gone
    )
    want = left[:FOLLOWERS]
    if not many:
        want += [one for one in left[FOLLOWERS:] if not one[2]][:FOLLOWERS]
    with pytest.MonkeyPatch.context() as patch:
        if many:
            patch.setattr("kithstream.streams.serve.whole.SCANNED", FOLLOWERS)
        rows = Reader(engine, 10).read(["ann"], START + 2 * DAY, unreciprocated=True)
        told = about(engine.at(0), rows).followers
    assert told == [(-time, name) for time, name, _ in want]
