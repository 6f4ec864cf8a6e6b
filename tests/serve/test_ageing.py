"""Whose vector is due because time has passed: alike in one process and in those that take over from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.serve.ageing import Ageing

NAMES = ["a", "b", "c"]
TICKS = 60


@given(
    st.lists(st.tuples(st.integers(0, TICKS), st.sampled_from(NAMES)), min_size=1),
    st.integers(0, TICKS),
    st.sampled_from([1.5, 2.0, 3.0]),
)
def test_who_takes_over_goes_on_as_the_other_would_have(
    changes: list[tuple[int, str]], until: int, ratio: float
) -> None:
    one, other = Ageing(ratio), Ageing(ratio)
    newest: dict[str, int] = {}
    for tick in range(TICKS * 8):
        changed = {name for at, name in changes if at == tick and tick <= until}
        due = one.due(tick, len(NAMES))
        one.encoded([name for name in due if name not in changed], [0] * len(set(due) - changed), tick)
        one.changed(sorted(changed), tick)
        newest |= dict.fromkeys(changed, tick)
        if tick == until:
            other.resume(newest, tick)
        if tick > until:
            taken = other.due(tick, len(NAMES))
            assert sorted(taken) == sorted(due)
            other.encoded(taken, [0] * len(taken), tick)


def test_what_was_taken_over_without_knowing_is_due_at_once_and_then_by_its_newest_event() -> None:
    ageing = Ageing(2.0)
    ageing.adopt(["old", "new"], 1000)
    assert set(ageing) == {"old", "new"}
    assert sorted(ageing.due(1000, 9)) == ["new", "old"]
    ageing.encoded(["old", "new"], [0, 1000], 1000)
    assert [ageing.due(tick, 9) for tick in (1001, 1023)] == [["new"], []]
    assert ageing.due(1024, 9) == ["old"]


def test_who_is_known_and_due_once_more_keeps_its_age() -> None:
    ageing = Ageing(2.0)
    ageing.changed(["a"], 0)
    ageing.adopt(["a"], 100)
    assert ageing.due(100, 9) == ["a"]
    ageing.encoded(["a"], [100], 100)
    assert ageing.due(127, 9) == []
    assert ageing.due(128, 9) == ["a"]
