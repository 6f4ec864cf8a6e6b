from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.state import sketches

CHANGES = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from("abcde"), st.sampled_from([1, -1])), max_size=20
)


def slow(stored: list[bytes | None], changes: list[tuple[int, str, int]]) -> list[bytes]:
    """The twin of `fold`: one vector after the other."""
    totals = [np.frombuffer(one, np.int64).copy() if one else np.zeros(16, np.int64) for one in stored]
    for place, account, by in changes:
        totals[place] += sketches.vector(account) * by
    return [total.tobytes() if total.any() else b"" for total in totals]


@given(CHANGES, CHANGES)
def test_sums_are_those_of_one_vector_after_the_other(
    before: list[tuple[int, str, int]], changes: list[tuple[int, str, int]]
) -> None:
    nothing: list[bytes | None] = [None] * 4
    stored: list[bytes | None] = [one or None for one in slow(nothing, before)]
    assert sketches.fold(stored, changes) == slow(stored, changes)


@given(CHANGES)
def test_taking_out_what_was_added_leaves_nothing(changes: list[tuple[int, str, int]]) -> None:
    undone = [(place, account, -by) for place, account, by in reversed(changes)]
    assert sketches.fold([None] * 4, [*changes, *undone]) == [b""] * 4
    assert sketches.fold(list[bytes | None](sketches.fold([None] * 4, changes)), undone) == [b""] * 4
