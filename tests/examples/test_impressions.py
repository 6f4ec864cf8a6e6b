"""When an impression is closed, and as what: against a definition that remembers everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.models.worlds import some_rows

from kithstream.models.features import consumer_features, producer_features
from kithstream.models.ids import IdVectors
from kithstream.streams.examples.impressions import Block, Closed, Engagement, Impressions, Shown, block_of

WINDOW = 10
IDS = IdVectors(0, 0, 0, 0.0)
ROWS = some_rows(6)
BLOCK = Block(consumer_features(ROWS, IDS), producer_features(ROWS, IDS), [True, False] * 3)


class Poll(NamedTuple):
    shown: list[tuple[int, int, int]]  # time, actor, target
    engaged: list[tuple[int, int, int]]


times, accounts = st.integers(0, 60), st.integers(0, 1)
deeds = st.lists(st.tuples(times, accounts, accounts), max_size=6)
polls = st.lists(st.builds(Poll, deeds, deeds), max_size=6)


def shown_of(poll: Poll, number: int) -> list[Shown]:
    return [
        Shown(time, 100 * number + at, f"a{actor}", f"t{target}", f"i{number}-{at}", BLOCK, at)
        for at, (time, actor, target) in enumerate(poll.shown)
    ]


def engaged_of(poll: Poll, number: int) -> list[Engagement]:
    return [
        Engagement(time, 100 * number + 50 + at, f"a{actor}", f"t{target}", "like")
        for at, (time, actor, target) in enumerate(poll.engaged)
    ]


def told(closed: Sequence[Closed]) -> list[tuple[str, str]]:
    return [(one.shown.id, one.signal) for one in closed]


def run(impressions: Impressions, polls: Sequence[Poll], turn: int = 1) -> list[list[tuple[str, str]]]:
    """What each poll closes; `turn` is the order within it."""
    watermark, found = 0, []
    for number, poll in enumerate(polls):
        before = watermark
        watermark = max([watermark, *(at for at, _, _ in (*poll.shown, *poll.engaged))])
        closed = impressions.poll(
            shown_of(poll, number)[::turn], engaged_of(poll, number)[::turn], (), before, watermark
        )
        found.append(told(closed))
    return found


@given(polls)
def test_what_is_closed_is_what_the_definition_says(polls: list[Poll]) -> None:
    impressions, watermark = Impressions(WINDOW, 1000), 0
    waiting: list[Shown] = []
    engaged: list[Engagement] = []
    late = 0
    for number, (poll, found) in enumerate(zip(polls, run(impressions, polls), strict=True)):
        came = shown_of(poll, number)
        late += sum(one.time < watermark - WINDOW for one in came)
        waiting += [one for one in came if one.time >= watermark - WINDOW]
        engaged += engaged_of(poll, number)
        watermark = max([watermark, *(at for at, _, _ in (*poll.shown, *poll.engaged))])
        closed = []
        for one in sorted(waiting, key=lambda s: (s.time, s.offset)):
            about = [e for e in engaged if (e.actor, e.target) == (one.actor, one.target)]
            if any(one.time <= e.time <= one.time + WINDOW for e in about):
                closed.append((one.id, "like"))
            elif one.time + WINDOW < watermark:
                closed.append((one.id, ""))
        gone = {event_id for event_id, _ in closed}
        waiting = [one for one in waiting if one.id not in gone]
        assert found == closed
    assert impressions.late == late
    assert {one.id for one in impressions.waiting()} == {one.id for one in waiting}
    assert all(one.time >= watermark - WINDOW for one in impressions.engagements())  # bounded


@given(polls)
def test_the_order_within_a_poll_does_not_matter(polls: list[Poll]) -> None:
    assert run(Impressions(WINDOW, 1000), polls) == run(Impressions(WINDOW, 1000), polls, turn=-1)


@given(polls, st.integers(0, 6))
def test_what_is_restored_goes_on_alike(polls: list[Poll], cut: int) -> None:
    whole = Impressions(WINDOW, 3)
    expected = run(whole, polls)
    first, second = Impressions(WINDOW, 3), Impressions(WINDOW, 3)
    watermark, found = 0, []
    for number, poll in enumerate(polls):
        if number == cut:
            waiting = first.waiting()
            block = block_of(waiting) if waiting else BLOCK
            moved = [one._replace(block=block, place=at) for at, one in enumerate(waiting)]
            second.restore(moved, first.engagements(), first.counts)
            first = second
        before = watermark
        watermark = max([watermark, *(at for at, _, _ in (*poll.shown, *poll.engaged))])
        found.append(
            told(first.poll(shown_of(poll, number), engaged_of(poll, number), (), before, watermark))
        )
    assert found == expected
    assert first.counts == whole.counts


def test_what_is_beyond_the_bound_is_dropped_and_counted() -> None:
    impressions = Impressions(WINDOW, 2)
    poll = Poll([(1, 0, 0), (3, 0, 1), (2, 1, 0)], [])
    assert run(impressions, [poll]) == [[]]
    assert [one.time for one in impressions.waiting()] == [2, 3]
    assert impressions.counts == (1, 0, 0, 0)
    run(impressions, [Poll([], [(4, 0, 0)] * 5)])
    assert len(impressions.engagements()) == 2
    assert impressions.unremembered == 3


def test_a_retracted_impression_is_not_closed_and_one_told_twice_counts_once() -> None:
    impressions = Impressions(WINDOW, 10)
    shown = shown_of(Poll([(1, 0, 0), (2, 0, 1)], []), 0)
    impressions.poll(shown, (), (), 0, 2)
    impressions.poll(shown[1:], (), {("a0", "i0-0"), ("a1", "i0-1")}, 2, 2)
    assert impressions.retracted == 1
    closed = impressions.poll((), (), (), 2, 50)
    assert told(closed) == [("i0-1", "")]
    assert not len(impressions)


def test_features_are_those_of_the_impression_and_do_not_name_the_deleted() -> None:
    impressions = Impressions(WINDOW, 10)
    rows = some_rows(6, seed=1)
    block = Block(consumer_features(rows, IDS), producer_features(rows, IDS), [True] * 6)
    shown = [one._replace(block=block) for one in shown_of(Poll([(1, 0, 0), (2, 1, 1), (3, 0, 1)], []), 0)]
    impressions.poll(shown, (), (), 0, 3)
    gone = sorted(set(block.consumers.followers[1].tolist()) - {0})
    impressions.forget(["t0"], gone)
    (first, second) = impressions.poll((), (), (), 3, 50)
    assert [one.shown.id for one in (first, second)] == ["i0-1", "i0-2"]
    found = block_of([first.shown, second.shown])
    np.testing.assert_array_equal(found.consumers.psi, block.consumers.psi[1:3])
    assert gone
    assert not np.isin(found.consumers.followers, gone).any()
