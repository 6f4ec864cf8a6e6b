"""A stale answer knows what was published until then, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bench.freshness_value import DELAYS, Found, K, ask_stale, drawn, followed_by, moments, told
from hypothesis import given
from hypothesis import strategies as st

from kithstream.models.evaluate import recall_at
from kithstream.streams import prequential
from kithstream.streams.clock import StreamClock
from kithstream.streams.config import Config, EngineConfig, IndexSection
from kithstream.streams.events.record import Record
from kithstream.streams.serve.embedded import Embedded

SECOND = 1_000_000


def follows(rows: list[tuple[int, int, int]]) -> list[Record]:
    return [
        {"id": f"e{n}", "signal": "follow", "actor": f"a{a}", "target": f"a{b}", "time": time * SECOND}
        for n, (a, b, time) in enumerate(rows)
        if a != b
    ]


STREAMS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 30)), min_size=5, max_size=60
)


@given(STREAMS, st.lists(st.integers(0, 20), min_size=1, max_size=3))
def test_a_question_is_asked_when_all_older_events_are_told_and_no_newer_one(
    rows: list[tuple[int, int, int]], delays: list[int]
) -> None:
    events = follows(rows)  # their times jump, as those of late events do
    known = prequential.first_pairs(events)
    tests = np.arange(len(known.source))
    now = 0
    newest = [now := max(now, event["time"]) for event in events]
    asked = moments(events, known, tests, delays)
    assert sum(map(len, asked.values())) == len(tests) * len(delays)
    for event, questions in asked.items():
        for one in questions:
            own = int(known.event[one.test])
            assert one.as_of == newest[own] - delays[one.delay] * SECOND
            assert event <= own
            assert all(time <= one.as_of for time in newest[:event])
            if delays[one.delay] == 0:
                assert event == own
            else:
                assert newest[event] > one.as_of or event == own


def test_whom_an_account_followed_is_known_to_the_moment() -> None:
    events = follows([(0, 1, 0), (0, 2, 1), (1, 0, 2), (0, 3, 3)])
    known = prequential.first_pairs(events)
    assert followed_by(known, np.array([1, 3])) == [{"a1"}, {"a1", "a2"}]


def test_a_follow_back_is_foreseen_by_a_fresh_chain_alone(tmp_path: Path) -> None:
    """Everybody follows back 100 s after being followed by a stranger: who does not know that yet cannot say who."""
    draw = np.random.default_rng(0)
    rows, seen = [], set()
    for step in range(250):
        a, b = draw.choice(80, 2, replace=False).tolist()
        if (a, b) in seen or (b, a) in seen:
            continue
        seen.add((a, b))
        rows += [(a, b, 1_600_000_000 + 50 * step), (b, a, 1_600_000_100 + 50 * step)]
    events = follows(sorted(rows, key=lambda row: row[2]))
    known = prequential.first_pairs(events)
    back = {(int(a), int(b)): row for row, (a, b) in enumerate(zip(known.source, known.target, strict=True))}
    tests = prequential.choose_tests(known)
    answering = [
        n
        for n, row in enumerate(tests)
        if back.get((int(known.target[row]), int(known.source[row])), row) < row
    ]
    clock = StreamClock()
    config = Config(engine=EngineConfig(partitions=1), index=IndexSection(background=False))
    with Embedded(tmp_path, config, clock=clock) as live:
        found = ask_stale(live, clock, events, tests, known, (0, 60, 120))
    fresh, later, late = recall_at(found.fresh[answering], 1).mean(0)
    assert min(fresh, later) > 0.9  # whoever is a minute late knows of the follow, 100 s before
    assert late < 0.2
    # A list that does not know the newest follows spends places on them.
    assert (recall_at(found.stale, K) <= recall_at(found.fresh, K)).all()
    assert np.array_equal(found.stale[:, 0], found.fresh[:, 0])


def test_results_are_paired_with_those_without_delay_and_drawn() -> None:
    fresh = np.tile([0, 0, 3, -1, -1, -1], (40, 1))
    fresh[:20, 2] = -1
    lines = told("college", Found(fresh, fresh), DELAYS, 0)
    assert [line["change"][0] for line in lines] == [0, 0, -0.5, -1, -1, -1]  # type: ignore[index]
    assert lines[2]["recall@20"][0] == 0.5  # type: ignore[index]
    text = drawn(lines)
    assert text.startswith("<svg")
    assert text.count("<circle") == 6
