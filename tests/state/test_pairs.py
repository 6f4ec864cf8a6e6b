from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.state import pairs

CHANGES = st.lists(st.tuples(st.integers(0, 1439), st.integers(1, 3)), max_size=30)


@given(CHANGES, st.integers(1, 12))
def test_the_first_few_count(changes: list[tuple[int, int]], cap: int) -> None:
    times = sorted(minute for minute, by in changes for _ in range(by))
    counted = pairs.counted(pairs.moved({}, changes), cap)
    assert [m for m, count in counted.items() for _ in range(count)] == times[:cap]


@given(CHANGES, st.randoms(use_true_random=False))
def test_undo_and_any_order_leave_the_same_bytes(changes: list[tuple[int, int]], rng: object) -> None:
    extra = [(minute, by) for minute, by in changes[::2]]
    soup = [*changes, *extra, *((minute, -by) for minute, by in extra)]
    rng.shuffle(soup)  # type: ignore[attr-defined]  # random.Random
    assert pairs.dump(pairs.moved({}, soup)) == pairs.dump(pairs.moved({}, changes))


@given(CHANGES)
def test_bytes_round_trip(changes: list[tuple[int, int]]) -> None:
    minutes = pairs.moved({}, changes)
    assert pairs.load(pairs.dump(minutes)) == minutes
    assert (pairs.dump(minutes) is None) == (not minutes)


@given(st.integers(0, 1439))
def test_the_first_event_of_a_pair_is_the_list_of_one(minute: int) -> None:
    assert pairs.first(minute) == pairs.dump(pairs.moved({}, [(minute, 1)]))
