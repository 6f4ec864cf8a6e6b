"""The lists of an actor's newest, and the caps on what it adds to a target: where soups are too small to reach."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from promises import agree, held
from soup import DAY, START

from kithstream.streams.config import EngineConfig
from kithstream.streams.engine.engine import Engine, Record
from kithstream.streams.events import wire
from kithstream.streams.events.signals import BY_NAME
from kithstream.streams.events.wire import Event
from kithstream.streams.state.memory import MemoryStore

MINUTE = 60_000_000


def run(events: Sequence[Event], batch: int = 16, stores: Sequence[MemoryStore] | None = None) -> Engine:
    engine = Engine(stores or [MemoryStore() for _ in range(3)], EngineConfig(job_edges=2), salt=bytes(16))
    logs: list[list[Record]] = [[] for _ in engine.partitions]
    for e in events:
        logs[engine.route[e.actor]].append(Record(START + 400 * DAY, wire.encode(e)))
    for number, log in enumerate(logs):
        for first in range(0, len(log), batch):
            assert not engine.apply(number, log[first : first + batch], first).dead
    engine.settle()
    return engine


def event(number: int, signal: str, minute: int, target: str = "bob", item: str = "") -> Event:
    return Event(f"{signal}{number}", signal, "ann", START + minute * MINUTE, target=target, item=item)


_DOES = st.tuples(
    st.sampled_from(("like", "like", "unlike", "reply", "mute", "unmute", "impression", "not_interested")),
    st.integers(0, 40),  # target
    st.integers(0, 5 * 1440),  # minute
)


@settings(max_examples=60)
@given(st.lists(_DOES, min_size=60, max_size=200), st.integers(1, 40))
def test_a_busy_actor_and_what_it_takes_back(does: list[tuple[str, int, int]], batch: int) -> None:
    events = [
        event(n, signal, minute, f"t{target}", f"i{target}")
        for n, (signal, target, minute) in enumerate(does)
    ]
    # The last third is taken back, newest first: lists are made again from the ledgers.
    events += [
        Event(f"r{n}", "retract", "ann", START + 5 * DAY, retracts=e.id)
        for n, e in enumerate(reversed(events[len(events) // 3 :]))
    ]
    agree(run(events, batch), events)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=60), st.integers(1, 20))
def test_one_actor_adds_the_first_few_of_a_day_and_no_more(does: list[tuple[int, bool]], batch: int) -> None:
    cap = BY_NAME["like"].cap
    events = [
        event(n, "unlike" if undo else "like", n, item=f"i{item}") for n, (item, undo) in enumerate(does)
    ]
    engine = run(events, batch)
    agree(engine, events)
    present = sum(1 for _, family, _, _ in held(engine).edges if family == "like")
    assert held(engine).rows_in.get("bob", {}).get(("like", "total", 0), 0) == min(present, cap)


def test_undoing_likes_of_long_ago_lets_others_of_that_day_count() -> None:
    likes = [event(n, "like", n, item=f"i{n}") for n in range(15)]
    later = START // MINUTE * MINUTE + 30 * DAY
    undone = [
        Event(f"u{n}", "unlike", "ann", later + n * MINUTE, target="bob", item=f"i{n}")
        for n in range(0, 8, 2)
    ]
    events = [*likes, Event("f", "follow", "eve", later, target="bob"), *undone]
    engine = run(events)
    agree(engine, events)
    assert held(engine).rows_in["bob"]["like", "total", 0] == 10  # 15 likes, 4 taken back, 10 count


def test_a_thousand_follows_and_unfollows_of_one_hand_count_as_two() -> None:
    events = [event(n, "unfollow" if n % 2 else "follow", n // 2) for n in range(1000)]  # on one day
    row = held(run(events, 100)).rows_in["bob"]
    assert ("follow", "total", 0) not in row
    assert row["unfollow", "total", 0] == BY_NAME["unfollow"].cap
