"""What holds for every index, whichever plan answers."""

from __future__ import annotations

import numpy as np
import pytest

NAMES = [f"account-{number:03d}" for number in range(60)]


def rows(*values):
    return np.array(values, dtype=np.float32)


@pytest.fixture
def filled(make, rng):
    index = make(16)
    vectors = rng.normal(size=(60, 16)).astype(np.float32) * rng.lognormal(size=(60, 1)).astype(np.float32)
    for start in range(0, 60, 7):
        index.upsert(
            NAMES[start : start + 7],
            vectors[start : start + 7],
            labels=np.arange(60, dtype=np.int32)[start : start + 7] % 3,
            sequence=start,
        )
    return index, vectors


def expected(vectors, query, names=NAMES):
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    return [names[at] for at in np.argsort(-scores)]


def test_answers_the_best_first(filled, rng):
    index, vectors = filled
    query = rng.normal(size=16).astype(np.float32)
    hits = index.query(query, 10)
    assert hits.ids == expected(vectors, query)[:10]
    assert (np.diff(hits.scores) <= 0).all()
    assert hits.scores.dtype == np.float32
    assert hits.short is None
    np.testing.assert_allclose(hits.scores, np.sort(vectors @ query)[::-1][:10], rtol=1e-4)


def test_an_upsert_is_visible_when_it_returns(make):
    index = make(2)
    for number in range(40):
        revision = index.upsert([f"{number}"], rows([number + 1, 1]))
        hits = index.query(rows([1, 0])[0], 1)
        assert hits.ids == [f"{number}"]
        assert hits.revision >= revision


def test_an_upsert_replaces(make):
    index = make(2)
    index.upsert(["a", "b"], rows([1, 0], [2, 0]))
    index.upsert(["a"], rows([3, 0]))
    hits = index.query(rows([1, 0])[0], 2)
    assert hits.ids == ["a", "b"]
    assert hits.scores.tolist() == [3, 2]
    assert len(index) == 2


def test_the_last_of_a_repeated_id_wins(make):
    index = make(2)
    index.upsert(["a", "b", "a"], rows([1, 0], [2, 0], [5, 0]), labels=np.array([1, 1, 2], np.int32))
    assert index.vector("a").tolist() == [5, 0]
    assert len(index) == 2
    assert index.query(rows([1, 0])[0], 2, labels=[2]).ids == ["a"]


def test_equal_scores_are_in_the_order_of_ids(make):
    index = make(2)
    index.upsert(["d", "b", "c", "a", "z"], rows([1, 0], [1, 0], [1, 0], [1, 0], [2, 0]))
    assert index.query(rows([1, 0])[0], 3).ids == ["z", "a", "b"]


def test_many_equal_scores_at_the_cut_are_in_the_order_of_ids(make):
    index = make(2)
    names = [f"{number:04d}" for number in range(300)]
    index.upsert(names[::-1], rows([1, 1]).repeat(300, axis=0))
    assert index.query(rows([1, 1])[0], 20).ids == names[:20]


def test_a_deleted_id_is_gone_until_it_is_stored_again(filled, rng):
    index, vectors = filled
    query = rng.normal(size=16).astype(np.float32)
    best = expected(vectors, query)
    revision = index.delete([best[0], best[2], "unknown", best[0]])
    hits = index.query(query, 3)
    assert hits.ids == [best[1], best[3], best[4]]
    assert hits.revision >= revision
    assert best[0] not in index
    assert len(index) == 58
    with pytest.raises(KeyError):
        index.vector(best[0])
    index.upsert([best[0]], vectors[NAMES.index(best[0])][None])
    assert index.query(query, 3).ids == [best[0], best[1], best[3]]


def test_excluded_ids_never_come(filled, rng):
    index, vectors = filled
    query = rng.normal(size=16).astype(np.float32)
    best = expected(vectors, query)
    hits = index.query(query, 20, exclude=[*best[:5], "unknown"])
    assert hits.ids == best[5:25]
    assert hits.short is None


def test_only_allowed_ids_come_and_exclude_wins(filled, rng):
    index, vectors = filled
    query = rng.normal(size=16).astype(np.float32)
    best = expected(vectors, query)
    hits = index.query(query, 5, allow=[*best[10:20], "unknown"], exclude=best[10:13])
    assert hits.ids == best[13:18]
    assert index.query(query, 5, allow=[]).ids == []


def test_only_wanted_labels_come(filled, rng):
    index, vectors = filled
    query = rng.normal(size=16).astype(np.float32)
    best = expected(vectors, query)
    wanted = [name for name in best if NAMES.index(name) % 3 in (0, 2)]
    assert index.query(query, 12, labels=[0, 2, 99]).ids == wanted[:12]
    assert index.query(query, 12, labels=[0, 2], exclude=wanted[:4]).ids == wanted[4:16]
    assert index.query(query, 12, labels=[99]).ids == []
    index.upsert(wanted[:1], vectors[NAMES.index(wanted[0])][None], labels=np.array([1], np.int32))
    assert index.query(query, 12, labels=[0, 2]).ids == wanted[1:13]


def test_a_short_answer_says_so(filled, rng):
    index, _ = filled
    query = rng.normal(size=16).astype(np.float32)
    hits = index.query(query, 100, exclude=NAMES[:10])
    assert sorted(hits.ids) == NAMES[10:]
    assert hits.short == "50 of 100: no more are allowed"
    assert index.query(query, 60).short is None


def test_an_empty_index_answers_nothing(make):
    hits = make(3).query(rows([1, 2, 3])[0], 5)
    assert hits.ids == []
    assert hits.scores.shape == (0,)
    assert hits.short == "0 of 5: no more are allowed"


