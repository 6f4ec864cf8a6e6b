"""What is asked is a function of the stream, and knows nothing of what comes later."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kithstream.streams import prequential
from kithstream.streams.evaluating.plan import SECOND, Plan, Sampling, plan
from kithstream.streams.events.record import Record

WINDOW = 5.0  # seconds
ENGAGING = ("follow", "like", "reply")
SAMPLING = Sampling(tests=50, others=4, window_seconds=WINDOW)
Steps = list[tuple[str, int, int, int]]

STEPS: st.SearchStrategy[Steps] = st.lists(
    st.tuples(
        st.sampled_from(["follow", "follow", "follow", "unfollow", "like", "block", "impression", "profile"]),
        st.integers(0, 5),
        st.integers(0, 5),
        st.integers(0, 3),  # seconds since the event before
    ),
    min_size=30,
    max_size=80,
)


def stream(steps: Steps) -> list[Record]:
    now, events = 0, []
    for number, (signal, actor, target, wait) in enumerate(steps):
        now += wait * SECOND
        event: Record = {"id": f"e{number}", "signal": signal, "actor": f"a{actor}", "time": now}
        if signal == "profile":
            event["language"] = ("en-US", "ja")[target % 2]
        elif actor == target:
            continue
        else:
            event["target"] = f"a{target}"
        if signal == "impression":
            event["item"] = f"slate{number // 3}"
        events.append(event)
    return events


def planned(events: list[Record], sampling: Sampling = SAMPLING) -> Plan | None:
    try:
        return plan(events, sampling)
    except ValueError:
        pairs = prequential.first_pairs(events)
        assert len(prequential.choose_tests(pairs)) == 0
        return None


def following(events: list[Record]) -> set[tuple[str, str]]:
    live: set[tuple[str, str]] = set()
    for event in events:
        if event["signal"] == "follow":
            live.add((event["actor"], event["target"]))
        if event["signal"] == "unfollow":
            live.discard((event["actor"], event["target"]))
    return live


@settings(max_examples=60)
@given(STEPS)
def test_a_follow_is_asked_with_what_was_told_before_it(steps: Steps) -> None:
    events = stream(steps)
    found = planned(events)
    if found is None:
        return
    names = found.accounts
    pairs = prequential.first_pairs(events)
    expected = prequential.choose_tests(pairs, 0, 50)
    assert [one.row for one in found.follows] == expected.tolist()
    for one in found.follows:
        told, own = events[: one.event], events[one.event]
        assert (own["actor"], own["target"]) == (names[one.asker], names[one.target])
        live = following(told)
        assert one.followers == sum(target == names[one.target] for _, target in live)
        met = {event["target"] for event in told if event["signal"] in ENGAGING}
        allowed = met - {target for actor, target in live if actor == names[one.asker]}
        allowed -= {names[one.asker], names[one.target]}
        others = [names[other] for other in one.others]
        assert len(set(others)) == len(others) <= 4
        assert set(others) <= allowed
        if len(met) <= 12:  # then the whole pool is drawn, and nobody who fits is passed over
            assert len(others) == min(4, len(allowed))
        named = [e["time"] for e in told if names[one.asker] in (e["actor"], e.get("target"))]
        assert one.age == own["time"] - named[0]


@settings(max_examples=60)
@given(STEPS)
def test_an_impression_is_engaged_with_inside_its_window_and_ignored_when_that_is_over(steps: Steps) -> None:
    events = stream(steps)
    found = planned(events)
    if found is None:
        return
    names, end = found.accounts, events[-1]["time"]
    border = int(found.pairs.event[prequential.border(found.pairs)])
    shown = [e for number, e in enumerate(events) if e["signal"] == "impression" and number >= border]
    newest: dict[tuple[str, str], int] = {}
    for event in shown:  # the first impression of an account counts, a slate ends with its last account's
        key = event["actor"], event["item"]
        first = next(e for e in shown if (e["actor"], e["item"], e["target"]) == (*key, event["target"]))
        newest[key] = max(newest.get(key, 0), first["time"])
    over = {key for key, time in newest.items() if time + WINDOW * SECOND <= end}
    assert found.unfinished == len(newest) - len(over)
    seen = set()
    for slate in found.slates:
        first_event = events[slate.event]
        key = first_event["actor"], first_event["item"]
        assert key in over
        seen.add(key)
        live = following(events[: slate.event])
        of_slate = {e["target"]: e["time"] for e in reversed(shown) if (e["actor"], e["item"]) == key}
        kept = {name for name in of_slate if (key[0], name) not in live}
        assert {names[account] for account in slate.shown} == kept
        for account, engaged in zip(slate.shown, slate.engaged, strict=True):
            since = of_slate[names[account]]
            assert engaged == any(
                e["signal"] in ENGAGING
                and (e["actor"], e["target"]) == (key[0], names[account])
                and since <= e["time"] <= since + WINDOW * SECOND
                for e in events
            )
    assert seen <= over


def test_a_plan_can_be_made_again_and_another_seed_asks_others() -> None:
    draw = np.random.default_rng(0)
    steps = [("follow", int(a), int(b), 1) for a, b in draw.integers(0, 40, (600, 2))]
    events = stream(steps)
    first, again = (planned(events, Sampling(tests=10)) for _ in range(2))
    other = planned(events, Sampling(tests=10, seed=1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.follows == again.follows
    assert first.follows != other.follows
    later = [*events, *stream([("like", 1, 2, 9)])]
    grown = planned(later, Sampling(tests=10))
    assert grown is not None
    assert grown.follows == first.follows  # what comes after the last question has no say


def test_languages_are_told_by_profiles_and_only_the_primary_tag_counts() -> None:
    steps = [("profile", 0, 0, 0), ("profile", 1, 1, 0), ("profile", 2, 0, 0)]
    steps += [("follow", a, b, 1) for a in range(4) for b in range(4)] * 2
    found = planned(stream([*steps, ("follow", 4, 0, 1), ("follow", 0, 4, 1)]), Sampling(tests=1))
    # Nobody followed or was followed before: the last fifth holds accounts that are known on both sides.
    assert found is not None
    language = dict(zip(found.accounts, found.language.tolist(), strict=True))
    assert language["a0"] == language["a2"] != language["a1"]
    assert language["a3"] == -1


@pytest.mark.parametrize(
    "wrong", [{"ks": ()}, {"ks": (0,)}, {"ks": (1001,)}, {"tests": 0}, {"others": 0}, {"window_seconds": 0.0}]
)
def test_what_cannot_be_sampled_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_a_stream_without_questions_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="0 first follows and none to ask for"):
        plan([], SAMPLING)
