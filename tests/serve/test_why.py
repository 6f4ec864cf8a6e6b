"""Explanations, against runtimes in which the deed never was; and what they never tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from promises import expected
from soup import ACCOUNTS, DAY, START, soup

from kithstream.streams.config import Config, EngineConfig, IndexSection, ModelConfig, RankingConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.errors import NotYet, Unanswerable
from kithstream.streams.events import wire
from kithstream.streams.events.signals import BY_NAME
from kithstream.streams.events.wire import Event
from kithstream.streams.serve.answers import BECAUSES, FULLY, Because, Explanation, Question
from kithstream.streams.serve.embedded import Embedded
from kithstream.streams.serve.why import CONSIDERED, Thinking
from kithstream.streams.state.memory import MemoryStore
from kithstream.streams.state.protocol import Column
from kithstream.streams.state.reader import Reader

CONFIG = Config(
    model=ModelConfig(learn=False),
    index=IndexSection(background=False),
    ranking=RankingConfig(fatigue=0, contact=0),  # scores and ranks of explanations are those of the towers
)
NOW = START + 7 * DAY
PUBLIC = {name for name, signal in BY_NAME.items() if signal.public}
PRIVATE = set(BY_NAME) - PUBLIC
TOWN = [f"t{number:02d}" for number in range(16)]
Open = Callable[[Sequence[Event]], Embedded]


@pytest.fixture
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Runtimes of their own, fed and at rest."""
    live: list[Embedded] = []

    def open_one(events: Sequence[Event]) -> Embedded:
        live.append(Embedded(tmp_path_factory.mktemp("live"), CONFIG, clock=lambda: NOW))
        live[-1].publish(events)
        live[-1].catch_up()
        live[-1].chain.rebuild(NOW)  # every vector at one tick
        return live[-1]

    yield open_one
    for one in live:
        one.close()


def event(name: str, signal: str, actor: str, target: str, time: int = NOW - DAY, item: str = "") -> Event:
    return Event(name, signal, actor, time, target=target, item=item)


def town(seed: int) -> list[Event]:
    """Follows, engagements of every kind, and some undos."""
    rng = Random(seed)
    events = []
    for number in range(260):
        actor, target = rng.sample(TOWN, 2)
        signal = rng.choice(["follow"] * 14 + ["like"] * 4 + sorted(PUBLIC | PRIVATE))
        item = rng.choice("abc")
        events.append(event(f"e{number}", signal, actor, target, NOW - rng.randrange(6 * DAY), item))
    return events


def is_about(e: Event, account: str, because: Because) -> bool:
    return e.actor == account and e.target == because.account and e.signal in PUBLIC


@pytest.mark.parametrize("seed", [0, 1])
def test_a_reason_is_what_would_be_without_the_deed(opened: Open, seed: int) -> None:
    events = town(seed)
    live = opened(events)
    checked = whole = 0
    for account in TOWN[:3]:
        answer = live.answer(Question(account, 20, explain="full"))
        excluded = live.chain.exclusions.of(account)
        for place, candidate in enumerate(answer.candidates[:FULLY], 1):
            found = live.why(account, candidate.account)
            assert found.because == candidate.because
            assert (found.rank, found.score) == (place, candidate.score)
            assert found.shown
            assert found.hidden is None
            changes = [because.score_change for because in found.because]
            assert changes == sorted(changes, reverse=True)
            assert all(changes)
        (first, *_) = answer.candidates
        for because in live.why(account, first.account, most=CONSIDERED).because:
            other = opened([e for e in events if not is_about(e, account, because)])
            rows = other.chain.inspect(account, NOW)
            vector = other.chain.model.encode_consumers(rows).vectors[0]
            index = live.chain.index
            assert np.float32(because.score) == index.scores(vector, [first.account])[0]
            order = index.query(vector, len(TOWN), exclude=excluded).ids
            assert because.rank == order.index(first.account) + 1
            assert because.score_change == first.score - because.score
            assert because.rank_change == because.rank - 1
            checked += 1
            if because.signals.keys() == {"follow"}:
                # Nobody else's vector has changed but that of whom it was about: the whole answers are equal.
                left_out = [because.account, *excluded]
                there = other.candidates(account, 20, exclude=left_out).candidates
                at = [one.account for one in there].index(first.account)
                assert (at + 1, there[at].score) == (because.rank, because.score)
                whole += 1
        live_events = [e for e in events if e.actor == account and e.signal in PUBLIC]
        for because in found.because:
            about = [e for e in live_events if e.target == because.account]
            assert because.newest in {e.time for e in about}
            assert set(because.signals) <= {e.signal for e in about}
    assert checked > 10
    assert whole > 2


