"""What lies between an asker and whom it follows next."""

from __future__ import annotations

import numpy as np
from bench.paths import PARTS, distances
from hypothesis import given
from hypothesis import strategies as st

from kithstream.streams.prequential import Pairs

ROWS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=40, unique=True)


@given(ROWS, st.data())
def test_parts_are_told_by_what_came_before(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    source, target = np.array(rows, np.int64).T.copy()
    at = np.arange(len(rows))
    known = Pairs(source, target, at, at, [str(n) for n in range(8)])
    tests = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    for row, part in zip(tests.tolist(), distances(known, tests).tolist(), strict=True):
        (asker, other), before = rows[row], rows[:row]
        if (other, asker) in before:
            assert PARTS[part] == "follows back"
            continue
        near = [{b if a == who else a for a, b in before if who in (a, b)} for who in (asker, other)]
        assert PARTS[part] == ("two steps" if near[0] & near[1] else "far")