def test_a_score_has_the_same_bits_however_it_is_asked_for(filled, rng):
    index, _ = filled
    query = rng.normal(size=16).astype(np.float32)
    hits = index.query(query, 60)
    assert hits.scores.tobytes() == index.scores(query, hits.ids).tobytes()
    for at in range(0, 60, 13):
        alone = index.query(query, 1, allow=[hits.ids[at]])
        assert alone.scores.tobytes() == hits.scores[at : at + 1].tobytes()


def test_the_score_of_an_unknown_id_is_nan(filled, rng):
    index, vectors = filled
    query = rng.normal(size=16).astype(np.float32)
    index.delete([NAMES[7]])
    scores = index.scores(query, [NAMES[3], "unknown", NAMES[7], NAMES[3]])
    assert np.isnan(scores).tolist() == [False, True, True, False]
    np.testing.assert_allclose(scores[[0, 3]], vectors[3] @ query, rtol=1e-4)
    assert index.scores(query, []).shape == (0,)


def test_rows_are_copied_in_and_out(make):
    index = make(2)
    given = rows([1, 2])
    index.upsert(["a"], given)
    given[:] = 9
    got = index.vector("a")
    got[:] = 9
    assert index.vector("a").tolist() == [1, 2]


def test_the_sequence_of_the_last_write_is_kept(filled):
    index, vectors = filled
    assert index.sequence(NAMES[20]) == 14
    index.upsert([NAMES[20]], vectors[20:21], sequence=99)
    assert index.sequence(NAMES[20]) == 99
    with pytest.raises(KeyError):
        index.sequence("unknown")


def test_it_is_a_collection_of_ids(filled):
    index, _ = filled
    assert len(index) == 60
    assert sorted(index.ids()) == NAMES
    assert NAMES[0] in index
    assert "unknown" not in index
    assert 7 not in index
    assert index.stats().alive == 60


def test_revisions_never_fall(make):
    index = make(2)
    revisions = [index.upsert([f"{number}"], rows([1, number])) for number in range(20)]
    revisions += [index.delete([f"{number}"]) for number in range(20)]
    assert revisions == sorted(set(revisions))


def test_an_empty_write_changes_nothing(make):
    index = make(2)
    revision = index.upsert(["a"], rows([1, 2]))
    assert index.upsert([], np.zeros((0, 2), np.float32)) == revision
    assert index.delete([]) == revision
    assert index.delete(["unknown"]) == revision


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        (rows([1, 2]), "dim is 3, the vectors have 2"),
        (rows([1, 2, 3], [4, 5, 6]), r"vectors has the shape \(2, 3\), the call has 1 ids"),
        (rows(1, 2, 3), r"vectors has the shape \(3,\), the call has 1 ids"),
        (rows([0, 0, 0]), "vector 0 is zero"),
        (rows([1, np.nan, 0]), "vector 0 is not finite"),
        (rows([1, -np.inf, 0]), "vector 0 is not finite"),
        (np.array([[1e200, 0, 0]]), "vector 0 is not finite"),
        (rows([1e30, 0, 0]), "vector 0 has the norm 1e\\+30, more than 1e\\+18"),
    ],
)
def test_bad_vectors_are_refused(make, vectors, says):
    index = make(3)
    with pytest.raises(ValueError, match=says):
        index.upsert(["a"], vectors)
    assert len(index) == 0


def test_one_bad_row_keeps_all_others_out(make):
    index = make(2)
    with pytest.raises(ValueError, match="vector 1 is zero"):
        index.upsert(["a", "b"], rows([1, 1], [0, 0]))
    assert index.ids() == []


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (rows(1, 2), "dim is 3, the vector has 2"),
        (rows(0, 0, 0), "the vector is zero"),
        (rows(1, np.nan, 0), "the vector is not finite"),
    ],
)
def test_bad_queries_are_refused(make, vector, says):
    index = make(3)
    with pytest.raises(ValueError, match=says):
        index.query(vector, 1)
    with pytest.raises(ValueError, match=says):
        index.scores(vector, ["a"])


def test_bad_arguments_are_refused(make):
    index, query = make(2), rows(1, 0)
    with pytest.raises(ValueError, match="k is at least 1, not 0"):
        index.query(query, 0)
    with pytest.raises(TypeError, match="k is an integer, not True"):
        index.query(query, True)
    with pytest.raises(TypeError, match="exclude is a collection of ids, not one string"):
        index.query(query, 1, exclude="abc")
    with pytest.raises(TypeError, match="allow is a collection of ids, not one string"):
        index.query(query, 1, allow="abc")
    with pytest.raises(TypeError, match="ids is a sequence of ids, not one string"):
        index.upsert("a", rows([1, 2]))
    with pytest.raises(TypeError, match="ids is a sequence of ids, not one string"):
        index.delete("a")
    with pytest.raises(TypeError, match="an id is a string of at least one character, not ''"):
        index.upsert([""], rows([1, 2]))
    with pytest.raises(ValueError, match=r"labels has the shape \(2,\), the call has 1 ids"):
        index.upsert(["a"], rows([1, 2]), labels=np.array([1, 2], np.int32))


def test_norms_of_every_size_are_ranked(make):
    index = make(2)
    scales = [1e-18, 1e-9, 1, 1e9, 1e17]
    for number, scale in enumerate(scales):
        index.upsert([f"{number}"], rows([scale, scale]))
    assert index.query(rows(1, 1), 5).ids == ["4", "3", "2", "1", "0"]
