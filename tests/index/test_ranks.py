"""Where ids stand, against the order of a whole answer; and beside a writer."""

from __future__ import annotations

import numpy as np
import pytest

from kithstream.index.exact import ExactIndex

NAMES = [f"account-{number:03d}" for number in range(80)]


@pytest.fixture
def filled(make, rng):
    """Every fifth vector is a copy of the one before, so that scores tie."""
    index = make(16)
    vectors = rng.normal(size=(80, 16)).astype(np.float32)
    vectors[4::5] = vectors[3::5]
    index.upsert(NAMES, vectors, labels=np.arange(80, dtype=np.int32) % 3)
    index.delete(NAMES[70:75])
    return index


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"exclude": [*NAMES[::7], "nobody"]},
        {"allow": [*NAMES[::2], "nobody"], "exclude": NAMES[::6]},
        {"labels": [0, 2]},
        {"allow": []},
    ],
)
def test_a_rank_is_the_place_in_the_order_of_answers(filled, rng, limits):
    queries = rng.normal(size=(3, 16)).astype(np.float32)
    pairs = [(at, name) for at in range(3) for name in NAMES[::3]]
    found = filled.ranks(queries, pairs, **limits)
    for (at, name), score, rank in zip(pairs, found.scores, found.ranks, strict=True):
        if name not in filled:
            assert np.isnan(score)
            assert rank == 0
            continue
        assert score == filled.scores(queries[at], [name])[0]
        every = filled.query(queries[at], 80, **limits)
        before = [
            other
            for other, theirs in zip(every.ids, every.scores, strict=True)
            if (-theirs, other) < (-score, name)
        ]
        assert rank == len(before) + 1
        if name in every.ids:
            assert rank == every.ids.index(name) + 1


def test_ties_are_counted_by_their_ids_alone(make):
    index = make(2)
    index.upsert(NAMES[::-1], np.ones((80, 2), np.float32))
    found = index.ranks(np.ones((1, 2), np.float32), [(0, name) for name in NAMES])
    assert found.ranks.tolist() == list(range(1, 81))


def test_nothing_is_ranked_in_an_empty_index(make):
    found = make(2).ranks(np.ones((1, 2), np.float32), [(0, "a")])
    assert (found.ranks.tolist(), np.isnan(found.scores).tolist()) == ([0], [True])
    assert make(2).ranks(np.ones((0, 2), np.float32), []).ranks.tolist() == []


def test_bad_pairs_and_vectors_are_refused(make):
    index = make(2)
    with pytest.raises(ValueError, match="of vector 1, there are 1"):
        index.ranks(np.ones((1, 2), np.float32), [(1, "a")])
    with pytest.raises(ValueError, match="dim is 2, the vector has 3"):
        index.ranks(np.ones((1, 3), np.float32), [(0, "a")])


class Meddler(list):
    """Accounts to exclude; whoever reads them, in the middle of a pass, finds the index written to."""

    def __init__(self, names, index, write, times):
        super().__init__(names)
        self._index, self._write, self._left = index, write, times

    def __iter__(self):
        if self._left and not self._index._table.lock._is_owned():
            self._left -= 1
            self._write(self._left)
        return super().__iter__()


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("itself", [False, True])
def test_what_changes_during_the_pass_is_counted_again(rng, times, itself):
    """Others' rows, rows born and deleted, and the ranked id itself."""
    index = ExactIndex(4)
    index.upsert(NAMES, rng.normal(size=(80, 4)).astype(np.float32))

    def write(left):
        names = [str(name) for name in rng.choice(NAMES[10:], 20, replace=False)]
        index.upsert([*names, f"born-{left}"], rng.normal(size=(21, 4)).astype(np.float32))
        index.delete(NAMES[left : left + 1])
        if itself:
            index.upsert(["account-009"], rng.normal(size=(1, 4)).astype(np.float32))

    query = rng.normal(size=(1, 4)).astype(np.float32)
    excluded = Meddler(NAMES[20:25], index, write, times)
    found = index.ranks(query, [(0, "account-009"), (0, "account-008")], exclude=excluded)
    every = index.query(query[0], 200, exclude=NAMES[20:25])
    assert any(name.startswith("born") for name in every.ids)
    assert found.ranks.tolist() == [every.ids.index("account-009") + 1, every.ids.index("account-008") + 1]
    assert found.scores[0] == index.scores(query[0], ["account-009"])[0]
