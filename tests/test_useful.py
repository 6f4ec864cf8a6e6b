"""When a model has become useful, and whom that is asked about."""

from __future__ import annotations

import numpy as np
from bench.useful import chosen, useful_from
from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.prequential import Pairs

ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60, unique=True)


@given(ROWS, st.integers(1, 5), st.integers(1, 9))
def test_only_follows_between_accounts_that_came_up_before_are_asked(
    rows: list[tuple[int, int]], windows: int, most: int
) -> None:
    source, target = np.array(rows, np.int64).T.copy()
    at = np.arange(len(rows))
    parts = chosen(Pairs(source, target, at, at, [str(n) for n in range(7)]), windows, most, 0)
    assert len(parts) == windows
    asked = np.concatenate(parts).tolist()
    assert asked == sorted(set(asked))
    for row in asked:
        seen = {account for pair in rows[:row] for account in pair}
        assert set(rows[row]) <= seen
    if most == 9 and windows == 5 and len(rows) <= 45:  # nobody is left out then
        every = [r for r, pair in enumerate(rows) if set(pair) <= {a for p in rows[:r] for a in p}]
        assert asked == every


def test_useful_is_what_stays_above_the_rule() -> None:
    won = [np.array(part, np.float64) for part in ([1, 0], [0, 0], [1, 1], [1, 0])]
    rule = [np.array(part, np.float64) for part in ([0, 0], [1, 1], [1, 0], [0, 0])]
    assert useful_from(won, rule) == 0  # ahead in the first window, and in all of the rest together
    assert useful_from(won[1:], rule[1:]) == 1
    assert useful_from(won[1:2], rule[1:2]) is None
