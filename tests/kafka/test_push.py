"""The order and the pace of pushes, without a broker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.kafka import push
from kithstream.streams.kafka.push import Pushes


def test_urgent_ones_come_first_and_each_in_its_order() -> None:
    pushes = Pushes(30.0, 100.0)
    pushes.take(0.0, 0)
    pushes.changed(["a", "b"], ["x"], 1.0)
    pushes.changed(["c"], ["b"], 1.0)
    assert pushes.take(2.0, 10) == ["x", "b", "a", "c"]
    assert pushes.take(3.0, 10) == []


def test_an_account_waits_for_its_turn_however_urgent() -> None:
    pushes = Pushes(30.0, 100.0)
    pushes.changed(["a"], [], 0.0)
    assert pushes.take(0.0, 10) == ["a"]
    pushes.changed(["a"], ["a"], 1.0)
    assert pushes.take(29.9, 10) == []
    assert pushes.take(30.0, 10) == ["a"]


def test_the_rate_bounds_all_together_and_nothing_is_forgotten() -> None:
    pushes = Pushes(0.0, 2.0)
    pushes.changed([f"u{number}" for number in range(10)], [], 0.0)
    assert pushes.take(0.0, 100) == ["u0"]
    assert pushes.take(1.0, 100) == ["u1", "u2"]
    assert pushes.take(100.0, 100) == ["u3", "u4"]  # room does not pile up
    assert len(pushes) == 5


def test_while_questions_are_answered_urgent_ones_alone_are_taken_and_one_other_a_second() -> None:
    pushes = Pushes(0.0, 100.0)
    pushes.take(0.0, 0)
    pushes.changed(["a", "b", "c", "d"], ["x"], 1.0)
    assert pushes.take(2.0, 10, busy=True) == ["x", "a"]
    assert pushes.take(2.9, 10, busy=True) == []
    pushes.changed([], ["y"], 2.9)
    assert pushes.take(2.9, 10, busy=True) == ["y"]
    assert pushes.take(3.0, 10, busy=True) == ["b"]
    assert pushes.take(3.1, 10) == ["c", "d"]


def test_no_rate_pushes_nothing() -> None:
    pushes = Pushes(1.0, 0.0)
    pushes.changed(["a"], ["b"], 0.0)
    assert pushes.take(10.0, 10) == []
    assert len(pushes) == 0


def test_beyond_its_bound_only_urgent_ones_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "WAITING", 2)
    pushes = Pushes(1.0, 100.0)
    pushes.changed(["a", "b", "c"], [], 0.0)
    pushes.changed([], ["d"], 0.0)
    assert pushes.passed_over == 1
    pushes.take(0.0, 0)
    assert pushes.take(1.0, 10) == ["d", "a", "b"]


def test_settings_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="rate is -1"):
        Pushes(1.0, -1)


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.lists(st.sampled_from("abcdef")), st.lists(st.sampled_from("abcdef")))
    )
)
def test_nobody_is_pushed_too_often_and_everybody_in_the_end(
    steps: list[tuple[float, list[str], list[str]]],
) -> None:
    pushes = Pushes(7.0, 1.5)
    now, last, wanted, taken = 0.0, {}, set(), []
    for passed, accounts, urgent in steps:
        now += passed
        pushes.changed(accounts, urgent, now)
        wanted |= {*accounts, *urgent}
        for account in pushes.take(now, 3):
            assert now - last.get(account, -7.0) >= 7.0
            last[account] = now
            taken.append(now)
            wanted.discard(account)
    assert len(taken) <= 1.5 * now + 1.5 + 1
    for _ in range(20):
        now += 7.0
        wanted -= set(pushes.take(now, 100))
    assert not wanted
    assert len(pushes) == 0
