"""A graph is searched as broadly as the recall that is wanted takes, and not at all where a scan costs less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kithstream.index.breadth import COMPARED, DEPTH, Breadth
from kithstream.index.config import IndexConfig
from kithstream.index.live import LiveIndex

N, DIM = 4000, 24
# As few neighbours as are wanted, of a sparse graph: it misses some of the best.
NARROW = {"links": 6, "ef": 10, "overfetch": 1.0, "exact_rows": 0, "rebuild_process": False}


@pytest.fixture(scope="module")
def rows() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)


def filled(rows, **settings) -> LiveIndex:
    index = LiveIndex(IndexConfig(dim=DIM, **NARROW | settings))
    index.upsert([str(n) for n in range(N)], rows)
    index.merge()
    return index


def recall(index: LiveIndex, queries) -> float:
    shares = []
    for query in queries:
        true = index.scan(query, DEPTH).ids
        shares.append(len(set(index.query(query, DEPTH).ids) & set(true)) / DEPTH)
    return float(np.mean(shares))


def test_a_graph_that_misses_some_is_asked_for_more(rows, rng):
    asked = rows[rng.choice(N, 100, replace=False)]
    plain = filled(rows, rows_per_fetch=0, recall_wanted=0.0)
    assert plain.stats().breadth == 1.0
    assert recall(plain, asked) < 0.97
    broad = filled(rows, rows_per_fetch=0)
    assert 1.0 < broad.stats().breadth < 8.0  # far from all of it
    assert broad.query(asked[0], DEPTH).plan == "graph"
    assert recall(broad, asked) > 0.985


def test_where_a_scan_costs_less_than_what_recall_takes_it_is_the_plan(rows):
    index = filled(rows, rows_per_fetch=10)  # 400 neighbours cost as much as all rows
    assert index.query(rows[0], DEPTH).plan == "exact"
    assert filled(rows, rows_per_fetch=10, recall_wanted=0.0).query(rows[0], DEPTH).plan == "graph"


def test_questions_that_were_compared_teach_it(rows):
    index = filled(rows, rows_per_fetch=0)
    index._breadth.reset()  # as if the vectors of those that ask were unlike the stored ones
    for number in range(COMPARED):
        assert index.stats().breadth == 1.0
        share = index.compare(rows[number], DEPTH, exclude=[str(number)])
        assert share is not None
        assert share < 0.99
    assert index.stats().breadth == 2.0
    assert index.compare(rows[0], 5, allow=[]) is None


def test_another_graph_begins_anew_and_a_restored_one_is_as_broad(rows, tmp_path):
    index = filled(rows, rows_per_fetch=0)
    needed = index.stats().breadth
    index._breadth.times = 64.0
    index.rebuild()
    assert index.stats().breadth == needed
    index.save(tmp_path, {})
    restored, _ = LiveIndex.restore(tmp_path, index.config)
    assert restored.stats().breadth == needed


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from((1.0, 2.0, 4.0)))))
def test_it_doubles_after_so_many_answers_of_its_own_breadth_that_find_too_little(told):
    breadth, times, shares = Breadth(0.9), 1.0, []
    for share, of in told:
        breadth.found(share, of)
        if of == times:
            shares = [*shares, share][-COMPARED:]
            if len(shares) == COMPARED and sum(shares) < COMPARED * 0.9:
                times, shares = 2 * times, []
        assert breadth.times == times
