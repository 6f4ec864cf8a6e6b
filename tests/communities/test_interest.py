from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.communities.interest import MOST, thresholded

COUNTS = st.dictionaries(st.integers(0, 200), st.integers(0, 2000), max_size=120)


@given(COUNTS)
def test_the_largest_powers_of_two_are_kept(counts: dict[int, int]) -> None:
    kept = thresholded(counts)
    t = {c: max(2**e for e in range(12) if 2**e <= k) for c, k in counts.items() if k >= 2}
    best = sorted(t, key=lambda c: (-t[c], c))[:MOST]
    assert kept == [(c, t[c]) for c in sorted(best)]


def test_one_followee_is_no_interest() -> None:
    assert thresholded({1: 1, 2: 0}) == thresholded({}) == []
    assert [t for _, t in thresholded({k: k for k in range(2, 10)})] == [2, 2, 4, 4, 4, 4, 8, 8]