def test_explaining_changes_nothing(opened: Open) -> None:
    live = opened(town(1))
    stores = [dict(p.store.scan(c, b"")) for p in live.engine.partitions for c in Column]
    short = {account: live.candidates(account, 20).candidates for account in TOWN}
    for account in TOWN:
        full = live.candidates(account, 20, explain="full").candidates
        assert [(c.account, c.score, c.reasons) for c in full] == [
            (c.account, c.score, c.reasons) for c in short[account]
        ]
        assert [c.because is not msgspec.UNSET for c in full] == [at < FULLY for at in range(len(full))]
    assert {account: live.candidates(account, 20).candidates for account in TOWN} == short
    assert [dict(p.store.scan(c, b"")) for p in live.engine.partitions for c in Column] == stores
    assert b"because" not in msgspec.json.encode(live.candidates("t00"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(soup())
def test_no_explanation_tells_anything_private(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event]
) -> None:
    crowd = [event(f"c{a}{b}", "follow", a, b, START) for a in ("dan", "eve") for b in ACCOUNTS if a != b]
    crowd += [event(f"d{a}", "follow", a, "dan", START) for a in ACCOUNTS[:2]]
    live = Embedded(tmp_path_factory.mktemp("live"), CONFIG, clock=lambda: NOW)
    live.publish([*crowd, *events])
    live.catch_up()
    edges = expected([*crowd, *events], NOW).edges
    for account in ACCOUNTS:
        unnamed = {
            b if a == account else a
            for a, signal, b, _ in edges
            if account in (a, b) and signal in ("mute", "block", "report")
        }
        answer = live.candidates(account, 20, explain="full")
        told = [live.why(account, candidate) for candidate in (*ACCOUNTS, "nobody")]
        for explanation in told:
            assert explanation.shown == (explanation.candidate in {c.account for c in answer.candidates})
            for because in explanation.because:
                assert because.account not in unnamed
                assert set(because.signals) <= PUBLIC
        for candidate in answer.candidates:
            if candidate.because is not msgspec.UNSET:
                assert not unnamed & {because.account for because in candidate.because}
            for name in unnamed:
                assert not any(name in reason.split() for reason in candidate.reasons)
        raw = msgspec.json.encode(told).decode()
        assert not any(f'"{signal}"' in raw for signal in PRIVATE)
    live.close()


def hidden(explanation: Explanation) -> str | None:
    assert not explanation.shown
    assert (explanation.rank, explanation.score, list(explanation.because)) == (None, None, [])
    assert explanation.considered == 0
    return explanation.hidden


def test_what_hides_an_account_is_told_in_words_that_give_nobody_away(opened: Open) -> None:
    crowd = [event(f"{a}{b}", "follow", a, b) for a in TOWN[8:] for b in TOWN[:8]]
    live = opened(
        [
            *crowd,
            event("f1", "follow", "t00", "t01"),
            event("f2", "follow", "t00", "t02"),
            event("b2", "block", "t02", "t00"),
            event("b3", "block", "t03", "t00"),
            event("m4", "mute", "t00", "t04"),
            event("r5", "report", "t05", "t00"),
            event("m6", "mute", "t00", "t06"),
            event("b6", "block", "t06", "t00"),
        ]
    )
    told = {name: hidden(live.why("t00", name)) for name in (*TOWN[:7], "nobody", "t15")}
    assert told == {
        "t00": "it is the account itself",
        "t01": "you follow it",
        "t02": "you follow it",
        "t03": "not a candidate",
        "t04": "not shown",
        "t05": "not a candidate",
        "t06": "not shown",
        "nobody": "not a candidate",
        "t15": "not a candidate",
    }
    shown = live.why("t00", "t07", most=CONSIDERED)
    assert shown.shown
    assert shown.considered == 1  # the follow of t01: the one who blocked is not named, nor anybody refused
    assert {because.account for because in shown.because} == {"t01"}
    blocked, unknown = live.why("t00", "t03"), live.why("t00", "nobody")
    assert msgspec.structs.replace(blocked, candidate="") == msgspec.structs.replace(unknown, candidate="")


def test_a_short_reason_names_nobody_who_blocked_either(opened: Open) -> None:
    """It may be followed all the same."""
    seen = [event("1", "follow", "ann", "bob"), event("2", "follow", "eve", "ann")]
    seen += [event("3", "follow", "cyd", "bob"), event("4", "follow", "eve", "cyd")]
    (candidate,) = opened(seen).candidates("eve", 1).candidates
    assert candidate.reasons == ("followed by ann and 1 more whom you follow",)
    (candidate,) = opened([*seen, event("5", "block", "ann", "eve")]).candidates("eve", 1).candidates
    assert candidate.reasons == ("followed by cyd whom you follow",)


def test_an_account_without_deeds_has_candidates_without_reasons(opened: Open) -> None:
    live = opened([event("f", "follow", "ann", "bob")])
    for account in ("new", "bob"):
        found = live.why(account, "bob" if account == "new" else "ann")
        assert list(found.because) == []
        assert found.considered == 0
    found = live.why("new", "bob")
    assert (found.shown, found.rank) == (True, 1)
    (candidate,) = live.candidates("new", explain="full").candidates
    assert list(candidate.because) == []


def test_the_newest_deeds_are_considered_and_the_most_carrying_told(opened: Open) -> None:
    events = [event(f"f{n}", "follow", "ann", f"x{n:03d}", NOW - DAY + n) for n in range(CONSIDERED + 20)]
    events += [event(f"o{n}", "follow", f"x{n:03d}", "bob") for n in range(30)]
    live = opened(events)
    every = live.why("ann", "bob", most=CONSIDERED)
    assert every.considered == CONSIDERED
    assert {because.account for because in every.because} <= {f"x{n:03d}" for n in range(20, CONSIDERED + 20)}
    assert len(every.because) > BECAUSES
    few = live.why("ann", "bob", most=2)
    assert few.because == every.because[:2]
    assert list(live.why("ann", "bob", most=0).because) == []
    assert len(live.why("ann", "bob").because) == BECAUSES
    (full,) = (c for c in live.candidates("ann", explain="full").candidates if c.account == "bob")
    assert full.because == every.because[:BECAUSES]
    (none,) = live.candidates("ann", explain="full", reasons=0, allow=["bob"]).candidates
    assert none.because is msgspec.UNSET


def test_ranks_of_a_question_are_among_those_it_allows(opened: Open) -> None:
    live = opened(town(0))
    every = [c.account for c in live.candidates("t00", 20).candidates]
    kept = every[1::2]
    full = live.candidates("t00", 20, allow=kept, explain="full").candidates
    assert [c.account for c in full] == kept
    for place, candidate in enumerate(full[:FULLY], 1):
        assert candidate.because is not msgspec.UNSET
        assert candidate.because
        for because in candidate.because:
            assert because.rank - because.rank_change == place
            assert because.rank <= len(kept)
    without = live.candidates("t00", 20, exclude=every[:1], explain="full").candidates
    assert all(b.rank - b.rank_change == 1 for b in without[0].because)


def test_an_account_that_is_being_deleted_is_not_named() -> None:
    """From when its partition knows, though the follows of it are still there."""
    engine = Engine([MemoryStore()], EngineConfig(), salt=bytes(16))
    log = [event("f", "follow", "ann", "bob"), event("g", "follow", "ann", "cyd")]
    log.append(Event("x", "account_delete", "bob", NOW))
    records = [Record(NOW, wire.encode(e)) for e in log]
    engine.apply(0, records[:2], 0)
    engine.exchange()
    thinking = Thinking(engine, Reader(engine, 8))
    assert {group.other for group in thinking.read("ann", NOW, ()).groups} == {"bob", "cyd"}
    engine.apply(0, records[2:], 2)
    assert [group.other for group in thinking.read("ann", NOW, ()).groups] == ["cyd"]
    assert thinking.read("ann", NOW, ("cyd",)).groups == []


def test_a_token_is_waited_for_and_what_cannot_be_answered_is_refused(opened: Open) -> None:
    live = opened([event("f", "follow", "ann", "bob"), event("g", "follow", "bob", "cyd")])
    token = live.publish([event("h", "follow", "dan", "bob")])
    assert hidden(live.why("dan", "bob", after=token)) == "you follow it"
    with pytest.raises(NotYet):
        live.why("dan", "bob", after="0:999")
    gone = Event("x", "account_delete", "bob", NOW)
    live.publish([gone, Event("y", "account_deactivate", "cyd", NOW)])
    live.catch_up()
    with pytest.raises(Unanswerable) as told:
        live.why("bob", "cyd")
    assert told.value.gone
    with pytest.raises(Unanswerable):
        live.why("cyd", "bob")
    assert hidden(live.why("dan", "bob")) == "not a candidate"
    assert hidden(live.why("dan", "cyd")) == "not a candidate"
    for account, candidate, most, says in (
        ("", "bob", 5, "account is ''"),
        ("ann", "a\0b", 5, "candidate is 'a"),
        ("ann", "b" * 129, 5, "candidate is 'bbb"),
        ("ann", "bob", -1, "most is -1, expected 0 to 64"),
        ("ann", "bob", 65, "most is 65"),
    ):
        with pytest.raises(ValueError, match=says):
            live.why(account, candidate, most=most)
    with pytest.raises(ValueError, match="explain is 'long', expected short or full"):
        live.candidates("ann", explain="long")  # type: ignore[arg-type]


def test_explanations_beside_a_folding_thread_are_of_one_state(tmp_path: Path) -> None:
    """Published in pairs that undo each other within one batch: no explanation sees half of one."""
    with Embedded(tmp_path, CONFIG, clock=lambda: NOW) as live:
        token = live.publish(town(2))
        live.start()
        want = live.why("t00", live.candidates("t00", 1, after=token).candidates[0].account)
        for number in range(60):
            pair = [event(f"p{number}", "follow", "t00", "t15", NOW - 5)]
            pair.append(Event(f"r{number}", "retract", "t00", NOW, retracts=f"p{number}"))
            token = live.publish(pair)
            found = live.why("t00", want.candidate)
            assert {b.account for b in found.because} <= {b.account for b in want.because} | {"t15"}
        found = live.why("t00", want.candidate, after=token)
        assert (found.because, found.rank, found.score) == (want.because, want.rank, want.score)
